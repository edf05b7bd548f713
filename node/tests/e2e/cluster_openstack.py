"""Volumes of the volume API that have three members, on three nodes, one of which is killed and does not come back until the end.

What must hold:
- a type says how many members its volumes have: 1 to 5; a volume that wants more nodes than there are ends in `error`, with a message;
- a volume is shown with a host that has a member, grows, is frozen while a client writes to it, and becomes a volume of one member and back
  with the same bytes;
- QoS specs of its type hold for it and for volumes that are made of it;
- its snapshot is read at every node, by readers that go on when the head's node is killed, and take it from nobody;
- after `kill -9` of its host, whichever node is asked, the API names a node where a client finds all that was flushed; the volume is frozen,
  goes back to its snapshot, grows, is the source of others (clones where they have as many members), gives up its snapshots, and is
  deleted, and names a host that lives; a clone has its bytes when what it comes from is gone, and is the source of another one then;
- what the killed node had frozen for a task that nobody knows of is let go by another;
- a quota is given out once, also when all nodes are asked at once for the last of it;
- nothing is left of what was deleted;
- a node that is drained while the control group loses its leader gives up its volumes with one member, the API's and an operator's, and
  its members of others, with all their bytes; one that a client uses stays until the client goes, and is named by `quarry cluster compare`.

Environment: SEED (default random; printed).
"""

import json
import os
import random
import threading
import time
import urllib.parse
import uuid

from cluster_migrate import USERS, Asked, names
from cluster_process import FORM_LIMIT, admin, cluster, compared, together, wait_until
from nbd_client import Export
from node_process import run_client
from openstack_volumes import Api

WAIT = 60.0
PIECE = 1 << 20


class Client:
    """The real `openstack` as a user of one node."""

    def __init__(self, member):
        self.env = Asked(member).env

    def client_env(self):
        block = {"OS_REGION_NAME": "RegionOne", "OS_USER_DOMAIN_ID": "default", "OS_PROJECT_DOMAIN_ID": "default", "OS_IDENTITY_API_VERSION": "3"}
        return {**os.environ, **block, **self.env}

    def openstack(self, *arguments):
        return json.loads(run_client(self, ["openstack", *arguments, "-f", "json"]))


class Cloud:
    """The volume API of one node, and the NBD clients that it sends to any."""

    def __init__(self, it, member):
        self.it, self.api = it, Api(Asked(member))

    def ask(self, method, path, body=None, wanted=(200, 202), version=None):
        status, _, body = self.api.ask(method, path, body, version)
        assert status in wanted, (method, path, status, body)
        return body

    def volume(self, volume):
        return self.ask("GET", f"volumes/{volume}")["volume"]

    def make(self, what, size=1, **said):
        made = self.ask("POST", "volumes", {"volume": {"size": size, "volume_type": what, **said}})["volume"]["id"]
        self.api.settled(f"volumes/{made}")
        return made

    def freeze(self, volume):
        made = self.ask("POST", "snapshots", {"snapshot": {"volume_id": volume, "force": True}})["snapshot"]["id"]
        self.api.settled(f"snapshots/{made}")
        return made

    def act(self, volume, version=None, **action):
        self.ask("POST", f"volumes/{volume}/action", {key.replace("_", "-"): said for key, said in action.items()}, version=version)
        return self.api.settled(f"volumes/{volume}")

    def door(self, volume):
        """The node and the export that the API names."""
        info = self.ask("POST", f"volumes/{volume}/action", {"os-initialize_connection": {"connector": {"host": "here"}}})
        uri = urllib.parse.urlsplit(info["connection_info"]["data"]["uri"])
        return next(member for member in self.it.members if member.nbd_address == uri.netloc), uri.path.strip("/")

    def open(self, volume):
        member, export = self.door(volume)
        return Export(member.nbd, export)

    def check(self, volume, pieces):
        export = self.open(volume)
        same_bytes(export, pieces, volume)
        export.close()

    def host(self, volume):
        node = self.volume(volume)["os-vol-host-attr:host"].split("@")[0]
        return self.it.node(node)


def same_bytes(export, pieces, what):
    for at, data in pieces.items():
        assert export.read(at, len(data)) == data, f"{what} has other bytes at {at}"


def write(export, rng, places):
    pieces = {place * PIECE: rng.randbytes(PIECE // 4) for place in places}
    for at, data in pieces.items():
        export.write(at, data)
    export.flush()
    return pieces


def members(member):
    """How many members each volume that has several has."""
    shown = json.loads(member.quarry("volume", "list", "--json", *admin(member)))
    return {one["name"]: len(one["several"]["members"]) for one in shown if one["several"]}


def types(it, cloud):
    made = Client(it.members[0]).openstack("volume", "type", "create", "--property", "quarry:members=3", "safe")
    shown = Client(it.members[0]).openstack("volume", "type", "show", "safe")
    assert shown["properties"] == {"quarry:members": "3"}, (made, shown)
    cloud.ask("POST", "types", {"volume_type": {"name": "plain"}})
    cloud.ask("POST", "types", {"volume_type": {"name": "wide", "extra_specs": {"quarry:members": "5"}}})
    for bad in ("0", "6", "three"):
        cloud.ask("POST", "types", {"volume_type": {"name": "bad", "extra_specs": {"quarry:members": bad}}}, wanted=(400,))
    wide = cloud.ask("POST", "volumes", {"volume": {"size": 1, "volume_type": "wide"}})["volume"]["id"]
    wait_until(lambda: cloud.volume(wide)["status"] == "error", WAIT, "five members on three nodes end in error")
    cloud.api.delete(f"volumes/{wide}")


def retyped(cloud, volume, pieces):
    """Of three members, of one, and of three again."""
    for what, count in (("plain", {}), ("safe", {f"volume-{volume}": 3})):
        cloud.act(volume, os_retype={"new_type": what, "migration_policy": "on-demand"})
        wait_until(lambda: cloud.volume(volume)["migration_status"] == "success", WAIT, f"{volume} is {what}", lambda: cloud.volume(volume))
        assert cloud.volume(volume)["volume_type"] == what
        cloud.check(volume, pieces)
        wait_until(lambda: members(cloud.it.members[0]) == count, WAIT, f"members of {what}", lambda: members(cloud.it.members[0]))
    # A node may not have heard of the last name yet.
    left = lambda: [name for member in cloud.it.members for name in names(member) if name.startswith(("leaving-", "arriving-"))]
    wait_until(lambda: not left(), WAIT, "nothing is on its way", left)


def shown(member, volume):
    return json.loads(member.quarry("volume", "show", f"volume-{volume}", "--json", *admin(member)))


def paced(cloud, volume, rate):
    """Holds volumes of a type to so many requests a second; how soon a volume is."""
    specs = cloud.ask("POST", "qos-specs", {"qos_specs": {"name": "slow", "consumer": "back-end", "total_iops_sec": str(rate)}})
    kind = next(one["id"] for one in cloud.ask("GET", "types")["volume_types"] if one["name"] == "safe")
    cloud.ask("GET", f"qos-specs/{specs['qos_specs']['id']}/associate?vol_type_id={kind}")
    for member in cloud.it.members:
        wait_until(lambda: shown(member, volume)["limits"].get("total_iops_sec") == rate, WAIT, "the volume is limited", lambda: shown(member, volume))


def raced(it, cloud):
    """The last of a quota, asked for at all nodes at once, is given out once."""
    limit = lambda count: cloud.ask("PUT", "os-quota-class-sets/default", {"quota_class_set": {"volumes": count}})
    for turn in range(3):
        limit(len(cloud.ask("GET", "volumes")["volumes"]) + 2)
        begun = threading.Barrier(6)

        def create(at):
            begun.wait()
            return at.api.ask("POST", "volumes", {"volume": {"size": 1, "volume_type": "plain"}})

        answers = together(create, [Cloud(it, member) for member in it.members] * 2)
        made = [body["volume"]["id"] for status, _, body in answers if status == 202]
        assert len(made) == 2 and {status for status, _, _ in answers} == {202, 413}, (turn, answers)
        limit(10)
        together(lambda volume: cloud.api.settled(f"volumes/{volume}"), made)
        together(cloud.api.delete, [f"volumes/{volume}" for volume in made])
    print("two left of a quota, six asked at three nodes at once: two were given, each time", flush=True)


def has_member(it, node, volume):
    """Whether a node has a member of a volume, as another one knows it."""
    asked = next(member for member in it.members if member is not node)
    mine = {one["device"] for one in asked.status()["cluster"]["devices"] if one["node"] == node.status()["cluster"]["node"]}
    shown = json.loads(asked.quarry("volume", "show", f"volume-{volume}", "--json", *admin(asked)))
    return any(one["device"] in mine for one in shown["several"]["members"])


def drained(it, cloud, node, rng):
    """Empties a node."""
    identity = node.status()["cluster"]["node"]
    cloud.ask("POST", "types", {"volume_type": {"name": "pair", "extra_specs": {"quarry:members": "2"}}})
    single = cloud.make("plain")
    if cloud.host(single) is not node:
        cloud.act(single, os_migrate_volume={"host": f"{identity}@quarry#quarry"})
        wait_until(lambda: cloud.host(single) is node, WAIT, "the volume is at the node", lambda: cloud.volume(single))
    pair = cloud.make("pair")
    # One that was just started is chosen when it is heard of.
    while not has_member(it, node, pair):
        cloud.api.delete(f"volumes/{pair}")
        pair = cloud.make("pair")
    for name in ("by-hand", "used"):
        node.quarry("volume", "create", name, "64M", *admin(node))
    content = {volume: write(cloud.open(volume), rng, [1, 3, 900]) for volume in (single, pair)}
    by_hand = write(Export(node.nbd, "by-hand"), rng, [1, 3, 60])
    used = Export(node.nbd, "used")
    named = lambda: {group["leader"] for _, group in it.groups() if group["name"] == "control" and group["leader"]}
    wait_until(lambda: len(named()) == 1, WAIT, "one leads the control group", named)
    leader = it.node(*named())
    node.quarry("node", "drain", identity, *admin(node))
    if leader is not node:
        leader.kill()
        time.sleep(3 * rng.random())
        leader.start(limit=60.0)
    # A volume that cannot go while the group cannot be asked is tried again after a minute.
    wait_until(lambda: [name for name in names(node) if not name.startswith("volume-")] == ["used"] and cloud.host(single) is not node and not has_member(it, node, pair), 2 * WAIT, "all that nobody uses goes", lambda: names(node))
    left = lambda: compared(node)[0]["volumes"]
    wait_until(lambda: (left()["volumes"], left()["members"]) == (1, 0), WAIT, "one volume is left", left)
    kept = left()["kept"]
    assert len(kept) == 1 and "client" in str(kept), kept
    used.close()
    at = lambda name: [member for member in it.members if name in names(member)]
    wait_until(lambda: len(there := at("used")) == 1 and there[0] is not node, WAIT, "it goes when nobody uses it", lambda: compared(node))
    for volume, pieces in content.items():
        cloud.check(volume, pieces)
        assert cloud.door(volume)[0] is not node or volume == pair
    (found,) = at("by-hand")
    export = Export(found.nbd, "by-hand")
    for place, data in by_hand.items():
        assert export.read(place, len(data)) == data, f"other bytes at {place}"
    export.close()
    print(f"{node} was drained of its volumes: {compared(node)[0]['volumes']}", flush=True)


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    rng = random.Random(seed)
    print(f"the volume API over a cluster: reproduce with  SEED={seed}", flush=True)
    with cluster("cluster-openstack", ["2G"] * 3, more=USERS) as it:
        cloud = Cloud(it, it.members[0])
        # Each knows itself, and of the others what they wrote.
        pools = lambda: [len(Cloud(it, member).ask("GET", "scheduler-stats/get_pools")["pools"]) for member in it.members]
        wait_until(lambda: pools() == [3] * 3, WAIT, "all nodes told of themselves", pools)
        types(it, cloud)
        first = Client(it.members[1]).openstack("volume", "create", "--size", "1", "--type", "safe", "one")["id"]
        cloud.api.settled(f"volumes/{first}")
        assert members(it.members[2]) == {f"volume-{first}": 3}, members(it.members[2])
        pieces = write(cloud.open(first), rng, [0, 7, 700])
        raced(it, cloud)
        retyped(cloud, first, pieces)
        # Before, one node's loss is a group's.
        wait_until(it.formed, FORM_LIMIT, "groups with all voters", it.groups)
        paced(cloud, first, 5000)
        export = cloud.open(first)
        frozen = cloud.freeze(first)
        later = pieces | write(export, rng, [7, 8])
        readers = {member: Export(member.nbd, f"volume-{first}@snapshot-{frozen}") for member in it.members}
        for member, reader in readers.items():
            same_bytes(reader, pieces, member)
        # They took it from nobody.
        later |= write(export, rng, [9])

        owner = cloud.host(first)
        # What it freezes for a task that nobody knows of, of a volume that nobody touches when it is gone.
        kept = cloud.make("safe")
        Export(owner.nbd, f"volume-{kept}").close()
        owner.quarry("volume", "snapshot", f"volume-{kept}", f"passing-{uuid.uuid4()}", *admin(owner))
        print(f"{owner} has the volume, and is killed", flush=True)
        owner.kill()
        export.close()
        clouds = [Cloud(it, member) for member in it.members if member is not owner]
        doors = together(lambda cloud: cloud.door(first)[0], clouds)
        assert owner not in doors, "a client would be sent to a node that is gone"
        for member, reader in readers.items():
            if member is not owner:
                same_bytes(reader, pieces, member)
                reader.close()
        for door in doors:
            Cloud(it, door).check(first, later)
        cloud = clouds[-1]
        second = cloud.freeze(first)
        assert cloud.host(first) is not owner, "its host is gone"
        export = cloud.open(first)
        write(export, rng, [7, 9, 600])
        export.close()
        wait_until(lambda: not any(shown(member, first)["users"] for member in {*doors}), WAIT, "nobody uses it")
        cloud.act(first, version="3.40", revert={"snapshot_id": second})
        cloud.check(first, later)
        assert cloud.act(first, os_extend={"new_size": 2})["size"] == 2
        sources = (("safe", {"snapshot_id": frozen}), ("plain", {"source_volid": first}), ("safe", {"source_volid": first}))
        clone, plain, same = together(lambda made: cloud.make(made[0], size=2, **made[1]), sources)
        at = cloud.it.node(cloud.volume(clone)["os-vol-host-attr:host"].split("@")[0])
        assert shown(at, clone)["parent"] == f"volume-{first}@snapshot-{frozen}", shown(at, clone)
        assert shown(at, clone)["limits"]["total_iops_sec"] == 5000 and len(shown(at, clone)["several"]["members"]) == 3
        cloud.check(plain, later)
        cloud.api.delete(f"volumes/{plain}")
        snapshots = [f"snapshots/{snapshot}" for snapshot in (frozen, second)]
        for snapshot in snapshots:
            cloud.ask("DELETE", snapshot)
        together(cloud.api.gone, snapshots)
        wait_until(lambda: not shown(at, first)["snapshots"], WAIT, "clones keep no snapshots", lambda: shown(at, first))
        # What only the clones see any more.
        export = cloud.open(first)
        write(export, rng, [0, 7, 8, 700])
        export.close()
        for volume, content in ((clone, pieces), (same, later)):
            cloud.check(volume, content)
        cloud.api.delete(f"volumes/{first}")
        last = cloud.make("safe", size=2, source_volid=clone)
        cloud.api.delete(f"volumes/{clone}")
        for volume, content in ((last, pieces), (same, later)):
            cloud.check(volume, content)
        wait_until(lambda: not shown(at, kept)["snapshots"], 2 * WAIT, "what a lost node kept of a volume is let go", lambda: shown(at, kept))
        together(cloud.api.delete, [f"volumes/{volume}" for volume in (last, same, kept)])
        print("without it: read, frozen, reverted, made larger, cloned, copied, deleted", flush=True)
        owner.start(limit=60.0)
        wait_until(lambda: not any(map(members, it.members)) and not any(map(names, it.members)), WAIT, "nothing is left", lambda: [names(member) for member in it.members])
        drained(it, cloud, owner, rng)
        print(it.check_logs(), flush=True)


if __name__ == "__main__":
    main()
