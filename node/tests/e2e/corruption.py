"""Bytes flipped in the data file of a stopped node: `quarry disk audit` finds them, a GET answers with an error and never with
wrong bytes, and everything else is still served.

The place is found by searching the files of the node for a piece of the object's own bytes, so this test knows no format.
"""

import http.client
import mmap
import os
import random
import subprocess

from node_process import binary_argument, node, scratch
from swift_http import Account

SIZES = {"small": 3000, "block": 4096, "medium": 200_000, "large": 5 << 20}
NEEDLE = 64


def files_of(data):
    return [os.path.join(folder, name) for folder, _, names in os.walk(data) for name in names]


def flip(data, body):
    """Flip one byte wherever the middle of `body` lies on disk; returns how many places there were."""
    middle = len(body) // 2
    needle = body[middle : middle + NEEDLE]
    places = 0
    for path in files_of(data):
        if os.path.getsize(path) < NEEDLE:
            continue
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            at = view.find(needle)
            while at >= 0:
                os.pwrite(file.fileno(), bytes([needle[7] ^ 0x20]), at + 7)
                places += 1
                at = view.find(needle, at + NEEDLE)
            os.fsync(file.fileno())
    return places


def read_of(account, name):
    """'same' is decided by the caller: (status, body), with None for a body that broke off."""
    try:
        answer = account.request("GET", f"corruption/{name}")
    except (http.client.HTTPException, OSError):
        return 200, None
    return answer.status, answer.body


def audit(it):
    """Returns (exit status, output) of the offline audit."""
    command = [binary_argument(), "disk", "audit", str(it.data / "disk0"), "--index", str(it.data / "index0")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def main():
    seed = int(os.environ.get("SEED", "1"))
    rng = random.Random(seed)
    with scratch("corruption") as path, node(path, size="1G") as it:
        bodies = {f"{kind}-{state}": rng.randbytes(size) for kind, size in SIZES.items() for state in ("damaged", "whole")}
        account = Account(it.env)
        account.expect((201, 202), "PUT", "corruption")
        for name, body in bodies.items():
            account.expect(201, "PUT", f"corruption/{name}", body=body)
        it.stop()

        status, output = audit(it)
        assert status == 0, f"audit of an undamaged disk exited with {status}:\n{output}"
        damaged = [name for name in bodies if name.endswith("-damaged")]
        for name in damaged:
            places = flip(it.data, bodies[name])
            assert places >= 1, f"the bytes of {name} are nowhere in {it.data}"
        status, output = audit(it)
        assert status != 0, f"audit found nothing wrong on a damaged disk:\n{output}"
        for name in damaged:
            assert name in output, f"audit does not name {name}:\n{output}"
        print(f"audit: {len(damaged)} damaged objects found by the offline audit", flush=True)

        took = it.start()
        account = Account(it.env)
        for name, body in bodies.items():
            status, got = read_of(account, name)
            if name in damaged:
                assert got != body, f"{name}: the damage was not where it should be"
                assert status >= 500 or got is None, f"GET {name} answered {status} with {len(got)} bytes of wrong data"
            else:
                assert status == 200 and got == body, f"GET {name}, which is whole, answered {status}"
        print(f"get: damaged objects answer with an error, the others are whole (start-up {took:.1f} s)", flush=True)
        for name in damaged:
            account.expect(201, "PUT", f"corruption/{name}", body=bodies[name])
            assert read_of(account, name) == (200, bodies[name]), f"{name} was written anew and does not come back"
        it.stop()


if __name__ == "__main__":
    main()
