"""Child processes: what a child does before it becomes a program, and work done in parallel.

Every child ends with the process that made it, however that ends.
"""

import ctypes
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, NoReturn

from ..errors import uninterrupted

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_libc = ctypes.CDLL(None, use_errno=True)


def _end_with(parent: int) -> None:
    """In a child: end with the process that made it, however that ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above took effect
        os._exit(127)


def _go_on_as_first() -> None:
    """In a child: go on as the first process of a namespace; when it ends, all others there end too.

    bwrap's own --die-with-parent takes effect only when everything is mounted (0.8.0): killed before, it
    would leave a process behind, which then runs the program. The child itself waits, and ends alike.
    """
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    reading, writing = os.pipe()
    if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    first = os.fork()
    if first:
        _end_as(first, writing)
    os.close(writing)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([reading], [], [], 0)[0]:  # the waiting process ended before that
        os._exit(127)
    # bwrap looks itself up in /proc, which must be that of the namespace.
    _mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE)
    _mount(b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _mount(what: bytes, where: bytes, kind: bytes | None, flags: int) -> None:
    if _libc.mount(what, where, kind, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def _end_as(child: int, kept: int) -> NoReturn:
    """In a child: close every descriptor except one, wait for a process, and end as it ends."""
    status = 127
    try:
        os.closerange(0, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            os.kill(os.getpid(), -status)
    finally:
        os._exit(status)


def prepared(cwd: int | None, parent: int, confined: bool) -> Callable[[], None]:
    """A function for Popen: what a child does before it becomes a program, or the bwrap around it."""

    def prepare() -> None:
        _end_with(parent)
        if confined:
            _go_on_as_first()
        if cwd is not None:
            os.fchdir(cwd)

    return prepare


@contextmanager
def beside(work: Callable[[], bytes]) -> Iterator[Callable[[], bytes]]:
    """Do some work in another process. Calling what this yields, once, waits for the result.

    That raises ChildProcessError if the work failed or was killed; any error but OSError prints its
    traceback. Leaving the block ends the process.
    """
    reading, writing = os.pipe()
    child = 0
    with open(reading, "rb") as results:
        try:
            with open(writing, "wb") as output, uninterrupted():
                parent = os.getpid()
                child = os.fork()
                if child == 0:
                    _do(work, output, parent)

            def result() -> bytes:
                found = results.read()
                ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
                if ended is None or (ended.si_code, ended.si_status) != (os.CLD_EXITED, 0):
                    raise ChildProcessError(f"the process {child} has failed")
                return found

            yield result
        finally:
            if child:
                with uninterrupted():
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)


def _do(work: Callable[[], bytes], output: IO[bytes], parent: int) -> NoReturn:
    """In a child: do the work. Signals stay blocked, since our handlers are not meant for it."""
    status = 1
    try:
        _end_with(parent)
        output.write(work())
        output.flush()
        status = 0
    except OSError:
        pass
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
    finally:
        os._exit(status)
