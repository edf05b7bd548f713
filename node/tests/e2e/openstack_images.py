"""Volumes of images, with a real Glance (GLANCE_VENV) and the real `openstack` command line.

What must hold:
- a volume of an image holds the image's disk, raw, qcow2 and compressed qcow2, is bootable and tells of the image;
- an image whose bytes are not those that Glance has the hash of, one that breaks off, and one that is no qcow2 end in `error`;
- a node that is killed in the middle goes on: the volume is whole, or `error`.
"""

import os
import shutil
import subprocess

from glance_process import glance, there
from node_process import node, scratch
from openstack_volumes import Api, openstack

PART = os.urandom(3 << 20)
AT, SIZE = 10 << 20, 200 << 20


def files(path):
    """One disk in three formats: data at its middle, and at its end."""
    raw = path / "a.raw"
    with open(raw, "wb") as file:
        file.truncate(SIZE)
        file.seek(AT)
        file.write(PART)
        file.seek(SIZE - 4096)
        file.write(PART[:4096])
    for name, more in (("a.qcow2", []), ("c.qcow2", ["-c"])):
        subprocess.run(["qemu-img", "convert", *more, "-O", "qcow2", raw, path / name], check=True)
    return {"a.raw": "raw", "a.qcow2": "qcow2", "c.qcow2": "qcow2"}


def upload(it, path, name, form, *more):
    arguments = ["--file", path, "--disk-format", form, "--container-format", "bare", *more, name]
    return openstack(it, "image", "create", *arguments)["id"]


def holds(api, volume):
    export = api.nbd(volume)
    assert export.size == 1 << 30
    assert export.read(AT, len(PART)) == PART and export.read(SIZE - 4096, 4096) == PART[:4096]
    for hole in (0, AT + len(PART), SIZE, 512 << 20):
        assert export.read(hole, 1 << 20) == bytes(1 << 20), hole
    export.close()


def good(it, api, path, images):
    for name, form in images.items():
        image = upload(it, path / name, name, form, "--property", "hw_disk_bus=virtio")
        made = openstack(it, "volume", "create", "--image", name, "--size", "1", f"of-{name}")
        one = api.settled(f"volumes/{made['id']}")
        told = one["volume_image_metadata"]
        assert one["bootable"] == "true" and told["image_id"] == image and told["hw_disk_bus"] == "virtio", one
        holds(api, made["id"])
        print(f"image: {name} became a volume", flush=True)


def made_of(api, image):
    status, _, body = api.ask("POST", "volumes", {"volume": {"size": 1, "imageRef": image}})
    assert status == 202, body
    return body["volume"]["id"]


def ends_in_error(api, image):
    volume = made_of(api, image)
    assert api.settled(f"volumes/{volume}", ("error",))["status"] == "error"
    api.delete(f"volumes/{volume}")


def bad(it, api, path, service):
    nobody = "00000000-0000-4000-8000-000000000000"
    assert api.ask("POST", "volumes", {"volume": {"size": 1, "imageRef": nobody}})[0] == 400
    image = upload(it, path / "a.raw", "changed", "raw")
    stored = service.stored(image)
    with open(stored, "r+b") as file:
        file.seek(AT)
        file.write(bytes([PART[0] ^ 1]))
    ends_in_error(api, image)
    os.truncate(stored, SIZE // 2)
    ends_in_error(api, image)
    image = upload(it, path / "a.qcow2", "damaged", "qcow2")
    with open(service.stored(image), "r+b") as file:
        file.write(bytes(4))
    ends_in_error(api, image)
    print("image: other bytes than Glance's hash, fewer, and no qcow2: error", flush=True)


def killed(it, path, service):
    """The node, and Glance, in the middle of a long download."""
    big = path / "big.raw"
    with open(big, "wb") as file:
        for _ in range(16):
            file.write(os.urandom(64 << 20))
    with open(big, "r+b") as file:
        file.seek(AT)
        file.write(PART)
    image = upload(it, big, "big", "raw")
    api = Api(it)
    volume = made_of(api, image)
    api.settled(f"volumes/{volume}", ("downloading",))
    service.kill()
    assert api.settled(f"volumes/{volume}", ("error",))["status"] == "error"
    service.start(it)
    api.delete(f"volumes/{volume}")
    api.gone(f"volumes/{volume}")
    volume = made_of(api, image)
    api.settled(f"volumes/{volume}", ("downloading",))
    it.kill()
    service.kill()
    it.start()
    service.start(it)
    api = Api(it)
    one = api.settled(f"volumes/{volume}", ("available", "error"))
    if one["status"] == "available":
        export = api.nbd(volume)
        assert export.read(AT, len(PART)) == PART
        export.close()
    print(f"image: Glance killed in the middle: error; the node killed in the middle: {one['status']}", flush=True)
    api.delete(f"volumes/{volume}")
    os.unlink(big)


def main():
    if not there() or not shutil.which("qemu-img"):
        print("no Glance (GLANCE_VENV), or no qemu-img: not tried", flush=True)
        return
    with scratch("openstack-images") as path, node(path, size="8G") as it, glance(path, it) as service:
        api = Api(it)
        good(it, api, path, files(path))
        bad(it, api, path, service)
        killed(it, path, service)


if __name__ == "__main__":
    main()
