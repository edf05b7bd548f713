"""A container that grows into several index groups under writers and listers, while nodes are killed.

Three nodes split a container whenever a group has more than a hundred lines of it. What must hold:
- every write is acknowledged within the time that a change of leaders may take, whatever moves, and no write fails that is tried again;
- what was there before and is not touched is in every listing, in order, page by page, in both directions, while lines move;
- a leader that is killed in the moment in which it begins to give lines away leaves one group or two whole ones, and splitting goes on;
- after the loss of power of all nodes everything acknowledged is there: bytes, listings of every kind, exact counters, through every node;
- groups that took lines over move to other nodes like any group, and nothing is lost or miscounted by that;
- the container goes when, and only when, nothing is left in any of its groups.

Environment: SEED (default random; printed), NAMESPACES=0 for SIGSTOP.
"""

import http.client
import json
import os
import random
import re
import threading
import time

from cluster_process import CONTAINER, Ledger, admin, check, cluster, compared, together, wait_until
from swift_http import md5

JOIN = 3  # seconds for which a group must have had no line to be given up
LINES = 100  # above this a group gives lines away; the least that is allowed
WRITERS = 6
FIXED = 48
GROUPS = 8  # of accounts
PATIENCE = 60.0
SPLIT = 90.0
MOVE = 180.0
QUERIES = 120


def name_of(rng, owner):
    return f"d{rng.randrange(6)}/{'s' + str(rng.randrange(3)) + '/' if rng.random() < 0.4 else ''}{rng.randrange(100):02}-{owner}"


class Client(threading.Thread):
    """Asks any node, again until it is answered without an error of the server's."""

    def __init__(self, it, name, seed):
        super().__init__(daemon=True)
        self.it, self.name, self.rng = it, name, random.Random(f"{seed}/{name}")
        self.leaving, self.error, self.slowest, self.tries, self.done = threading.Event(), None, 0.0, 0, 0
        self.accounts, self.failed = {}, []
        it.clients.append(self)

    def ask(self, method, path, **options):
        began = time.monotonic()
        while True:
            member = self.rng.choice(self.it.members)
            self.tries += 1
            try:
                if member not in self.accounts:
                    self.accounts[member] = member.account()
                answer = self.accounts[member].request(method, path, **options)
                if answer.status < 500:
                    self.slowest = max(self.slowest, time.monotonic() - began)
                    self.done += 1
                    return answer
                why = f"{answer.status} {answer.body[:200]!r}"
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.accounts.pop(member, None)
                why = repr(error)
            self.failed.append(f"{method} {path} through {member}: {why}")
            assert time.monotonic() - began < PATIENCE, f"{method} {path}: {why}"
            time.sleep(0.1)

    def run(self):
        try:
            while not self.leaving.is_set():
                self.step()
        except BaseException as error:
            self.error = error

    def abandon(self):
        self.leaving.set()

    def finish(self):
        self.leaving.set()
        self.join(PATIENCE + 30)
        assert not self.is_alive(), f"{self.name} hangs"
        if self.error is not None:
            raise self.error


class Writer(Client):
    """Puts small objects, and deletes some of its own."""

    def __init__(self, it, number, seed, ledger):
        super().__init__(it, f"w{number}", seed)
        self.ledger, self.own = ledger, []

    def step(self):
        if self.own and self.rng.random() < 0.15:
            self.delete(self.own.pop(self.rng.randrange(len(self.own))))
            return
        name = name_of(self.rng, self.name)
        self.put(name)
        if name not in self.own:
            self.own.append(name)

    def put(self, name):
        body = self.rng.randbytes(self.rng.randrange(1, 2000))
        self.ledger.begin(name, (md5(body), len(body)))
        answer = self.ask("PUT", f"{CONTAINER}/{name}", body=body)
        assert answer.status == 201, f"PUT {name} answered {answer.status}: {answer.body[:200]!r}"
        self.ledger.acknowledge(name, (md5(body), len(body)))

    def delete(self, name):
        self.ledger.begin(name, None)
        answer = self.ask("DELETE", f"{CONTAINER}/{name}")
        assert answer.status in (204, 404), f"DELETE {name} answered {answer.status}: {answer.body[:200]!r}"
        self.ledger.acknowledge(name, None)


def listed(names, prefix="", delimiter="", marker="", end_marker="", reverse=False, limit=10000):
    """What a listing of these names has to show."""
    entries = set()
    for name in names:
        if name.startswith(prefix):
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            entries.add(name if cut < 0 else name[: cut + len(delimiter)])
    low, high = (end_marker, marker) if reverse else (marker, end_marker)
    entries = sorted(entry for entry in entries if (not low or entry > low) and (not high or entry < high))
    return (entries[::-1] if reverse else entries)[:limit]


def any_query(rng, names):
    """A listing as clients ask for it: markers are entries; of an end marker that is a directory Swift has a rule of its own."""
    query = {"prefix": rng.choice(["", "", "d2", "d3/", "d4/s1/", "x"]), "delimiter": rng.choice(["", "/"]), "reverse": rng.random() < 0.5}
    entries = listed(names, **query) or [""]
    query["marker"] = rng.choice([rng.choice(entries), ""])
    rows = [entry for entry in entries if not entry.endswith("/")] or [""]
    query["end_marker"] = rng.choice([rng.choice(rows), "", ""])
    query["limit"] = rng.choice([1, 7, 40, 10000])
    return query


def page(ask, query):
    sent = {key: str(value).lower() if key == "reverse" else value for key, value in query.items() if value not in ("", False)}
    answer = ask("GET", CONTAINER, query={"format": "json", **sent})
    assert answer.status == 200, f"listing {query} answered {answer.status}: {answer.body[:200]!r}"
    return [row.get("name") or row["subdir"] for row in json.loads(answer.body)]


class Lister(Client):
    """Lists in pages; the names that nobody touches are there, in order, always."""

    def __init__(self, it, number, seed, fixed):
        super().__init__(it, f"l{number}", seed)
        self.fixed = fixed

    def step(self):
        query = {"prefix": self.rng.choice(["", "", "d3/"]), "delimiter": self.rng.choice(["", "", "/"]), "reverse": self.rng.random() < 0.5}
        limit, seen, marker = self.rng.choice([13, 60, 1000]), [], ""
        while True:
            entries = page(self.ask, {**query, "limit": limit, "marker": marker})
            seen += entries
            if len(entries) < limit:
                break
            marker = entries[-1]
        assert seen == sorted(set(seen), reverse=query["reverse"]), f"a listing is out of order: {query} {seen}"
        wanted = listed(self.fixed, **query)
        missing = [name for name in wanted if name not in set(seen)]
        assert not missing, f"a listing lacks {missing[:5]}: {query}"


def children(it):
    """The groups that took lines over, as the nodes that answer say: name, parent, range, whether somebody leads."""
    found = {}
    for member, group in it.groups():
        if group.get("child"):
            span = group["child"]["range"] or {}
            known = found.setdefault(group["name"], {})
            known.update(parent=group["child"]["parent"], first=span.get("from"), voters=group["voters"])
            known["leader"] = known.get("leader") or group["leader"]
            known.setdefault("at", set()).add(member.number)
    return found


def at_home(it):
    """Children that are led, and that every node has."""
    return [name for name, child in children(it).items() if child["leader"] and child["first"] and len(child["at"]) == len(it.members)]


def beginnings(member):
    return [line for line in member.lines() if re.search(r"INFO .*split container parent=", line)]


def check_queries(it, seed, names):
    rng, began = random.Random(f"{seed}/queries"), time.monotonic()
    for member in it.members:
        account = member.account()
        for _ in range(QUERIES):
            query = any_query(rng, names)
            seen, wanted = page(account.request, query), listed(names, **query)
            assert seen == wanted, f"{member}: {query}: {seen[:8]} … ({len(seen)}), wanted {wanted[:8]} … ({len(wanted)})"
    print(f"check: {QUERIES} listings through each node are right ({time.monotonic() - began:.1f} s)", flush=True)


def splits(it):
    """How the tries to give lines away ended, by the logs."""
    lines = [line for member in it.members for line in member.lines()]
    took = [int(found.group(1)) for line in lines if (found := re.search(r"lines are another group's .*milliseconds=(\d+)", line))]
    vain = [found.group(1) for line in lines if (found := re.search(r"container is not split now .*error=(.*)", line))]
    return f"{len(took)} times lines moved, in {sorted(took)} ms; in vain {len(vain)} times: {sorted(set(vain))}"


def move(it):
    """A fourth node takes seats over, and one that has some is drained: children move like other groups."""
    began, leaving = time.monotonic(), it.members[0]
    it.grow(["512M"])
    stay = it.members[1:]
    identity = leaving.status()["cluster"]["node"]
    stay[0].quarry("node", "drain", identity, *admin(stay[0]))

    def moved():
        at, settled = {}, True
        for member, group in it.groups():
            if group["name"] != "control":
                at.setdefault(group["name"], set()).add(member)
                settled &= not group["leader"] or (group["voters"], group["learners"]) == (3, 0)
        return settled and all(members == set(stay) for members in at.values())

    wait_until(moved, MOVE, "all groups are on the three nodes that stay", lambda: children(it))
    found = {}

    def led():
        # A lead may be handed on just then: nobody answers for that group for a moment.
        found.update(compared(stay[0])[0])
        return not found["unsettled"]

    wait_until(led, MOVE, "the leader of each group says that those vote who shall", lambda: found)
    print(f"{leaving} has no group any more, {stay[-1]} has all, after {time.monotonic() - began:.1f} s", flush=True)


def expire(it, seed, ledger):
    """Objects that expire go from all groups, and from the counters."""
    client, rng = Client(it, "x", seed), random.Random(f"{seed}/expire")
    names = sorted({name_of(rng, "expires") for _ in range(40)})
    for name in names:
        assert client.ask("PUT", f"{CONTAINER}/{name}", body=b"soon", headers={"X-Delete-After": "2"}).status == 201
    present = len([state for state in ledger.told.values() if state])

    def count():
        return client.ask("HEAD", CONTAINER).number("x-container-object-count")

    assert count() > present
    took = wait_until(lambda: count() == present, SPLIT, f"{len(names)} objects expire", count)
    print(f"check: {len(names)} objects in all groups expired, the last was gone {took:.1f} s after it was made", flush=True)


def empty(it, seed, ledger):
    """Deletes everything: the container goes with the last object, whichever group that is in."""
    client = Client(it, "e", seed)
    assert client.ask("DELETE", CONTAINER).status == 409
    names = [name for name in ledger.names() if ledger.told.get(name)]
    last = random.Random(f"{seed}/last").choice(names)
    deleters = [Writer(it, f"-{n}", seed, ledger) for n in range(WRITERS)]
    jobs = [(deleters[at % WRITERS], name) for at, name in enumerate(names) if name != last]
    together(lambda writer: [writer.delete(name) for deleter, name in jobs if deleter is writer], deleters)
    assert client.ask("DELETE", CONTAINER).status == 409, f"only {last} is left, which is enough"
    deleters[0].delete(last)
    head = client.ask("HEAD", CONTAINER)
    assert (head.number("x-container-object-count"), head.number("x-container-bytes-used")) == (0, 0)
    assert client.ask("DELETE", CONTAINER).status == 204
    for member in it.members:
        assert member.account().request("HEAD", CONTAINER).status == 404
        head = member.account().expect(204, "HEAD")
        assert (head.number("x-account-container-count"), head.number("x-account-object-count")) == (0, 0)
    # Made anew, it has nothing to do with those groups.
    assert client.ask("PUT", CONTAINER).status == 201
    deleters[0].put("d5/again")
    assert page(client.ask, {}) == ["d5/again"]
    print(f"check: {len(names)} objects and the container are deleted, and it is made anew", flush=True)
    had = children(it)
    took = wait_until(lambda: not children(it), SPLIT, "all groups of the first one are over", lambda: children(it))
    deleters[0].put("d7/again")
    for member in it.members:
        assert page(member.account().request, {}) == ["d5/again", "d7/again"]
    print(f"check: {len(had)} groups that had nothing any more were over after {took:.1f} s", flush=True)


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    with cluster("cluster-splits", ["512M"] * 3, section=[f"split_lines = {LINES}", f'join_after = "{JOIN}s"'], work=["audit_rate = 0", 'keep_expired = "0s"']) as it:
        print(f"splits: reproduce with  SEED={seed}", flush=True)
        ledger = Ledger()
        first = Writer(it, "!", seed, ledger)
        assert first.ask("PUT", CONTAINER).status in (201, 202)
        rng = random.Random(f"{seed}/fixed")
        fixed = sorted({name_of(rng, "!") for _ in range(FIXED)})
        for name in fixed:
            first.put(name)
        writers = [Writer(it, n, seed, ledger) for n in range(WRITERS)]
        listers = [Lister(it, n, seed, fixed) for n in range(2)]
        clients = [*writers, *listers]

        def broken():
            for client in clients:
                if client.error is not None:
                    raise client.error

        def until(condition, what):
            return wait_until(lambda: broken() or condition(), SPLIT, what, lambda: children(it))

        for client in clients:
            client.start()
        took = until(lambda: len(at_home(it)) >= 2, "two groups took lines over")
        print(f"two groups took lines over after {took:.1f} s: {children(it)}", flush=True)
        print(f"clients: slowest {max(c.slowest for c in clients):.1f} s so far; {splits(it)}", flush=True)
        failed = [why for client in clients for why in client.failed]
        assert not failed, f"{len(failed)} requests failed while nothing did but lines moved: {failed[:5]}"
        before = {member: len(beginnings(member)) for member in it.members}
        killed = []

        began = time.monotonic()
        while not killed:
            broken()
            assert time.monotonic() - began < SPLIT, f"no node begins to give lines away: {children(it)}"
            for member in it.members:
                if not killed and len(beginnings(member)) > before[member]:
                    member.kill()
                    killed.append(member)
            time.sleep(0.002)
        known = len(children(it))
        time.sleep(4)
        killed[0].start(limit=60.0)
        took = until(lambda: len(at_home(it)) > known, "lines move on")
        print(f"{killed[0]} was killed in a split; lines moved on {took:.1f} s after it was back: {len(at_home(it))} groups", flush=True)
        for client in clients:
            client.finish()
        done, tries = sum(c.done for c in clients), sum(c.tries for c in clients)
        print(f"clients: {done} requests in {tries} tries, slowest {max(c.slowest for c in clients):.1f} s", flush=True)
        for member in it.members:
            member.kill()
        together(lambda member: member.start(limit=60.0), it.members)
        wait_until(lambda: len(at_home(it)) >= known, SPLIT, "all groups are led again", lambda: children(it))
        check(it, ledger)
        present = [name for name, state in ledger.told.items() if state]
        check_queries(it, seed, present)
        shown = it.members[0].quarry("cluster", "status", *admin(it.members[0]))
        assert all(name in shown for name in children(it)), shown
        found, _ = compared(it.members[0])
        assert found["index_groups"] == GROUPS + len(children(it)) and not found["unsettled"], found
        move(it)
        check(it, ledger)
        check_queries(it, seed, present)
        expire(it, seed, ledger)
        empty(it, seed, ledger)
        print(f"splits: {splits(it)}", flush=True)
        print(f"logs: {it.check_logs()}", flush=True)
        together(type(it.members[0]).stop, it.members)


if __name__ == "__main__":
    main()
