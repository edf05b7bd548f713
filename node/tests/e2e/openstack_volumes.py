"""Volumes by the real `openstack` command line, used through their NBD URIs, on a node that is killed in the middle of making some.

What must hold:
- what is written through the NBD URI that the API names is in the volume's snapshot, in a volume of it, and there after a kill;
- a volume that is being made when the node is killed is `available` after the next start, or `error`: never `creating` for ever;
- what is written to a volume of an encrypted type is read there after a kill, and is nowhere in the node's files;
- users, projects and roles that the API makes work at once, and one's volumes are not the other's.
"""

import json
import mmap
import os
import pathlib
import time
import urllib.error
import urllib.request

from nbd_client import Export
from node_process import node, run_client, scratch

WAIT = 120.0  # generous: the machine may be busy
DATA = os.urandom(1 << 20)
SECRET = os.urandom(1 << 20)


def openstack(it, *arguments, parsed=True):
    out = run_client(it, ["openstack", *arguments, *(["-f", "json"] if parsed else [])])
    return json.loads(out) if parsed else out


class Api:
    """Requests without the command line, which takes a second for each."""

    def __init__(self, it):
        env = it.env
        user = {"name": env["OS_USERNAME"], "password": env["OS_PASSWORD"], "domain": {"name": "Default"}}
        project = {"name": env["OS_PROJECT_NAME"], "domain": {"name": "Default"}}
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": {"project": project}}}
        self.base, self.token = env["QUARRY_VOLUME_URL"], ""
        _, headers, _ = self.ask("POST", env["OS_AUTH_URL"] + "/auth/tokens", body)
        self.token = headers["X-Subject-Token"]

    def ask(self, method, path, body=None, version=None):
        url = path if path.startswith("http") else f"{self.base}/{path}"
        headers = {"Content-Type": "application/json", "X-Auth-Token": self.token}
        if version:
            headers["OpenStack-API-Version"] = f"volume {version}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, answer.headers, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, error.headers, json.loads(error.read() or b"null")

    def settled(self, path, wanted=("available",)):
        """The resource, when it is in a wanted state."""
        end = time.monotonic() + WAIT
        while True:
            status, _, body = self.ask("GET", path)
            assert status == 200, (path, status, body)
            (one,) = body.values()
            if one["status"] in wanted:
                return one
            assert "error" not in one["status"] and time.monotonic() < end, one
            time.sleep(0.1)

    def gone(self, path):
        end = time.monotonic() + WAIT
        while self.ask("GET", path)[0] != 404:
            assert time.monotonic() < end, path
            time.sleep(0.1)

    def delete(self, path):
        """Deletes it; a connection that was closed a moment ago may still count as a use."""
        end = time.monotonic() + WAIT
        while (status := self.ask("DELETE", path)[0]) != 202:
            assert status == 400 and time.monotonic() < end, (path, status)
            time.sleep(0.1)
        self.gone(path)

    def nbd(self, volume):
        """The export that the API names for a volume."""
        status, _, body = self.ask("POST", f"volumes/{volume}/action", {"os-initialize_connection": {"connector": {"host": "here"}}})
        assert status == 200, body
        url, name = body["connection_info"]["data"]["uri"].rsplit("/", 1)
        return Export(url, name)


def read(api, volume, offset=0):
    export = api.nbd(volume)
    try:
        return export.read(offset, len(DATA))
    finally:
        export.close()


def life(it, api):
    one = openstack(it, "volume", "create", "--size", "1", "--property", "colour=green", "one")["id"]
    api.settled(f"volumes/{one}")
    export = api.nbd(one)
    assert export.size == 1 << 30, export.size
    export.write(0, DATA)
    export.flush()
    export.close()
    snapshot = openstack(it, "volume", "snapshot", "create", "--volume", "one", "frozen")["id"]
    api.settled(f"snapshots/{snapshot}")
    export = api.nbd(one)
    export.write(0, bytes(len(DATA)))
    export.flush()
    export.close()
    two = openstack(it, "volume", "create", "--snapshot", "frozen", "two")["id"]
    api.settled(f"volumes/{two}")
    assert read(api, two) == DATA, "a volume of the snapshot is another"
    assert read(api, one) == bytes(len(DATA)), "the first volume has not changed"
    openstack(it, "volume", "set", "--size", "2", "--property", "taste=sweet", "one", parsed=False)
    api.settled(f"volumes/{one}")
    shown = openstack(it, "volume", "show", "one")
    assert shown["size"] == 2 and shown["properties"]["taste"] == "sweet", shown
    names = {row["Name"]: row["Size"] for row in openstack(it, "volume", "list")}
    assert names == {"one": 2, "two": 1}, names
    print("volume: create, show, list, set, snapshot, a volume of it, written through NBD", flush=True)
    return one, two, snapshot


def on_disk(it, wanted):
    """Whether the node's files have these bytes."""
    for file in pathlib.Path(it.data).rglob("*"):
        if file.is_file() and file.stat().st_size:
            with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                if whole.find(wanted) >= 0:
                    return True
    return False


def encrypted(api):
    """A volume of a type with an encryption, and what it holds."""
    _, _, body = api.ask("POST", "types", {"volume_type": {"name": "secret"}})
    kind = body["volume_type"]["id"]
    said = {"provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256, "control_location": "front-end"}
    status, _, body = api.ask("POST", f"types/{kind}/encryption", {"encryption": said})
    assert status == 200, body
    _, _, body = api.ask("POST", "volumes", {"volume": {"size": 1, "volume_type": "secret"}})
    volume = body["volume"]["id"]
    assert api.settled(f"volumes/{volume}")["encrypted"] is True
    export = api.nbd(volume)
    export.write(4096, SECRET)
    export.flush()
    export.close()
    return volume


def killed(it, two):
    api = Api(it)
    locked = encrypted(api)
    made = [api.ask("POST", "volumes", {"volume": {"size": 1, "source_volid": two, "name": f"copy{n}"}})[2]["volume"]["id"] for n in range(3)]
    it.kill()
    assert on_disk(it, DATA[4096:8192]) and not on_disk(it, SECRET[4096:8192]), "an encrypted volume's bytes lie in clear"
    it.start()
    api = Api(it)
    for volume in made:
        one = api.settled(f"volumes/{volume}", ("available", "error"))
        assert one["status"] == "error" or read(api, volume) == DATA, "a copy is not whole"
        api.delete(f"volumes/{volume}")
    assert read(api, two) == DATA, "flushed bytes are gone"
    assert read(api, locked, 4096) == SECRET, "flushed bytes of an encrypted volume are gone"
    api.delete(f"volumes/{locked}")
    print("kill -9 in the middle: what was being made came to its end", flush=True)
    return api


def others(it, api, one):
    identity = it.env["OS_AUTH_URL"]
    _, _, body = api.ask("POST", f"{identity}/projects", {"project": {"name": "other"}})
    project = body["project"]["id"]
    user = {"name": "ann", "password": "a long secret"}
    _, _, body = api.ask("POST", f"{identity}/users", {"user": user})
    ann = body["user"]["id"]
    (role,) = api.ask("GET", f"{identity}/roles?name=member")[2]["roles"]
    assert api.ask("PUT", f"{identity}/projects/{project}/users/{ann}/roles/{role['id']}")[0] == 204
    mine = dict(it.env)
    it.env.update({"OS_USERNAME": "ann", "OS_PASSWORD": user["password"], "OS_PROJECT_NAME": "other"})
    try:
        theirs = Api(it)
        assert theirs.ask("GET", "volumes")[2]["volumes"] == []
        assert theirs.ask("GET", f"volumes/{one}")[0] == 404
        assert theirs.ask("GET", "os-services")[0] == 403
    finally:
        it.env.clear()
        it.env.update(mine)
    print("a user that was made by the API: has its own project, and sees nothing of another", flush=True)


def end(it, api, one, two, snapshot):
    openstack(it, "volume", "snapshot", "delete", "frozen", parsed=False)
    api.gone(f"snapshots/{snapshot}")
    openstack(it, "volume", "delete", "one", "two", parsed=False)
    for volume in (one, two):
        api.gone(f"volumes/{volume}")
    assert openstack(it, "volume", "list") == []
    print("volume: delete, snapshot delete", flush=True)


def main():
    with scratch("openstack-volumes") as path, node(path, size="1G") as it:
        kinds = {entry["Type"] for entry in openstack(it, "catalog", "list")}
        assert {"block-storage", "volumev3"} <= kinds, kinds
        api = Api(it)
        one, two, snapshot = life(it, api)
        api = killed(it, two)
        others(it, api, one)
        end(it, api, one, two, snapshot)


if __name__ == "__main__":
    main()
