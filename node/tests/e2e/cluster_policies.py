"""A container whose objects are kept in fragments, 3+2, on five nodes of which any two may be lost.

What must hold:
- objects of every size, in one piece, in segments (`swift upload -S`), copied and read in ranges are as on any other container;
- with two nodes killed every object is there through every node left; a write that cannot reach enough devices is refused
  soon and leaves nothing, and with one node more it is taken;
- when the killed nodes are back they get their fragments anew, and two other nodes can be killed;
- an object that was replaced or deleted leaves nothing: all devices hold the same, as their sums say;
- the account counts each policy by itself.

Environment: SEED (default random; printed), NAMESPACES=0 for 127.0.0.1 alone.
"""

import os
import pathlib
import random
import subprocess
import sys
import time

from cluster_process import FORM_LIMIT, Ledger, admin, cluster, compared, together, wait_until
from swift_http import md5

POLICY, KEEPS = "safe", "3+2"
CONTAINER, PLAIN, SEGMENTS = "cluster", "plain", "cluster_segments"
MIB = 1 << 20
# Around what is kept in a record, a stripe, and a whole number of them.
SIZES = [0, 1, 100, 4096, 65_536, 300_000, MIB - 1, MIB, MIB + 1, 3 * MIB, 3 * MIB + 7, 9 * MIB + 123_457]
BIG = 24 * MIB + 5
CLEAN_LIMIT = 120.0
REFUSED_LIMIT = 15.0
REACHED_LIMIT = 10.0  # others must see that a node is back


def clean(it, what):
    last = {}

    def looked():
        found, good = compared(it.members[0])
        last.update(found)
        return good

    took = wait_until(looked, CLEAN_LIMIT, f"equal devices after: {what}", lambda: last)
    print(f"{what}: devices are equal after {took:.1f} s", flush=True)


class Work:
    """Objects of one writer, and what they should be."""

    def __init__(self, it, rng):
        self.it, self.rng, self.ledger = it, rng, Ledger()

    def put(self, member, name, size, headers=None, patience=0.0):
        body = self.rng.randbytes(size)
        state = (md5(body), size)
        self.ledger.begin(name, state)
        answer = member.account().request("PUT", f"{CONTAINER}/{name}", body=body, headers=headers)
        until = time.monotonic() + patience
        while answer.status == 503 and time.monotonic() < until:
            time.sleep(0.2)
            answer = member.account().request("PUT", f"{CONTAINER}/{name}", body=body, headers=headers)
        assert answer.status == 201, f"PUT {name} through {member} answered {answer.status}: {answer.body[:300]}"
        assert answer.etag() == state[0]
        self.ledger.acknowledge(name, state)
        return body

    def delete(self, member, name):
        self.ledger.begin(name, None)
        member.account().expect(204, "DELETE", f"{CONTAINER}/{name}")
        self.ledger.acknowledge(name, None)

    def copy(self, member, name, to):
        state = self.ledger.told[name]
        self.ledger.begin(to, state)
        member.account().expect(201, "COPY", f"{CONTAINER}/{name}", headers={"Destination": f"{CONTAINER}/{to}"})
        self.ledger.acknowledge(to, state)

    def check(self, members, what):
        began = time.monotonic()

        def look(member):
            account, wrong = member.account(), []
            for name, state in self.ledger.told.items():
                answer = account.request("GET", f"{CONTAINER}/{name}")
                seen = (md5(answer.body), len(answer.body)) if answer.status == 200 else None
                if seen != state or (seen is None and answer.status != 404):
                    wrong.append(f"{member}: {name}: {answer.status} {seen}, wanted {state}: {answer.body[:200] if seen is None else ''}")
            present = {name: state for name, state in self.ledger.told.items() if state}
            listed = {row["name"]: (row["hash"], row["bytes"]) for row in account.listing(CONTAINER)}
            if listed != present:
                wrong.append(f"{member}: the listing has {sorted(set(listed.items()) ^ set(present.items()))[:4]}")
            head = account.expect(204, "HEAD", CONTAINER)
            counts = (head.number("x-container-object-count"), head.number("x-container-bytes-used"))
            if counts != (len(present), sum(size for _, size in present.values())):
                wrong.append(f"{member}: the container counts {counts}")
            return wrong

        wrong = sum(together(look, members), [])
        assert not wrong, f"{what}: {len(wrong)} things are wrong:\n" + "\n".join(wrong[:20])
        print(f"{what}: {len(self.ledger.told)} objects are right through {len(members)} nodes ({time.monotonic() - began:.1f} s)", flush=True)


def ranges(member, name, body, rng):
    """Ranges that begin and end anywhere, within a stripe and over several."""
    account = member.account()
    for _ in range(12):
        first = rng.randrange(len(body))
        last = min(len(body) - 1, first + rng.choice([0, 1, 4095, 700_000, 3 * MIB]))
        answer = account.expect(206, "GET", f"{CONTAINER}/{name}", headers={"Range": f"bytes={first}-{last}"})
        assert answer.body == body[first : last + 1], f"bytes {first}-{last} of {name} through {member} are wrong"


def swift(member, *arguments, cwd):
    program = pathlib.Path(sys.executable).with_name("swift")
    member.env = member.credentials()
    done = subprocess.run([str(program), *arguments], cwd=cwd, env=member.client_env(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"swift {' '.join(arguments)}: {done.stdout[-500:]}{done.stderr[-500:]}"


def make_policy(it):
    """The policy, when every node can use it, and the two containers."""
    first = it.members[0]
    said = first.quarry("policy", "add", POLICY, KEEPS, "--alias", "ec", *admin(first))
    assert POLICY in said and KEEPS in said, said
    listed = [lambda member=member: first.quarry("policy", "list", *admin(member)) for member in it.members]
    wait_until(lambda: all("too few" not in text() and POLICY in text() for text in listed), FORM_LIMIT, "a ring of the policy")
    account = first.account()
    account.expect(400, "PUT", "c", headers={"X-Storage-Policy": "nobody-knows-it"})
    account.expect(201, "PUT", CONTAINER, headers={"X-Storage-Policy": "EC"})
    account.expect(409, "PUT", CONTAINER, headers={"X-Storage-Policy": "Policy-0"})
    account.expect(201, "PUT", SEGMENTS, headers={"X-Storage-Policy": POLICY})
    account.expect(201, "PUT", PLAIN)
    assert account.expect(204, "HEAD", CONTAINER).headers["X-Storage-Policy"] == POLICY
    assert account.expect(204, "HEAD", PLAIN).headers["X-Storage-Policy"] == "Policy-0"


def write_all(it, work):
    members = it.members
    for at, size in enumerate(SIZES):
        work.put(members[at % 5], f"o{at}", size)
        # Most are replaced, and some deleted: their fragments go.
        if at % 3:
            work.put(members[(at + 1) % 5], f"o{at}", SIZES[-at - 1])
        if at % 4 == 3:
            work.put(members[at % 5], f"gone{at}", size)
            work.delete(members[(at + 2) % 5], f"gone{at}")
    body = work.put(members[2], "big", BIG)
    ranges(members[3], "big", body, work.rng)
    work.copy(members[4], "big", "copy")
    members[1].account().expect(202, "POST", f"{CONTAINER}/big", headers={"X-Object-Meta-Colour": "blue"})
    head = members[0].account().expect(200, "HEAD", f"{CONTAINER}/big")
    assert head.headers["X-Object-Meta-Colour"] == "blue" and head.etag() == md5(body)
    members[0].account().expect(404, "POST", f"{CONTAINER}/gone3")
    return body


def segmented(it, path, rng):
    """A file in segments by the real client; returns its bytes."""
    (path / "large").write_bytes(body := rng.randbytes(17 * MIB + 11))
    swift(it.members[0], "upload", "-S", str(5 * MIB), "--segment-container", SEGMENTS, PLAIN, "large", cwd=path)
    return body


def same_segmented(member, path, body):
    target = path / f"back-{member}"
    swift(member, "download", PLAIN, "large", "-o", str(target), cwd=path)
    assert target.read_bytes() == body, f"the file in segments is another through {member}"


def victims(it, rng):
    """Two nodes of which the names can spare one each: of the three voters of the account's group, one at most is killed."""
    leader, said = it.leader(), it.groups()
    longest = max((group for _, group in said if group["name"] != "control"), key=lambda group: group["last"])["name"]
    voters = [member for member, group in said if group["name"] == longest]
    others = [member for member in it.members if member not in voters]
    assert len(voters) == 3 and leader in voters and len(others) == 2, (longest, voters, others)
    one, two = rng.sample(voters, 2)
    return (one, others[0]), (two, others[1])


def lose(it, work, pair, path, body, long):
    for member in pair:
        member.kill()
    left = [member for member in it.members if member not in pair]
    work.check(left, f"without {pair[0]} and {pair[1]}")
    together(lambda member: same_segmented(member, path, long), left)
    ranges(left[0], "big", body, work.rng)
    began = time.monotonic()
    lost = work.rng.randbytes(2 * MIB)
    answer = left[1].account().request("PUT", f"{CONTAINER}/refused", body=lost)
    took = time.monotonic() - began
    assert answer.status == 503 and took < REFUSED_LIMIT, f"a write with three of five devices: {answer.status} after {took:.1f} s"
    left[2].account().expect(404, "GET", f"{CONTAINER}/refused")
    pair[0].start(limit=60.0)
    began = time.monotonic()
    work.put(left[0], f"with-four-{pair[0]}", 2 * MIB + 1, patience=REACHED_LIMIT)
    again = time.monotonic() - began
    work.put(left[1], "o3", 1234, patience=REACHED_LIMIT)
    pair[1].start(limit=60.0)
    print(f"two lost: a write is refused after {took:.1f} s, and taken {again:.1f} s after one of them is back", flush=True)


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    rng = random.Random(seed)
    with cluster("cluster-policies", ["1G"] * 5) as it:
        print(f"policies: reproduce with  SEED={seed}", flush=True)
        wait_until(it.formed, FORM_LIMIT, "voters of all groups")
        make_policy(it)
        work = Work(it, rng)
        body = write_all(it, work)
        long = segmented(it, it.path, rng)
        work.check(it.members, "all nodes")
        head = it.members[0].account().expect(204, "HEAD")
        assert head.number(f"x-account-storage-policy-{POLICY}-container-count") == 2, dict(head.headers)
        assert head.number("x-account-storage-policy-policy-0-container-count") == 1, dict(head.headers)
        first, second = victims(it, rng)
        lose(it, work, first, it.path, body, long)
        clean(it, "two nodes back")
        lose(it, work, second, it.path, body, long)
        clean(it, "two others back")
        work.check(it.members, "in the end")
        print(f"logs: {it.check_logs()}", flush=True)
        together(type(it.members[0]).stop, it.members)


if __name__ == "__main__":
    main()
