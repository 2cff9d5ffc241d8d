"""The failures that are expected: each becomes a line on stderr and an exit status."""

import errno
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

FAILED = 1
USAGE = 2
INCOMPLETE = 3
# The backup was made, its off-site copy was not.
NOT_SENT = 4
BUSY = os.EX_TEMPFAIL

# What they mean, for those who read about the program.
STATUSES = {
    "0": "done, or nothing had changed",
    "1": "failed: nothing was stored, and what was there before is intact",
    "2": "usage error",
    "3": "the backup was made, but parts of the source could not be read; each is named on stderr",
    "4": "the backup was made, its off-site copy was not; takes precedence over 3",
    "75": "another process is working on this destination",
    "128+N": "ended by signal N; children are ended, and temporary files removed",
}

# A failure must not look as if another run would make up for it.
_RISING = (0, INCOMPLETE, NOT_SENT, BUSY, FAILED)


def worst(statuses: Iterable[int]) -> int:
    """Return the worst of the exit statuses of a command's pieces of work; 0 if there are none."""
    return max(statuses, key=_RISING.index, default=0)


class Error(Exception):
    """An expected failure.

    ``lines`` are shown one by one after the program's name; ``stderr`` is what an outside
    program wrote to its stderr, shown before them.
    """

    status = FAILED

    def __init__(self, *lines: str, stderr: str = "") -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
        self.stderr = stderr


class Located(str):
    """A line of an Error that is about a file: what is wrong there, and in which line if that is known."""

    def __new__(cls, what: str, file: str, line: int | None = None) -> Self:
        made = super().__new__(cls, f"{file}: {what}" if line is None else f"{file}:{line}: {what}")
        made.what, made.file, made.line = what, file, line
        return made

    what: str
    file: str
    line: int | None


class Undecided(Error):
    """Something could not be found out, such as whether a backup is damaged."""


class Usage(Error):
    """The command line makes no sense."""

    status = USAGE


class Busy(Error):
    """Somebody else is working on the destination."""

    status = BUSY


class Terminated(BaseException):
    """A signal asked this process to end. Passes through everything that catches Exception."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def explained(error: BaseException) -> str:
    """What went wrong, whatever kind of error it is. Never empty."""
    if isinstance(error, Error) and str(error):
        return str(error)
    if isinstance(error, Terminated):
        return f"ended by {signal.Signals(error.signum).name}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def end_on_signals() -> None:
    """Have each of SIGNALS raise Terminated, but for those that are ignored, as under nohup(1)."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _end)


def _end(signum: int, frame: FrameType | None) -> None:
    """Unwind everything once, whatever else arrives meanwhile."""
    _handle(lambda signum, frame: None)
    raise Terminated(signum)


def _handle(handler: Callable[[int, FrameType | None], object]) -> None:
    # Not SIG_IGN: what hooks start would ignore them for ever (execve(2)).
    for signum in SIGNALS:
        if callable(signal.getsignal(signum)):
            signal.signal(signum, handler)


@contextmanager
def held_signals() -> Iterator[list[int]]:
    """Collect the signals that would end us, instead of ending: what this yields holds their numbers.

    Unlike ``uninterrupted`` it changes nothing for the programs that are started in the block.
    """
    held: list[int] = []
    with uninterrupted():
        before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        _handle(lambda signum, frame: held.append(signum))
    try:
        yield held
    finally:
        with uninterrupted():
            for signum, handler in before.items():
                signal.signal(signum, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the signals that end us wait until the block has ended: for steps that belong together."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def prefixing_errors(what: str) -> Iterator[None]:
    """Turn an OSError inside the block into an Error that names ``what``, a file or a disk."""
    try:
        yield
    except OSError as error:
        kind = Undecided if error.errno == errno.ENOSPC else Error
        raise kind(f"{what}: {error.strerror or error}") from error
