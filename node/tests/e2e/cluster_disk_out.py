"""A node of a cluster starts without one of its disks: three real nodes with two disks each, objects and volumes on them, and one disk of a
node is taken away while it is stopped.

What must hold, for a disk that is gone, for one whose superblocks are, for one that is not listed, and for an older copy of one:
- the node starts and serves; its log says which disk is missing, why, and what to do; its status, its metrics and the status of the cluster,
  asked of any node, show it; and so again at the next start;
- every object is right through every node, and others are written meanwhile;
- the index groups that have a seat on that disk have none on another one, and the others go on;
- a volume with members elsewhere is read and written; one that is on that disk alone is refused and not made anew; a new volume has no
  member there;
- when the disk is back all is as it was: seats, volumes, equal copies.
And the disk that has the node's votes is not done without. In the end the disk is lost for good, and another one of its node takes over:
volumes have as many members as before, and groups all their voters.

Environment: SEED (default random; printed).
"""

import json
import os
import pathlib
import random
import shutil
import subprocess
import time
import urllib.request

from cluster_process import ADMIN, COMMAND_LIMIT, CONTAINER, INDEX_GROUPS, Ledger, admin, check, cluster, compared, together, wait_until
from cluster_survives import put
from nbd_client import Export, Refused

SIZE = "256M"
OBJECTS = 80
SUPERBLOCKS = 128 << 10  # both copies
LIMIT = 30.0
CLEAN_LIMIT = 60.0
MIB = 1 << 20
PLATFORM = "0x80000004"  # NBD_REP_ERR_PLATFORM: not now, which is not "no such volume"


def volume(member, *arguments):
    return member.quarry("volume", *arguments, *admin(member))


def refused(member, *arguments):
    """A `quarry volume` that must fail; what it says."""
    command = [*member.within, member.binary, "volume", *arguments, *admin(member)]
    done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_LIMIT)
    assert done.returncode != 0, f"`quarry volume {arguments}` should have failed: {done.stdout}"
    return done.stderr


def devices(member):
    """The disks that a node had when it last started, in the configuration's order."""
    return [line.split(" ", 1)[0] for line in (member.data / "cluster" / "devices").read_text().splitlines()]


def members_of(member, name):
    return [one["device"] for one in json.loads(volume(member, "show", name, "--json"))["several"]["members"]]


def counting(member, name):
    shown = json.loads(volume(member, "show", name, "--json"))["several"]["members"]
    return [one["device"] for one in shown if one["counts"]]


def states(member):
    seen = json.loads(member.quarry("cluster", "status", "--json", *admin(member)))
    return {device["device"]: device["state"] for device in seen["devices"]}


def seats(member):
    return {group["name"] for group in member.status()["cluster"]["groups"] if group["here"]}


def exported(member, name):
    """An export, as soon as it can be had: the volume may be getting another head."""
    found = []

    def attempt():
        try:
            found.append(Export(member.nbd, name))
            return True
        except (OSError, Refused):
            return False

    wait_until(attempt, LIMIT, f"attach {name} at {member}")
    return found[0]


def write(member, name, data):
    export = exported(member, name)
    export.write(0, data)
    export.flush()
    export.close()


def read(member, name, length):
    export = exported(member, name)
    found = export.read(0, length)
    export.close()
    return found


class Test:
    def __init__(self, it, rng):
        self.it, self.rng, self.ledger = it, rng, Ledger()
        self.teller, self.member, self.other = it.members
        self.lost, self.bytes = devices(self.member)[1], {}
        self.path = pathlib.Path(f"{self.member.disk}2")
        self.put(OBJECTS)
        self.fill("own1", 16, 1)
        # The first disk is fuller now.
        self.fill("own2", 1, 1)
        roll = (self.member.data / "volumes.roll").read_text().splitlines()
        where = {fields[3]: fields[0] for fields in map(str.split, roll) if len(fields) > 3}
        assert where == {"own1": devices(self.member)[0], "own2": self.lost}, (where, devices(self.member))
        for at in range(1, 9):
            self.fill(f"safe{at}", 1, 3)
        self.safe = [name for name in self.bytes if name.startswith("safe")]
        self.touched = [name for name in self.safe if self.lost in members_of(self.teller, name)]
        assert self.touched, "no volume has a member on that disk"
        wait_until(lambda: self.has_all_seats(), LIMIT, "every group has its voters")

    def has_all_seats(self):
        return self.it.formed() and len(seats(self.member)) == 1 + INDEX_GROUPS

    def put(self, count):
        account, first = self.other.account(), len(self.ledger.told)
        together(lambda n: put(account, self.ledger, f"o{first + n}", self.rng.randbytes(self.rng.randrange(40_000))), range(count), 4)

    def fill(self, name, mib, members):
        volume(self.member, "create", name, "32M", *(["--members", members] if members > 1 else []))
        self.bytes[name] = self.rng.randbytes(mib * MIB)
        write(self.member, name, self.bytes[name])

    def starts_without_it(self, why):
        said = len(self.member.lines())
        took = self.member.start(limit=LIMIT)
        lines = [line for line in self.member.lines()[said:] if "starts without a disk" in line]
        assert len(lines) == 1 and " ERROR " in lines[0], lines
        for word in (str(self.path), self.lost, why, "quarry disk replace", "quarry disk remove"):
            assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
        disk = next(disk for disk in self.member.status()["disks"] if disk["path"] == str(self.path))
        assert disk["state"].startswith("out: ") and why in disk["state"], disk
        with urllib.request.urlopen(f"http://{self.member.client}:{ADMIN}/metrics", timeout=10) as answer:
            assert f'quarry_disk_ok{{disk="{self.path}"}} 0' in answer.read().decode()
        for member in self.it.members:
            wait_until(lambda: states(member)[self.lost] == "away", LIMIT, f"{member} says that the disk is away", lambda: states(member))
            assert list(states(member).values()).count("in") == 5, states(member)
        print(f"start: {self.member} serves without its second disk after {took:.1f} s", flush=True)

    def own_volume_is_away(self):
        for name in ("own2", "own2@snapshot"):
            try:
                Export(self.member.nbd, name)
                raise AssertionError(f"{name} is served without its disk")
            except Refused as error:
                assert PLATFORM in str(error), error
        for arguments in (("create", "own2", "32M"), ("delete", "own2"), ("extend", "own2", "64M")):
            said = refused(self.member, *arguments)
            assert self.lost in said and "away" in said, said
        assert read(self.member, "own1", 16 * MIB) == self.bytes["own1"]

    def works(self, fresh):
        check(self.it, self.ledger)
        self.put(20)
        check(self.it, self.ledger)
        self.own_volume_is_away()
        for name in self.touched[:2]:
            assert read(self.member, name, MIB) == self.bytes[name]
            self.bytes[name] = self.rng.randbytes(MIB)
            write(self.teller, name, self.bytes[name])
            assert read(self.member, name, MIB) == self.bytes[name]
        for at in range(fresh):
            self.fill(f"fresh{at}", 1, 3)
            assert self.lost not in members_of(self.teller, f"fresh{at}"), "a new volume has a member on a dead disk"

    def is_back(self):
        self.member.start(limit=LIMIT)
        for member in self.it.members:
            wait_until(lambda: states(member)[self.lost] == "in", LIMIT, f"{member} says that the disk is in", lambda: states(member))
        wait_until(lambda: self.has_all_seats(), LIMIT, "every group has its voters again", lambda: seats(self.member))
        assert read(self.member, "own2", MIB) == self.bytes["own2"]
        for name in self.touched:
            assert read(self.member, name, MIB) == self.bytes[name]


def gone(test):
    aside = test.path.with_name("aside")
    test.member.stop()
    test.path.rename(aside)
    test.starts_without_it("no such file")
    wait_until(lambda: len(seats(test.member)) > 1, LIMIT, "groups of the other disk go on")
    test.works(4)
    here = seats(test.member)
    assert "control" in here and len(here) < 1 + INDEX_GROUPS, here
    test.member.kill()
    assert not test.path.exists(), "a disk was made in its place"
    test.starts_without_it("no such file")
    wait_until(lambda: seats(test.member) == here, LIMIT, "the same seats as before", lambda: (seats(test.member), here))
    test.member.stop()
    aside.rename(test.path)
    test.is_back()
    print(f"gone: {len(here) - 1} of {INDEX_GROUPS} groups went on at {test.member}, {len(test.touched)} volumes had a member there; all came back", flush=True)


def unreadable(test):
    test.member.stop()
    with open(test.path, "r+b", buffering=0) as file:
        was = file.read(SUPERBLOCKS)
        file.seek(0)
        file.write(bytes(SUPERBLOCKS))
        os.fsync(file.fileno())
    test.starts_without_it("not a Quarry device")
    test.works(0)
    test.member.stop()
    with open(test.path, "r+b", buffering=0) as file:
        file.write(was)
        os.fsync(file.fileno())
    test.is_back()
    print("unreadable: the same with a disk whose superblocks were gone", flush=True)


def unlisted(test):
    """Who takes a disk out of the configuration alone has not said that it is lost."""
    test.member.stop()
    config = pathlib.Path(test.member.command[-1])
    text = config.read_text()
    config.write_text(text[: text.rindex("[[disk]]")])
    test.starts_without_it("lists it no more")
    test.works(0)
    test.member.stop()
    config.write_text(text)
    test.is_back()
    print("unlisted: the same with a disk that the configuration lists no more", flush=True)


def older(test):
    """A copy of the disk from before others were promised something more."""
    aside, copy = test.path.with_name("aside"), test.path.with_name("copy")
    test.member.stop()
    shutil.copyfile(test.path, copy)
    test.is_back()
    test.put(20)
    for name in test.touched:
        test.bytes[name] = test.rng.randbytes(MIB)
        write(test.member, name, test.bytes[name])
    test.member.stop()
    test.path.rename(aside)
    copy.rename(test.path)
    test.starts_without_it("an older copy of itself")
    test.works(0)
    test.member.kill()
    test.starts_without_it("an older copy of itself")
    test.member.stop()
    aside.rename(test.path)
    test.is_back()
    print("older: an older copy of a disk is none, and the disk itself is as it was", flush=True)


def votes(test):
    aside = test.path.with_name("aside")
    test.member.stop()
    test.member.disk.rename(aside)
    try:
        test.member.start(limit=LIMIT)
        raise AssertionError(f"{test.member} started without its votes")
    except AssertionError as error:
        assert "has this node's votes" in str(error) and "--replace" in str(error), error
    aside.rename(test.member.disk)
    test.is_back()
    print("votes: no node starts without the disk that has its votes", flush=True)


def replaced(test):
    test.member.stop()
    test.path.unlink()
    test.starts_without_it("no such file")
    test.member.quarry("disk", "replace", test.lost, devices(test.member)[0], "--dead", *admin(test.member))
    wait_until(lambda: test.has_all_seats(), CLEAN_LIMIT, "every group has its voters, on other disks", lambda: seats(test.member))
    for name in test.safe:
        whole = lambda: len(counting(test.teller, name)) == 3 and test.lost not in members_of(test.teller, name)
        wait_until(whole, CLEAN_LIMIT, f"{name} has three members, on other disks", lambda: members_of(test.teller, name))
        assert read(test.other, name, MIB) == test.bytes[name]
    print(f"replaced: another disk of the node took over, with a member of each of {len(test.touched)} volumes", flush=True)


def clean(test):
    last = {}

    def looked():
        found, good = compared(test.teller)
        last.clear()
        last.update(found)
        return good

    took = wait_until(looked, CLEAN_LIMIT, "equal copies", lambda: last)
    check(test.it, test.ledger)
    print(f"compare: all copies are equal, and nothing is where it does not belong, after {took:.1f} s", flush=True)


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    began = time.monotonic()
    with cluster("cluster-disk-out", [SIZE] * 3, part_power=6, disks=2) as it:
        print(f"disk out: reproduce with  SEED={seed}", flush=True)
        it.members[0].account().expect((201, 202), "PUT", CONTAINER)
        test = Test(it, random.Random(seed))
        print(f"filled after {time.monotonic() - began:.1f} s", flush=True)
        gone(test)
        unreadable(test)
        unlisted(test)
        older(test)
        votes(test)
        replaced(test)
        clean(test)
        print(f"logs: {it.check_logs()}", flush=True)
        together(type(it.members[0]).stop, it.members)
    print(f"disk out: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
