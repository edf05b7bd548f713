"""A cluster is grown, shrunk and restarted under real `swift upload`s: 1 node with data, 3 nodes, 5 nodes, one drained and taken away,
one that loses its disk, all restarted one after the other.

What must hold:
- every `swift upload` ends well; every other request that fails once succeeds at the second try, at once and through another node.
  A connection that a server has ended while nothing was under way is noticed before a request is sent on it, as by every client that
  keeps connections (urllib3 looks whether it can be read); a request that crosses such an end on its way counts as a try that failed;
- nothing acknowledged is lost or wrong, listings and counters are right through every node;
- a drained node ends up with nothing, is not missed when it goes, and refuses clients from then on;
- a node whose disk is gone does not start as the node that it was, says what to do, and does it by one command;
- in the end the copies of every partition are equal, as their sums say, and nothing lies where it does not belong.

Environment: SEED (default random; printed), UPLOADS (default 2), FILES (of each, default 60), NAMESPACES=0.
"""

import collections
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.request

from cluster_process import CONTAINER, OBJECT, Ledger, Upload, admin, check, cluster, compared, together, wait_until
from cluster_survives import Probe, put, serves
from swift_http import Account

SIZE = "512M"
RETRIES = 5
BEFORE = 150  # objects that the first node has before it is joined
MOVE_LIMIT = 90.0
CLEAN_LIMIT = 90.0
LEFT_LIMIT = 10.0
# A node asks for its line for 12 s at most, before that another may have failed; and the bytes must be written. (The write of a name whose
# last writer's node was lost together with the group's leader waits for an election and for the 6 s of that grant: over 8 s were seen.)
SLOW_LIMIT = 20.0
RETRY_PAUSE = 0.1


class Patient(Probe):
    """A client behind a balancer: a request that fails is sent once more, through another node."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.retried = []
        self.crossed = 0  # requests that broke on a connection that was open when they were sent

    def run(self):
        try:
            while not self.leaving.is_set():
                self.write(self.rng.choice(self.it.serving))
                self.read(self.rng.choice(self.it.serving))
        except BaseException as error:
            self.error = error

    def once(self, member, request, options):
        kept = False
        try:
            if member not in self.accounts:
                self.accounts[member] = Account(member.credentials())
            kept = self.accounts[member].let_go_if_closed()
            answer = self.accounts[member].request(*request, **options)
            return answer, f"{answer.status} {answer.body[:160]!r}" if answer.status >= 500 or answer.status == 401 else None
        except (OSError, http.client.HTTPException, AssertionError) as error:
            # Any failure is a try, that of a request which met the end of a kept connection on its way too.
            if not isinstance(error, ConnectionRefusedError) and kept:
                self.crossed += 1
            return None, repr(error)

    def ask(self, member, *request, **options):
        began = time.monotonic()
        self.done += 1
        answer, why = self.once(member, request, options)
        if why is not None:
            self.retried.append(f"{request[0]} through {member} after {time.monotonic() - began:.2f} s: {why}")
            time.sleep(RETRY_PAUSE)
            other = self.rng.choice([known for known in self.it.serving if known is not member] or [member])
            answer, again = self.once(other, request, options)
            if again is not None:
                self.failures.append(f"{request[0]} through {member}: {why}; again through {other} after {time.monotonic() - began:.2f} s: {again}")
                return None
        self.slowest = max(self.slowest, (time.monotonic() - began, f"{request[0]} through {member}"))
        return answer


class Load:
    def __init__(self, it, ledger, seed, uploads, files):
        self.ledger = ledger
        self.uploads = [Upload(it, ledger, n, files, random.Random(f"{seed}/upload/{n}"), RETRIES, it.serving) for n in range(uploads)]
        self.probes = [Patient(it, ledger, n, random.Random(f"{seed}/probe/{n}")) for n in range(3)]
        for thread in [*self.uploads, *self.probes]:
            thread.start()

    def still_good(self):
        for thread in [*self.uploads, *self.probes]:
            if thread.error is not None:
                raise thread.error
        failed = [why for probe in self.probes for why in probe.failures]
        assert not failed, f"{len(failed)} requests failed twice:\n" + "\n".join(failed[:10])

    def retried(self):
        return sum(len(probe.retried) for probe in self.probes)

    def moves_on(self, what):
        before = self.ledger.acknowledged
        wait_until(lambda: self.ledger.acknowledged >= before + 30, 30.0, f"uploads go on after: {what}")
        self.still_good()

    def finish(self):
        for thread in [*self.uploads, *self.probes]:
            thread.leaving.set()
        for thread in [*self.uploads, *self.probes]:
            thread.finish()
        self.still_good()
        failed = [why for upload in self.uploads for why in upload.failed]
        assert not failed, f"{len(failed)} uploads failed:\n" + "\n".join(failed[:10])
        asked = sum(probe.done for probe in self.probes)
        slowest = max(probe.slowest for probe in self.probes)
        rounds, sent = sum(upload.rounds for upload in self.uploads), sum(upload.sent for upload in self.uploads)
        crossed = sum(probe.crossed for probe in self.probes)
        print(f"load: {rounds} trees, {sent / 1e6:.0f} MB; {asked} other requests, {self.retried()} sent twice ({crossed} had broken on a kept connection); slowest {slowest[0]:.1f} s ({slowest[1]})", flush=True)
        whys = collections.Counter(re.sub(r"through n\d after [\d.]+ s|tx\w+", "", why) for probe in self.probes for why in probe.retried)
        for why, count in whys.most_common(8):
            print(f"  {count} x {why}", flush=True)
        assert slowest[0] <= SLOW_LIMIT, slowest


def status(member):
    return json.loads(member.quarry("cluster", "status", "--json", *admin(member)))


def clean(it):
    """Waits until the copies of all partitions are equal and in their places."""
    last = {}

    def looked():
        found, good = compared(it.members[0])
        last.clear()
        last.update(found)
        return good

    took = wait_until(looked, CLEAN_LIMIT, "equal copies", lambda: last)
    print(f"compare: {last['equal']} of {last['partitions']} partitions have equal copies, nothing on handoffs, after {took:.1f} s", flush=True)


def grow(it, load, sizes):
    before, began = load.retried(), time.monotonic()
    it.serving += it.grow(sizes)
    load.moves_on(f"{len(it.members)} nodes")
    print(f"grow: {len(it.members)} nodes after {time.monotonic() - began:.1f} s, {load.retried() - before} requests sent twice", flush=True)


def drain(it, load, rng):
    member = rng.choice(it.members[1:])
    seen = status(member)
    node = seen["node"]
    device = next(device["device"] for device in seen["devices"] if device["node"] == node)
    teller = next(known for known in it.members if known is not member)
    before, began = load.retried(), time.monotonic()
    teller.quarry("node", "drain", node, *admin(teller))

    def empty():
        seen = status(teller)
        own = next(known for known in seen["devices"] if known["device"] == device)
        votes = next(known["votes"] for known in seen["members"] if known["node"] == node)
        return own["state"] == "drained" and not votes

    wait_until(empty, MOVE_LIMIT, f"{member} is drained", lambda: status(teller)["devices"])
    moved = time.monotonic() - began

    def nothing():
        found, _ = compared(teller)
        return device not in found["handoffs"] and not found["silent"]

    wait_until(nothing, MOVE_LIMIT, f"{member} holds nothing", lambda: compared(teller)[0])
    load.moves_on("drain")
    it.serving.remove(member)  # the balancer is told first
    rounds = [upload.rounds for upload in load.uploads]
    # A `swift upload` that has begun stays with its node.
    wait_until(
        lambda: all(upload.rounds > before for upload, before in zip(load.uploads, rounds, strict=True)), MOVE_LIMIT, f"nobody uses {member}"
    )
    it.members.remove(member)
    it.gone.append(member)
    teller.quarry("disk", "remove", device, *admin(teller))
    refuses(member)
    member.stop()
    load.moves_on("removal")
    print(
        f"drain: {member} is out of the ring after {moved:.1f} s, empty and gone after {time.monotonic() - began:.1f} s, "
        f"{load.retried() - before} requests sent twice",
        flush=True,
    )


def refuses(member):
    """Whoever has left says so to clients, at once and soon."""
    took = []

    def refused():
        began = time.monotonic()
        try:
            answer = urllib.request.urlopen(f"http://{member.client}:{OBJECT}/healthcheck", timeout=5).status
        except urllib.error.HTTPError as error:
            answer = error.code
        took.append(time.monotonic() - began)
        return answer == 503

    wait_until(refused, LEFT_LIMIT, f"{member} says that it has left")
    assert max(took) < 1.0, f"{member} let a client wait: {max(took):.1f} s"


def lose(it, load, rng):
    member = rng.choice(it.members[1:])
    teller = next(known for known in it.members if known is not member)
    old = status(member)["node"]
    before, began = load.retried(), time.monotonic()
    it.serving.remove(member)
    member.kill()
    member.disk.unlink()
    try:
        member.start(limit=30.0)
        raise AssertionError(f"{member} started without its disk")
    except AssertionError as error:
        assert "--replace" in str(error), error
    token = it.members[0].quarry("cluster", "token", "--data", it.members[0].data).strip()
    member.quarry("join", token, "--data", member.data, "--replace")
    member.start(limit=60.0)
    new = status(member)["node"]
    assert new != old, "it is the same node again"

    def replaced():
        seen = status(teller)
        gone = all(device["state"] == "out" for device in seen["devices"] if device["node"] == old)
        here = any(device["replicas"] > 0 for device in seen["devices"] if device["node"] == new)
        return gone and here

    wait_until(replaced, MOVE_LIMIT, f"{member} is another node", lambda: status(teller))
    wait_until(lambda: serves(member), 30.0, f"{member} serves again")
    it.serving.append(member)
    load.moves_on("a lost disk")
    print(f"lost disk: {member} is another node in its own place after {time.monotonic() - began:.1f} s, {load.retried() - before} requests sent twice", flush=True)


def roll(it, load):
    for member in list(it.members):
        before, began = load.retried(), time.monotonic()
        member.stop()
        stopped = time.monotonic() - began
        start = member.start(limit=60.0)
        wait_until(lambda: serves(member), 30.0, f"{member} serves again")
        load.moves_on(f"restart of {member}")
        print(f"restart: {member} stopped in {stopped:.1f} s, started in {start:.1f} s, {load.retried() - before} requests sent twice", flush=True)


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    uploads, files = int(os.environ.get("UPLOADS", "2")), int(os.environ.get("FILES", "60"))
    rng = random.Random(seed)
    with cluster("cluster-grows", [SIZE], part_power=7) as it:
        print(f"grows: reproduce with  SEED={seed} UPLOADS={uploads} FILES={files}", flush=True)
        it.serving = list(it.members)  # what the balancer knows
        ledger = Ledger()
        account = it.members[0].account()
        account.expect((201, 202), "PUT", CONTAINER)
        together(lambda n: put(account, ledger, f"before/{n}", rng.randbytes(rng.randrange(40_000))), range(BEFORE), 4)
        load = Load(it, ledger, seed, uploads, files)
        grow(it, load, [SIZE, SIZE])
        grow(it, load, [SIZE, SIZE])
        drain(it, load, rng)
        lose(it, load, rng)
        roll(it, load)
        load.finish()
        check(it, ledger)
        clean(it)
        print(f"logs: {it.check_logs()}", flush=True)
        together(type(it.members[0]).stop, it.members)


if __name__ == "__main__":
    main()
