"""Measures a cluster of three real nodes, three copies: CPU per GB moved, time to repair a lost disk, what an idle cluster sends.

Environment: MIB (of objects of 1 MiB, default 1024), SMALL (objects of 4 KiB, default 50000), DISK (default 6G), IDLE (seconds, default 40).
Prints one JSON line for each figure. It is no test: nothing is asserted but that the copies are equal in the end.
"""

import json
import multiprocessing
import os
import pathlib
import random
import time

from cluster_process import CONTAINER, cluster, compared, wait_until
from cluster_survives import serves
from swift_http import Account

TICKS = os.sysconf("SC_CLK_TCK")
WRITERS = 8


def say(what, **figures):
    print(json.dumps({"measure": what, **{name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}}), flush=True)


def cpu(it):
    """Seconds of processor that the nodes took so far."""
    stats = [pathlib.Path(f"/proc/{member.process.pid}/stat").read_text().rsplit(")", 1)[1].split() for member in it.members]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / TICKS


def sent(member):
    """Bytes that a node sent to others so far; 0 where nodes have no network of their own."""
    if not member.network.namespaces:
        return 0
    lines = pathlib.Path(f"/proc/{member.process.pid}/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("nodes:"))


def write(job):
    env, prefix, count, size, seed = job
    account, rng = Account(env), random.Random(seed)
    body = rng.randbytes(size)
    for n in range(count):
        account.expect(201, "PUT", f"{CONTAINER}/{prefix}{n:07}", body=n.to_bytes(8, "big") + body[8:])


def read(job):
    env, prefix, count = job
    account = Account(env)
    for n in range(count):
        account.expect(200, "GET", f"{CONTAINER}/{prefix}{n:07}")


def all_writers(it, what, step, jobs, size, count):
    before, began = cpu(it), time.monotonic()
    with multiprocessing.get_context("fork").Pool(WRITERS) as pool:
        pool.map(step, jobs, chunksize=1)
    took, used = time.monotonic() - began, cpu(it) - before
    gb = size * count / 1e9
    say(what, objects=count, gb=gb, seconds=took, per_second=count / took, mb_per_second=gb * 1000 / took, cpu_seconds=used, cpu_seconds_per_gb=used / gb)


def fill(it, prefix, count, size):
    each = count // WRITERS
    env = [it.members[n % len(it.members)].credentials() for n in range(WRITERS)]
    all_writers(it, f"put {size}", write, [(env[n], f"{prefix}/{n}/", each, size, n) for n in range(WRITERS)], size, each * WRITERS)
    return each


def fetch(it, prefix, each, size):
    env = [it.members[n % len(it.members)].credentials() for n in range(WRITERS)]
    all_writers(it, f"get {size}", read, [(env[n], f"{prefix}/{n}/", each) for n in range(WRITERS)], size, each * WRITERS)


def idle(it, seconds):
    """What nodes send each other while nobody asks anything, and what it costs."""
    before, used, began = sum(map(sent, it.members)), cpu(it), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    bytes_ = sum(map(sent, it.members)) - before
    say("idle", seconds=took, bytes_per_second=bytes_ / took, cpu_share=(cpu(it) - used) / took)
    before, began = sum(map(sent, it.members)), time.monotonic()
    found, good = compared(it.members[0])
    say("compare", partitions=found["partitions"], equal=found["equal"], seconds=time.monotonic() - began, bytes=sum(map(sent, it.members)) - before, good=good)


def repair(it):
    """A node loses its disk and another comes in its place: how long until all copies are equal."""
    member = it.members[2]
    live = member.status()["disks"][0]["live"]
    member.kill()
    member.disk.unlink()
    try:
        member.start(limit=60.0)
    except AssertionError as error:
        assert "--replace" in str(error), error
    token = it.members[0].quarry("cluster", "token", "--data", it.members[0].data).strip()
    member.quarry("join", token, "--data", member.data, "--replace")
    member.start(limit=120.0)
    began, used, before = time.monotonic(), cpu(it), sum(map(sent, it.members))
    wait_until(lambda: serves(member), 60.0, "it serves")
    last = {}

    def whole():
        found, good = compared(it.members[0])
        last.update(found)
        return good and member.status()["disks"][0]["live"] > live * 0.9

    wait_until(whole, 900.0, "equal copies", lambda: last)
    took = time.monotonic() - began
    say("repair", live_gb=live / 1e9, seconds=took, mb_per_second=live / 1e6 / took, sent_gb=(sum(map(sent, it.members)) - before) / 1e9, cpu_seconds=cpu(it) - used)


def main():
    mib, small = int(os.environ.get("MIB", "1024")), int(os.environ.get("SMALL", "50000"))
    disk = os.environ.get("DISK", "6G")
    with cluster("measure", [disk] * 3, work=("audit_rate = 0",)) as it:
        wait_until(it.formed, 60.0, "groups with all voters", it.groups)
        time.sleep(25)  # leaders are spread by then
        it.members[0].account().expect((201, 202), "PUT", CONTAINER)
        each = fill(it, "large", mib, 1 << 20)
        fetch(it, "large", each, 1 << 20)
        each = fill(it, "small", small, 4096)
        fetch(it, "small", min(each, 2000), 4096)
        wait_until(lambda: compared(it.members[0])[1], 120.0, "equal copies")
        repair(it)
        wait_until(lambda: compared(it.members[0])[1], 120.0, "equal copies")
        time.sleep(20)
        idle(it, float(os.environ.get("IDLE", "40")))
        print(it.check_logs(), flush=True)


if __name__ == "__main__":
    main()
