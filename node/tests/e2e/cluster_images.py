"""Volumes of images and images of volumes on three nodes, with a real Glance (GLANCE_VENV); nodes are killed that move bytes.

What must hold:
- volumes with three members, and with one at another node than the one that is asked, hold their image's disk, raw and qcow2, and become images;
- an image is of one moment, also of a volume with several members that is written meanwhile;
- where a node is killed that moves an image's bytes, another one goes on with a volume that has three members, and the node itself with its own
  when it is back: the volume is whole, or `error`; the image is whole, or there is none; nothing else is left.

- Glance is reached by https, and believed for the authority in the nodes' configuration alone.

Environment: SEED (default random; printed).
"""

import contextlib
import os
import random
import shutil
import subprocess

from cluster_migrate import USERS, names
from cluster_openstack import Client, Cloud, write
from cluster_process import FORM_LIMIT, cluster, enter_network, wait_until
from glance_process import Glance, certificate, glance, there
from node_process import scratch
from openstack_volumes import openstack

WAIT = 180.0
PIECE = 1 << 20
BIG = 512  # MiB: enough to be killed in the middle of


def disk(path, rng, mib):
    """A raw file of so many MiB, and pieces of what is in it."""
    places = range(mib) if mib == BIG else (0, 3, mib - 1)
    pieces = {}
    with open(path, "wb") as file:
        file.truncate(mib * PIECE)
        for place in places:
            data = rng.randbytes(PIECE)
            file.seek(place * PIECE)
            file.write(data)
            if place % 37 == 0 or mib != BIG:
                pieces[place * PIECE] = data
    return pieces


def uploaded(member, path, form):
    arguments = ["--file", str(path), "--disk-format", form, "--container-format", "bare", path.name]
    return openstack(Client(member), "image", "create", *arguments)["id"]


def images(member):
    return {one["ID"]: one["Status"] for one in openstack(Client(member), "image", "list")}


def drop(member, image):
    openstack(Client(member), "image", "delete", image, parsed=False)


def has(member, image, path, pieces):
    """Whether Glance has an image with these pieces, by qemu-img."""
    known = openstack(Client(member), "image", "show", image)
    assert known["status"] == "active", known
    openstack(Client(member), "image", "save", "--file", str(path / "back"), image, parsed=False)
    subprocess.run(["qemu-img", "convert", "-f", known["disk_format"], "-O", "raw", path / "back", path / "back.raw"], check=True)
    with open(path / "back.raw", "rb") as file:
        for at, data in pieces.items():
            file.seek(at)
            assert file.read(len(data)) == data, f"{image} has other bytes at {at}"
    for name in ("back", "back.raw"):
        os.unlink(path / name)


def begin(cloud, kind, image):
    return cloud.ask("POST", "volumes", {"volume": {"size": 1, "volume_type": kind, "imageRef": image}})["volume"]["id"]


def send(cloud, volume, form, force=False):
    said = {"image_name": "mine", "disk_format": form, "force": force}
    told = cloud.ask("POST", f"volumes/{volume}/action", {"os-volume_upload_image": said})
    return told["os-volume_upload_image"]["image_id"]


def there_and_back(it, path, rng):
    """Every kind of volume, every node, both formats."""
    pieces = disk(path / "small.raw", rng, 64)
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", path / "small.raw", path / "small.qcow2"], check=True)
    made = {form: uploaded(it.members[0], path / f"small.{form}", form) for form in ("raw", "qcow2")}
    clouds = [Cloud(it, member) for member in it.members]
    for kind in ("safe", "plain"):
        for at, form in enumerate(("raw", "qcow2", "raw")):
            cloud, other = clouds[at], clouds[at - 1]
            volume = begin(cloud, kind, made[form])
            one = other.api.settled(f"volumes/{volume}")
            assert one["bootable"] == "true" and one["volume_image_metadata"]["image_id"] == made[form], one
            other.check(volume, pieces)
            image = send(other, volume, "qcow2" if form == "raw" else "raw")
            other.api.settled(f"volumes/{volume}")
            wait_until(lambda: images(it.members[0])[image] == "active", WAIT, "the image is whole", lambda: images(it.members[0]))
            has(cloud.it.members[at], image, path, pieces)
            drop(it.members[0], image)
            if at == 0:
                image_while_written(cloud, volume, rng, path)
            cloud.api.delete(f"volumes/{volume}")
    wait_until(lambda: not any(map(names, it.members)), WAIT, "nothing is left", lambda: [names(member) for member in it.members])
    print("image: of and to volumes with three members and with one, asked at every node", flush=True)


def image_while_written(cloud, volume, rng, path):
    export = cloud.open(volume)
    pieces = write(export, rng, [3])
    image = send(cloud, volume, "raw", force=True)
    # A volume that is `uploading` may not be frozen yet; one that Glance has bytes of is.
    member = cloud.it.members[0]
    wait_until(lambda: images(member)[image] in ("saving", "active"), WAIT, "the image begins", lambda: images(member))
    for at, data in pieces.items():
        export.write(at, bytes(len(data)))
    export.flush()
    export.close()
    cloud.api.settled(f"volumes/{volume}")
    wait_until(lambda: images(member)[image] == "active", WAIT, "the image is whole", lambda: images(member))
    has(member, image, path, pieces)
    drop(member, image)


def of_another(it, service, host):
    """A Glance whose certificate another authority signed is none."""
    image = uploaded(it.members[0], it.path / "small.raw", "raw")
    keys, service.keys = service.keys, service.path / "other"
    service.keys.mkdir()
    certificate(service.keys, host)
    for keys, wanted in ((service.keys, 503), (keys, 202)):
        service.kill()
        service.keys = keys
        service.start(Client(it.members[0]))
        cloud = Cloud(it, it.members[0])
        body = cloud.ask("POST", "volumes", {"volume": {"size": 1, "volume_type": "plain", "imageRef": image}}, wanted=(wanted,))
    cloud.api.settled(f"volumes/{body['volume']['id']}")
    cloud.api.delete(f"volumes/{body['volume']['id']}")
    drop(it.members[0], image)
    print("image: https, by the authority in the configuration alone", flush=True)


def others(it, member):
    return [Cloud(it, other) for other in it.members if other is not member]


def killed_making(it, kind, form, image, pieces):
    """The node that has the volume, in the middle of a download."""
    while True:
        cloud = Cloud(it, it.members[0])
        volume = begin(cloud, kind, image)
        cloud.api.settled(f"volumes/{volume}", ("downloading",))
        doer = cloud.host(volume)
        if doer is not it.members[0]:
            break
        # It is the one that Glance asks about tokens.
        cloud.ask("POST", f"volumes/{volume}/action", {"os-force_delete": {}})
        cloud.api.gone(f"volumes/{volume}")
    doer.kill()
    print(f"{kind} {form}: {doer} is killed while {volume} is {cloud.volume(volume)['status']}", flush=True)
    if kind == "safe":
        cloud, _ = others(it, doer)
        ended = cloud.api.settled(f"volumes/{volume}", ("available", "error"))
        assert ended["status"] == "available", ended
        cloud.check(volume, pieces)
        doer.start()
    else:
        doer.start()
        ended = cloud.api.settled(f"volumes/{volume}", ("available", "error"))
        if ended["status"] == "available":
            cloud.check(volume, pieces)
    left = lambda: [name for member in it.members for name in names(member) if not name.startswith("volume-")]
    wait_until(lambda: not left(), WAIT, "nothing is on its way", left)
    print(f"{kind} {form}: killed in the middle of a download: {ended['status']}", flush=True)
    return volume, ended["status"]


def killed_sending(it, service, kind, volume, pieces):
    """The node that has the volume, in the middle of an upload."""
    cloud = Cloud(it, it.members[0])
    image = send(cloud, volume, "raw")
    found = lambda: any(file.stat().st_size > 64 << 20 for file in (service.path / "images").rglob(image))
    wait_until(found, WAIT, "it begins", lambda: cloud.volume(volume))
    doer = cloud.host(volume)
    doer.kill()
    print(f"{kind}: {doer} is killed while {volume} is sent", flush=True)
    if kind == "plain":
        doer.start()
    others(it, doer)[0].api.settled(f"volumes/{volume}")
    if kind != "plain":
        doer.start()
    state = images(it.members[0]).get(image)
    print(f"{kind}: killed in the middle of an upload: the image is {state}", flush=True)
    assert state in (None, "active"), state
    if state:
        has(it.members[0], image, it.path, pieces)
        drop(it.members[0], image)
    cloud.check(volume, pieces)


def main():
    if not there() or not shutil.which("qemu-img"):
        print("no Glance (GLANCE_VENV), or no qemu-img: not tried", flush=True)
        return
    # There is no network in a new one yet.
    host, port = ("10.77.0.254", 9292) if enter_network() == "namespaces" else ("127.0.0.1", None)
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    rng = random.Random(seed)
    print(f"images over a cluster: reproduce with  SEED={seed}", flush=True)
    with contextlib.ExitStack() as stack:
        service = Glance(stack.enter_context(scratch("cluster-glance")), host, port, secure=True)
        # For the `openstack` command line.
        authority = service.keys / "ca.pem"
        os.environ["OS_CACERT"] = str(authority)
        images = f'image_service = {{ url = "{service.url}", authority = "{authority}" }}'
        it = stack.enter_context(cluster("cluster-images", ["4G"] * 3, more=[images, *USERS]))
        with glance(it.path, Client(it.members[0]), service=service) as service:
            cloud = Cloud(it, it.members[0])
            pools = lambda: cloud.ask("GET", "scheduler-stats/get_pools")["pools"]
            wait_until(lambda: len(pools()) == 3, WAIT, "all nodes told of themselves", pools)
            cloud.ask("POST", "types", {"volume_type": {"name": "safe", "extra_specs": {"quarry:members": "3"}}})
            cloud.ask("POST", "types", {"volume_type": {"name": "plain"}})
            there_and_back(it, it.path, rng)
            of_another(it, service, host)
            wait_until(it.formed, FORM_LIMIT, "groups with all voters", it.groups)
            pieces = disk(it.path / "big.raw", rng, BIG)
            subprocess.run(["qemu-img", "convert", "-O", "qcow2", it.path / "big.raw", it.path / "big.qcow2"], check=True)
            for form in ("raw", "qcow2"):
                image = uploaded(it.members[0], it.path / f"big.{form}", form)
                for kind in ("safe", "plain"):
                    volume, state = killed_making(it, kind, form, image, pieces)
                    if form == "raw" and state == "available":
                        killed_sending(it, service, kind, volume, pieces)
                    Cloud(it, it.members[0]).api.delete(f"volumes/{volume}")
                drop(it.members[0], image)
            wait_until(lambda: not any(map(names, it.members)), WAIT, "nothing is left", lambda: [names(member) for member in it.members])
            print(it.check_logs(), flush=True)


if __name__ == "__main__":
    main()
