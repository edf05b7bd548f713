"""Volumes over NBD on one node that is killed with `kill -9` again and again under writers.

What must hold:
- what was flushed, or written with FUA, is there after every restart, or something that was written later; never anything else;
- what a client has read before a kill does not vanish;
- a snapshot taken under writers never changes, also over kills, and its export refuses writes;
- discarded space reads as zeroes or as before, never as something else;
- a clone begins as its snapshot, and goes its own way; a volume goes back to a snapshot; both also when the node is killed while the clone
  takes over what it shares, and while a deleted snapshot is reaped;
- another key wraps those of encrypted volumes, also when the node is killed then, and the old one is forgotten;
- where the file system of the index is nearly full writes are refused, and nothing is lost (`index_room.py`);
- qemu-img and nbdcopy, where the machine has them, bring a real file in and out, byte for byte.

Environment: SEED (default random; printed), ROUNDS (default 5), WRITERS (default 4).
"""

import collections
import hashlib
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import threading
import time

from index_room import index_room
from nbd_client import FUA, Export, Refused
from node_process import binary_argument, node, scratch

BLOCK = 4096
BLOCKS = 16_384  # 64 MiB
ZERO = (0, 0)


def stamp(block, writer, sequence):
    """A block that says who wrote it, where and when, all over."""
    return struct.pack(">QQQQ", 0x5175617272790000, block, writer, sequence) * (BLOCK // 32)


def meaning(block, data):
    """(writer, sequence) of a block; asserts that it is whole and in its place."""
    if data == bytes(BLOCK):
        return ZERO
    magic, at, writer, sequence = struct.unpack(">QQQQ", data[:32])
    assert magic == 0x5175617272790000 and at == block and data == stamp(at, writer, sequence), f"block {block} is torn, astray or strange: {data[:32]!r}"
    return writer, sequence


class Writer(threading.Thread):
    """Writes blocks of its own share, one after the other, flushes now and then, and reads some back."""

    def __init__(self, url, number, share, rng, known):
        super().__init__(daemon=True)
        self.url, self.number, self.share, self.rng = url, number, share, rng
        # By block: what must be there at least, and all that may be there.
        self.known = known
        self.error, self.flushed, self.sequence = None, 0, 0

    def run(self):
        try:
            self.work()
        except (OSError, Refused):
            pass  # the node was killed
        except BaseException as error:
            self.error = error

    def work(self):
        export = Export(self.url, "disk1")
        unflushed = {}
        self.sequence = max((max(known["may"])[1] for known in self.known.values()), default=0)
        while True:
            block = self.rng.choice(self.share)
            what = self.rng.random()
            known = self.known[block]
            if what < 0.7:
                self.sequence += 1
                value = (self.number, self.sequence)
                known["may"].append(value)
                fua = self.rng.random() < 0.05
                export.write(block * BLOCK, stamp(block, *value), FUA if fua else 0)
                known["now"] = value
                unflushed[block] = value
                if fua:
                    self.settle({block: value})
            elif what < 0.73:
                known["may"].append(ZERO)
                known["trimmed"] = True
                export.trim(block * BLOCK, BLOCK)
                known["now"] = None
                unflushed.pop(block, None)
            elif what < 0.9:
                seen = meaning(block, export.read(block * BLOCK, BLOCK))
                expected = known["now"]
                assert seen == expected or (expected is None and seen in known["may"]), f"block {block} reads {seen}, {expected} was written last"
                known["now"] = seen
                # What was read does not vanish.
                self.settle({block: seen})
            else:
                export.flush()
                self.settle(unflushed)
                unflushed = {}
                self.flushed += 1

    def settle(self, values):
        """These are durable: what came before them is gone."""
        for block, value in values.items():
            may = self.known[block]["may"]
            if value in may:
                del may[: may.index(value)]


def check(url, known):
    """Every block is one that it may be; from now on it is that one."""
    export = Export(url, "disk1")
    wrong = []
    for block, facts in known.items():
        seen = meaning(block, export.read(block * BLOCK, BLOCK))
        if seen not in facts["may"]:
            wrong.append(f"block {block} is {seen}, it may be {facts['may'][:4]}")
        facts["may"], facts["now"] = [seen], seen
    export.close()
    assert not wrong, f"{len(wrong)} blocks are wrong: {wrong[:8]}"


def digest(url, name):
    export, hasher = Export(url, name), hashlib.sha256()
    for at in range(0, export.size, 1 << 20):
        hasher.update(export.read(at, min(1 << 20, export.size - at)))
    export.close()
    return hasher.hexdigest()


def quarry(it, *arguments):
    command = [binary_argument(), "volume", *map(str, arguments)]
    done = subprocess.run(command, env=it.client_env(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"quarry volume {arguments}: {done.stdout[-400:]}{done.stderr[-400:]}"
    return done.stdout


def lineage(it, frozen):
    """Clones, going back, deleting: each view keeps its content, over a kill as well."""
    quarry(it, "clone", "disk1@s0", "clone")
    url = it.env["QUARRY_NBD_URL"]
    assert digest(url, "clone") == frozen["s0"], "a clone begins as its snapshot"
    export = Export(url, "clone")
    export.write(5 * BLOCK, stamp(5, 9, 1))
    export.flush()
    export.close()
    own = digest(url, "clone")
    assert own != frozen["s0"] and digest(url, "disk1@s0") == frozen["s0"], "a clone is written alone"
    refused = subprocess.run([binary_argument(), "volume", "snapshot", "--delete", "disk1", "s0"], env=it.client_env(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0 and "clone" in refused.stderr, f"a parent of a clone was deleted: {refused.stderr}"
    for name in [name for name in frozen if name not in ("s0", "s1")]:
        quarry(it, "snapshot", "--delete", "disk1", name)
        del frozen[name]
    taking_over = subprocess.Popen([binary_argument(), "volume", "flatten", "clone"], env=it.client_env(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.05)
    it.kill()
    taking_over.wait(60)
    it.start()
    url = it.env["QUARRY_NBD_URL"]
    assert digest(url, "clone") == own, "a clone changed while it took over"
    for name, was in frozen.items():
        assert digest(url, f"disk1@{name}") == was, f"snapshot {name} has changed"
    quarry(it, "flatten", "clone")
    for name in list(frozen)[-1:]:
        quarry(it, "revert", f"disk1@{name}")
        assert digest(url, "disk1") == frozen[name], f"the volume did not go back to {name}"
    quarry(it, "delete", "disk1")
    it.kill()
    it.start()
    assert digest(it.env["QUARRY_NBD_URL"], "clone") == own, "a clone lost what it took over"
    print("clone, flatten, revert, delete: every view kept its content over two kills", flush=True)


def real_clients(it, path, rng):
    """A file goes in through qemu-img and comes out through nbdcopy, where they are installed."""
    if not all(map(shutil.which, ("qemu-img", "nbdcopy"))):
        print("qemu-img or nbdcopy is not installed: not tried", flush=True)
        return
    source, back = path / "image", path / "back"
    source.write_bytes(b"".join(rng.randbytes(1 << 20) if n % 3 else bytes(1 << 20) for n in range(32)))
    quarry(it, "create", "image", "32M")
    url = f"{it.env['QUARRY_NBD_URL']}/image"
    for command in (["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, url], ["nbdcopy", url, back]):
        done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command[0]}: {done.stderr[-500:]}"
    assert pathlib.Path(back).read_bytes() == source.read_bytes(), "the image came back different"
    quarry(it, "import", "imported", source)
    quarry(it, "snapshot", "imported", "first")
    quarry(it, "export", "imported@first", path / "out.qcow2", "--format", "qcow2")
    quarry(it, "import", "again", path / "out.qcow2", "--format", "qcow2")
    quarry(it, "export", "again", path / "out.raw")
    assert (path / "out.raw").read_bytes() == source.read_bytes(), "import and export changed the image"
    print("qemu-img and nbdcopy: 32 MiB in and out, equal; imported and exported, raw and qcow2", flush=True)


def newer_key(it, rng):
    """Another key wraps those of volumes, the node killed in the middle: the bytes stay, and the old key goes."""
    count, file = 24, it.data / "volumes.key"
    for n in range(count):
        quarry(it, "create", f"locked{n}", 16 * BLOCK, "--encrypted")
    export = Export(it.env["QUARRY_NBD_URL"], "locked7")
    export.write(BLOCK, rng.randbytes(5 * BLOCK))
    export.flush()
    export.close()
    was, first = digest(it.env["QUARRY_NBD_URL"], "locked7"), file.read_text()
    known = lambda: {key["name"]: key for key in json.loads(quarry(it, "key", "list", "--json"))}
    (old,) = known()
    new = quarry(it, "key", "new").strip()
    assert [(key["wraps"], key["volumes"]) for key in map(known().get, (old, new))] == [(True, count), (False, 0)]
    using = subprocess.Popen([binary_argument(), "volume", "key", "use", new], env=it.client_env(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(rng.uniform(0, 0.05))
    it.kill()
    using.wait(60)
    it.start()
    at, counts = known(), lambda keys: [keys[name]["volumes"] for name in (old, new)]
    assert sum(counts(at)) == count, at
    quarry(it, "key", "use", new)
    began = time.monotonic()
    while counts(known()) != [0, count]:
        assert time.monotonic() - began < 60, f"volumes are not wrapped anew: {known()}"
        time.sleep(0.05)
    quarry(it, "key", "drop", old)
    assert list(known()) == [new] and file.read_text() not in first and first.strip() not in file.read_text(), "the old key is there yet"
    it.kill()
    it.start()
    assert digest(it.env["QUARRY_NBD_URL"], "locked7") == was, "an encrypted volume has other bytes under the newer key"
    print(f"a newer key wraps {count} volumes, {counts(at)[1]} of them when the node was killed; the old key is gone, the bytes are the same", flush=True)


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    rounds, count = int(os.environ.get("ROUNDS", "5")), int(os.environ.get("WRITERS", "4"))
    rng = random.Random(seed)
    with scratch("nbd-volumes") as path, node(path, size="2G") as it:
        print(f"volumes: reproduce with  SEED={seed} ROUNDS={rounds} WRITERS={count}", flush=True)
        quarry(it, "create", "disk1", BLOCKS * BLOCK)
        known = collections.defaultdict(lambda: {"may": [ZERO], "now": ZERO})
        frozen, slowest, answered, flushes = {}, 0.0, 0, 0
        for at in range(rounds):
            url = it.env["QUARRY_NBD_URL"]
            # Few blocks, written again and again.
            shares = [[block for block in range(n, 2000, count)] for n in range(count)]
            writers = []
            for n, share in enumerate(shares):
                mine = {block: known[block] for block in share}
                writers.append(Writer(url, n + 1, share, random.Random(f"{seed}/{at}/{n}"), mine))
            for writer in writers:
                writer.start()
            time.sleep(rng.uniform(0.3, 1.0))
            quarry(it, "snapshot", "disk1", f"s{at}")
            frozen[f"s{at}"] = digest(url, f"disk1@s{at}")
            time.sleep(rng.uniform(0.1, 0.8))
            it.kill()
            for writer in writers:
                writer.join(60)
                assert not writer.is_alive(), "a writer hangs"
                if writer.error is not None:
                    raise writer.error
            answered += sum(writer.sequence for writer in writers)
            flushes += sum(writer.flushed for writer in writers)
            slowest = max(slowest, it.start_in_time())
            url = it.env["QUARRY_NBD_URL"]
            check(url, known)
            for name, was in frozen.items():
                assert digest(url, f"disk1@{name}") == was, f"snapshot {name} has changed"
        export = Export(url, "disk1@s0")
        try:
            export.write(0, bytes(BLOCK))
            raise AssertionError("a snapshot took a write")
        except Refused:
            export.close()
        print(f"volumes: {rounds} kills, {len(known)} blocks, {flushes} flushes, nothing lost; {len(frozen)} snapshots unchanged; slowest start-up {slowest:.2f} s", flush=True)
        lineage(it, frozen)
        newer_key(it, rng)
        real_clients(it, path, rng)
        it.stop()
        index_room(path, rng)


if __name__ == "__main__":
    main()
