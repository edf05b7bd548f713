"""Five nodes and three copies lose one node after the other, in five ways, while real `swift upload`s go on through all of them.

The ways: `kill -9` of the node that leads, and of another; one cut off the others (clients still reach it, where the machine
permits network namespaces; else SIGSTOP); flipped bytes on a disk; a disk that is full.

What must hold:
- every `swift upload` ends well, with a few tries of its own and no help;
- what a client was told by one node no other node contradicts, at any time: no older version, no wrong byte;
- a node that can answer does so: what fails, fails soon, and for no longer than it takes to find a new leader;
- in the end every acknowledged object is there through every node, whole, in the listing once, and the counts are exact.

Environment: SEED (default random; printed), UPLOADS (default 3), FILES (of each, default 100), FAULTS (default all, in the order above:
leader kill cut rot full), NAMESPACES=0 for SIGSTOP.
"""

import http.client
import mmap
import os
import random
import re
import threading
import time

from cluster_process import CONTAINER, FORM_LIMIT, Ledger, Upload, check, cluster, together, wait_until
from swift_http import Account, md5

SIZES = ["1G", "1G", "1G", "1G", "256M"]
SMALL = 4  # the node with the small disk
RETRIES = 5  # the swift client pauses 1, 2, 4, 8 and 16 s between them
CUT_SECONDS = 12.0
DOWN_SECONDS = 4.0
OUTAGE_LIMIT = 10.0
SLOW_LIMIT = 15.0
MARK = b"quarry: here is something to damage "
FULL_PART = 10 << 20
FULL_MORE = 6
FULL_LIMIT = 60
FULL_RESERVE = 4 * (16 << 20)  # segments that clients may not take


class Probe(threading.Thread):
    """Writes small versions of one object and reads them back, each through another node and without a second try."""

    def __init__(self, it, ledger, number, rng):
        super().__init__(daemon=True)
        self.it, self.ledger, self.rng, self.name = it, ledger, rng, f"probe-{number}"
        self.leaving, self.error = threading.Event(), None
        self.away = set()  # nodes that may fail now
        self.done, self.failures, self.slowest = 0, [], (0.0, "")
        self.down_since, self.outage = {}, (0.0, "")
        self.accounts, self.version, self.states = {}, 0, {None: 0}

    def run(self):
        try:
            while not self.leaving.is_set():
                self.write(self.rng.choice(self.it.members))
                self.read(self.rng.choice(self.it.members))
        except BaseException as error:
            self.error = error

    def ask(self, member, *request, **options):
        """One request; `None` when there is no answer or one that says that it cannot be given now."""
        began = time.monotonic()
        excused = member in self.away
        try:
            if member not in self.accounts:
                self.accounts[member] = Account(member.credentials())
            answer = self.accounts[member].request(*request, **options)
            why = f"{answer.status} {answer.body[:120]!r}" if answer.status >= 500 else None
        except (OSError, http.client.HTTPException, AssertionError) as error:
            answer, why = None, repr(error)
        now = time.monotonic()
        excused = excused or member in self.away
        self.done += 1
        if why is None:
            self.down_since.pop(member, None)
        elif not excused:
            self.failures.append(f"{request[0]} through {member} after {now - began:.2f} s: {why}")
            out = now - self.down_since.setdefault(member, began)
            self.outage = max(self.outage, (out, str(member)))
        if not excused:
            self.slowest = max(self.slowest, (now - began, f"{request[0]} through {member}: {why or answer.status}"))
        return None if why else answer

    def write(self, member):
        self.version += 1
        body = b"%s %d " % (self.name.encode(), self.version) + self.rng.randbytes(self.rng.randrange(9000))
        state = (md5(body), len(body))
        self.states[state] = self.version
        self.ledger.begin(self.name, state)
        answer = self.ask(member, "PUT", f"{CONTAINER}/{self.name}", body=body)
        if answer is not None:
            assert answer.status == 201, f"PUT {self.name} through {member} answered {answer.status}: {answer.body[:200]!r}"
            self.ledger.acknowledge(self.name, state)

    def read(self, member):
        told = self.ledger.told.get(self.name)
        answer = self.ask(member, "GET", f"{CONTAINER}/{self.name}")
        if answer is None:
            return
        seen = (md5(answer.body), len(answer.body)) if answer.status == 200 else None
        assert answer.status in (200, 404), f"GET {self.name} through {member} answered {answer.status}"
        assert seen in self.states, f"GET {self.name} through {member}: bytes that nobody wrote"
        assert self.states[seen] >= self.states[told], (
            f"GET {self.name} through {member} gave version {self.states[seen]}; {self.states[told]} was acknowledged"
        )

    def finish(self):
        self.leaving.set()
        self.join(90)
        assert not self.is_alive(), f"{self.name} hangs"
        if self.error is not None:
            raise self.error


class Load:
    """Uploads and probes that go on while things break."""

    def __init__(self, it, seed, uploads, files):
        self.it, self.ledger = it, Ledger()
        self.uploads = [Upload(it, self.ledger, n, files, random.Random(f"{seed}/upload/{n}"), RETRIES) for n in range(uploads)]
        self.probes = [Probe(it, self.ledger, n, random.Random(f"{seed}/probe/{n}")) for n in range(2)]

    def start(self):
        for thread in [*self.uploads, *self.probes]:
            thread.start()

    def excuse(self, *members):
        for client in [*self.uploads, *self.probes]:
            client.away = set(members)

    def moves_on(self, what):
        """Waits until every upload that is not held up by the fault has had something acknowledged since."""
        self.still_good()
        before = self.ledger.acknowledged
        took = wait_until(lambda: self.ledger.acknowledged >= before + 60, 30.0, f"uploads go on after: {what}")
        self.still_good()
        return took

    def still_good(self):
        for thread in [*self.uploads, *self.probes]:
            if thread.error is not None:
                raise thread.error

    def failures(self):
        return sum(len(probe.failures) for probe in self.probes)

    def finish(self):
        for thread in [*self.uploads, *self.probes]:
            thread.leaving.set()
        for thread in [*self.uploads, *self.probes]:
            thread.finish()


def kill_and_start(it, load, member, what):
    load.excuse(member)
    before, began = load.failures(), time.monotonic()
    member.kill()
    took = load.moves_on(what)
    time.sleep(max(0.0, DOWN_SECONDS - (time.monotonic() - began)))  # being away for a while is what is tested
    start = member.start(limit=60.0)
    wait_until(lambda: serves(member), 30.0, f"{member} serves again")
    load.excuse()
    print(f"{what}: {member}; others went on within {took:.1f} s, start-up {start:.1f} s, {load.failures() - before} probes failed elsewhere", flush=True)


def serves(member):
    try:
        return member.account().request("HEAD", CONTAINER).status == 204
    except (OSError, http.client.HTTPException, AssertionError):
        return False


def leader(it, load, rng):
    kill_and_start(it, load, it.leader(), "kill -9 of the leader")


def kill(it, load, rng):
    kill_and_start(it, load, rng.choice([member for member in it.members if member is not it.leader()]), "kill -9")


def cut(it, load, rng):
    member = it.leader()
    load.excuse(member)
    before, began = load.failures(), time.monotonic()
    member.cut()
    took = load.moves_on("cut off")
    time.sleep(max(0.0, CUT_SECONDS - (time.monotonic() - began)))
    member.mend()
    healed = wait_until(lambda: serves(member), 30.0, f"{member} serves again")
    load.excuse()
    print(
        f"cut off: {member}, which led; others went on within {took:.1f} s, served again {healed:.1f} s after; "
        f"{load.failures() - before} probes failed elsewhere",
        flush=True,
    )


def rot(it, load, rng):
    """Damages one node's copy of every marked object that it has."""
    account = it.members[0].account()
    bodies = {}
    for at in range(40):
        name = f"rot/{at}"
        size = rng.choice([300, 5000, 200_000, 2 << 20])
        body = rng.randbytes(size // 2) + MARK + b"%06d" % at + rng.randbytes(size // 2)
        state = (md5(body), len(body))
        load.ledger.begin(name, state)
        account.expect(201, "PUT", f"{CONTAINER}/{name}", body=body)
        load.ledger.acknowledge(name, state)
        bodies[name] = body
    victim = it.members[rng.randrange(SMALL)]
    found = damage(victim.disk)
    assert found, f"nothing to damage on {victim}"
    check(it, load.ledger, names=sorted(bodies))
    load.moves_on("rot")
    corrupt = victim.status()["disks"][0]["counters"]["corrupt_records"]
    print(f"rot: {found} places on the disk of {victim} damaged, it has seen {corrupt} of them; all is whole through every node", flush=True)


def damage(disk):
    places = 0
    with open(disk, "r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        at = view.find(MARK)
        while at >= 0:
            os.pwrite(file.fileno(), bytes([view[at + 7] ^ 0x20]), at + 7)
            places += 1
            at = view.find(MARK, at + len(MARK))
        os.fsync(file.fileno())
    return places


def full(it, load, rng):
    """Fills the small disk with large versions of objects that live on it, which small ones have shown."""
    small = it.members[SMALL]
    account = it.members[0].account()
    homes = living_on(small, account, load.ledger, [f"full/{at}" for at in range(400)])
    assert homes, "no object lives on the small disk"
    before, sent, more = load.failures(), 0, FULL_MORE
    while more > 0:
        assert sent < FULL_LIMIT, f"the small disk is not full: {small.status()['disks'][0]}"
        put(account, load.ledger, homes[sent % len(homes)], rng.randbytes(FULL_PART))
        sent += 1
        # Once clients were refused, others take what comes: that is what is tested.
        more -= more < FULL_MORE or refuses(small)
    load.moves_on("full")
    print(
        f"full: {len(homes)} of 400 objects live on {small}; {sent} times {FULL_PART >> 20} MiB were sent, {FULL_MORE} of them when it was full; "
        f"{load.failures() - before} probes failed",
        flush=True,
    )


def put(account, ledger, name, body):
    state = (md5(body), len(body))
    ledger.begin(name, state)
    account.expect(201, "PUT", f"{CONTAINER}/{name}", body=body)
    ledger.acknowledge(name, state)


def refuses(member):
    """Whether a disk is full for clients: what is free is kept for deletes and cleaning."""
    disk = member.status()["disks"][0]
    return disk["capacity"] - disk["used"] <= FULL_RESERVE


def living_on(member, account, ledger, names):
    """Those objects whose bytes a node's disk has."""
    bodies = {name: f"where is {name}? {os.urandom(16).hex()}".encode() for name in names}
    together(lambda name: put(account, ledger, name, bodies[name]), names, 8)
    # A small disk is searched in a moment.
    data = member.disk.read_bytes()
    found = set(re.findall(rb"where is full/\d+\? [0-9a-f]{32}", data))
    return [name for name in names if bodies[name] in found]


FAULTS = {"leader": leader, "kill": kill, "cut": cut, "rot": rot, "full": full}


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    uploads, files = int(os.environ.get("UPLOADS", "3")), int(os.environ.get("FILES", "100"))
    faults = os.environ.get("FAULTS", " ".join(FAULTS)).split()
    rng = random.Random(seed)
    with cluster("cluster-survives", SIZES, work=['audit_rate = "1M"']) as it:
        print(f"survives: reproduce with  SEED={seed} UPLOADS={uploads} FILES={files} FAULTS='{' '.join(faults)}'", flush=True)
        print(f"formed: all groups have their voters after {wait_until(it.formed, FORM_LIMIT, 'groups with all voters', it.groups):.1f} s more", flush=True)
        it.members[0].account().expect((201, 202), "PUT", CONTAINER)
        load = Load(it, seed, uploads, files)
        load.start()
        load.moves_on("nothing")
        for fault in faults:
            FAULTS[fault](it, load, rng)
        load.finish()
        report(load)
        check(it, load.ledger)
        print(f"logs: {it.check_logs()}", flush=True)
        together(type(it.members[0]).stop, it.members)


def report(load):
    failed = [why for upload in load.uploads for why in upload.failed]
    rounds, sent = sum(upload.rounds for upload in load.uploads), sum(upload.sent for upload in load.uploads)
    print(f"uploads: {rounds} trees, {sent / 1e6:.0f} MB; slowest tree {max(upload.slowest for upload in load.uploads):.1f} s", flush=True)
    asked = sum(probe.done for probe in load.probes)
    slowest, outage = max(probe.slowest for probe in load.probes), max(probe.outage for probe in load.probes)
    print(f"probes: {asked} requests, {load.failures()} failed, for at most {outage[0]:.1f} s at a node; slowest {slowest[0]:.1f} s ({slowest[1]})", flush=True)
    if load.failures():
        some = [why for probe in load.probes for why in probe.failures]
        print("  " + "\n  ".join(some[:12]), flush=True)
    assert not failed, f"{len(failed)} uploads failed:\n" + "\n".join(failed[:10])
    assert outage[0] <= OUTAGE_LIMIT, f"{outage[1]} could not serve for {outage[0]:.1f} s"
    assert slowest[0] <= SLOW_LIMIT, f"a request took {slowest[0]:.1f} s: {slowest[1]}"


if __name__ == "__main__":
    main()
