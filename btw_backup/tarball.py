"""Making, comparing and unpacking tar streams."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import IO, NamedTuple, cast

from . import process
from .compression import Stream, decompressed
from .errors import Error
from .files import BLOCK

TAG = "NOBACKUP-TAG"

# tar ends an archive with two blocks of zeros; one that it gave up lacks them.
_END = bytes(1024)

# An archive in our own blocks, from a pipe: with tar's own, of 10 KiB, it takes twice as long.
_READING = ("--file=-", f"--blocking-factor={BLOCK // 512}", "--read-full-records")

# What tar says of members that are asked for and not there, and then of itself.
_PASSED_OVER = (": Not found in archive", "Exiting with failure status due to previous errors")


class Source(NamedTuple):
    """What is archived: members named ``./…`` in ``directory``, or the one named ``member``.

    ``left_out`` are paths relative to it, ``exclude`` are tar patterns.
    """

    directory: str
    member: str
    left_out: tuple[str, ...]
    exclude: tuple[str, ...]
    one_file_system: bool


def examine_source(path: str, own: Sequence[str], exclude: tuple[str, ...], one_file_system: bool) -> Source:
    """Find out what the path is; ``own`` are directories of ours that are never archived.

    Raises Error where the source is missing, can't be read, or is neither directory nor file.
    """
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            os.listdir(path)
    except FileNotFoundError:
        raise Error(f"the source does not exist: {path}") from None
    except OSError as error:
        raise Error(f"cannot read the source: {path}: {error.strerror}") from error
    real = os.path.realpath(path)
    if stat.S_ISREG(found.st_mode):
        return Source(os.path.dirname(real), os.path.basename(real), (), exclude, one_file_system)
    if not stat.S_ISDIR(found.st_mode):
        raise Error(f"the source is neither a directory nor a regular file: {path}")
    left_out = []
    for directory in map(os.path.realpath, own):
        if directory == real:
            raise Error(f"the source {path} is the destination or the working directory itself")
        if os.path.commonpath([directory, real]) == real:
            left_out.append(os.path.relpath(directory, real))
    return Source(real, "", tuple(left_out), exclude, one_file_system)


def tar_command(source: Source) -> list[str]:
    """The command that writes the archive to its standard output, run in the source's directory.

    The same tree gives the same archive, whatever was read meanwhile (GNU tar 1.34).
    """
    argv = ["tar", "--create", "--file=-", "--format=posix", "--blocking-factor=128"]
    argv += ["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "--sort=name"]
    # Newer formats of sparse members hold tar's process number.
    argv += ["--acls", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"]
    argv.append(f"--exclude-tag={TAG}")
    if source.one_file_system:
        argv.append("--one-file-system")
    argv += ["--anchored", "--no-wildcards"]
    argv += [f"--exclude=./{path}" for path in source.left_out]
    argv += ["--no-anchored", "--wildcards"]
    argv += [f"--exclude={pattern}" for pattern in source.exclude]
    return [*argv, f"./{source.member}" if source.member else "."]


class Archive:
    """A running tar whose stream is read block by block. Made by ``archiving``."""

    def __init__(self, program: process.Program, digested: bool, advance: Callable[[int], None]) -> None:
        self._program = program
        self._advance = advance
        self._tail = b""
        self._hash = hashlib.sha256() if digested else None
        self.size = 0  # bytes read so far
        self.result = process.Result("tar", 0, "")

    def blocks(self) -> Iterator[bytes]:
        """What is left of the stream."""
        read = self._program.stdout.read
        while block := read(BLOCK):
            self.size += len(block)
            self._advance(len(block))
            if self._hash is not None:
                self._hash.update(block)
            self._tail = (self._tail + block)[-len(_END) :] if len(block) < len(_END) else block[-len(_END) :]
            yield block

    def digest(self) -> str:
        """The SHA-256 of all that was read, ``-`` where it was not wanted."""
        return "-" if self._hash is None else self._hash.hexdigest()

    def finish(self) -> None:
        """Wait for tar, when all is read, and keep its result. Raises Error unless the archive is whole.

        The result's status is 0; 1: files changed or vanished meanwhile; or 2: some could not be
        read. What tar says of each is in the result.
        """
        self.result = self._program.wait().check((0, 1, 2))
        if self._tail != _END or "not recoverable" in self.result.said:
            raise Error("tar did not finish the archive", said=self.result.said)


@contextmanager
def archiving(source: Source, *, digested: bool, advance: Callable[[int], None]) -> Iterator[Archive]:
    """Run tar over the source.

    ``digested``: what is read is hashed; ``advance`` is called with the size of each block.
    """
    fd = os.open(source.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with process.Program(tar_command(source), stdout=process.PIPE, cwd=fd) as program:
            process.widen(program.stdout)
            yield Archive(program, digested, advance)
    finally:
        os.close(fd)


class Unpacking:
    """A running tar that takes an archive on its input. Made by ``unpacking`` and ``listing``."""

    def __init__(self, program: process.Program) -> None:
        self._program = program
        self._reads = True

    def write(self, block: bytes) -> None:
        """Give it the next part of the archive; what follows the archive's end is not read."""
        if self._reads:
            try:
                self._program.stdin.write(block)
            except BrokenPipeError:
                self._reads = False

    def finish(self) -> None:
        """Wait for its end. Raises Error unless it did all, but for members that are not there."""
        with suppress(BrokenPipeError):
            self._program.stdin.close()
        result = self._program.wait()
        others = [line for line in result.said.splitlines() if not line.endswith(_PASSED_OVER)]
        result.check((0,) if others else (0, 2))


@contextmanager
def unpacking(target: int, members: Sequence[str]) -> Iterator[Unpacking]:
    """What is written is unpacked into the open directory: all, or those members with what is below."""
    argv = ["tar", "--extract", *_READING, "--preserve-permissions", "--numeric-owner"]
    argv += ["--acls", "--xattrs", "--xattrs-include=*", "--quoting-style=escape"]
    argv += ["--anchored", "--no-wildcards", "--no-unquote", "--", *members]
    with process.Program(argv, stdin=process.PIPE, cwd=target) as program:
        process.widen(program.stdin)
        unpacked = Unpacking(program)
        yield unpacked
        unpacked.finish()


def first_names(archive: Stream, members: Sequence[str]) -> set[str]:
    """What must be unpacked besides those members: the names under which hard-linked files are stored.

    An archive holds the content of such a file under the first of its names only. Raises
    tarfile.TarError where the archive is damaged.
    """
    import tarfile  # slow to import, and no backup needs it

    with tarfile.open(fileobj=cast(IO[bytes], archive), mode="r|") as headers:
        links = [entry for entry in headers if entry.islnk()]
    wanted = {entry.linkname for entry in links if _is_among(entry.name, members)}
    return {name for name in wanted if not _is_among(name, members)}


def _is_among(name: str, members: Sequence[str]) -> bool:
    return any(name == member or name.startswith(f"{member}/") for member in members)


@contextmanager
def listing() -> Iterator[Unpacking]:
    """What is written is read as an archive from its first header to its last."""
    with process.Program(["tar", "--list", *_READING], stdin=process.PIPE) as program:
        process.widen(program.stdin)
        listed = Unpacking(program)
        yield listed
        listed.finish()


def changed_stream(archive: Archive, previous: tuple[int, str] | None) -> Iterator[bytes] | None:
    """The whole archive, where it is not what the previous one holds; None where it is.

    ``previous`` is an open tarball and how it is compressed. As long as both agree nothing is
    kept; what is known to be equal then comes from the previous one.
    """
    blocks = archive.blocks()
    if previous is None:
        return blocks
    with decompressed(*previous) as old:
        for block in blocks:
            if block != old.read(len(block)):
                return chain(_start_of(previous, archive.size - len(block)), (block,), blocks)
        if old.read(1) == b"" and old.sound():
            return None
    return _start_of(previous, archive.size)


def _start_of(previous: tuple[int, str], count: int) -> Iterator[bytes]:
    """The first ``count`` bytes of the previous archive."""
    with decompressed(*previous) as old:
        while count:
            block = old.read(min(BLOCK, count))
            if not block:
                raise Error("the previous backup has changed while it was read")
            count -= len(block)
            yield block
