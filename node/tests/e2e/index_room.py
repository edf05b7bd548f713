"""The file system of a disk's index becomes nearly full, by files of others, and has room again.

What must hold:
- clients' writes are refused with 507, over NBD with ENOSPC, before RocksDB has no room; reads, deletes and trims are served;
- the log says why, `quarry status` and `/metrics` show it;
- a node that is killed with `kill -9` meanwhile starts, refuses at once, and has lost nothing;
- writes are taken again when there is room.

Needs a file system of a few megabytes, as root may mount one in memory; elsewhere it says so and does nothing.
"""

import contextlib
import os
import shutil
import subprocess
import time
import urllib.request

from nbd_client import Export, Refused
from node_process import Node, binary_argument
from swift_http import Account

SIZE = 128 << 20
RESERVE = SIZE // 16  # as engine/src/disk/room.rs has it for small file systems
LEFT = RESERVE * 3 // 4  # of that, for RocksDB
NOTICED = 30.0  # it is looked at every ten seconds
ENOSPC = 28
BLOCK = 4096
NEW = 1001  # a block that was not written before


@contextlib.contextmanager
def small_file_system(at):
    """Mounts one, or gives None where that is not permitted."""
    at.mkdir(parents=True)
    command = [shutil.which("mount") or "false", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(at)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"index room: SKIPPED, no file system can be mounted here: {done.stderr.strip()}", flush=True)
        yield None
        return
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def free(at):
    found = os.statvfs(at)
    return found.f_bavail * found.f_frsize


def metric(it, name):
    with urllib.request.urlopen(it.env["QUARRY_ADMIN_URL"] + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith(f"quarry_{name}{{")]
    return int(line.split()[-1])


def quarry(it, *arguments):
    command = [binary_argument(), *arguments]
    done = subprocess.run(command, env=it.client_env(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"quarry {arguments}: {done.stderr}"
    return done.stdout


def status(it):
    return quarry(it, "status")


def until(what, good):
    began = time.monotonic()
    while not good():
        assert time.monotonic() - began < NOTICED, f"{what}: not within {NOTICED:.0f} s"
        time.sleep(0.1)


def refuses_nbd(it, block):
    export = Export(it.env["QUARRY_NBD_URL"], "little")
    try:
        export.write(block * BLOCK, bytes([9]) * BLOCK)
        return False
    except Refused as error:
        assert f"error {ENOSPC}" in str(error), f"a write is refused otherwise: {error}"
        return True
    finally:
        export.close()


def all_there(it, bodies, blocks):
    account = Account(it.env)
    for name, body in bodies.items():
        answer = account.request("GET", f"little/{name}")
        if body is None:
            assert answer.status == 404, f"{name} was deleted, and GET answers {answer.status}"
        else:
            assert (answer.status, answer.body) == (200, body), f"GET {name} answered {answer.status}"
    listed = [row["name"] for row in account.listing("little")]
    assert listed == sorted(name for name, body in bodies.items() if body is not None), listed
    export = Export(it.env["QUARRY_NBD_URL"], "little")
    for block, value in blocks.items():
        assert export.read(block * BLOCK, BLOCK) == bytes([value]) * BLOCK, f"block {block} is not {value}"
    export.close()


def refused(it, bodies, blocks, n):
    """Writes are refused, and all that makes room is done; `bodies` and `blocks` follow."""
    account = Account(it.env)
    answer = account.expect(507, "PUT", "little/late", body=b"late" * 1000)
    assert b"not enough space" in answer.body, answer.body
    assert refuses_nbd(it, 1), "a write over NBD was taken"
    gone = next(name for name, body in bodies.items() if body is not None)
    account.expect(204, "DELETE", f"little/{gone}")
    bodies[gone] = None
    trimmed = next(block for block, value in blocks.items() if value)
    export = Export(it.env["QUARRY_NBD_URL"], "little")
    export.trim(trimmed * BLOCK, BLOCK)
    export.flush()
    export.close()
    blocks[trimmed] = 0
    quarry(it, "volume", "snapshot", "--delete", "little", f"s{n}")
    quarry(it, "volume", "delete", f"spare{n}")
    all_there(it, bodies, blocks)
    assert metric(it, "disk_refuses_writes") == 1 and metric(it, "disk_index_free_bytes") < RESERVE and metric(it, "disk_ok") == 1
    assert "ok, full" in status(it), status(it)


def index_room(path, rng):
    """In a directory of its own."""
    data = path / "little"
    with small_file_system(data / "index0") as index:
        if index is None:
            return
        it = Node(binary_argument(), data, size="512M")
        try:
            it.start()
            check(it, index, rng)
            it.stop()
        except BaseException:
            print(f"index room: the end of the log:\n{it.tail()}", flush=True)
            raise
        finally:
            if it.process is not None:
                it.kill()


def check(it, index, rng):
    account = Account(it.env)
    account.expect((201, 202), "PUT", "little")
    bodies = {f"o{n:03}": rng.randbytes(rng.choice((100, 5000, 200_000))) for n in range(60)}
    for name, body in bodies.items():
        account.expect(201, "PUT", f"little/{name}", body=body)
    for name in ("little", "spare0", "spare1"):
        quarry(it, "volume", "create", name, "16M")
    blocks = {block: block % 250 + 1 for block in range(0, 400, 7)}
    export = Export(it.env["QUARRY_NBD_URL"], "little")
    for block, value in blocks.items():
        export.write(block * BLOCK, bytes([value]) * BLOCK)
    export.flush()
    export.close()
    for n in range(2):
        quarry(it, "volume", "snapshot", "little", f"s{n}")
    assert metric(it, "disk_refuses_writes") == 0 and "full" not in status(it)

    filler = index / "of-others"
    with open(filler, "wb") as file:
        while free(index) > LEFT:
            file.write(bytes(min(1 << 20, free(index) - LEFT + BLOCK)))
            file.flush()
    until("uploads are refused", lambda: account.request("PUT", "little/o001", body=bodies["o001"]).status == 507)
    assert "the file system of the index is nearly full" in it.log.read_text(errors="replace"), it.tail()
    refused(it, bodies, blocks, 0)
    it.kill()
    it.start()
    # At once: who would come first would take the room.
    refused(it, bodies, blocks, 1)
    it.kill()
    it.start()
    all_there(it, bodies, blocks)
    left = free(index)

    filler.unlink()
    account = Account(it.env)
    until("uploads are taken again", lambda: account.request("PUT", "little/again", body=b"again").status == 201)
    assert not refuses_nbd(it, NEW), "a write over NBD is refused"
    assert "the file system of the index has room again" in it.log.read_text(errors="replace"), it.tail()
    bodies["again"] = b"again"
    blocks[NEW] = 9
    assert metric(it, "disk_refuses_writes") == 0 and "full" not in status(it)
    it.kill()
    it.start()
    all_there(it, bodies, blocks)
    print(f"index room: {left >> 10} KiB of {SIZE >> 20} MiB were left; writes were refused, also after kill -9, and taken again; nothing was lost", flush=True)
