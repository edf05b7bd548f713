"""Volumes of images and images of volumes, with a real Glance (GLANCE_VENV) and the real `openstack` command line.

What must hold:
- a volume of an image holds the image's disk, raw, qcow2 and compressed qcow2, is bootable and tells of the image;
- an image whose bytes are not those that Glance has the hash of, one that breaks off, and one that is no qcow2 end in `error`;
- an image of a volume, raw or qcow2, is what the volume was when it was asked for, also of one that is written meanwhile;
- a node that is killed in the middle goes on: the volume and the image are whole, or the volume is `error` and there is no image.
"""

import json
import os
import shutil
import subprocess
import time

from glance_process import glance, there
from node_process import node, scratch
from openstack_volumes import WAIT, Api, openstack

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


def same(it, path):
    """The image called `mine` has what `holds` looks for, by qemu-img."""
    known = openstack(it, "image", "show", "mine")
    assert known["status"] == "active", known
    (path / "back").unlink(missing_ok=True)
    openstack(it, "image", "save", "--file", path / "back", "mine", parsed=False)
    if known["disk_format"] == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path / "back"], check=True)
        assert known["size"] < 64 << 20, known
    told = subprocess.run(["qemu-img", "info", "--output=json", "-f", known["disk_format"], path / "back"], check=True, capture_output=True)
    assert json.loads(told.stdout)["virtual-size"] == 1 << 30, told.stdout
    subprocess.run(["qemu-img", "convert", "-f", known["disk_format"], "-O", "raw", path / "back", path / "back.raw"], check=True)
    with open(path / "back.raw", "rb") as file:
        for at, expected in ((0, bytes(4096)), (AT, PART), (SIZE - 4096, PART[:4096]), (SIZE, bytes(1 << 20))):
            file.seek(at)
            assert file.read(len(expected)) == expected, at


def back(it, api, path):
    """Images of a volume; while the second one is made the volume is written."""
    (volume,) = [one["ID"] for one in openstack(it, "volume", "list") if one["Name"] == "of-a.raw"]
    openstack(it, "image", "create", "--volume", volume, "--disk-format", "raw", "mine", parsed=False)
    api.settled(f"volumes/{volume}")
    same(it, path)
    openstack(it, "image", "delete", "mine", parsed=False)
    asked = {"os-volume_upload_image": {"image_name": "mine", "disk_format": "qcow2", "visibility": "shared", "protected": True}}
    status, _, body = api.ask("POST", f"volumes/{volume}/action", asked, version="3.71")
    assert status == 202 and body["os-volume_upload_image"]["visibility"] == "shared", body
    export = api.nbd(volume)
    api.settled(f"volumes/{volume}")
    export.write(AT, bytes(4096))
    export.flush()
    export.write(AT, PART[:4096])
    export.flush()
    export.close()
    same(it, path)
    openstack(it, "image", "set", "--unprotected", "mine", parsed=False)
    made = openstack(it, "volume", "create", "--image", "mine", "--size", "1", "again")
    told = api.settled(f"volumes/{made['id']}")["volume_image_metadata"]
    assert told["hw_disk_bus"] == "virtio", told
    holds(api, made["id"])
    openstack(it, "image", "delete", "mine", parsed=False)
    print("image: a volume became a raw image and a qcow2, which became a volume", flush=True)


def killed_sending(it, path, service):
    """The node, and Glance, in the middle of a long upload."""
    api = Api(it)
    (volume,) = [one["ID"] for one in openstack(it, "volume", "list") if one["Name"] == "of-a.raw"]

    def begin():
        status, _, body = api.ask("POST", f"volumes/{volume}/action", {"os-volume_upload_image": {"image_name": "mine"}})
        assert status == 202, body
        image = body["os-volume_upload_image"]["image_id"]
        end = time.monotonic() + WAIT
        while not any(file.stat().st_size > 64 << 20 for file in (service.path / "images").rglob(image)):
            assert time.monotonic() < end, "it does not begin"
            time.sleep(0.01)
        return image

    image = begin()
    service.kill()
    api.settled(f"volumes/{volume}")
    service.start(it)
    left = [one["Status"] for one in openstack(it, "image", "list") if one["ID"] == image]
    assert "active" not in left, left
    openstack(it, "image", "delete", image, parsed=False)
    begin()
    it.kill()
    service.kill()
    it.start()
    service.start(it)
    api = Api(it)
    api.settled(f"volumes/{volume}")
    found = [one["Status"] for one in openstack(it, "image", "list") if one["Name"] == "mine"]
    print(f"image: Glance killed in the middle of an upload: {left}; the node: {found}", flush=True)
    if "active" in found:
        same(it, path)
    if found:
        openstack(it, "image", "delete", "mine", parsed=False)


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
        back(it, api, path)
        bad(it, api, path, service)
        killed_sending(it, path, service)
        killed(it, path, service)


if __name__ == "__main__":
    main()
