"""Other processes: programs, by the only module that imports subprocess, and work of our own."""

import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from types import TracebackType
from typing import IO, Any, NamedTuple, Self, cast

from ..errors import Error
from ..system import children, confinement
from ..system.confinement import At, Confinement, Open, descriptor
from .account import Account
from .environment import environment
from .packages import find

# The most that a user may have without asking (pipe(7)), in bytes.
_PIPE = 1 << 20

# How often ``meanwhile`` is called, in ms.
_CALL_EVERY = 20


class Result(NamedTuple):
    """How a program ended. ``status`` is ``-N`` if signal N ended it."""

    program: str
    status: int
    stderr: str

    def check(self, accepted: Sequence[int] = (0,)) -> Self:
        """Return self. Raises Error unless the status is one of ``accepted``."""
        if self.status in accepted:
            return self
        raise Error(self.ending(), stderr=self.stderr)

    def ending(self) -> str:
        """How it ended, in words that scripts may rely on."""
        if self.status < 0:
            return f"{self.program} was killed by {signal.Signals(-self.status).name}"
        return f"{self.program} exited with code: {self.status}"


def _directories(
    cwd: int | None, argv: Iterable[str | At], env: Mapping[str, str | At], confined: Confinement | None
) -> Iterator[int]:
    """Yield the open directories that a program uses."""
    if confined is not None:
        yield from map(descriptor, confined.writable)
        if cwd is not None:
            yield cwd
    for word in (*argv, *env.values()):
        if isinstance(word, At):
            yield descriptor(word.directory)


def _resolved(word: str | At, found: Mapping[int, str]) -> str:
    return word.below(found[descriptor(word.directory)]) if isinstance(word, At) else word


@cache
def _capabilities() -> frozenset[str]:
    with open("/proc/self/status") as status:
        return confinement.held(status.read())


def unconfined() -> str | None:
    """Why root's programs are not confined here; None if they are. Found out once, in some 6 ms."""
    if not confinement.wanted():
        return "only root's programs are"
    try:
        return _fails(find(confinement.PROGRAM))
    except Error as error:
        return str(error)


@cache
def _fails(bwrap: str) -> str | None:
    """Have bwrap confine a program, itself for one. Returns why it can't; None if it can."""
    directory = os.open(os.path.dirname(bwrap), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = confinement.places([directory])
        whole = Confinement([directory])
        argv = confinement.command([bwrap, "--version"], whole, found, "/", _capabilities())
        result = run(argv, pass_fds=[directory])
    finally:
        os.close(directory)
    reasons = result.stderr.strip().splitlines()
    return None if result.status == 0 else (reasons or [result.ending()])[-1]


class Program:
    """A running program. Leaving the ``with`` block before ``wait`` kills it."""

    def __init__(
        self,
        argv: Sequence[str | At],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        cwd: int | Open | None = None,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str | At] | None = None,
        surroundings: Mapping[str, str] | None = None,
        account: Account | None = None,
        confined: Confinement | None = None,
        own_group: bool = False,
    ) -> None:
        """Start it. ``cwd`` is an open directory, otherwise ``/``.

        ``env`` is added to ``surroundings``, which are what ``environment`` returns unless given.
        ``confined``: what it may do, if programs can be confined (see ``unconfined``) and it does not run
        as another account. It then sees the open directories among its arguments and variables, and
        ``cwd``. In a process group of its own (``own_group``) a terminal's Ctrl-C does not reach it.
        """
        self.name = str(argv[0])
        path = find(self.name)
        here = None if cwd is None else descriptor(cwd)
        other = None if account is None or account.is_ours() else account
        variables: Mapping[str, str | At] = {
            **(environment(self.name) if surroundings is None else surroundings),
            **({} if other is None else other.variables()),
            **(env or {}),
        }
        if confined is not None and (other is not None or unconfined() is not None):
            confined = None
        found = confinement.places(_directories(here, argv, variables, confined))
        if confined is None:
            found = {fd: f"/proc/self/fd/{fd}" for fd in found}
        words = [_resolved(word, found) for word in argv]
        if confined is not None:
            inside = "/" if here is None else found[here]
            words = confinement.command([path, *words[1:]], confined, found, inside, _capabilities())
            path, here = find(confinement.PROGRAM), None
        # A file in memory, so that a full disk can't swallow the reason for a failure.
        self._stderr = os.memfd_create(f"{self.name}-stderr")
        self._confined = confined is not None
        # Confined, it dies a moment after what we wait for; then the last copy of this is closed.
        self._life, alive = os.pipe()
        try:
            self._process = subprocess.Popen(
                words,
                executable=path,
                stdin=stdin,
                stdout=stdout,
                stderr=self._stderr,
                cwd="/" if here is None else None,
                pass_fds=[*pass_fds, *found, *([alive] if self._confined else [])],
                env={name: _resolved(value, found) for name, value in variables.items()},
                preexec_fn=children.prepared(here, os.getpid(), self._confined),
                process_group=0 if own_group else None,
                **({} if other is None else other.credentials()),
            )
        except BaseException as error:
            os.close(self._life)
            os.close(self._stderr)
            if isinstance(error, OSError):
                raise Error(f"cannot run {self.name}: {error.strerror}") from error
            if isinstance(error, subprocess.SubprocessError):  # before it became the program
                raise Error(f"cannot run {self.name}") from error
            raise
        finally:
            os.close(alive)

    @property
    def stdout(self) -> IO[bytes]:
        """Its standard output, if PIPE was asked for."""
        return cast(IO[bytes], self._process.stdout)

    @property
    def stdin(self) -> IO[bytes]:
        """Its standard input, if PIPE was asked for."""
        return cast(IO[bytes], self._process.stdin)

    def errors(self) -> str:
        """Return what it has written to stderr so far."""
        length = os.fstat(self._stderr).st_size  # pread leaves the offset alone
        return os.pread(self._stderr, length, 0).decode(errors="surrogateescape")

    def wait(self, meanwhile: Callable[[], None] | None = None) -> Result:
        """Wait until it ends. ``meanwhile`` is called many times a second."""
        if meanwhile is not None:
            self._call_until_end(meanwhile)
        status = self._process.wait()
        if self._confined:
            status = confinement.status(status)
        with open(os.dup(self._stderr), "rb") as stderr:
            stderr.seek(0)
            written = stderr.read().decode(errors="surrogateescape")
        return Result(self.name, status, written)

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
        os.read(self._life, 1)  # until nobody is left that could still write something
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # the rest of what it no longer reads
                    pipe.close()
        os.close(self._life)
        os.close(self._stderr)


DEVNULL = subprocess.DEVNULL
PIPE = subprocess.PIPE


def run(argv: Sequence[str | At], *, meanwhile: Callable[[], None] | None = None, **settings: Any) -> Result:
    """Run a program with the settings of Program, and wait. The caller checks the result."""
    with Program(argv, **settings) as program:
        return program.wait(meanwhile)


def output(argv: Sequence[str]) -> str:
    """Return what a program prints on stdout. Raises Error if it fails."""
    with Program(argv, stdout=PIPE) as program:
        text = program.stdout.read().decode(errors="replace")
        program.wait().check()
    return text


def widen(pipe: IO[bytes]) -> None:
    """Give a pipe room for several blocks, if the system allows it."""
    with suppress(OSError):  # the user's share of pipe buffers may be used up (pipe(7))
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
