"""Accounts over eight index groups, whose voters move as nodes come, go and are lost, under writes to all of them.

Three nodes become five, one is drained, and another is killed and comes back, while every account is written to through all
nodes. What must hold:
- every group ends with three voters on nodes that stay, every node with its share of groups, and a drained one with none;
- no node keeps a group that it does not vote in;
- who leads is spread over the nodes;
- a client that tries again is served within seconds, whatever moves;
- every account has in the end exactly what was acknowledged: objects, listing, counters, through every node.

Environment: SEED (default random; printed), ACCOUNTS (default 12), NAMESPACES=0 for SIGSTOP.
"""

import collections
import http.client
import os
import random
import threading
import time

from cluster_process import Ledger, cluster, together, wait_until
from swift_http import md5

GROUPS = 8
VOTERS = 3
CONTAINER = "c"
PATIENCE = 30.0
SETTLE = 120.0


class Writer(threading.Thread):
    """Puts and deletes small objects of one account, each through another node, again until it is acknowledged."""

    def __init__(self, it, name, rng):
        super().__init__(daemon=True)
        self.it, self.name, self.rng, self.ledger = it, name, rng, Ledger()
        self.leaving, self.error = threading.Event(), None
        self.accounts, self.tries, self.slowest = {}, 0, 0.0

    def ask(self, method, path, body=None):
        began = time.monotonic()
        while True:
            member = self.rng.choice(self.it.members)
            self.tries += 1
            try:
                if member not in self.accounts:
                    self.accounts[member] = member.account(self.name)
                answer = self.accounts[member].request(method, path, body=body)
                if answer.status < 500:
                    self.slowest = max(self.slowest, time.monotonic() - began)
                    return answer
                why = f"{answer.status} {answer.body[:200]!r}"
            except (OSError, http.client.HTTPException, AssertionError) as error:
                why = repr(error)
            assert time.monotonic() - began < PATIENCE, f"{method} {self.name}/{path}: {why}"
            time.sleep(0.1)

    def run(self):
        try:
            while not self.leaving.is_set():
                self.write(f"o{self.rng.randrange(60)}")
                time.sleep(0.02)
        except BaseException as error:
            self.error = error

    def write(self, name):
        if self.rng.random() < 0.2:
            self.ledger.begin(name, None)
            answer = self.ask("DELETE", f"{CONTAINER}/{name}")
            assert answer.status in (204, 404), f"DELETE answered {answer.status}"
            self.ledger.acknowledge(name, None)
            return
        body = self.rng.randbytes(self.rng.randrange(3000))
        self.ledger.begin(name, (md5(body), len(body)))
        answer = self.ask("PUT", f"{CONTAINER}/{name}", body=body)
        assert answer.status == 201, f"PUT answered {answer.status}: {answer.body[:200]!r}"
        self.ledger.acknowledge(name, (md5(body), len(body)))

    def finish(self):
        self.leaving.set()
        self.join(PATIENCE + 30)
        assert not self.is_alive(), f"the writer of {self.name} hangs"
        if self.error is not None:
            raise self.error

    def check(self, members):
        """What is wrong with the account, through each of these nodes."""
        present = {name: state for name, state in self.ledger.told.items() if state}
        counts = (len(present), sum(size for _, size in present.values()))
        wrong = []
        for member in members:
            account = member.account(self.name)
            listed = {row["name"]: (row["hash"], row["bytes"]) for row in account.listing(CONTAINER)}
            if listed != present:
                differ = [name for name in sorted(set(listed) | set(present)) if listed.get(name) != present.get(name)]
                wrong.append(f"{member}: {self.name}: lines {differ[:5]}")
            for path, kind in ((CONTAINER, "container"), ("", "account")):
                head = account.expect(204, "HEAD", path)
                seen = (head.number(f"x-{kind}-object-count"), head.number(f"x-{kind}-bytes-used"))
                if seen != counts:
                    wrong.append(f"{member}: {self.name}: the {kind} counts {seen}, there are {counts}")
            for name, state in self.ledger.told.items():
                answer = account.request("GET", f"{CONTAINER}/{name}")
                seen = (md5(answer.body), len(answer.body)) if answer.status == 200 else None
                if seen != state:
                    wrong.append(f"{member}: {self.name}/{name}: {answer.status} {seen}, wanted {state}")
        return wrong


def seats(it):
    """The index groups of each node, as it says, and for each group what its leader says of it."""
    here, groups = collections.Counter(), {}
    for member, group in it.groups():
        if group["name"] != "control":
            here[member.number] += 1
            if group["leader"]:
                groups.setdefault(group["name"], group)
    return here, groups


def spread(it, members):
    """Whether all groups have their voters, on these nodes, evenly, and nothing is left elsewhere."""
    here, groups = seats(it)
    least = GROUPS * VOTERS // len(members)
    even = all(least <= here[member.number] <= least + 1 for member in members)
    settled = len(groups) == GROUPS and all((g["voters"], g["learners"]) == (VOTERS, 0) for g in groups.values())
    return settled and even and sum(here.values()) == GROUPS * VOTERS


def settle(it, writers, members, what):
    took = wait_until(lambda: spread(it, members), SETTLE, f"groups are spread after: {what}", lambda: seats(it))
    for writer in writers:
        if writer.error is not None:
            raise writer.error
    print(f"{what}: groups are spread after {took:.1f} s: {dict(seats(it)[0])} at each node", flush=True)


def leaders(it):
    return collections.Counter(group["leader"] for group in seats(it)[1].values())


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    names = [f"a{n}" for n in range(int(os.environ.get("ACCOUNTS", "12")))]
    with cluster("cluster-groups", ["512M"] * 3, accounts=names) as it:
        print(f"groups: reproduce with  SEED={seed} ACCOUNTS={len(names)}", flush=True)
        writers = [Writer(it, name, random.Random(f"{seed}/{name}")) for name in names]
        for writer in writers:
            assert writer.ask("PUT", CONTAINER).status in (201, 202)
            writer.start()
        settle(it, writers, it.members, "three nodes")
        it.grow(["512M"] * 2)
        settle(it, writers, it.members, "five nodes")
        gone, lost = it.members[1], it.members[2]
        identity = gone.status()["cluster"]["node"]
        gone.quarry("node", "drain", identity, "--admin-url", f"http://{gone.client}:6000")
        settle(it, writers, [member for member in it.members if member is not gone], "one is drained")
        lost.kill()
        time.sleep(6)
        lost.start(limit=60.0)
        settle(it, writers, [member for member in it.members if member is not gone], "one was killed")
        took = wait_until(lambda: max(leaders(it).values()) <= 3, SETTLE, "leaders are spread", lambda: leaders(it))
        print(f"leaders are spread after {took:.1f} s: {sorted(leaders(it).values())}", flush=True)
        for writer in writers:
            writer.finish()
        wrong = sum((writer.check(it.members) for writer in writers), [])
        assert not wrong, f"{len(wrong)} things are wrong:\n" + "\n".join(wrong[:30])
        done, tries = sum(writer.ledger.acknowledged for writer in writers), sum(writer.tries for writer in writers)
        print(f"check: {done} writes in {tries} tries, slowest {max(w.slowest for w in writers):.1f} s; all is right through all nodes", flush=True)
        print(f"logs: {it.check_logs()}", flush=True)
        together(type(it.members[0]).stop, it.members)


if __name__ == "__main__":
    main()
