"""Starts, stops and kills the real binary on a data directory of its own.

Invariant: a node that a test started is gone when the test ends, however it ends.
Invariant: the data and the log of a failed test stay, and their place is printed; those of a passed one go.
"""

import contextlib
import mmap
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

FIRST_START_LIMIT = 300.0  # formatting a disk writes all of it once
START_LIMIT = 10.0  # any other start, without what the disk held it up; see `DiskProbe`
HELD_LIMIT = 60.0  # with that
USUAL_FLUSH = 0.05  # a flush of 4 KiB that takes longer waits for somebody else's writes
USUAL_READ = 0.02  # and so does a read of a mebibyte
STOP_LIMIT = 60.0
# What a client could take from the caller's shell instead of from client.env.
CLIENT_PREFIXES = ("OS_", "ST_", "AWS_", "QUARRY_OBJECT", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


class Node:
    """One `quarry dev` process, restarted as often as a test likes."""

    def __init__(self, binary, data, size="4G", arguments=()):
        self.binary = str(pathlib.Path(binary).resolve())
        self.data = pathlib.Path(data)
        self.log = self.data.parent / (self.data.name + ".log")
        self.command = [self.binary, "dev", "--data", str(self.data), "--ports", "auto", "--size", size, *arguments]
        self.process = None
        self.env = {}
        self._ready = threading.Event()

    def spawn(self):
        """Start the process and do not wait for it."""
        assert self.process is None, "the node runs already"
        self._ready.clear()
        log = open(self.log, "ab")
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        log.close()
        threading.Thread(target=self._watch, args=(self.process,), daemon=True).start()

    def _watch(self, process):
        with open(self.log, "ab", buffering=0) as log:
            for line in process.stdout:
                log.write(line)
                if process is self.process and line.strip() == b"ready":
                    self._ready.set()

    def start(self, limit=FIRST_START_LIMIT):
        """Start and wait until it is ready; returns the seconds that took."""
        began = time.monotonic()
        self.spawn()
        while not self._ready.wait(0.005):
            if self.process.poll() is not None:
                code = self.process.returncode
                self.process = None
                raise AssertionError(f"the node exited with {code} before it was ready:\n{self.tail()}")
            if time.monotonic() - began > limit:
                raise AssertionError(f"the node was not ready within {limit:.0f} s:\n{self.tail()}")
        took = time.monotonic() - began
        self.env = self.credentials()
        return took

    def start_in_time(self):
        """Start as `start` does, within START_LIMIT; returns the seconds, without those in which the disk held whoever asks it for little."""
        with DiskProbe(self.data.parent) as probe:
            took = self.start(limit=HELD_LIMIT)
        if probe.held > 1.0:
            print(f"start-up: {took:.2f} s by the clock; for {probe.held:.2f} s of them the disk held others, too", flush=True)
        own = max(took - probe.held, 0.0)
        assert own < START_LIMIT, f"start-up took {took:.1f} s, of which the disk held {probe.held:.1f} s; at most {START_LIMIT:.0f} s are allowed beside those"
        return own

    def credentials(self):
        return read_shell_variables(self.data / "client.env")

    def kill(self):
        """SIGKILL: the process gets no chance to write anything more."""
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self):
        """SIGTERM: a graceful end, which must come in time and with status 0."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_LIMIT)
        self.process = None
        assert code == 0, f"the node ended with {code} on SIGTERM:\n{self.tail()}"

    def tail(self, lines=40):
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def client_env(self):
        """The environment for a real client: the caller's, with client.env in place of every credential."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(CLIENT_PREFIXES)}
        env.update(self.env)
        env["PYTHONUNBUFFERED"] = "1"  # a client's line must not be lost in a buffer when its server dies
        env["PYTHONWARNINGS"] = "ignore"
        return env


class DiskProbe(threading.Thread):
    """Flushes 4 KiB and reads a mebibyte beside a start, again and again: `held` is the seconds that the disk made it wait beyond what is usual.

    A start flushes some fifteen times and reads the end of its log, one after the other. Tests run two at a time, and while another
    formats its disks, by gigabytes, each of those waits for its writes, whoever asks: on such a disk the clock would judge the neighbour.
    """

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.held = 0.0
        self._ended = threading.Event()
        # No name in the folder: whatever ends the test, nothing stays behind.
        self._file = tempfile.TemporaryFile(dir=folder)
        self._file.write(os.urandom(1 << 20))
        self._file.flush()
        self._direct = os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_DIRECT)
        self._buffer = mmap.mmap(-1, 1 << 20)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self.join()
        os.close(self._direct)
        self._file.close()

    def run(self):
        while not self._ended.wait(0.01):
            began = time.monotonic()
            os.pwrite(self._file.fileno(), bytes(4096), 0)
            os.fsync(self._file.fileno())
            flushed = time.monotonic()
            os.preadv(self._direct, [self._buffer], 0)
            read = time.monotonic()
            self.held += max(flushed - began - USUAL_FLUSH, 0.0) + max(read - flushed - USUAL_READ, 0.0)


def read_shell_variables(path):
    """What a POSIX shell knows after sourcing the file, and did not before."""
    script = 'set -a; . "$1"; env -0'
    out = subprocess.run(["sh", "-c", script, "sh", str(path)], env={"PATH": os.environ["PATH"]}, check=True, capture_output=True)
    pairs = (entry.split("=", 1) for entry in out.stdout.decode().split("\0") if "=" in entry)
    return {key: value for key, value in pairs if key not in ("PATH", "PWD", "SHLVL", "_", "OLDPWD")}


@contextlib.contextmanager
def scratch(name):
    """A directory for one test. TMPDIR says where; it should be a real disk, because data is written with O_DIRECT."""
    base = os.environ.get("TMPDIR") or "/var/tmp"
    path = pathlib.Path(tempfile.mkdtemp(prefix=f"quarry-{name}-", dir=base))
    try:
        yield path
    except BaseException:
        print(f"{name}: FAILED; data and log are kept in {path}", file=sys.stderr, flush=True)
        raise
    shutil.rmtree(path)


@contextlib.contextmanager
def node(path, **options):
    """A started node below `path`, killed at the end if it still runs."""
    it = Node(binary_argument(), path / "data", **options)
    try:
        took = it.start()
        print(f"node: ready after {took:.1f} s (first start)", flush=True)
        yield it
    except BaseException:
        print(f"node: the end of its log:\n{it.tail()}", file=sys.stderr, flush=True)
        raise
    finally:
        if it.process is not None:
            it.kill()


def binary_argument():
    if len(sys.argv) < 2 or not os.access(sys.argv[1], os.X_OK):
        sys.exit(f"usage: {sys.argv[0]} PATH-OF-THE-QUARRY-BINARY")
    return sys.argv[1]


def run_client(node_, arguments, cwd=None, check=True, without=()):
    """Run a real client from the Python environment that runs this test, `without` some variables; returns its stdout."""
    program = pathlib.Path(sys.executable).with_name(arguments[0])
    env = {key: value for key, value in node_.client_env().items() if key not in without}
    command = [str(program if program.exists() else arguments[0]), *map(str, arguments[1:])]
    done = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    shown = " ".join(map(str, arguments))
    if check:
        assert done.returncode == 0, f"`{shown}` exited with {done.returncode}\nstdout: {done.stdout[-2000:]}\nstderr: {done.stderr[-2000:]}"
    else:
        assert done.returncode != 0, f"`{shown}` should have failed\nstdout: {done.stdout[-2000:]}"
    return done.stdout
