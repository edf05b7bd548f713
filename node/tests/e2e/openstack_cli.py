"""The real `openstack` command line, with Keystone's variables from client.env: catalog, containers, objects, account."""

import json
import subprocess
import sys

from node_process import node, run_client, scratch


def openstack(it, *arguments, parsed=False, check=True):
    out = run_client(it, ["openstack", *arguments, *(["-f", "json"] if parsed else [])], check=check)
    return json.loads(out) if parsed else out


def identity(it):
    token = openstack(it, "token", "issue", parsed=True)
    assert token["id"] and token["project_id"], token
    catalog = openstack(it, "catalog", "list", parsed=True)
    kinds = {entry["Type"] for entry in catalog}
    assert {"object-store", "identity"} <= kinds, f"the catalog has {kinds}"
    right = it.env["OS_PASSWORD"]
    it.env["OS_PASSWORD"] = right + "x"
    try:
        openstack(it, "token", "issue", check=False)
    finally:
        it.env["OS_PASSWORD"] = right
    print("identity: a token, a catalog, and no token for a wrong password", flush=True)


def swift_by_keystone(it, *arguments):
    return run_client(it, ["swift", "--auth-version", "3", *arguments], without=("ST_AUTH", "ST_USER", "ST_KEY"))


def containers(it):
    openstack(it, "container", "create", "first", "second")
    names = [row["Name"] for row in openstack(it, "container", "list", parsed=True)]
    assert names == ["first", "second"], names
    openstack(it, "container", "set", "--property", "Colour=green", "first")
    shown = json.dumps(openstack(it, "container", "show", "first", parsed=True))
    assert "green" in shown and "first" in shown, shown
    openstack(it, "container", "unset", "--property", "Colour", "first")
    assert "green" not in openstack(it, "container", "show", "first")
    openstack(it, "container", "delete", "second")
    assert [row["Name"] for row in openstack(it, "container", "list", parsed=True)] == ["first"]
    assert swift_by_keystone(it, "list").split() == ["first"], "`swift` by Keystone sees another account"
    print("container: create, list, set, show, unset, delete", flush=True)


def objects(it, path):
    body = bytes(range(256)) * 4096
    (path / "in").write_bytes(body)
    openstack(it, "object", "create", "--name", "dir/an object", "first", path / "in")
    listed = openstack(it, "object", "list", "--long", "first", parsed=True)
    assert [(row["Name"], row["Bytes"]) for row in listed] == [("dir/an object", len(body))], listed
    openstack(it, "object", "set", "--property", "Taste=sweet", "first", "dir/an object")
    shown = json.dumps(openstack(it, "object", "show", "first", "dir/an object", parsed=True))
    assert "sweet" in shown and str(len(body)) in shown, shown
    openstack(it, "object", "save", "--file", path / "out", "first", "dir/an object")
    subprocess.run(["cmp", path / "in", path / "out"], check=True)
    openstack(it, "object", "delete", "first", "dir/an object")
    assert openstack(it, "object", "list", "first", parsed=True) == []
    print("object: create, list, set, show, save, delete", flush=True)


def account(it, path):
    openstack(it, "object", "store", "account", "set", "--property", "Owner=somebody")
    assert "somebody" in openstack(it, "object", "store", "account", "show")
    openstack(it, "object", "store", "account", "unset", "--property", "Owner")
    assert "somebody" not in openstack(it, "object", "store", "account", "show")
    openstack(it, "object", "create", "--name", "left", "first", path / "in")
    openstack(it, "container", "delete", "--recursive", "first")
    assert openstack(it, "container", "list", parsed=True) == []
    print("account: set, show, unset; a container goes with what is in it", flush=True)


def main():
    with scratch("openstack-cli") as path, node(path, size="1G") as it:
        identity(it)
        containers(it)
        objects(it, path)
        account(it, path)
        it.stop()


if __name__ == "__main__":
    sys.exit(main())
