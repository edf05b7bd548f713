"""Clusters of real processes: their configuration, their network, and what clients were told of them.

Where the machine permits it every node has a network namespace of its own with two links: one for clients and one for other
nodes, so that a node can be cut off the others while clients still reach it. Elsewhere all listen on 127.0.0.1, and a node
is cut off by SIGSTOP.

Invariant: a cluster that a test started is gone when the test ends, however it ends, and so are its network and its clients.
Invariant: no test waits for a time where it can wait for a condition.
"""

import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request

from node_process import Node, binary_argument, scratch
from swift_http import Account, md5

ACCOUNT, USER, KEY = "test", "tester", "testing"
COMMAND_LIMIT = 30.0
FORM_LIMIT = 60.0
INDEX_GROUPS = 8  # what `cluster init` makes
INSIDE = "QUARRY_E2E_NETWORK"
OBJECT, IDENTITY, VOLUME, ADMIN, CLUSTER = 8080, 5000, 8776, 6000, 7000
CONTAINER = "cluster"


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_LIMIT, **options)
    assert done.returncode == 0, f"`{' '.join(map(str, command[:6]))}` exited with {done.returncode}:\n{done.stderr[-2000:]}"
    return done.stdout


def admin(member):
    """The option by which a command asks this node."""
    return ("--admin-url", f"http://{member.client}:{ADMIN}")


def compared(member):
    """What `quarry cluster compare` says, and whether it is content; it fails when copies differ, and prints nevertheless."""
    command = [*member.within, member.binary, "cluster", "compare", "--json", *admin(member)]
    done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90)
    assert done.stdout.startswith("{"), f"compare says nothing: {done.stderr[-500:]}"
    return json.loads(done.stdout), done.returncode == 0


def enter_network():
    """Runs this very script again in a network namespace of its own, if the machine permits one."""
    if INSIDE in os.environ:
        return os.environ[INSIDE]
    flags = [] if os.geteuid() == 0 else ["--map-root-user"]
    probe = "ip link add q0 type veth peer name q1 && ip link add q2 type bridge && unshare --net true"
    tools = all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip"))
    able = tools and subprocess.run(["unshare", *flags, "--net", "sh", "-c", probe], capture_output=True).returncode == 0
    os.environ[INSIDE] = "namespaces" if able and os.environ.get("NAMESPACES") != "0" else "loopback"
    if os.environ[INSIDE] == "namespaces":
        os.execvp("unshare", ["unshare", *flags, "--net", sys.executable, *sys.argv])
    return os.environ[INSIDE]


class Network:
    """Two bridges, and for each node a namespace with a link to both; or nothing of that."""

    def __init__(self):
        self.namespaces = enter_network() == "namespaces"
        self.holders = []
        if self.namespaces:
            run("ip", "link", "set", "lo", "up")
            for bridge, net in (("clients", 0), ("nodes", 1)):
                run("ip", "link", "add", bridge, "type", "bridge")
                run("ip", "link", "set", bridge, "up")
                run("ip", "address", "add", f"10.77.{net}.254/24", "dev", bridge)

    def attach(self, number):
        """Makes room for a node. Returns (words before its command, address for clients, address for nodes)."""
        if not self.namespaces:
            # Another test may run beside this one.
            own = os.getpid() % 200 + 1
            return [], f"127.{own}.1.{number}", f"127.{own}.2.{number}"
        holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        holder.stdout.readline()
        self.holders.append(holder)
        within = ["nsenter", "--net", "--target", str(holder.pid)]
        run(*within, "ip", "link", "set", "lo", "up")
        for bridge, net in (("clients", 0), ("nodes", 1)):
            run("ip", "link", "add", f"{bridge}{number}", "type", "veth", "peer", "name", bridge, "netns", holder.pid)
            run("ip", "link", "set", f"{bridge}{number}", "master", bridge, "up")
            run(*within, "ip", "address", "add", f"10.77.{net}.{number}/24", "dev", bridge)
            run(*within, "ip", "link", "set", bridge, "up")
        return within, f"10.77.0.{number}", f"10.77.1.{number}"

    def close(self):
        for holder in self.holders:
            holder.kill()
            holder.wait()


class Member(Node):
    """One `quarry serve` process of a cluster."""

    def __init__(self, network, path, number, size, work, accounts=(ACCOUNT,), section=(), more=(), disks=1):
        super().__init__(binary_argument(), path / f"n{number}", size=size)
        self.number, self.network = number, network
        self.within, self.client, self.peer = network.attach(number)
        self.data.mkdir(parents=True)
        file = path / f"n{number}.toml"
        listen = [f'{name} = "{self.client}:{port}"' for name, port in (("object", OBJECT), ("identity", IDENTITY), ("volume", VOLUME), ("admin", ADMIN))]
        lines = ["[node]", f'data = "{self.data}"', "[listen]", *listen, "[cluster]", f'listen = "{self.peer}:{CLUSTER}"', *section]
        lines += ["[log]", f'slow = "{os.environ.get("SLOW", "5s")}"', "[work]", *work]
        for account in accounts:
            lines += ["[[auth.v1_user]]", f'account = "{account}"', f'user = "{USER}"', f'key = "{KEY}"', 'groups = [".admin"]']
        lines += ["[nbd]", f'listen = "{self.nbd_address}"', f'socket = "{self.data}/nbd.socket"', "[volumes]", f'backend = "n{number}"', *more]
        for at in ("", *range(2, disks + 1)):
            lines += ["[[disk]]", f'path = "{self.disk}{at}"', f'index = "{self.data / "index"}{at}"', f'size = "{size}"']
        file.write_text("\n".join(lines) + "\n")
        self.command = [*self.within, self.binary, "serve", "--config", str(file)]
        self.stopped = False

    def __str__(self):
        return f"n{self.number}"

    @property
    def nbd(self):
        return f"unix:{self.data}/nbd.socket"

    @property
    def nbd_address(self):
        """Where the volume API says that NBD clients connect: reached from the node's own machine alone."""
        return f"127.0.1.{self.number}:10809"

    @property
    def disk(self):
        return self.data / "disk"

    def credentials(self, account=ACCOUNT):
        auth = f"http://{self.client}:{OBJECT}/auth/v1.0"
        return {"ST_AUTH": auth, "ST_USER": f"{account}:{USER}", "ST_KEY": KEY}

    def quarry(self, *arguments):
        return run(*self.within, self.binary, *arguments)

    def account(self, name=ACCOUNT):
        return Account(self.credentials(name))

    def status(self):
        with urllib.request.urlopen(f"http://{self.client}:{ADMIN}/status", timeout=10) as answer:
            return json.load(answer)

    def lines(self):
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def cut(self):
        """Takes the node off the network of nodes; clients still reach it where namespaces are permitted."""
        if self.network.namespaces:
            run("ip", "link", "set", f"nodes{self.number}", "down")
        else:
            self.process.send_signal(signal.SIGSTOP)

    def mend(self):
        if self.network.namespaces:
            run("ip", "link", "set", f"nodes{self.number}", "up")
        else:
            self.process.send_signal(signal.SIGCONT)


class Cluster:
    """Members, the first of which founds it."""

    def __init__(self, path, sizes, work=("audit_rate = 0",), part_power=8, accounts=(ACCOUNT,), section=(), more=(), disks=1):
        self.disks = disks  # of each node
        self.path, self.work, self.members, self.clients = path, list(work), [], []
        self.gone = []  # nodes that were taken away
        self.network = Network()
        self.part_power, self.accounts = part_power, accounts
        self.section = section  # further lines of [cluster]
        self.more = more  # further sections
        self.grow(sizes)

    def grow(self, sizes):
        """Further nodes join, all at the same time; returns when all nodes use a ring over all disks."""
        fresh = [Member(self.network, self.path, len(self.members) + 1 + at, size, self.work, self.accounts, self.section, self.more, self.disks) for at, size in enumerate(sizes)]
        self.members += fresh
        rest = list(fresh)
        if fresh[0] is self.members[0]:
            founder = rest.pop(0)
            founder.quarry("cluster", "init", "--data", founder.data, "--part-power", self.part_power, "--min-part-hours", 0)
            founder.start()
        for member in rest:
            token = self.members[0].quarry("cluster", "token", "--data", self.members[0].data).strip()
            member.quarry("join", token, "--data", member.data)
        together(Member.start, rest)
        wait_until(lambda: all(self.ring_of(member) == self.disks * len(self.members) for member in self.members), FORM_LIMIT, "ring over all disks", self.rings)
        return fresh

    @staticmethod
    def ring_of(member):
        """Disks of the ring that a node said last that it uses."""
        said = [re.search(r"rings are in use .*devices=(\d+)", line) for line in member.lines()]
        return max([int(found.group(1)) for found in said if found], default=0)

    def rings(self):
        return {str(member): self.ring_of(member) for member in self.members}

    def groups(self):
        """What the nodes that answer say of the groups that are at them: node, and the group's report."""
        said = []
        for member in self.members:
            with contextlib.suppress(OSError):
                said += [(member, group) for group in member.status()["cluster"]["groups"] if group["here"]]
        return said

    def formed(self):
        """Whether every group, as its leader says, has all the voters that so many nodes give it: before, one node's loss is the group's."""
        votes = min(3, len(self.members))
        known = {}
        for member, group in self.groups():
            known.setdefault(group["name"], []).append((group["last"], group["voters"]))
        return len(known) == 1 + INDEX_GROUPS and all(max(said)[1] >= votes for said in known.values())

    def leader(self):
        """The node that leads the index group with the longest log: that of the account that is written to."""
        said = [(group["last"], group["leader"]) for _, group in self.groups() if group["name"] != "control" and group["leader"]]
        assert said, "no node knows who leads the names"
        return self.node(max(said)[1])

    def node(self, identity):
        for member in self.members:
            with contextlib.suppress(OSError):
                if member.status()["cluster"]["node"] == identity:
                    return member
        raise AssertionError(f"node {identity} does not answer")

    def close(self):
        for client in self.clients:
            client.abandon()
        for member in [*self.members, *self.gone]:
            if member.process is not None:
                member.kill()
        self.network.close()

    def check_logs(self):
        """No log has a panic; returns how many lines each level has, and who says most."""
        levels, speakers = collections.Counter(), collections.Counter()
        for member in self.members:
            for line in member.lines():
                assert "panicked" not in line, f"{member} panicked: {line}"
                found = re.match(r"\S+Z +(ERROR|WARN|INFO) ([^:]+(?:::\w+)*)", line)
                if found:
                    levels[found.group(1)] += 1
                    speakers[f"{found.group(1)} {found.group(2)}"] += 1
        most = ", ".join(f"{who} {count}" for who, count in speakers.most_common(6))
        return f"{levels['ERROR']} errors, {levels['WARN']} warnings, {levels['INFO']} infos; most: {most}"


@contextlib.contextmanager
def cluster(name, sizes, **options):
    """A cluster that is up; killed at the end."""
    enter_network()
    with scratch(name) as path:
        began, it = time.monotonic(), None
        try:
            it = Cluster.__new__(Cluster)
            it.members, it.clients, it.gone, it.network = [], [], [], None
            it.__init__(path, sizes, **options)
            kind = "namespaces" if it.network.namespaces else "127.0.0.1 (no namespaces here)"
            print(f"cluster: {len(sizes)} nodes up after {time.monotonic() - began:.1f} s, on {kind}", flush=True)
            yield it
        except BaseException:
            for member in it.members if it else []:
                interesting = [line[:300] for line in member.lines() if "openraft" not in line and "copy repaired" not in line]
                print(f"{member}: the end of its log:\n" + "\n".join(interesting[-12:]), file=sys.stderr, flush=True)
            raise
        finally:
            if it is not None and it.network is not None:
                it.close()


def together(step, things, width=None):
    with concurrent.futures.ThreadPoolExecutor(width or max(1, len(things))) as pool:
        return list(pool.map(step, things))


def wait_until(condition, limit, what, shown=lambda: ""):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit, f"not within {limit:.0f} s: {what} {shown()}"
        time.sleep(0.05)
    return time.monotonic() - began


class Ledger:
    """What clients were told, per object; a name has one writer. A state is (md5, size), or None for no object.

    A write that was not answered may be done at any later time, also after another state was read: a copy of it may lie on a
    device that no reader has looked at. It may not once a later write of that name was answered, or was seen.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.told, self.open = {}, collections.defaultdict(list)
        self.acknowledged = 0

    def begin(self, name, state):
        with self.lock:
            self.open[name].append(state)

    def acknowledge(self, name, state):
        with self.lock:
            self.told[name] = state
            self.open.pop(name, None)
            self.acknowledged += 1

    def allowed(self, name):
        return [self.told.get(name), *self.open.get(name, ())]

    def settle(self, name, seen):
        """What was seen of an unanswered write stays; those that began after it are still open.

        Two empty bodies look alike: what was there before tells nothing of a later write of the same.
        """
        with self.lock:
            begun = self.open.get(name, [])
            if seen in begun and seen != self.told.get(name):
                self.told[name] = seen
                self.open[name] = begun[begun.index(seen) + 1 :]

    def names(self):
        with self.lock:
            return sorted(set(self.told) | set(self.open))


def state_of(account, name):
    answer = account.request("GET", f"{CONTAINER}/{name}")
    if answer.status == 404:
        return None
    assert answer.status == 200, f"GET {name} answered {answer.status}: {answer.body[:300]!r}"
    return md5(answer.body), len(answer.body)


def check(it, ledger, members=None, names=None):
    """Every node gives every acknowledged object, with the right bytes and in the listing once, and counts exactly.

    With `names`, these objects alone, and no listing: others may be changing.
    """
    began = time.monotonic()
    members = members or it.members
    alone, names = names is not None, ledger.names() if names is None else names
    accounts = {member: member.account() for member in members}
    wrong = []

    def look(job):
        member, name = job
        try:
            seen = state_of(accounts[member], name)
        except Exception as error:  # the whole picture is wanted, not the first miss
            wrong.append(f"{member}: {name}: {error}")
            return
        if seen not in ledger.allowed(name):
            wrong.append(f"{member}: {name}: {seen} is there, clients were told {ledger.allowed(name)}")
        ledger.settle(name, seen)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        # A node looks at its own device first: after all have looked, what lies of an unanswered write was seen and stays.
        for member in [*members, *members]:
            list(pool.map(look, [(member, name) for name in names if ledger.open.get(name)]))
        list(pool.map(look, [(member, name) for member in members for name in names]))
    if not alone:
        wrong += check_listings(accounts, ledger)
    assert not wrong, f"{len(wrong)} things are wrong:\n" + "\n".join(wrong[:40])
    size = sum(ledger.told[name][1] for name in names if ledger.told.get(name))
    whole = "bytes are right" if alone else "bytes, listings and counters are right"
    print(f"check: {len(names)} objects through {len(members)} nodes, {size / 1e6:.0f} MB: {whole} ({time.monotonic() - began:.1f} s)", flush=True)


def check_listings(accounts, ledger):
    """What is wrong with the container's listing and with counters, at each node."""
    wrong = []
    present = {name: state for name, state in ledger.told.items() if state}
    counts = (len(present), sum(size for _, size in present.values()))
    for member in accounts:
        rows = accounts[member].listing(CONTAINER)
        listed = {row["name"]: (row["hash"], row["bytes"]) for row in rows}
        if listed != present:
            differ = [(name, listed.get(name), present.get(name)) for name in sorted(set(listed) | set(present)) if listed.get(name) != present.get(name)]
            wrong.append(f"{member}: {len(differ)} lines of the listing are wrong: {differ[:5]}")
        head = accounts[member].expect(204, "HEAD", CONTAINER)
        counters = (head.number("x-container-object-count"), head.number("x-container-bytes-used"))
        if counters != counts:
            wrong.append(f"{member}: counters say {counters}, there are {counts}")
        head = accounts[member].expect(204, "HEAD")
        counters = (head.number("x-account-object-count"), head.number("x-account-bytes-used"))
        if counters != counts:
            wrong.append(f"{member}: the account's counters say {counters}, there are {counts}")
    return wrong


class Upload(threading.Thread):
    """`swift upload` of one tree through one node after the other, without a pause; every name that it prints was acknowledged.

    No two go to one node where there are more, so that one node's loss never holds up all; none begins at one that is known to be away.
    """

    def __init__(self, it, ledger, number, files, rng, retries, nodes=None):
        super().__init__(daemon=True)
        self.it, self.ledger, self.number, self.rng, self.retries = it, ledger, number, rng, retries
        self.folder = it.path / f"trees-{number}" / f"t{number}"
        self.files, self.nodes = files, nodes
        self.leaving, self.error = threading.Event(), None
        self.rounds, self.sent, self.failed, self.slowest = 0, 0, [], 0.0
        self.process, self.abandoned = None, False
        self.member, self.away = None, set()
        it.clients.append(self)

    def make(self):
        """New bytes for all files; returns their states by name."""
        states = {}
        for at in range(self.files):
            file = self.folder / f"d{at % 7}" / f"f{at}"
            file.parent.mkdir(parents=True, exist_ok=True)
            if at % 40 == 39:
                size = self.rng.randrange(5 << 20, 20 << 20)
            else:
                size = self.rng.choice([0, 100, 4096, self.rng.randrange(65536), self.rng.randrange(300_000)])
            body = self.rng.randbytes(size)
            file.write_bytes(body)
            states[f"{self.folder.name}/{file.relative_to(self.folder)}"] = (md5(body), len(body))
        return states

    def run(self):
        try:
            while not self.leaving.is_set():
                self.member = self.next()
                self.upload(self.member, self.make())
                self.rounds += 1
        except BaseException as error:
            self.error = error

    def next(self):
        members = self.nodes or self.it.members
        start = (self.number + self.rounds) % len(members)
        others = [getattr(client, "member", None) for client in self.it.clients if client is not self]
        return min([*members[start:], *members[:start]], key=lambda member: (member in self.away, others.count(member)))

    def upload(self, member, states):
        for name, state in states.items():
            self.ledger.begin(name, state)
        swift = pathlib.Path(sys.executable).with_name("swift")
        command = [str(swift), "--retries", str(self.retries), "upload", "--object-threads", "4", CONTAINER, self.folder.name]
        member.env = member.credentials()
        began = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=self.folder.parent, env=member.client_env(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if self.abandoned:
            self.process.kill()
        gathered = []
        reader = threading.Thread(target=lambda: gathered.append(self.process.stderr.read()), daemon=True)
        reader.start()
        for line in self.process.stdout:
            name = line.rstrip("\n")
            if name in states:
                self.ledger.acknowledge(name, states[name])
                self.sent += states[name][1]
        code = self.process.wait()
        reader.join()
        self.slowest = max(self.slowest, time.monotonic() - began)
        if code != 0:
            self.failed.append(f"`swift upload` {self.number} round {self.rounds} through {member} exited with {code}: {gathered[0][-600:]}")

    def abandon(self):
        """The test is over, however it ended: no client outlives it."""
        self.leaving.set()
        self.abandoned = True
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    def finish(self):
        self.leaving.set()
        self.join(180)
        assert not self.is_alive(), f"upload {self.number} hangs"
        if self.error is not None:
            raise self.error
