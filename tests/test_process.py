"""Other processes: what no command shows."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from btw_backup.system import children

# A signal arrives while subprocess holds its lock, or while a program is waited for.
SIGNALLED = """
import signal
from btw_backup.programs import process
from btw_backup.system import children

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


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Tell whether the test has made processes, and all of them are gone."""
    made = []
    real = os.fork

    def fork() -> int:
        made.append(child := real())
        return child

    monkeypatch.setattr(os, "fork", fork)
    return lambda: bool(made) and not any(os.path.exists(f"/proc/{child}") for child in made)


def test_work_beside_gives_its_result(ended: Callable[[], bool]) -> None:
    with (
        children.beside(lambda: b"%d" % os.getpid()) as other,
        children.beside(lambda: bytes(1 << 20)) as long,
    ):
        assert other() != b"%d" % os.getpid()
        assert long() == bytes(1 << 20)
    assert ended()


def fail() -> bytes:
    raise FileNotFoundError


def go_wrong() -> bytes:
    nothing: dict[str, int] = {}
    return b"%d" % nothing["missing"]


def end_by_signal() -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


@pytest.mark.parametrize("work, said", [(fail, ""), (end_by_signal, ""), (go_wrong, "KeyError: 'missing'\n")])
def test_work_beside_that_fails_is_noticed(
    work: Callable[[], bytes], said: str, capfd: pytest.CaptureFixture[str], ended: Callable[[], bool]
) -> None:
    with children.beside(work) as other, pytest.raises(ChildProcessError):
        other()
    out, err = capfd.readouterr()
    assert out == "" and err.endswith(said) and bool(err) == bool(said)
    assert ended()


def sleep() -> bytes:
    time.sleep(60)
    return b""


def test_work_beside_ends_with_the_block(ended: Callable[[], bool]) -> None:
    started = time.monotonic()
    with pytest.raises(KeyError), children.beside(sleep):
        raise KeyError
    assert time.monotonic() - started < 30
    assert ended()


# A process with a working child, until a signal hits both, as a terminal sends it.
BESIDE = """
import os, signal, sys, time
from btw_backup.programs import process
from btw_backup.system import children

def end(signum, frame):
    print("handled by", "child" if os.getpid() != parent else "parent", flush=True)
    raise SystemExit(7)

def work():
    print(os.getpid(), flush=True)
    time.sleep(60)

parent = os.getpid()
signal.signal(signal.SIGINT, end)
with children.beside(work) as other:
    other()
"""


@pytest.mark.parametrize(
    "signum, expected, status", [(signal.SIGINT, "handled by parent\n", 7), (signal.SIGKILL, "", -9)]
)
def test_work_beside_ends_with_us(signum: int, expected: str, status: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BESIDE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) != parent.pid
        (os.kill if signum == signal.SIGKILL else os.killpg)(parent.pid, signum)
        assert parent.stdout.read() == expected  # ends when the child has ended, too
        assert parent.wait(timeout=30) == status
