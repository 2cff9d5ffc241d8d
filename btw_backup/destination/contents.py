"""The content of one point, checked while it is read."""

import hashlib
import os
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import NamedTuple

from ..archive import headers
from ..archive.members import Member, members
from ..archive.selection import Selection, select, select_of_whole, stretches
from ..archive.stream import Forward
from ..errors import Error, prefixing_errors
from ..programs import compressors
from ..system.directories import Directory
from ..system.files import BLOCK, write_all
from ..system.room import room_on
from . import delta
from .catalog import DUMP, GLOBALS

Write = Callable[[bytes], object]
Advance = Callable[[int], None]


def is_archive(name: str) -> bool:
    """Whether the first file of a point is an archive, and not a dump."""
    return not name.endswith(DUMP) and name != GLOBALS


class StoredFile(NamedTuple):
    """A file of a point, open and not yet checked.

    ``digest`` is the SHA-1 or SHA-256 that it must have: None if none was recorded, empty if the record
    is gone. ``identity``: what has the same one is the same file, stored once. ``content`` puts it
    together; what it needs stays open as long as the stack that it gets.
    """

    name: str
    size: int
    digest: str | None
    identity: object
    content: Callable[[ExitStack], delta.Content]

    @property
    def key(self) -> object:
        """What another file has only if it holds the same."""
        return (self.size, self.digest) if self.digest else self.identity

    def write_to(self, write: Write, advance: Advance = lambda count: None) -> None:
        """Write all of it. Raises Error at the end if it is not what was stored."""
        with ExitStack() as opened:
            hasher = self._hasher()
            for block in self.content(opened).blocks():
                hasher.update(block)
                write(block)
                advance(len(block))
            self._check(hasher.hexdigest())

    def write_ranges(self, ranges: Sequence[tuple[int, int]], write: Write, advance: Advance) -> None:
        """Write only these ranges, of bytes and in order, though all of it is checked."""
        position = 0
        waiting = [*reversed(ranges)]

        def cut(block: bytes) -> None:
            nonlocal position
            end = position + len(block)
            while waiting and waiting[-1][0] < end:
                first, last = waiting[-1]
                write(block[max(first - position, 0) : last - position])
                if last > end:
                    break
                waiting.pop()
            position = end

        self.write_to(cut, advance)

    def _hasher(self) -> "hashlib._Hash":
        return hashlib.new("sha256" if self.digest and len(self.digest) == 64 else "sha1")

    def _check(self, digest: str) -> None:
        if self.digest == "":
            raise Error(f"{self.name} cannot be checked: the metadata of the chain is gone")
        if self.digest not in (None, digest):
            raise Error(f"{self.name} is damaged: its content is not what was backed up")


class Content:
    """What a point holds: one file, a tarball for one, or the parts of an archive.

    ``name`` is that of the file, or of the first part. ``is_older``: it is an older point of a chain.
    """

    def __init__(self, files: Sequence[StoredFile], compression: str, *, is_older: bool = False) -> None:
        self.name = files[0].name
        self.files = files
        self.is_older = is_older
        self._compression = compression

    def size(self, selection: Selection | None = None) -> int | None:
        """How much ``write_to`` will read, in bytes; None if that is not known in advance."""
        if self._compression != "none":
            return None
        return sum(file.size for file, ranges in self._needed(selection) if ranges != [])

    def database(self) -> str | None:
        """The name of the database if the file is a dump of one, else None."""
        return self.name[: -len(DUMP)] if self.name.endswith(DUMP) else None

    def is_compressed(self) -> bool:
        """Whether it can be read only from its start, through a decompressor."""
        return self._compression != "none"

    def is_archive(self) -> bool:
        """Whether it is one of a filesystem, and not a dump."""
        return is_archive(self.name)

    def select(self, wanted: Sequence[str]) -> Selection | None:
        """Find what must be unpacked of an archive to get these members; None if that is all of it.

        Besides them, these are the files that have the first name of a hard link among them.
        """
        if not wanted:
            return None
        if len(self.files) == 1:
            return select_of_whole(self.members(), wanted)
        try:
            with _Reader(self.files) as reader:
                return select(reader.read, [file.size for file in self.files], wanted)
        except Error as error:
            raise Error(f"{self.name} is damaged: {error}") from error

    def members(self) -> Iterator[Member]:
        """Yield the members of an archive, of which only the headers are read, unless it is compressed.

        Raises Error, at the end of what can be read, if it is damaged.
        """
        try:
            if self._compression != "none":
                with self._plain() as (blocks, check):
                    yield from members(Forward(blocks).read)
                    for _ in blocks:
                        pass
                    check()
                return
            for places in stretches([file.size for file in self.files]):
                with ExitStack() as opened:
                    pieces = [piece for place in places for piece in self.files[place].content(opened).pieces]
                    content = delta.Content(pieces)
                    # The end of the archive itself must be there.
                    stop = sys.maxsize if places.stop == len(self.files) else content.size
                    yield from members(content.read, stop=stop)
        except Error as error:
            raise Error(f"{self.name} is damaged: {error}", stderr=error.stderr) from error

    def write_to(
        self, write: Write, advance: Advance = lambda count: None, selection: Selection | None = None
    ) -> None:
        """Write it, uncompressed: all of it, or an archive of what was selected.

        Raises Error, at the end of a file, if that is not what was stored.
        """
        if self._compression != "none":
            self._unpack_to(write, advance)
            return
        for file, ranges in self._needed(selection):
            if ranges is None:
                file.write_to(write, advance)
            elif ranges:
                file.write_ranges(ranges, write, advance)
        if selection is not None and selection.ranges:
            write(headers.END)

    def check(self, passed: set[object], advance: Advance = lambda count: None) -> None:
        """Read every file whose identity has not ``passed``, and add those that are what was stored.

        Raises Error at the end of one that is not.
        """
        for file in self.files:
            if file.identity in passed:
                advance(file.size)
            else:
                file.write_to(lambda block: None, advance)
                passed.add(file.identity)

    def is_recorded(self) -> bool:
        """Whether it is recorded what each file must be."""
        return all(file.digest is not None for file in self.files)

    def _needed(
        self, selection: Selection | None
    ) -> Iterator[tuple[StoredFile, list[tuple[int, int]] | None]]:
        """Each file, and the ranges that are needed of it; None if that is all."""
        start = 0
        for file in self.files:
            if selection is None or not selection.ranges:
                yield file, None
                continue
            end = start + file.size
            yield (
                file,
                [
                    (max(first - start, 0), min(last, end) - start)
                    for first, last in selection.ranges
                    if first < end and last > start
                ],
            )
            start = end

    def _unpack_to(self, write: Write, advance: Advance) -> None:
        with self._plain() as (blocks, check):
            for block in blocks:
                write(block)
                advance(len(block))
            check()

    @contextmanager
    def file(self, advance: Callable[[int], None] = lambda count: None) -> Iterator[int]:
        """Yield an open file with the checked content: the stored one, or an unnamed one under TMPDIR."""
        if self._compression == "none" and len(self.files) == 1:
            with ExitStack() as opened:
                if (stored := self.files[0].content(opened).file()) is not None:
                    self.write_to(lambda block: None, advance)
                    os.lseek(stored, 0, os.SEEK_SET)
                    yield stored
                    return
        with tempfile.TemporaryFile() as copied:
            temporary = tempfile.gettempdir()
            with (
                Directory.at(temporary) as directory,
                room_on(temporary, directory),
                prefixing_errors(temporary),
            ):
                self.write_to(lambda block: write_all(copied.fileno(), block), advance)
            os.lseek(copied.fileno(), 0, os.SEEK_SET)
            yield copied.fileno()

    @contextmanager
    def _plain(self) -> Iterator[tuple[Iterator[bytes], Callable[[], None]]]:
        """Yield the uncompressed blocks, and a check that raises Error if the file, once read, is damaged."""
        with ExitStack() as opened:
            stored = self.files[0].content(opened)
            if self._compression == "none":
                yield stored.blocks(), lambda: None
                return
            stream = opened.enter_context(compressors.decompressed(stored.pieces[0].file, self._compression))

            def check() -> None:
                if not stream.sound():
                    raise Error(f"{self.name} is damaged", stderr=stream.errors())

            yield iter(lambda: stream.read(BLOCK), b""), check


class _Reader:
    """Reads the files of an archive at any position, best in order: one of them is open at a time."""

    def __init__(self, files: Sequence[StoredFile]) -> None:
        self._files = files
        self._starts = [0, *accumulate(file.size for file in files)]
        self._opened = ExitStack()
        self._current = -1
        self._content = delta.Content([])

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read(self, position: int, length: int) -> bytes:
        """The bytes of a range, fewer at the end."""
        found = b""
        while length and position < self._starts[-1]:
            start, end = self._find(position)
            taken = self._content.read(position - start, min(length, end - position))
            if not taken:
                break
            found += taken
            position += len(taken)
            length -= len(taken)
        return found

    def _find(self, position: int) -> tuple[int, int]:
        """Open the file that holds the byte. Returns where it begins and ends."""
        if not (
            self._current >= 0 and self._starts[self._current] <= position < self._starts[self._current + 1]
        ):
            self._opened.close()
            self._current = bisect_right(self._starts, position) - 1
            self._content = self._files[self._current].content(self._opened)
        return self._starts[self._current], self._starts[self._current + 1]
