"""A real directory tree goes in through the real `swift` client and comes back byte for byte; then a large file in segments.

Environment: TREE (default: the Rust toolchain's share folder, else /usr/share), FILES (how many of it, default 3000; 0 for
all), LARGE_MIB (size of the large file, default 256), SEGMENT_MIB (default 64).
"""

import os
import pathlib
import shutil
import subprocess
import time

from node_process import node, run_client, scratch
from swift_http import Account

ENOUGH_FILES = 1000
ODD_NAMES = ["a name with spaces", "per%20cent", "hash#mark", "question?mark", "grüße.txt", "日本語", "empty", "quote'\"s", "plus+and&"]


def source_tree():
    if os.environ.get("TREE"):
        return pathlib.Path(os.environ["TREE"])
    candidates = [pathlib.Path("/usr/share")]
    if shutil.which("rustc"):
        sysroot = pathlib.Path(subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip())
        candidates = [sysroot / "share", sysroot / "lib" / "rustlib" / "etc", *candidates]
    for path in candidates:
        if path.is_dir() and sum(len(files) for _, _, files in os.walk(path)) >= ENOUGH_FILES:
            return path
    return candidates[-1]


def copy_tree(source, target, count):
    """Every n-th regular file of `source`, so that all of its corners are there, and a few odd names. Returns (files, bytes)."""
    found = sorted(
        path
        for folder, _, files in os.walk(source)
        for path in (pathlib.Path(folder) / name for name in files)
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
    )
    chosen = found if count <= 0 else found[:: max(1, len(found) // count)][:count]
    for path in chosen:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    odd = target / "odd names"
    odd.mkdir(parents=True)
    for name in ODD_NAMES:
        (odd / name).write_bytes(b"" if name == "empty" else name.encode() * 7)
    files = [pathlib.Path(folder) / name for folder, _, names in os.walk(target) for name in names]
    return len(files), sum(path.stat().st_size for path in files)


def tree_comes_back(it, path, count):
    files, size = copy_tree(source_tree(), path / "tree", count)
    began = time.monotonic()
    run_client(it, ["swift", "-q", "upload", "tree-container", "tree"], cwd=path)
    uploaded = time.monotonic()
    listed = run_client(it, ["swift", "list", "tree-container"]).splitlines()
    assert len(listed) == files, f"{files} files went in, `swift list` shows {len(listed)}"
    run_client(it, ["swift", "-q", "download", "tree-container", "--output-dir", path / "back"])
    downloaded = time.monotonic()
    different = subprocess.run(["diff", "-r", path / "tree", path / "back" / "tree"], capture_output=True, text=True)
    assert different.returncode == 0, f"diff -r finds:\n{different.stdout[:2000]}{different.stderr[:2000]}"
    head = Account(it.env).expect(204, "HEAD", "tree-container")
    assert (head.number("x-container-object-count"), head.number("x-container-bytes-used")) == (files, size)
    print(
        f"tree: {files} files, {size / 1e6:.0f} MB; upload {uploaded - began:.1f} s, list {len(listed)}, "
        f"download {downloaded - uploaded:.1f} s, diff -r finds nothing",
        flush=True,
    )


def large_file_comes_back(it, path, mebibytes, segment_mebibytes, kind):
    original, back = path / "large", path / "large-back"
    with open(original, "wb") as out:
        for _ in range(mebibytes):
            out.write(os.urandom(1 << 20))
    segments = -(-mebibytes // segment_mebibytes)
    arguments = ["--segment-size", f"{segment_mebibytes}M", f"--use-{kind}", "--object-name", "large"]
    began = time.monotonic()
    run_client(it, ["swift", "-q", "upload", *arguments, f"large-{kind}", original])
    uploaded = time.monotonic()
    parts = run_client(it, ["swift", "list", f"large-{kind}_segments"]).splitlines()
    assert len(parts) == segments, f"{segments} segments wanted, {len(parts)} listed"
    stat = run_client(it, ["swift", "stat", f"large-{kind}", "large"])
    assert f"Content Length: {mebibytes << 20}" in stat, stat
    run_client(it, ["swift", "-q", "download", f"large-{kind}", "large", "--output", back])
    downloaded = time.monotonic()
    subprocess.run(["cmp", original, back], check=True)
    back.unlink()
    original.unlink()
    print(
        f"{kind}: {mebibytes} MiB in {segments} segments; upload {uploaded - began:.1f} s, download {downloaded - uploaded:.1f} s, identical",
        flush=True,
    )


def all_goes_away(it):
    containers = run_client(it, ["swift", "list"]).splitlines()
    for container in containers:
        run_client(it, ["swift", "-q", "delete", container])
    assert run_client(it, ["swift", "list"]) == "", "containers are left after `swift delete`"
    head = Account(it.env).expect(204, "HEAD")
    counts = [head.number(f"x-account-{what}") for what in ("container-count", "object-count", "bytes-used")]
    assert counts == [0, 0, 0], f"the account counts {counts} after everything was deleted"
    print(f"delete: {len(containers)} containers deleted, the account counts nothing", flush=True)


def main():
    count = int(os.environ.get("FILES", "3000"))
    large, segment = int(os.environ.get("LARGE_MIB", "256")), int(os.environ.get("SEGMENT_MIB", "64"))
    gibibytes = 2 + (4 * large >> 10) + (4 if count <= 0 else 0)
    with scratch("swift-tree") as path, node(path, size=f"{gibibytes}G") as it:
        tree_comes_back(it, path, count)
        for kind in ("slo", "dlo"):
            large_file_comes_back(it, path, large, segment, kind)
        all_goes_away(it)
        it.stop()


if __name__ == "__main__":
    main()
