"""Other processes: programs, by the only module that imports subprocess, and work of our own."""

import ctypes
import fcntl
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Any, NamedTuple, NoReturn, Self, cast

from ..errors import Error, uninterrupted

_PACKAGES = {
    "pg_dump": "postgresql-client",
    "pg_dumpall": "postgresql-client",
    "pg_restore": "postgresql-client",
    "psql": "postgresql-client",
    "xz": "xz-utils",
}

# Variables with which the environment could change what the programs do or write; and all of restic,
# whose repository and password the configuration names.
_MEDDLING = frozenset(
    ["BZIP", "BZIP2", "GZIP", "LBZIP2", "PBZIP2", "PIGZ", "POSIXLY_CORRECT", "PYTHONHOME", "PYTHONPATH"]
    + ["RDIFF_BACKUP_VERBOSITY", "TAPE", "TAR_OPTIONS", "XZ_DEFAULTS", "XZ_OPT", "ZSTD_CLEVEL"]
    + ["ZSTD_NBTHREADS"]
)

# The most that a user may have without asking (pipe(7)), in bytes.
_PIPE = 1 << 20

# How often somebody is told that a program still runs, in ms.
_CALL_EVERY = 20

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Result(NamedTuple):
    """How a program ended. ``status`` is negative where a signal ended it; ``said`` is its stderr."""

    program: str
    status: int
    said: str

    def check(self, accepted: Sequence[int] = (0,)) -> Self:
        """Return self; raise Error when the status is not one of ``accepted``."""
        if self.status in accepted:
            return self
        raise Error(self.ending(), said=self.said)

    def ending(self) -> str:
        """The way it ended in words, as the contract fixes them."""
        if self.status < 0:
            return f"{self.program} was killed by {signal.Signals(-self.status).name}"
        return f"{self.program} exited with code: {self.status}"


class Account(NamedTuple):
    """The account of the operating system that a program runs as."""

    name: str
    uid: int
    gid: int
    home: str

    @classmethod
    def named(cls, name: str) -> Self:
        """The account with this name. Raises KeyError where there is none."""
        entry = pwd.getpwnam(name)
        return cls(name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def available(program: str) -> bool:
    """Whether the program is on the PATH."""
    return shutil.which(program) is not None


def find(program: str) -> str:
    """The program's path. Raises Error with the name of the package that brings it."""
    path = shutil.which(program)
    if path is None:
        raise Error(f"{program} not found: install the package {_PACKAGES.get(program, program)}")
    return path


def _is_meddling(name: str) -> bool:
    return name in _MEDDLING or name.startswith("RESTIC_")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without what could change a program's results, in UTC and plain English."""
    kept = {name: value for name, value in os.environ.items() if not _is_meddling(name)}
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC", **(extra or {})}


def _end_with(parent: int) -> None:
    """In a child: end with the process that made it, whatever ends that."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above took effect
        os._exit(127)


def _in_child(cwd: int | None, parent: int) -> Callable[[], None]:
    """What the child does before it becomes the program."""

    def prepare() -> None:
        _end_with(parent)
        if cwd is not None:
            os.fchdir(cwd)

    return prepare


class Program:
    """A running program. Leaving the ``with`` block before ``wait`` kills it."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        cwd: int | None = None,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        account: Account | None = None,
    ) -> None:
        """Start it. ``cwd`` is a directory's descriptor, otherwise ``/``."""
        self.name = argv[0]
        path = find(self.name)
        # A file in memory, so that a full disk can't swallow the reason for a failure.
        self._stderr = os.memfd_create(f"{self.name}-stderr")
        as_user: dict[str, Any] = {}
        if account is not None and account.uid != os.geteuid():
            groups = os.getgrouplist(account.name, account.gid)
            as_user = {"user": account.uid, "group": account.gid, "extra_groups": groups}
            env = {"HOME": account.home, "USER": account.name, "LOGNAME": account.name, **(env or {})}
        try:
            self._process = subprocess.Popen(
                argv,
                executable=path,
                stdin=stdin,
                stdout=stdout,
                stderr=self._stderr,
                cwd="/" if cwd is None else None,
                pass_fds=pass_fds,
                env=environment(env),
                preexec_fn=_in_child(cwd, os.getpid()),
                **as_user,
            )
        except OSError as error:
            os.close(self._stderr)
            raise Error(f"cannot run {self.name}: {error.strerror}") from error
        except BaseException:
            os.close(self._stderr)
            raise

    @property
    def stdout(self) -> IO[bytes]:
        """Its standard output, where PIPE was asked for."""
        return cast(IO[bytes], self._process.stdout)

    @property
    def stdin(self) -> IO[bytes]:
        """Its standard input, where PIPE was asked for."""
        return cast(IO[bytes], self._process.stdin)

    def said(self) -> str:
        """What it has written to its standard error so far."""
        length = os.fstat(self._stderr).st_size  # its own offset stays where it is
        return os.pread(self._stderr, length, 0).decode(errors="surrogateescape")

    def wait(self, meanwhile: Callable[[], None] | None = None) -> Result:
        """Wait for its end; ``meanwhile`` is called many times a second."""
        if meanwhile is not None:
            self._call_until_end(meanwhile)
        status = self._process.wait()
        with open(os.dup(self._stderr), "rb") as stderr:
            stderr.seek(0)
            said = stderr.read().decode(errors="surrogateescape")
        return Result(self.name, status, said)

    def _call_until_end(self, call: Callable[[], None]) -> None:
        # Popen.wait with a timeout, and Popen.poll, take a lock that stays locked for ever when a
        # signal's handler raises just then (CPython 3.11): whoever waits next would never end.
        pidfd = os.pidfd_open(self._process.pid)
        try:
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            call()
            while not ended.poll(_CALL_EVERY):
                call()
        finally:
            os.close(pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # the rest of what it no longer reads
                    pipe.close()
        os.close(self._stderr)


DEVNULL = subprocess.DEVNULL
PIPE = subprocess.PIPE


def run(argv: Sequence[str], *, meanwhile: Callable[[], None] | None = None, **settings: Any) -> Result:
    """Run a program to its end, with the settings of Program. The caller checks the result."""
    with Program(argv, **settings) as program:
        return program.wait(meanwhile)


def output(argv: Sequence[str]) -> str:
    """What a program prints on its standard output. Raises Error where it fails."""
    with Program(argv, stdout=PIPE) as program:
        text = program.stdout.read().decode(errors="replace")
        program.wait().check()
    return text


def widen(pipe: IO[bytes]) -> None:
    """Give a pipe room for several blocks, where the system allows it."""
    with suppress(OSError):  # the user's share of pipe buffers may be used up (pipe(7))
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)


@contextmanager
def beside(work: Callable[[], bytes]) -> Iterator[Callable[[], bytes]]:
    """Do some work of our own in another process; what this yields waits, once, for its result.

    That raises ChildProcessError where the work raised OSError, or was killed, or else has shown
    its traceback. Leaving the block ends it.
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
    """In a child, where signals stay blocked: our handlers are not for it."""
    status = 1
    try:
        _end_with(parent)
        output.write(work())
        output.flush()
        status = 0
    except OSError:
        pass
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
