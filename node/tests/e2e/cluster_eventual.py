"""An eventual container is written to, read and deleted from while the group of its account has no leader; a strict one is not.

Five nodes, three copies, groups of three voters. While clients write through all nodes
- the leader of the account's group is killed, and comes back;
- two of its three voters are cut off the others (or stopped, where the machine permits no namespaces), so that nobody can lead, and come back;
- everything is killed at once in the middle of that, and started again.

What must hold:
- while nobody leads, nodes that reach a quorum of an object's devices acknowledge its writes and deletes, within seconds, and give at
  once what was acknowledged last; what they refuse they refuse with 503;
- a write into the strict container is refused with 503 meanwhile, or waits until somebody leads again;
- in the end the listing and the counters are exactly what was acknowledged, through every node, and no intent is left.

Environment: SEED (default random; printed), SECONDS (without a leader, default 12), NAMESPACES=0 for SIGSTOP.
"""

import http.client
import os
import random
import re
import threading
import time

from cluster_process import FORM_LIMIT, Ledger, cluster, together, wait_until
from swift_http import Account, md5

EVENTUAL, STRICT = "eventual", "strict"
NAMES = 40
SETTLED = 240.0


class Writer(threading.Thread):
    """Writes, deletes and reads names of its own in the eventual container, each through another node, without a second try."""

    def __init__(self, it, number, rng):
        super().__init__(daemon=True)
        self.it, self.number, self.rng, self.ledger = it, number, rng, Ledger()
        self.leaving, self.error = threading.Event(), None
        self.through = list(it.members)
        self.accounts, self.done, self.refused, self.slowest = {}, 0, [], 0.0

    def ask(self, method, name, body=None):
        """The answer, or none when there is none or it is 503."""
        member = self.rng.choice(self.through)
        began = time.monotonic()
        try:
            if member not in self.accounts:
                self.accounts[member] = Account(member.credentials())
            answer = self.accounts[member].request(method, f"{EVENTUAL}/{name}", body=body)
            why = f"{answer.status} {answer.body[:160]!r}" if answer.status >= 500 else None
        except (OSError, http.client.HTTPException, AssertionError) as error:
            answer, why = None, repr(error)
        if why is not None:
            self.refused.append(f"{method} {name} through {member} after {time.monotonic() - began:.1f} s: {why}")
            time.sleep(0.1)
            return None
        self.done += 1
        self.slowest = max(self.slowest, time.monotonic() - began)
        return answer

    def run(self):
        try:
            while not self.leaving.is_set():
                self.step(f"w{self.number}/o{self.rng.randrange(NAMES)}")
                time.sleep(0.01)
        except BaseException as error:
            self.error = error

    def step(self, name):
        if self.rng.random() < 0.2:
            self.ledger.begin(name, None)
            answer = self.ask("DELETE", name)
            if answer is not None:
                assert answer.status in (204, 404), f"DELETE answered {answer.status}"
                self.ledger.acknowledge(name, None)
            return
        body = self.rng.randbytes(self.rng.choice([10, 3000, 70_000]))
        self.ledger.begin(name, (md5(body), len(body)))
        answer = self.ask("PUT", name, body)
        if answer is not None:
            assert answer.status == 201, f"PUT answered {answer.status}: {answer.body[:200]!r}"
            self.ledger.acknowledge(name, (md5(body), len(body)))

    def finish(self):
        self.leaving.set()
        self.join(120)
        assert not self.is_alive(), f"writer {self.number} hangs"
        if self.error is not None:
            raise self.error


def group(it):
    """Name and voters' nodes of the account's group: it has the longest log."""
    said = [(group["last"], group["name"]) for _, group in it.groups() if group["name"] != "control"]
    name = max(said)[1]
    return name, [member for member, group in it.groups() if group["name"] == name]


def updaters(it):
    """Passes that the updaters have ended, and what they had to do in the last one."""
    said = {}
    for member in it.members:
        workers = [worker for worker in member.status()["workers"] if worker["name"].startswith("updater")]
        assert workers, f"{member} has no updater"
        for worker in workers:
            passes, total = re.search(r"pass (\d+): \d+ of (\d+),", worker["progress"]).groups()
            said[f"{member} {worker['name']}"] = (int(passes), int(total), worker["state"])
    return said


def look(it, writers, through):
    """What was acknowledged last is what nodes give, where they give anything."""
    given, wrong = 0, []
    for member in through:
        account = member.account()
        for writer in writers:
            for name in writer.ledger.names():
                answer = account.request("GET", f"{EVENTUAL}/{name}")
                if answer.status >= 500:
                    continue
                seen = (md5(answer.body), len(answer.body)) if answer.status == 200 else None
                given += 1
                if seen not in writer.ledger.allowed(name):
                    wrong.append(f"{member}: {name}: {answer.status} {seen}, allowed {writer.ledger.allowed(name)}")
    assert not wrong, f"{len(wrong)} reads are wrong:\n" + "\n".join(wrong[:20])
    return given


def without_a_leader(it, writers, seconds):
    name, voters = group(it)
    gone, rest = voters[:2], [member for member in it.members if member not in voters[:2]]
    for writer in writers:
        writer.through = rest
    for member in gone:
        member.cut()
    before, began = sum(writer.done for writer in writers), time.monotonic()
    strict = rest[0].account().request("PUT", f"{STRICT}/x", body=b"x")
    waited = time.monotonic() - began
    assert strict.status == 503, f"a strict container without a leader answered {strict.status} after {waited:.1f} s"
    time.sleep(max(0.0, seconds - waited))
    served = sum(writer.done for writer in writers) - before
    assert served > 20, f"only {served} requests were served without a leader: {sum((w.refused[-3:] for w in writers), [])}"
    for writer in writers:
        writer.finish()
    given = look(it, writers, rest)
    assert given > 0, "nothing could be read without a leader"
    print(f"no leader of {name}: {served} changes acknowledged in {time.monotonic() - began:.0f} s, {given} reads right; strict: 503 after {waited:.1f} s", flush=True)
    return gone


def check(it, writers):
    present = {}
    for writer in writers:
        for name in writer.ledger.names():
            if writer.ledger.open.get(name):
                # Whatever became of what was not answered is now so for ever.
                answer = it.members[0].account().request("GET", f"{EVENTUAL}/{name}")
                writer.ledger.settle(name, (md5(answer.body), len(answer.body)) if answer.status == 200 else None)
            if writer.ledger.told.get(name):
                present[name] = writer.ledger.told[name]
    assert look(it, writers, it.members) > 0
    counts, wrong = (len(present), sum(size for _, size in present.values())), []
    for member in it.members:
        account = member.account()
        listed = {row["name"]: (row["hash"], row["bytes"]) for row in account.listing(EVENTUAL)}
        if listed != present:
            differ = [(name, listed.get(name), present.get(name)) for name in sorted(set(listed) | set(present)) if listed.get(name) != present.get(name)]
            wrong.append(f"{member}: {len(differ)} lines are wrong: {differ[:5]}")
        head = account.expect(204, "HEAD", EVENTUAL)
        seen = (head.number("x-container-object-count"), head.number("x-container-bytes-used"))
        if seen != counts:
            wrong.append(f"{member}: counters say {seen}, there are {counts}")
    assert not wrong, "\n".join(wrong)
    print(f"check: {len(present)} objects, listings and counters are right through {len(it.members)} nodes", flush=True)


def start_writers(it, seed, round):
    writers = [Writer(it, f"{round}-{n}", random.Random(f"{seed}/{round}/{n}")) for n in range(3)]
    for writer in writers:
        writer.start()
    return writers


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    seconds = float(os.environ.get("SECONDS", "12"))
    with cluster("cluster-eventual", ["512M"] * 5) as it:
        print(f"eventual: reproduce with  SEED={seed} SECONDS={seconds:g}", flush=True)
        wait_until(it.formed, FORM_LIMIT, "groups with all voters", it.groups)
        account = it.members[0].account()
        account.expect(400, "PUT", EVENTUAL, headers={"X-Index-Policy": "sometimes"})
        account.expect(201, "PUT", EVENTUAL, headers={"X-Index-Policy": "eventual"})
        account.expect(201, "PUT", STRICT)
        account.expect(409, "POST", EVENTUAL, headers={"X-Index-Policy": "strict"})
        for member in it.members:
            head = member.account().expect(204, "HEAD", EVENTUAL)
            assert head.headers["x-index-policy"] == "eventual", head.headers
        writers = start_writers(it, seed, "kill")
        wait_until(lambda: all(writer.done > 20 for writer in writers), 60.0, "writers go on")
        leader = it.leader()
        leader.kill()
        served = sum(writer.done for writer in writers)
        took = wait_until(lambda: sum(writer.done for writer in writers) > served + 30, 60.0, "writers go on without the leader")
        leader.start(limit=60.0)
        for writer in writers:
            writer.finish()
        print(f"kill -9 of the leader: writers went on within {took:.1f} s, slowest request {max(w.slowest for w in writers):.1f} s", flush=True)
        settle(it)
        check(it, writers)
        more = start_writers(it, seed, "cut")
        gone = without_a_leader(it, more, seconds)
        for member in gone:
            member.mend()
        settle(it)
        check(it, writers + more)
        last = start_writers(it, seed, "crash")
        _, voters = group(it)
        for member in voters[:2]:
            member.kill()
        time.sleep(4)
        together(lambda member: member.process is not None and member.kill(), [member for member in it.members if member not in voters[:2]])
        for writer in last:
            writer.finish()
        together(lambda member: member.start(limit=60.0), it.members)
        settle(it)
        check(it, writers + more + last)
        print(f"logs: {it.check_logs()}", flush=True)
        together(type(it.members[0]).stop, it.members)


def settle(it):
    """Until all updaters have twice in a row had nothing to do: a copy that is mended between the passes may bring an intent along."""
    began, limit = time.monotonic(), time.monotonic() + SETTLED

    def quiet():
        now = updaters(it)
        return all(total == 0 and state == "idle" for _, total, state in now.values())

    while True:
        wait_until(lambda: serves(it) and quiet(), max(1.0, limit - time.monotonic()), "no intent is left", lambda: updaters(it))
        before = updaters(it)
        wait_until(lambda: all(now[0] >= before[name][0] + 1 for name, now in updaters(it).items()), max(1.0, limit - time.monotonic()), "updaters look again", lambda: updaters(it))
        if quiet():
            break
    print(f"no intent is left after {time.monotonic() - began:.1f} s", flush=True)


def serves(it):
    try:
        return all(member.account().request("HEAD", STRICT).status == 204 for member in it.members)
    except (OSError, http.client.HTTPException, AssertionError):
        return False


if __name__ == "__main__":
    main()
