"""The failures that are expected: each becomes a line on stderr and an exit status."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

FAILED = 1
USAGE = 2
INCOMPLETE = 3
BUSY = os.EX_TEMPFAIL


class Error(Exception):
    """An expected failure.

    ``lines`` are shown one by one after the program's name; ``said`` is what an outside
    program wrote to its stderr, shown before them.
    """

    status = FAILED

    def __init__(self, *lines: str, said: str = "") -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
        self.said = said


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


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the signals that end us wait until the block has ended: for steps that belong together."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn an OSError inside the block into an Error that names ``what``, a file or a disk."""
    try:
        yield
    except OSError as error:
        raise Error(f"{what}: {error.strerror or error}") from error
