"""`kill -9` at random moments while several clients write; after every restart, what clients were told is compared with what is there.

What must hold after each restart:
- the node is ready within 10 s, without those in which the disk held it up (`DiskProbe`);
- an acknowledged write is there, whole (MD5), and an acknowledged delete stays deleted;
- a write that was under way is there whole, or not at all: the old state or the new one, nothing between;
- a listing shows exactly the objects that are there, with their sizes and MD5s; container and account counters are exact.

Environment: ROUNDS (default 8), SEED (default random; printed), WRITERS (default 6).
The seed fixes what is written and how long it takes until the kill; the machine decides what that hits.
"""

import concurrent.futures
import http.client
import os
import pathlib
import random
import subprocess
import sys
import threading
import time

from node_process import node, scratch
from swift_http import Account, md5

CONTAINERS = ["crash-0", "crash-1", "crash-2"]
TREE = "crash-tree"
READERS = 8
KEEP_BYTES = 1 << 30  # above this, half of the objects is deleted before the next round
ABSENT = None  # the state of an object that does not exist; any other state is (md5, size)


class Ledger:
    """What clients were told, per object (`container/name`). A name has one writer, so its history is a line."""

    def __init__(self):
        self.lock = threading.Lock()
        self.told = {}  # the last acknowledged state
        self.open = {}  # the state that an unanswered request would leave
        self.touched = set()  # since the last check
        self.acknowledged = 0

    def begin(self, name, state):
        with self.lock:
            assert name not in self.open, f"{name}: two requests at once"
            self.open[name] = state
            self.touched.add(name)

    def acknowledge(self, name):
        with self.lock:
            self.told[name] = self.open.pop(name)
            self.acknowledged += 1

    def settle(self, name, seen):
        """Compare with what is there after a restart, which from now on is the truth."""
        allowed = [self.told.get(name, ABSENT)]
        if name in self.open:
            allowed.append(self.open.pop(name))
        assert seen in allowed, f"{name}: {describe(seen)} is there; clients were told {' or '.join(map(describe, allowed))}"
        self.told[name] = seen

    def present(self, container):
        return {name.split("/", 1)[1]: state for name, state in self.told.items() if state and name.startswith(container + "/")}


def describe(state):
    return "nothing" if state is ABSENT else f"{state[1]} bytes with MD5 {state[0]}"


class Writer(threading.Thread):
    """Puts, overwrites and deletes objects of its own until the node dies."""

    def __init__(self, number, round_, seed, account, ledger, stop):
        super().__init__(daemon=True)
        self.rng = random.Random(f"{seed}/{round_}/{number}")
        self.number, self.round, self.account, self.ledger, self.stopping = number, round_, account, ledger, stop
        self.prefix = f"{CONTAINERS[number % len(CONTAINERS)]}/w{number}/"
        self.mine = sorted(name for name, state in ledger.told.items() if state and name.startswith(self.prefix))
        self.error = None

    def run(self):
        try:
            count = 0
            while not self.stopping.is_set():
                count += 1
                self.step(f"{self.prefix}r{self.round:04}/{count:06}")
        except (OSError, http.client.HTTPException) as error:
            if not self.stopping.wait(2.0):  # a broken connection is what a killed node looks like, nothing else
                self.error = error
        except BaseException as error:
            self.error = error

    def step(self, fresh):
        dice = self.rng.random()
        if self.mine and dice < 0.12:
            name = self.mine.pop(self.rng.randrange(len(self.mine)))
            self.ledger.begin(name, ABSENT)
            self.account.expect(204, "DELETE", name)
            self.ledger.acknowledge(name)
            return
        name = self.rng.choice(self.mine) if self.mine and dice < 0.27 else fresh
        body = self.rng.randbytes(self.size())
        self.ledger.begin(name, (md5(body), len(body)))
        pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)]
        chunked = self.rng.random() < 0.2
        answer = self.account.expect(201, "PUT", name, body=iter(pieces) if chunked else body)
        assert answer.etag() == md5(body), f"PUT {name} answered with ETag {answer.etag()}"
        self.ledger.acknowledge(name)
        if name == fresh:
            self.mine.append(name)

    def size(self):
        if self.number == 0:  # one writer of large objects, so that a stream is under way at the kill
            return self.rng.randrange(1 << 20, 24 << 20)
        return self.rng.choice([0, 1, 100, 4095, 4096, 4097, self.rng.randrange(65536), self.rng.randrange(1 << 20)])


class TreeUpload:
    """The real `swift upload`; each name that it prints was acknowledged."""

    def __init__(self, path, seed, round_):
        self.folder = path / f"tree-{round_}"
        rng = random.Random(f"{seed}/tree/{round_}")
        self.states = {}
        for number in range(1500):
            file = self.folder / f"d{number % 17}" / f"f{number}"
            file.parent.mkdir(parents=True, exist_ok=True)
            body = rng.randbytes(rng.randrange(40_000))
            file.write_bytes(body)
            self.states[f"{self.folder.name}/{file.relative_to(self.folder)}"] = (md5(body), len(body))
        self.process = None

    def start(self, it, ledger):
        for name, state in self.states.items():
            ledger.begin(f"{TREE}/{name}", state)
        swift = pathlib.Path(sys.executable).with_name("swift")
        command = [str(swift), "--retries", "0", "upload", TREE, self.folder.name]
        self.process = subprocess.Popen(
            command, cwd=self.folder.parent, env=it.client_env(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self, ledger):
        out, error = self.process.communicate(timeout=120)
        printed = [line for line in out.splitlines() if line in self.states]
        for name in printed:
            ledger.acknowledge(f"{TREE}/{name}")
        if self.process.returncode == 0:
            assert len(printed) == len(self.states), f"`swift upload` succeeded and printed {len(printed)} names:\n{error[-1000:]}"
        return len(printed)


def get_state(account, name):
    answer = account.request("GET", name)
    if answer.status == 404:
        return ABSENT
    assert answer.status == 200, f"GET {name} answered {answer.status}: {answer.body[:300]!r}"
    state = (md5(answer.body), len(answer.body))
    assert (answer.etag(), answer.number("content-length")) == state, f"GET {name}: the body is not what its headers say"
    return state


def head_state(account, name):
    answer = account.request("HEAD", name)
    if answer.status == 404:
        return ABSENT
    assert answer.status == 200, f"HEAD {name} answered {answer.status}"
    return answer.etag(), answer.number("content-length")


def check_objects(account, ledger, read_all):
    """Everything touched since the last check is read whole; the rest is asked for, or read too at the end."""
    names = sorted(set(ledger.told) | set(ledger.open))
    # A deleted or never finished object needs one look; later only the listing could show it again.
    names = [name for name in names if name in ledger.touched or ledger.told.get(name)]

    def look(name):
        whole = read_all or name in ledger.touched
        seen = get_state(account, name) if whole else head_state(account, name)
        if whole:
            head = head_state(account, name)
            assert head == seen, f"{name}: HEAD says {describe(head)}, GET gives {describe(seen)}"
        return name, seen

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for name, seen in pool.map(look, names):
            ledger.settle(name, seen)
    ledger.touched.clear()
    return len(names)


def check_listings(account, ledger):
    totals = [0, 0, 0]
    rows_of_account = {row["name"]: (row["count"], row["bytes"]) for row in account.listing()}
    for container in [*CONTAINERS, TREE]:
        present = ledger.present(container)
        listed = {row["name"]: (row["hash"], row["bytes"]) for row in account.listing(container)}
        for name in sorted(set(present) | set(listed)):
            there, row = present.get(name, ABSENT), listed.get(name, ABSENT)
            assert there == row, f"{container}/{name}: {describe(there)} is there, the listing shows {describe(row)}"
        counts = (len(present), sum(size for _, size in present.values()))
        head = account.expect(204, "HEAD", container)
        counters = (head.number("x-container-object-count"), head.number("x-container-bytes-used"))
        assert counters == counts, f"{container}: counters say {counters}, there are {counts}"
        assert rows_of_account[container] == counts, f"{container}: the account's listing says {rows_of_account[container]}, there are {counts}"
        totals = [totals[0] + 1, totals[1] + counts[0], totals[2] + counts[1]]
    head = account.expect(204, "HEAD")
    counters = [head.number(f"x-account-{what}") for what in ("container-count", "object-count", "bytes-used")]
    assert counters == totals, f"the account's counters say {counters}, there are {totals}"
    return totals[1], totals[2]


def make_room(account, ledger, rng):
    """Keeps a long run within its disk; the deletes are as acknowledged as any."""
    present = sorted(name for name, state in ledger.told.items() if state)
    if sum(ledger.told[name][1] for name in present) <= KEEP_BYTES:
        return
    for name in rng.sample(present, len(present) // 2):
        ledger.begin(name, ABSENT)
        account.expect(204, "DELETE", name)
        ledger.acknowledge(name)


def write_and_kill(it, round_, seed, ledger, rng, path, writers):
    """One round's writes and its kill; returns what to print."""
    account = Account(it.env)
    make_room(account, ledger, rng)
    upload = TreeUpload(path, seed, round_) if round_ % 4 == 2 else None
    stop = threading.Event()
    threads = [Writer(number, round_, seed, account, ledger, stop) for number in range(writers if upload is None else 2)]
    before = ledger.acknowledged
    for thread in threads:
        thread.start()
    if upload is not None:
        upload.start(it, ledger)
    delay = rng.uniform(0.2, 3.0) + (0.8 if upload is not None else 0.0)  # the client needs a moment to begin
    time.sleep(delay)
    it.kill()
    stop.set()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive(), "a writer hangs although its node is gone"
        if thread.error is not None:
            raise thread.error
    uploaded = f", {upload.finish(ledger)} of {len(upload.states)} by `swift upload`" if upload is not None else ""
    return f"killed after {delay:.2f} s, {ledger.acknowledged - before} acknowledged{uploaded}"


def restart(it, rng):
    """Start again, at times with a kill in the middle of the start; returns the seconds of the start that counts."""
    if rng.random() < 0.33:
        it.spawn()
        time.sleep(rng.uniform(0.0, 0.5))
        it.kill()
    return it.start_in_time()


def main():
    rounds, writers = int(os.environ.get("ROUNDS", "8")), int(os.environ.get("WRITERS", "6"))
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    print(f"crash loop: reproduce with  SEED={seed} ROUNDS={rounds} WRITERS={writers}  and this script", flush=True)
    rng, ledger, slowest = random.Random(seed), Ledger(), 0.0
    with scratch("crash-loop") as path, node(path, size="4G") as it:
        account = Account(it.env)
        for container in [*CONTAINERS, TREE]:
            account.expect((201, 202), "PUT", container)
        for round_ in range(1, rounds + 1):
            told = write_and_kill(it, round_, seed, ledger, rng, path, writers)
            took = restart(it, rng)
            slowest = max(slowest, took)
            account = Account(it.env)
            checked = check_objects(account, ledger, read_all=round_ == rounds)
            objects, size = check_listings(account, ledger)
            print(
                f"round {round_}: {told}; start-up {took:.2f} s; {checked} objects looked at; {objects} listed, {size / 1e6:.0f} MB, counters exact",
                flush=True,
            )
        it.stop()
    print(f"crash loop: {rounds} kills, {ledger.acknowledged} acknowledged writes and deletes, none lost; slowest start-up {slowest:.2f} s", flush=True)


if __name__ == "__main__":
    main()
