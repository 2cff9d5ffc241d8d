"""The stream that tar makes, read and compared block by block."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

from ..errors import Error
from ..programs import process
from ..programs.compressors import decompressed
from ..programs.tar import FAILED, Source, leaving_out_large, tar_command, tar_command_for_names
from ..system.files import BLOCK
from ..system.trust import opened_as_resolved

# tar ends an archive with two blocks of zeros; an unfinished archive lacks them.
_END = bytes(1024)


class Archive:
    """A running tar whose stream is read block by block. Made by ``archiving``."""

    def __init__(
        self, program: process.Program, digested: bool, advance: Callable[[int], None], named: bool
    ) -> None:
        self._program = program
        self._named = named
        self._advance = advance
        self._tail = b""
        self._hash = hashlib.sha256() if digested else None
        self.size = 0  # bytes read so far
        self.result = process.Result("tar", 0, "")

    def blocks(self) -> Iterator[bytes]:
        """Yield the rest of the stream; after that, ``result`` tells how tar ended.

        The result's status is 0; 1: files changed or vanished meanwhile; or 2: some could not be
        read. What tar printed of each is in the result. Raises Error unless the archive is whole.
        """
        read = self._program.stdout.read
        while block := read(BLOCK):
            self.size += len(block)
            self._advance(len(block))
            if self._hash is not None:
                self._hash.update(block)
            self._tail = (self._tail + block)[-len(_END) :] if len(block) < len(_END) else block[-len(_END) :]
            yield block
        result = self._program.wait().check((0, 1, 2))
        self.result = _with_vanished(result) if self._named else result
        if self._tail != _END or "not recoverable" in self.result.stderr:
            raise Error("tar did not finish the archive", stderr=self.result.stderr)

    def digest(self) -> str | None:
        """The SHA-256 of everything read; None if it was not requested."""
        return None if self._hash is None else self._hash.hexdigest()


class Named(NamedTuple):
    """Members of a source: an open file with their names, each with a NUL after it.

    ``top`` is the source's directory, open; see ``calls.without_links``.
    """

    names: int
    top: int


@contextmanager
def archiving(
    source: Source, *, digested: bool, advance: Callable[[int], None], named: Named | None = None
) -> Iterator[Archive]:
    """Run tar over the source, or over those members of it.

    ``digested``: what is read is hashed; ``advance`` is called with the size of each block.
    """
    with (
        opened_as_resolved(source.directory) as top,
        leaving_out_large(source) as left_out,
        process.Program(
            tar_command(source, left_out) if named is None else tar_command_for_names(source, left_out),
            stdin=process.DEVNULL if named is None else named.names,
            stdout=process.PIPE,
            cwd=top if named is None else named.top,
            pass_fds=left_out.files if named is None else [named.top, *left_out.files],
        ) as program,
    ):
        process.widen(program.stdout)
        yield Archive(program, digested, advance, named is not None)


# What tar prints of a named member that is no longer there, and then about its exit.
_VANISHED = (
    ": No such file or directory",
    ": Not a directory",
    ": Too many levels of symbolic links",
    FAILED,
)


def _with_vanished(result: process.Result) -> process.Result:
    """The result as it is if tar itself finds a member and that has vanished: 1, and no failure."""
    lines = result.stderr.splitlines()
    if result.status == 2 and all(line.endswith(_VANISHED) for line in lines):
        told = "".join(f"{line}\n" for line in lines if not line.endswith(FAILED))
        return result._replace(status=1, stderr=told)
    return result


class Forward:
    """Reads blocks at positions, none of which is before the last one."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._start = 0
        self._block = b""

    def read(self, position: int, length: int) -> bytes:
        """The bytes of a range, fewer at the end."""
        while self._start + len(self._block) < position + length and (block := next(self._blocks, b"")):
            passed = min(position - self._start, len(self._block))
            self._start += passed
            self._block = self._block[passed:] + block
        return self._block[position - self._start :][:length] if position >= self._start else b""


def check_inside(name: str) -> None:
    """Raise Error if a member's name leads out of the directory that it is unpacked in."""
    if name.startswith("/") or ".." in name.split("/"):
        raise Error(f"it holds a hard link to {name}, which lies outside: refused")


def changed_blocks(archive: Archive, previous: tuple[int, str]) -> Iterator[bytes] | None:
    """Return the blocks of the archive if it differs from the previous one, else None.

    ``previous`` is an open tarball and how it is compressed. As long as both agree nothing is
    kept; what is known to be equal then comes from the previous one.
    """
    blocks = archive.blocks()
    with decompressed(*previous) as old:
        for block in blocks:
            if block != old.read(len(block)):
                return chain(_start_of(previous, archive.size - len(block)), (block,), blocks)
        if old.read(1) == b"" and old.sound():
            return None
    return _start_of(previous, archive.size)


def _start_of(previous: tuple[int, str], count: int) -> Iterator[bytes]:
    """Yield the first ``count`` bytes of the previous archive."""
    with decompressed(*previous) as old:
        while count:
            block = old.read(min(BLOCK, count))
            if not block:
                raise Error("the previous backup changed while it was read")
            count -= len(block)
            yield block
