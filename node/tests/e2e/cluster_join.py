"""Machines become nodes of a cluster: two and then three real processes on 127.0.0.1, and another cluster beside them.

What must hold:
- whoever has a token joins, and nodes that are configured as peers reach each other;
- a token is good once, also for two machines that come at the same moment; one that is expired, altered, cut or of another
  cluster is refused with the reason, and whoever is refused has no identity;
- a node of another cluster is refused, and the log says why;
- `kill -9` of a node is noticed by the others, and so is its return;
- no secret is in a log, and every file of an identity is for its owner alone.

Environment: TRANSPORT (default quic; or tcp).
"""

import base64
import concurrent.futures
import contextlib
import os
import socket
import stat
import subprocess
import sys
import time

from node_process import Node, binary_argument, scratch

SIZE = "256M"
COMMAND_LIMIT = 30.0
# A try each 5 s, which may take 4 s; after failures the pauses grow to 10 s.
NOTICE_LIMIT = 30.0
PREFIX = "quarry-join-"
# Version, fingerprint of the authority, id, secret, address.
ID, SECRET = slice(33, 41), slice(41, 57)


class Member(Node):
    """A node with a [cluster] section on a port of its own."""

    def __init__(self, path, name):
        super().__init__(binary_argument(), path / name, size=SIZE)
        self.name, self.address, self.identity, self.cluster = name, f"127.0.0.1:{free_port()}", None, None

    def configure(self, *peers):
        """Write the configuration; it counts from the next start."""
        lines = ["[node]", 'data = "."', "[[disk]]", 'path = "disk0"', 'index = "index0"', f'size = "{SIZE}"']
        lines += ["[cluster]", f'listen = "{self.address}"', f'transport = "{os.environ.get("TRANSPORT", "quic")}"']
        for peer in peers:
            lines += ["[[cluster.peer]]", f'node = "{peer.identity}"', f'address = "{peer.address}"']
        (self.data / "quarry.toml").write_text("\n".join(lines) + "\n")

    def init(self):
        self.know(quarry("cluster", "init", "--data", self.data))

    def join(self, token):
        self.know(quarry("join", token, "--data", self.data))

    def know(self, printed):
        """Take over what `cluster init` and `join` print."""
        words = dict(line.split(None, 1) for line in printed.splitlines() if line.startswith(("cluster ", "node ")))
        self.cluster, self.identity = words["cluster"], words["node"]

    def token(self, *arguments):
        return quarry("cluster", "token", "--data", self.data, *arguments).strip()

    def lines(self, since=0):
        return self.log.read_text(errors="replace").splitlines()[since:]

    def said(self, *words, since=0):
        return [line for line in self.lines(since) if all(word in line for word in words)]

    def wait_for(self, *words, since=0, limit=NOTICE_LIMIT):
        """Wait until a line of the log has all these words; returns the seconds that took."""
        began = time.monotonic()
        while not self.said(*words, since=since):
            assert self.process is None or self.process.poll() is None, f"{self.name} ended:\n{self.tail()}"
            assert time.monotonic() - began < limit, f"{self.name} did not say {words} within {limit:.0f} s:\n{self.tail()}"
            time.sleep(0.02)
        return time.monotonic() - began


def free_port():
    """A port that is free for UDP and TCP."""
    while True:  # TCP chose it, so UDP takes it nearly always
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                udp.bind(tcp.getsockname())
                return udp.getsockname()[1]


def start_quarry(*arguments):
    command = [binary_argument(), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def quarry(*arguments):
    """Run a command that must succeed; returns what it prints."""
    process = start_quarry(*arguments)
    out, error = process.communicate(timeout=COMMAND_LIMIT)
    assert process.returncode == 0, f"`quarry {arguments[0]}` exited with {process.returncode}:\n{error}"
    return out


def refused(words, token, data):
    """`quarry join` must fail with these words, without showing the token or leaving an identity."""
    process = start_quarry("join", token, "--data", data)
    out, error = process.communicate(timeout=COMMAND_LIMIT)
    assert process.returncode == 1, f"`quarry join` exited with {process.returncode}, wanted 1:\n{out}{error}"
    assert words in error, f"`quarry join` does not say {words!r}:\n{error}"
    assert token not in error, f"`quarry join` shows the token:\n{error}"
    assert "panicked" not in error, error
    return error


def parts(token):
    text = token.removeprefix(PREFIX)
    return bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def altered(token, at):
    """The token with one bit of its byte `at` turned."""
    raw = parts(token)
    raw[at] ^= 1
    return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def expire(host, token):
    """Turn back the time until which a token is good."""
    file = host.data / "cluster" / "tokens" / parts(token)[ID].hex()
    lines = file.read_text().splitlines()
    assert sum(line.startswith("expires = ") for line in lines) == 1, lines
    file.write_text("".join("expires = 1\n" if line.startswith("expires = ") else line + "\n" for line in lines))


def race(token, rivals):
    """All come with one token at the same moment; returns who got in."""
    processes = [(rival, start_quarry("join", token, "--data", rival.data)) for rival in rivals]
    winners = []
    for rival, process in processes:
        out, error = process.communicate(timeout=COMMAND_LIMIT)
        if process.returncode == 0:
            rival.know(out)
            winners.append(rival)
        else:
            assert process.returncode == 1 and "it was used" in error, f"{process.returncode}: {error}"
            assert not (rival.data / "cluster").exists(), f"{rival.name} was refused and has an identity"
    assert len(winners) == 1, f"{len(winners)} machines joined with one token"
    return winners[0]


def check_tokens(a, other, used):
    """Tokens that are no good, shown to the running node `a`."""
    stranger = a.data.parent / "stranger"
    refused("it was used", used, stranger)
    late = a.token()
    expire(a, late)
    refused("is expired", late, stranger)
    good = a.token()
    refused("not known", altered(good, SECRET.start), stranger)
    refused("not known", altered(good, ID.start), stranger)
    refused("belongs to another cluster", altered(good, 1), stranger)
    refused("no token", good[:40], stranger)
    refused("no token", good.upper(), stranger)
    assert not (stranger / "cluster").exists(), "whoever is refused has no identity"
    refused("use another directory", good, other.data)
    return [late, good]


def check_secrets(members, tokens):
    for member in members:
        log = member.log.read_text(errors="replace")
        for token in tokens:
            for secret in (token, parts(token)[SECRET].hex()):
                assert secret not in log, f"the log of {member.name} shows a token's secret"
        assert "PRIVATE KEY" not in log and "panicked" not in log, f"the log of {member.name} shows a key or a panic"
        for folder, _, names in os.walk(member.data / "cluster"):
            for place, mode in [(folder, 0o700), *((os.path.join(folder, name), 0o600) for name in names)]:
                found = stat.S_IMODE(os.stat(place).st_mode)
                assert found == mode, f"{place} has mode {found:o}, wanted {mode:o}"


def together(step, members):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(step, members))


def grow(members, other):
    """Two nodes, then three; `a` is killed on the way and comes back knowing the others. Returns those that run, and tokens."""
    a, b, *rivals = members
    a.init()
    other.init()
    a.configure()
    a.start()
    used = a.token()
    b.join(used)
    assert (b.cluster, b.identity != a.identity) == (a.cluster, True)
    shown = quarry("cluster", "show", "--data", b.data)
    assert a.cluster in shown and b.identity in shown, shown
    contested = a.token("--valid", "5m")
    c = race(contested, rivals)
    tokens = [used, contested, *check_tokens(a, other, used)]
    print("join: two machines have joined, one of two with one token; bad tokens are refused", flush=True)

    b.configure(a)
    # It takes b for one of its own.
    other.configure(b)
    c.configure(a, b)
    b.start()
    b.wait_for("node is reached", a.identity)
    print("reach: the second node reaches the first", flush=True)

    a.kill()
    began = time.monotonic()
    together(Member.start, [c, other])
    c.wait_for("node is reached", b.identity)
    other.wait_for("WARN", "do not call node", "another cluster", b.identity)
    other.wait_for("WARN", "node is not reached", "another cluster", b.identity)
    print("refuse: a node of another cluster is refused, and told why", flush=True)
    b.wait_for("WARN", "node is not reached", a.identity)
    gone = time.monotonic() - began
    since = {member: len(member.lines()) for member in (a, b, c)}
    a.configure(b, c, other)
    took = a.start()
    for peer in (b, c):
        a.wait_for("node is reached", peer.identity, since=since[a])
    a.wait_for("WARN", "do not call node", "another cluster", other.identity, since=since[a])
    back = max(member.wait_for("node is reached", a.identity, since=since[member]) for member in (b, c))
    print(f"kill -9: noticed after {gone:.1f} s; its return (start-up {took:.1f} s) after {back:.1f} s", flush=True)
    return [a, b, c, other], tokens


def main():
    began = time.monotonic()
    with scratch("cluster-join") as path:
        members = [Member(path, name) for name in ("a", "b", "c", "d")]
        other = Member(path, "other")
        try:
            running, tokens = grow(members, other)
            together(Member.stop, running)
            check_secrets(running, tokens)
        except BaseException:
            for member in [*members, other]:
                print(f"{member.name}: the end of its log:\n{member.tail()}", file=sys.stderr, flush=True)
            raise
        finally:
            for member in [*members, other]:
                if member.process is not None:
                    member.kill()
    print(f"cluster: three nodes and a foreign one, {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
