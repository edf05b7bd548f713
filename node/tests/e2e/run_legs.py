"""Runs end-to-end tests, two at a time: most of a test's time it waits for a node to notice something. Those that judge by the clock come
first, and alone: beside a test that formats its disks, by gigabytes, the clock judges that one.

    run_legs.py BINARY LEG...

Every test has directories, ports and, where the machine permits it, a network of its own, so that two know nothing of each other.
What a test prints comes in one piece when it ends; a test that runs alone prints as it goes. After a failure no further one begins.

Environment: TOGETHER (how many at a time, default 2).
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent


ALONE = ("crash_loop",)


class Leg:
    def __init__(self, name, binary, output):
        self.name, self.output, self.began = name, output, time.monotonic()
        command = [sys.executable, str(HERE / f"{name}.py"), binary]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output and subprocess.STDOUT)

    def ended(self):
        """Nothing while it runs; else whether it passed, after saying so."""
        process, status, used = os.wait4(self.process.pid, os.WNOHANG)
        if process == 0:
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.output:
            self.output.seek(0)
            print(f"e2e: {self.name}\n{self.output.read().decode(errors='replace')}", end="")
            self.output.close()
        passed = self.process.returncode == 0
        took, cpu = time.monotonic() - self.began, used.ru_utime + used.ru_stime
        print(f"e2e: {self.name} {'passed' if passed else 'FAILED'} ({took:.0f} s, {cpu:.0f} s of processor)", flush=True)
        return passed


def main():
    binary, waiting = sys.argv[1], sorted(sys.argv[2:], key=lambda leg: leg not in ALONE)
    together = min(int(os.environ.get("TOGETHER") or 2), len(waiting))
    running, failed = [], []
    while running or waiting and not failed:
        while waiting and len(running) < together and not failed:
            if running and (waiting[0] in ALONE or running[0].name in ALONE):
                break
            running.append(Leg(waiting.pop(0), binary, tempfile.TemporaryFile() if together > 1 else None))
        time.sleep(0.1)
        for leg in list(running):
            passed = leg.ended()
            if passed is not None:
                running.remove(leg)
                failed += [] if passed else [leg.name]
    if failed:
        sys.exit(f"e2e: failed: {' '.join(failed)}" + (f"; not run: {' '.join(waiting)}" if waiting else ""))


if __name__ == "__main__":
    main()
