"""Running other programs, where no command shows it."""

import subprocess
import sys

# A signal that arrives just when subprocess has taken its lock, or else while it is being waited.
SIGNALLED = """
import signal
from btw_backup import process

class Ended(BaseException):
    pass

def end(signum, frame):
    signal.signal(signum, signal.SIG_IGN)
    raise Ended

class Lock:
    def __init__(self, lock):
        self.lock, self.release = lock, lock.release

    def acquire(self, blocking=True):
        taken = self.lock.acquire(blocking)
        signal.raise_signal(signal.SIGTERM)
        return taken

    def __enter__(self):
        return self.lock.__enter__()

    def __exit__(self, *error):
        return self.lock.__exit__(*error)

calls = []

def meanwhile():
    calls.append(1)
    if len(calls) == 3:
        signal.raise_signal(signal.SIGTERM)

signal.signal(signal.SIGTERM, end)
try:
    with process.Program(["sleep", "60"]) as program:
        program._process._waitpid_lock = Lock(program._process._waitpid_lock)
        program.wait(meanwhile)
except Ended:
    print("ended")
"""


def test_a_signal_always_ends_what_is_waited_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)
