"""The volume API of a cluster: volumes go to the nodes that their types name, and from one node to another, while nodes are killed.

What must hold:
- a volume is made on a node of its type's back end, whichever node was asked, and every node tells the same of it;
- one that gets a type of another back end, or that an admin migrates, arrives there with the same bytes, though the node it goes to, or
  the one it comes from, is killed with -9 while bytes are copied; or it stays where it is, whole, and says `error`;
- no client finds a volume that is on its way; afterwards the node it left has nothing of it.

Environment: SEED (default random; printed), MIB (bytes in the volume, default 256).
"""

import json
import os
import random
import time
import urllib.request

from cluster_process import ADMIN, FORM_LIMIT, IDENTITY, VOLUME, cluster, wait_until
from nbd_client import Export, Refused
from openstack_volumes import Api

PASSWORD = "correct-horse"
USERS = ["[[auth.project]]", 'name = "admin"', "[[auth.user]]", 'name = "admin"', f'password = "{PASSWORD}"', 'default_project = "admin"', 'roles = { admin = ["admin", "member"] }']
PIECE = 1 << 20
WAIT = 120.0


class Asked:
    """What `Api` wants to know of a node."""

    def __init__(self, member):
        identity, volume = f"http://{member.client}:{IDENTITY}/v3", f"http://{member.client}:{VOLUME}/v3"
        self.env = {"OS_USERNAME": "admin", "OS_PASSWORD": PASSWORD, "OS_PROJECT_NAME": "admin", "OS_AUTH_URL": identity, "QUARRY_VOLUME_URL": volume}


def names(member):
    """Volumes that a node has on its disks."""
    with urllib.request.urlopen(f"http://{member.client}:{ADMIN}/volumes", timeout=10) as answer:
        return [volume["name"] for volume in json.load(answer)]


def host(api, volume):
    status, _, body = api.ask("GET", f"volumes/{volume}")
    assert status == 200, body
    return body["volume"]


def content(rng, size, mib):
    """Pieces of a volume, by their place: many whole ones, and some of a few blocks."""
    places = rng.sample(range(size // PIECE), mib)
    pieces = {place * PIECE: rng.randbytes(PIECE) for place in places[8:]}
    return pieces | {place * PIECE + 4096 * rng.randrange(200): rng.randbytes(8192) for place in places[:8]}


def opened(member, volume):
    return Export(member.nbd, f"volume-{volume}")


def write(member, volume, pieces):
    export = opened(member, volume)
    for at, data in pieces.items():
        export.write(at, data)
    export.flush()
    export.close()


def check(member, volume, pieces):
    export = opened(member, volume)
    for at, data in pieces.items():
        assert export.read(at, len(data)) == data, f"{member}: other bytes at {at}"
    empty = next(place for place in range(0, export.size, PIECE) if not any(place - PIECE < at < place + PIECE for at in pieces))
    assert export.read(empty, PIECE) == bytes(PIECE), f"{member}: bytes at {empty}, where nobody wrote"
    export.close()


def is_found(member, volume):
    try:
        opened(member, volume).close()
        return True
    except Refused:
        return False


def arrived(api, volume):
    """The volume once it is at rest."""
    def rests():
        one = host(api, volume)
        return one["status"] == "available" and one["migration_status"] in ("success", "error")

    wait_until(rests, WAIT, "the volume rests", lambda: host(api, volume))
    return host(api, volume)


def is_at(it, api, volume, wanted):
    """Which node has it; the others have nothing of it in the end."""
    one = arrived(api, volume)
    at = next(member for member in it.members if one["os-vol-host-attr:host"].startswith(member.status()["cluster"]["node"]))
    assert at in wanted, f"it is at {at}: {one}"
    rest = [member for member in it.members if member is not at]
    wait_until(lambda: names(at) == [f"volume-{volume}"] and not any(map(names, rest)), WAIT, "nothing is left over", lambda: [names(member) for member in it.members])
    assert not any(is_found(member, volume) for member in rest)
    return at


def types(api, members):
    for member in members:
        body = {"volume_type": {"name": f"at-{member}", "extra_specs": {"volume_backend_name": str(member)}}}
        status, _, body = api.ask("POST", "types", body)
        assert status == 200, body


def go(api, volume, action):
    status, _, body = api.ask("POST", f"volumes/{volume}/action", action)
    assert status == 202, body


def copies(member, volume):
    return f"arriving-{volume}" in names(member)


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    mib, rng = int(os.environ.get("MIB", "256")), random.Random(seed)
    with cluster("cluster-migrate", ["2G"] * 3, more=USERS) as it:
        print(f"migrate: reproduce with  SEED={seed} MIB={mib}", flush=True)
        wait_until(it.formed, FORM_LIMIT, "groups with all voters", it.groups)
        n1, n2, n3 = it.members
        first = Api(Asked(n1))
        pools = lambda: first.ask("GET", "scheduler-stats/get_pools?detail=true")[2]["pools"]
        wait_until(lambda: len(pools()) == 3, WAIT, "all nodes told of themselves", pools)
        types(first, it.members)
        status, _, body = first.ask("POST", "volumes", {"volume": {"size": 1, "name": "one", "volume_type": "at-n2"}})
        assert status == 202, body
        volume = body["volume"]["id"]
        first.settled(f"volumes/{volume}")
        assert names(n2) == [f"volume-{volume}"], [names(member) for member in it.members]
        pieces = content(rng, 1 << 30, mib)
        write(n2, volume, pieces)

        # Where it goes is killed while it copies, and goes on when it is back.
        began = time.monotonic()
        go(Api(Asked(n3)), volume, {"os-retype": {"new_type": "at-n3", "migration_policy": "on-demand"}})
        wait_until(lambda: copies(n3, volume), WAIT, "n3 copies", lambda: host(first, volume))
        assert not is_found(n2, volume) and not is_found(n3, volume)
        n3.kill()
        n3.start(limit=60.0)
        assert is_at(it, first, volume, [n3]) is n3
        assert host(first, volume)["volume_type"] == "at-n3"
        check(n3, volume, pieces)
        print(f"n3 was killed while it copied {mib} MiB: the volume is there {time.monotonic() - began:.1f} s after it was told to go", flush=True)

        # Where it comes from is killed: it goes on, or it stays; and then it goes.
        for member in (n3, None):
            began = time.monotonic()
            go(first, volume, {"os-migrate_volume": {"host": pools()[[pool["capabilities"]["volume_backend_name"] for pool in pools()].index("n1")]["name"]}})
            if member is not None:
                wait_until(lambda: copies(n1, volume) or not is_found(n3, volume), WAIT, "n1 copies", lambda: host(first, volume))
                member.kill()
                member.start(limit=60.0)
            at = is_at(it, first, volume, [n1, n3])
            check(at, volume, pieces)
            print(f"the volume is at {at} {time.monotonic() - began:.1f} s after it was told to go to n1", flush=True)
            if at is n1:
                break
        assert at is n1
        first.delete(f"volumes/{volume}")
        wait_until(lambda: not any(map(names, it.members)), WAIT, "nothing is left", lambda: [names(member) for member in it.members])
        print(it.check_logs(), flush=True)


if __name__ == "__main__":
    main()
