"""A volume with three members on three nodes, under writers, while members and heads are killed and stopped.

What must hold:
- while a member is killed and comes back, writers go on; the longest stall is printed;
- when the head's node is killed, a client goes on at another node, and finds what was flushed, or something later;
- a head that was stopped while another node attached is fenced: its late writes and reads are refused;
- snapshots taken under writers, also while a member is away, are of one moment, and never change: not at another head, nor on a member
  that was filled, nor when another one is deleted;
- who uses a volume keeps it, also where it is to be deleted by its id;
- an encrypted one is read at another node, grows, has a snapshot that does not change, and is deleted once its head has let it go;
- another key wraps the keys of encrypted volumes once all nodes have it, also when a node is killed then, and the old one is forgotten by all;
- clones of snapshots begin as those are, go their own way, and are filled on a member that was away; limits hold wherever the head is;
- a node that is killed while it makes a clone, or while a volume goes back to a snapshot, leaves the one or the other;
- in the end all three members count again and have the same rows.

Environment: SEED (default random; printed), WRITERS (default 4).
"""

import collections
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import threading
import time

import nbd_volumes
from cluster_process import admin, cluster, run, wait_until
from nbd_client import FLUSH, READ, REQUEST, WRITE, Export, Refused
from nbd_volumes import BLOCK, ZERO, Writer, check, digest, meaning, stamp

BLOCKS = 16_384  # 64 MiB
USED = 2000
BACK_LIMIT = 90.0  # patience with a member that is away, and filling it
ATTACH_LIMIT = 60.0  # an election of the control group, and promises
HANG = 60.0


def is_stopped(process):
    tasks = pathlib.Path(f"/proc/{process}/task").glob("*/stat")
    return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


class Timed(Export):
    """Knows how long the slowest request took."""

    slowest = 0.0

    def ask(self, *arguments, **options):
        began = time.monotonic()
        try:
            return super().ask(*arguments, **options)
        finally:
            Timed.slowest = max(Timed.slowest, time.monotonic() - began)


def volume(member, *arguments):
    return member.quarry("volume", *arguments, *admin(member))


def shown(member):
    return json.loads(volume(member, "show", "disk1", "--json"))["several"]


def all_count(member):
    said = shown(member)
    return len(said["members"]) == 3 and all(one["counts"] for one in said["members"])


def attached(member, name="disk1"):
    """An export there, as soon as the node can attach: the control group may be electing a leader."""
    found = []

    def attempt():
        try:
            found.append(Export(member.nbd, name))
            return True
        except (OSError, Refused):
            return False

    took = wait_until(attempt, ATTACH_LIMIT, f"attach at {member}")
    return found[0], took


class Load:
    """Writers at one node."""

    def __init__(self, member, known, count, seed):
        self.known, self.writers = known, []
        for n in range(count):
            mine = {block: known[block] for block in range(n, USED, count)}
            self.writers.append(Writer(member.nbd, n + 1, list(mine), random.Random(f"{seed}/{n}"), mine))
        for writer in self.writers:
            writer.start()

    def goes_on(self, seconds):
        before = [writer.sequence for writer in self.writers]
        time.sleep(seconds)
        for writer, was in zip(self.writers, before):
            if writer.error is not None:
                raise writer.error
            assert writer.is_alive(), "a writer was refused or lost its connection"
            assert writer.sequence > was, f"a writer came no further in {seconds} s"

    def end(self):
        for writer in self.writers:
            writer.join(HANG)
            assert not writer.is_alive(), "a writer hangs"
            if writer.error is not None:
                raise writer.error


def fenced(old, at, new, known):
    """Stops the head, attaches elsewhere, lets it go on: what it is asked then, and what it was asked meanwhile, is refused."""
    last, block = Export(old.nbd, "disk1"), 7
    last.read(block * BLOCK, BLOCK)
    old.process.send_signal(signal.SIGSTOP)
    # On a busy machine its threads run on for a while, and what came to it then would be no late write.
    wait_until(lambda: is_stopped(old.process.pid), HANG, "all threads stop")
    late = stamp(block, 99, 1)
    # They lie in the stopped node's socket.
    last.socket.sendall(struct.pack(">IHHQQI", REQUEST, 0, WRITE, 8, block * BLOCK, BLOCK) + late)
    last.socket.sendall(struct.pack(">IHHQQI", REQUEST, 0, READ, 9, block * BLOCK, BLOCK))
    last.socket.sendall(struct.pack(">IHHQQI", REQUEST, 0, FLUSH, 10, 0, 0))
    export, took = attached(new)
    check(new.nbd, known)
    value = (98, 1)
    export.write(block * BLOCK, stamp(block, *value))
    export.flush()
    known[block]["may"], known[block]["now"] = [value], value
    old.process.send_signal(signal.SIGCONT)
    refused = 0
    last.socket.settimeout(HANG)
    for _ in range(3):
        try:
            magic, error, cookie = struct.unpack(">IIQ", last.take(16))
        except OSError:
            break  # it ended the connection: that is a refusal, too
        # A flush may succeed: the protocol has it promise that writes whose replies were *sent* are durable, and they are: all that this
        # head ever answered was flushed, or is in the base on which the new one builds. The write before it, on the same socket, was
        # refused, so that it promises nothing of that. Had any answered write not been flushed, this flush would be refused, too.
        assert error != 0 or cookie == 10, f"the old head answered request {cookie}"
        refused += error != 0
    try:
        last.read(block * BLOCK, BLOCK)
        raise AssertionError("the old head serves reads")
    except (Refused, OSError):
        pass
    check(new.nbd, known)
    export.close()
    print(f"the head at {old} was stopped; {new} attached after {took:.1f} s; of the old one's late requests {refused} of 3 were refused in words", flush=True)


class Pulse(threading.Thread):
    """What the machine itself does to who sleeps a little and flushes a block to the same disk: it stands beside every stall."""

    def __init__(self, directory):
        super().__init__(daemon=True)
        self.file, self.slowest, self.ended = directory / "pulse", 0.0, False
        self.start()

    def run(self):
        with open(self.file, "wb", buffering=0) as out:
            while not self.ended:
                began = time.monotonic()
                time.sleep(0.005)
                out.seek(0)
                out.write(bytes(4096))
                os.fdatasync(out.fileno())
                self.slowest = max(self.slowest, time.monotonic() - began)

    def end(self):
        self.ended = True
        self.join()
        self.file.unlink()
        return self.slowest


def one_moment(member, name, known):
    """What a snapshot taken under writers has: of each writer all up to one of its writes."""
    export, newest = attached(member, name)[0], collections.Counter()
    seen = {block: meaning(block, export.read(block * BLOCK, BLOCK)) for block in known}
    export.close()
    for writer, sequence in seen.values():
        newest[writer] = max(newest[writer], sequence)
    for block, (writer, sequence) in seen.items():
        if sequence > 0:
            holes = [it for it in list(known[block]["may"]) if it[0] == writer and sequence < it[1] <= newest[writer]]
            assert not holes, f"{name} has write {newest[writer]} of {writer}, and of block {block} {sequence} instead of {holes}"
    assert sum(newest.values()) > 0, f"{name} is empty"


def encrypted(one, two):
    """Written at one node, made larger and read at another, trimmed, and deleted by the first once it is nobody's."""
    volume(one, "create", "disk2", 64 * BLOCK, "--members", 3, "--encrypted")
    data = bytes(range(256)) * (BLOCK // 256)
    export = attached(one, "disk2")[0]
    export.write(3 * BLOCK, data * 4)
    export.write(100, b"in the midst of a block")
    export.flush()
    export.close()
    volume(one, "snapshot", "disk2", "early")
    volume(two, "extend", "disk2", 128 * BLOCK)
    export = attached(two, "disk2")[0]
    assert export.size == 128 * BLOCK, f"it has {export.size} bytes"
    assert export.read(3 * BLOCK, 4 * BLOCK) == data * 4 and export.read(100, 8) == b"in the m"
    export.trim(4 * BLOCK, 90 * BLOCK)
    assert export.read(3 * BLOCK, 4 * BLOCK) == data + bytes(3 * BLOCK)
    export.write(120 * BLOCK, data)
    export.flush()
    frozen = attached(two, "disk2@early")[0]
    assert frozen.size == 64 * BLOCK and frozen.read(3 * BLOCK, 4 * BLOCK) == data * 4, "the snapshot changed"
    try:
        frozen.write(0, data)
        raise AssertionError("a snapshot was written")
    except Refused:
        frozen.close()
    export.close()
    try:
        volume(one, "delete", "disk2")
        raise AssertionError("a volume was deleted under another node's head")
    except AssertionError as error:
        assert "detach it first" in str(error), error
    volume(one, "detach", "disk2")
    assert volume(one, "compare", "disk2").startswith("3 members have the same"), "members differ"
    volume(one, "snapshot", "disk2", "early", "--delete")
    assert volume(one, "compare", "disk2").startswith("3 members have the same"), "members differ"
    volume(one, "delete", "disk2")
    assert "disk2" not in volume(one, "list")


def newer_key(one, two, three):
    """Another key wraps volumes' keys: not before all nodes have it, and a node is killed while they are wrapped anew."""
    volume(two, "create", "locked", 64 * BLOCK, "--members", 3, "--encrypted")
    volume(three, "create", "own", 64 * BLOCK, "--encrypted")
    fill_with(two, "locked", 9, range(8))
    fill_with(three, "own", 8, range(8))
    was, mine = digest(two.nbd, "locked"), digest(three.nbd, "own")
    known = lambda: {key["name"]: key for key in json.loads(volume(one, "key", "list", "--json"))}
    wait_until(lambda: [(key["volumes"], key["lacking"]) for key in known().values()] == [(2, [])], HANG, "all nodes say which keys they have", known)
    (old,) = known()
    refused("authority", two, "key", "new")
    new = volume(one, "key", "new").strip()
    refused("node has the key", two, "key", "use", new)
    file = lambda member: member.data / "volumes.key"
    file(two).write_text(file(one).read_text())
    three.quarry("join", one.quarry("cluster", "token", "--data", one.data).strip(), "--data", three.data)
    wait_until(lambda: new in known() and not known()[new]["lacking"], HANG, "all nodes have read the newer key", known)
    volume(three, "key", "use", new)
    two.kill()
    refused("wraps", one, "key", "drop", new)
    two.start()
    wait_until(lambda: (known()[new]["volumes"], known()[old]["volumes"]) == (2, 0), HANG, "all volumes are wrapped anew", known)
    wait_until(lambda: dropped(one, old), HANG, "the old key is dropped", known)
    wait_until(lambda: all(len(file(member).read_text().split()) == 1 for member in (one, two, three)), HANG, "all nodes forget the old key", known)
    wait_until(lambda: list(known()) == [new], HANG, "all nodes have said so", known)
    for member in (one, two, three):
        volume(member, "create", f"late{member.number}", 16 * BLOCK, "--encrypted", "--members", 3)
    three.kill()
    three.start()
    attached(three, "locked")[0].close()
    assert digest(three.nbd, "locked") == was and digest(three.nbd, "own") == mine, "encrypted volumes have other bytes under the newer key"
    for member in (one, two, three):
        volume(member, "delete", f"late{member.number}")
    volume(three, "delete", "own")
    volume(three, "detach", "locked")
    volume(one, "delete", "locked")
    print("another key wraps volumes' keys; all nodes forgot the old one, and the bytes are the same", flush=True)


def let_go(members):
    """What one node has let go, another may delete at once, whether or not it has heard of that."""
    for there in members:
        for here in members:
            volume(here, "create", "passed", 16 * BLOCK, "--members", 3)
            attached(there, "passed")[0].close()
            volume(there, "detach", "passed")
            volume(here, "delete", "passed")


def named_by_its_id(member):
    """Who uses a volume keeps it, by whichever of its names it is to be deleted."""
    volume(member, "create", "called", 16 * BLOCK, "--members", 3)
    known = json.loads(volume(member, "show", "called", "--json"))["id"]
    export = attached(member, "called")[0]
    for name in (known, "called"):
        refused("volume `called` is in use", member, "delete", name)
    export.write(0, bytes(range(256)) * (BLOCK // 256))
    export.close()
    volume(member, "detach", "called")
    volume(member, "delete", known)
    assert "called" not in volume(member, "list")


def made_a_moment_ago(members):
    """What one node has made, every other one finds at once, whether or not it has heard of that: by each way in."""
    for there in members:
        for here in members:
            if here is there:
                continue
            for number in range(3):
                volume(there, "create", "fresh", 16 * BLOCK, "--members", 3)
                if number == 0:
                    Export(here.nbd, "fresh").close()
                elif number == 1:
                    assert json.loads(volume(here, "show", "fresh", "--json"))["name"] == "fresh"
                    volume(here, "snapshot", "fresh", "one")
                else:
                    volume(here, "attach", "fresh")
                volume(here, "detach", "fresh")
                volume(there, "delete", "fresh")
            volume(there, "create", "fresh", 16 * BLOCK, "--members", 3)
            volume(there, "snapshot", "fresh", "one")
            volume(there, "detach", "fresh")
            volume(here, "clone", "fresh@one", "of-it")
            Export(there.nbd, "of-it").close()
            volume(there, "detach", "of-it")
            volume(here, "delete", "of-it")
            volume(here, "detach", "fresh")
            volume(there, "snapshot", "fresh", "one", "--delete")
            volume(there, "detach", "fresh")
            volume(here, "delete", "fresh")
    for member in members:
        refused_at(member)


def refused_at(member):
    """Many who ask for what is not there are told so, and soon."""
    began, threads, wrong = time.monotonic(), [], []

    def ask():
        try:
            Export(member.nbd, "nonsense")
            wrong.append("it is there")
        except (OSError, Refused):
            pass

    for _ in range(40):
        threads.append(threading.Thread(target=ask, daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join(HANG)
    assert not any(thread.is_alive() for thread in threads) and not wrong, wrong
    print(f"40 clients at {member} were told in {time.monotonic() - began:.2f} s that there is no such export", flush=True)


def dropped(member, key):
    """What a node has may change in the same moment, which is told so."""
    try:
        volume(member, "key", "drop", key)
    except AssertionError as error:
        assert "at the same time" in str(error), error
        return False
    return True


def refused(why, member, *arguments):
    try:
        volume(member, *arguments)
    except AssertionError as error:
        assert why in str(error), error
        return
    raise AssertionError(f"{arguments} was not refused")


def killed_while(member, random_, *arguments):
    """Kills the node somewhere in the middle of a change."""

    def change():
        try:
            volume(member, *arguments)
        except AssertionError:
            pass  # its node was killed

    thread = threading.Thread(target=change)
    thread.start()
    time.sleep(random_.random() * 0.4)
    member.kill()
    thread.join(HANG)


def fill_with(member, name, value, blocks, together=1):
    export = attached(member, name)[0]
    for block in blocks:
        export.write(block * BLOCK, bytes([value]) * BLOCK * together)
    export.flush()
    export.close()


def lineage(one, two, three, random_):
    """Clones, differences, going back, limits."""
    start = time.monotonic()
    volume(one, "create", "base", 2048 * BLOCK, "--members", 3)
    fill_with(one, "base", 1, range(0, 2000, 40), 20)
    volume(one, "snapshot", "base", "monday")
    fill_with(one, "base", 2, range(10, 14))
    monday, now = digest(one.nbd, "base@monday"), digest(one.nbd, "base")
    assert monday != now
    assert volume(one, "diff", "base@monday").split() == [str(10 * BLOCK), str(4 * BLOCK)]
    if shutil.which("nbdinfo"):
        told = json.loads(run(*one.within, "nbdinfo", "--json", "--map=quarry:snapshot-diff:monday", f"nbd+unix:///base?socket={one.nbd.removeprefix('unix:')}"))
        assert [(it["offset"], it["length"]) for it in told if it["type"]] == [(10 * BLOCK, 4 * BLOCK)], told
    volume(one, "clone", "base@monday", "copy", "--size", 4096 * BLOCK)
    refused("has a clone", one, "snapshot", "base", "monday", "--delete")
    fill_with(two, "copy", 7, [0, 1, 4000])
    export = attached(two, "copy")[0]
    seen = [export.read(block * BLOCK, 1)[0] for block in (0, 1, 2, 30, 10, 4000, 4001)]
    assert seen == [7, 7, 1, 0, 1, 7, 0], f"the clone has {seen}"
    # From another node than the head's: what is limited is what the head's clients do.
    volume(three, "qos", "copy", "--iops", 20)
    wait_until(lambda: "total_iops_sec" in volume(two, "show", "copy", "--json"), HANG, "limits are known")
    time.sleep(0.5)  # the head's node has heard of it as well
    began = time.monotonic()
    for block in range(60):
        export.read(block * BLOCK, BLOCK)
    slow = time.monotonic() - began
    assert slow >= 1.5, f"60 reads at 20 a second, 20 at once, took {slow:.2f} s"
    volume(three, "qos", "copy")
    export.close()
    volume(two, "detach", "copy")
    assert digest(one.nbd, "base") == now and digest(one.nbd, "base@monday") == monday, "a clone changed its parent"
    killed_while(one, random_, "clone", "base@monday", "torn")
    one.start()
    # Whoever attaches has heard of all that was decided before.
    attached(two, "base")[0].close()
    # It is there, or it is taken away; and the clone's member here is filled again.
    wait_until(lambda: '"torn"' not in volume(two, "list", "--json") or digest_or_none(two, "torn") == monday, BACK_LIMIT, "there is a clone or none")
    torn = '"torn"' in volume(two, "list", "--json")
    if torn:
        volume(two, "delete", "torn")
    volume(two, "clone", "base@monday", "torn")
    attached(one, "torn")[0].close()
    assert digest(one.nbd, "torn") == monday
    volume(one, "delete", "torn")
    # Enough that going back takes some time.
    fill_with(two, "base", 3, range(0, 2048, 2))
    after = digest(two.nbd, "base")
    killed_while(two, random_, "revert", "base@monday")
    attached(one, "base")[0].close()
    back = digest(one.nbd, "base")
    assert back in (after, monday), "it went back in part"
    two.start()
    volume(one, "revert", "base@monday")
    assert digest(one.nbd, "base") == monday
    attached(one, "copy")[0].close()
    all_there = lambda name: all(it["counts"] and it["state"] == "active" for it in json.loads(volume(one, "show", name, "--json"))["several"]["members"])
    wait_until(lambda: all_there("copy"), BACK_LIMIT, "all members of the clone are there", lambda: volume(one, "show", "copy"))
    volume(one, "flatten", "copy")
    volume(one, "snapshot", "base", "monday", "--delete")
    wait_until(lambda: all_there("base"), BACK_LIMIT, "all members are there", lambda: volume(one, "show", "base"))
    volume(one, "delete", "base")
    assert volume(one, "compare", "copy").startswith("3 members have the same"), "members differ"
    export = attached(one, "copy")[0]
    seen = [export.read(block * BLOCK, 1)[0] for block in (0, 1, 2, 30, 10, 4000, 4001)]
    assert seen == [7, 7, 1, 0, 1, 7, 0], f"the clone has {seen} when its parent is gone"
    export.close()
    print(f"clones, limits and going back hold, after {time.monotonic() - start:.0f} s; the clone that was cut off is {'there' if torn else 'none'}, the volume that was going back is {'there' if back == monday else 'where it was'}", flush=True)


def digest_or_none(member, name):
    try:
        return digest(member.nbd, name)
    except (OSError, Refused):
        return None


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    count = int(os.environ.get("WRITERS", "4"))
    nbd_volumes.Export = Timed
    print(f"volumes of a cluster: reproduce with  SEED={seed} WRITERS={count}", flush=True)
    with cluster("cluster-volumes", ["1G"] * 3) as it:
        one, two, three = it.members
        wait_until(it.formed, 60, "groups with three voters")
        volume(one, "create", "disk1", BLOCKS * BLOCK, "--members", 3)
        known = collections.defaultdict(lambda: {"may": [ZERO], "now": ZERO})
        for block in range(USED):
            known[block]
        load = Load(one, known, count, f"{seed}/1")
        load.goes_on(1.0)
        volume(one, "snapshot", "disk1", "first")
        load.goes_on(0.5)
        one_moment(one, "disk1@first", known)
        first = digest(one.nbd, "disk1@first")
        Timed.slowest = 0.0
        load.goes_on(1.0)
        usual, Timed.slowest = Timed.slowest, 0.0
        pulse = Pulse(one.data)
        three.kill()
        load.goes_on(2.0)
        wait_until(lambda: not all_count(one), BACK_LIMIT, "the member that was killed counts no more", lambda: shown(one))
        stall, machine = Timed.slowest, pulse.end()
        began = time.monotonic()
        volume(one, "snapshot", "disk1", "second")
        made = time.monotonic() - began
        one_moment(one, "disk1@second", known)
        second = digest(one.nbd, "disk1@second")
        three.start()
        took = wait_until(lambda: all_count(one), BACK_LIMIT, "the member that was killed counts again", lambda: shown(one))
        load.goes_on(1.0)
        print(f"a member killed: longest stall {stall * 1000:.0f} ms (before {usual * 1000:.0f} ms, the machine's own meanwhile {machine * 1000:.0f} ms); it counts again {took:.1f} s after its start", flush=True)
        one.kill()
        load.end()
        export, took = attached(two)
        export.close()
        check(two.nbd, known)
        assert digest(two.nbd, "disk1@first") == first, "the first snapshot changed with its head"
        assert digest(two.nbd, "disk1@second") == second, "the second snapshot changed with its head"
        load = Load(two, known, count, f"{seed}/2")
        load.goes_on(1.0)
        volume(two, "snapshot", "disk1", "second", "--delete")
        one.start()
        back = wait_until(lambda: all_count(two), BACK_LIMIT, "the head's node that was killed counts again", lambda: shown(two))
        print(f"the head's node killed: {two} went on after {took:.1f} s with all that was flushed; all three count again {back:.1f} s after the start", flush=True)
        two.kill()
        load.end()
        two.start()
        attached(two)[0].close()
        check(two.nbd, known)
        fenced(two, known, three, known)
        wait_until(lambda: all_count(three), BACK_LIMIT, "all members count", lambda: shown(three))
        assert digest(three.nbd, "disk1@first") == first, "the first snapshot changed"
        print(f"a snapshot under writers took {made * 1000:.0f} ms, is of one moment, and is the same at each head", flush=True)
        encrypted(two, three)
        newer_key(one, two, three)
        let_go(it.members)
        named_by_its_id(one)
        made_a_moment_ago(it.members)
        lineage(one, two, three, random.Random(f"{seed}/lineage"))
        wait_until(lambda: attached(three)[0].close() or all_count(three), BACK_LIMIT, "all members count", lambda: shown(three))
        print(volume(three, "compare", "disk1").strip(), flush=True)
        print(it.check_logs(), flush=True)


if __name__ == "__main__":
    main()
