"""The content of one point, checked while it is read."""

import hashlib
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from ..archive import headers
from ..archive.members import Selection, select
from ..archive.stream import first_names
from ..errors import Error, prefixing_errors
from ..programs import compressors
from ..system.directories import Directory
from ..system.files import BLOCK, write_all
from ..system.limits import allow_open_files
from ..system.room import room_on
from . import chain, delta
from .catalog import DUMP, Backup, Chosen, checksum

Write = Callable[[bytes], object]
Advance = Callable[[int], None]


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

    def select(self, members: Sequence[str]) -> Selection | None:
        """Find what must be unpacked of an archive to get these members; None if that is all of it.

        Besides them, these are the files that have the first name of a hard link among them.
        """
        if not members:
            return None
        try:
            if len(self.files) > 1:
                with _Reader(self.files) as reader:
                    return select(reader.read, members)
            with self._plain() as (blocks, _):
                return Selection([], first_names(blocks, members))
        except Error as error:
            raise Error(f"{self.name} is damaged: {error}") from error

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


class Gone(Exception):
    """The backup was exchanged or removed since the point was chosen."""


@contextmanager
def opened(destination: Directory, chosen: Chosen) -> Iterator[Content]:
    """Yield the content of a point. The deltas that lead to an older point of a chain go under TMPDIR.

    Raises Gone, and Error if it can't be read.
    """
    backup = chosen.backup
    with ExitStack() as files:
        try:
            if chosen.point.stamp is not None:
                content = _chosen(destination, backup.name, chosen.point.stamp, files)
            else:
                content = _tarball(destination, backup, files)
        except FileNotFoundError as error:
            raise Gone from error
        except OSError as error:
            raise Error(f"{backup.name}: {error.strerror or error}") from error
        yield content


def _chosen(destination: Directory, chain_name: str, stamp: str, files: ExitStack) -> Content:
    top = files.enter_context(destination.open(chain_name))
    try:
        content = of_chain(top, stamp, files)
        # Half gone, it may also look as if there was no way back to tell of.
        if top.status().st_ino != destination.status(chain_name).st_ino:
            raise Gone
        return content
    except (Error, FileNotFoundError) as error:
        # A chain that was exchanged is being removed: this one may be half gone.
        if top.status().st_ino != destination.status(chain_name).st_ino:
            raise Gone from error
        if isinstance(error, Error):
            raise Error(f"{chain_name}: {error}", stderr=error.stderr) from error
        raise Error(f"{chain_name}: {error.filename or 'a file'} is missing") from error


def _tarball(destination: Directory, backup: Backup, files: ExitStack) -> Content:
    content = delta.whole(files.enter_context(destination.file(backup.name)))
    digest = checksum(backup.name, destination)
    file = StoredFile(backup.name, content.size, digest, backup.name, lambda opened: content)
    return Content([file], backup.compression)


def of_chain(top: Directory, stamp: str, files: ExitStack) -> Content:
    """The content of the point ``stamp`` of a chain. ``files`` closes what is needed for it.

    Everything is opened now: the chain may be exchanged, and removed, while it is read.
    """
    data = files.enter_context(top.open(chain.DATA))
    # The catalog may be out of date: a point may have been added since.
    state = chain.read_state(data.names())
    if stamp not in state.stamps:
        raise Gone
    point = _Point(top, data, state, stamp, files)
    return Content([point.file(name) for name in point.names()], "none", is_older=stamp != state.stamps[-1])


class _Way(NamedTuple):
    """A version that leads to an older one: its stamp, how it is stored, and its open file."""

    stamp: str
    ending: str
    file: int


class _Point:
    """A point of an open chain, whose files are found here."""

    def __init__(
        self, top: Directory, data: Directory, state: chain.State, stamp: str, files: ExitStack
    ) -> None:
        self._top = top
        self._state = state
        self._files = files
        self._metadata = chain.Metadata(data)
        self._mirrors = chain.mirror_names(top)
        self._known = self._metadata.files(stamp, self._mirrors)
        newer = [other for other in state.stamps if chain.moment(other) > chain.moment(stamp)]
        self._stamps = [*reversed([stamp, *newer][:-1])]
        self._increments: Directory | None = None
        self._versions: dict[str, dict[str, chain.Version]] = {}
        if (newer or state.interrupted) and data.holds(chain.INCREMENTS):
            self._increments = files.enter_context(data.open(chain.INCREMENTS))
            self._versions = chain.versions(self._increments.names())

    def names(self) -> list[str]:
        """The names of its files, in order. Raises Error if they are not those of one chain."""
        names = [*self._known] or self._mirrors  # if the metadata are gone
        if chain.series(names) is None:
            raise Error("it does not hold one file, as a chain does")
        allow_open_files(len(names) * (len(self._state.stamps) + 1))
        return names

    def file(self, name: str) -> StoredFile:
        """Open what is needed for a file."""
        mirror = self._files.enter_context(self._top.file(name)) if name in self._mirrors else None
        ways = self._ways(name, mirror)
        known = self._known.get(name)
        if mirror is not None and not ways:
            found = os.fstat(mirror)
            identity: object = (found.st_dev, found.st_ino, found.st_ctime_ns, known)
        else:
            identity = (self._top.status().st_ino, name, ways[-1].stamp if ways else None, known)
        if known is None:
            known = chain.Recorded(0 if mirror is None else os.fstat(mirror).st_size, "")
        return StoredFile(
            name, known.size, known.digest, identity, partial(self._content, name, mirror, ways)
        )

    def _ways(self, name: str, mirror: int | None) -> list[_Way]:
        """The versions that lead from the mirror to the point, the newest first."""
        found = self._versions.get(name, {})
        stamps = self._stamps
        # The mirror is the newest point's content. If rdiff-backup was killed, it may be that of the
        # next one, which was never finished; then a version of the newest is stored, too.
        newest_stamp = self._state.stamps[-1]
        if self._state.interrupted and newest_stamp in found and not self._is_mirror(name, mirror):
            stamps = [newest_stamp, *stamps]
        ways: list[_Way] = []
        for stamp in filter(found.__contains__, stamps):
            if not found[stamp].ending.startswith("diff"):
                ways = []  # it needs no newer one
            assert self._increments is not None
            file = self._files.enter_context(self._increments.file(found[stamp].file))
            ways.append(_Way(stamp, found[stamp].ending, file))
        return ways

    def _is_mirror(self, name: str, mirror: int | None) -> bool:
        """Whether the mirror is the file as it was at the newest point that was finished."""
        known = self._metadata.at(self._state.stamps[-1], name)
        if known is None or mirror is None:
            return known is None and mirror is None
        with open(os.dup(mirror), "rb") as file:
            return hashlib.file_digest(file, "sha1").hexdigest() == known.digest

    def _content(
        self, name: str, mirror: int | None, ways: Sequence[_Way], opened: ExitStack
    ) -> delta.Content:
        """Put the file together."""
        content = None if mirror is None else delta.whole(mirror)
        for way in ways:
            if way.ending.startswith("missing"):
                content = None
                continue
            known = self._metadata.at(way.stamp, name)
            if known is None:
                raise Error(f"{name} cannot be checked: the metadata of the chain is gone")
            with prefixing_errors(tempfile.gettempdir()):
                try:
                    newer = content or delta.Content([])
                    content = delta.older(newer, way.file, way.ending, known.size, opened)
                except delta.Damaged as error:
                    raise Error(
                        f"{name} is damaged: the way back to {way.stamp} cannot be read: {error}"
                    ) from error
        if content is None:
            raise Error(f"{name} is damaged: it is missing")
        return content
