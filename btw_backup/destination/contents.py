"""The content of one point, checked while it is read."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..archive.stream import first_names
from ..errors import Error, prefixing_errors
from ..programs import compressors
from ..system.directories import Directory
from ..system.files import BLOCK, write_all
from ..system.room import room_on
from . import chain, delta
from .catalog import DUMP, Chosen, checksum

Write = Callable[[bytes], object]


class Content:
    """The file of one point, open and not yet checked.

    ``name`` is the name of the file in the chain, or of the tarball. ``digest`` is the SHA-1 or
    SHA-256 that it must have: None if none was recorded, empty if the record is gone. ``is_older``:
    it belongs to an older point of a chain.
    """

    def __init__(
        self,
        name: str,
        stored: delta.Content,
        compression: str,
        digest: str | None,
        *,
        is_older: bool = False,
    ) -> None:
        self.name = name
        self.is_older = is_older
        self._stored = stored
        self._compression = compression
        self._digest = digest

    def size(self) -> int | None:
        """How much ``write_to`` will read, in bytes; None if that is not known in advance."""
        return self._stored.size if self._compression == "none" else None

    def database(self) -> str | None:
        """The name of the database if the file is a dump of one, else None."""
        return self.name[: -len(DUMP)] if self.name.endswith(DUMP) else None

    def first_names(self, members: Sequence[str]) -> set[str]:
        """Which other members of the archive must be unpacked to get these: the targets of hard links."""
        if not members:
            return set()
        with self._plain() as (blocks, _):
            try:
                return first_names(blocks, members)
            except Error as error:
                raise Error(f"{self.name} is damaged: {error}") from error

    def write_to(self, write: Write, advance: Callable[[int], None] = lambda count: None) -> None:
        """Write all of it, uncompressed. Raises Error at the end if it is not what was stored.

        ``advance`` is called with each number of bytes read.
        """
        hasher = hashlib.new("sha256" if self._digest and len(self._digest) == 64 else "sha1")
        with self._plain() as (blocks, check):
            for block in blocks:
                if self._digest is not None:
                    hasher.update(block)
                write(block)
                advance(len(block))
            check()
        if self._digest == "":
            raise Error(f"{self.name} cannot be checked: the metadata of the chain is gone")
        if self._digest not in (None, hasher.hexdigest()):
            raise Error(f"{self.name} is damaged: its content is not what was backed up")

    @contextmanager
    def file(self, advance: Callable[[int], None] = lambda count: None) -> Iterator[int]:
        """Yield an open file with the checked content: the stored one, or an unnamed one under TMPDIR."""
        if self._compression == "none" and (stored := self._stored.file()) is not None:
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
        if self._compression == "none":
            yield self._stored.blocks(), lambda: None
            return
        with compressors.decompressed(self._stored.pieces[0].file, self._compression) as stream:

            def check() -> None:
                if not stream.sound():
                    raise Error(f"{self.name} is damaged", stderr=stream.errors())

            yield iter(lambda: stream.read(BLOCK), b""), check


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
                file = files.enter_context(destination.file(backup.name))
                digest = checksum(backup.name, destination)
                content = Content(backup.name, delta.whole(file), backup.compression, digest)
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


def of_chain(top: Directory, stamp: str, files: ExitStack) -> Content:
    name = chain.mirror_name(top)
    if name is None:
        raise Error("it does not hold one file, as a chain does")
    data = files.enter_context(top.open(chain.DATA))
    # The catalog may be out of date: a point may have been added since.
    state = chain.read_state(data.names())
    if stamp not in state.stamps:
        raise Gone
    found = chain.recorded(data, stamp)
    mirror = delta.whole(files.enter_context(top.file(name)))
    newer = [other for other in state.stamps if chain.moment(other) > chain.moment(stamp)]
    content = mirror
    if (newer or state.interrupted) and data.holds(chain.INCREMENTS):
        increments = files.enter_context(data.open(chain.INCREMENTS))
        # The mirror is the newest point's content. If rdiff-backup was killed, it may be that of the
        # next one, which was never finished; then a version of the newest is stored, too.
        newest_stamp = state.stamps[-1]
        versions = [newest_stamp] if state.interrupted and not _is(mirror, data, newest_stamp) else []
        versions += reversed([stamp, *newer][:-1])
        for version in versions:
            content = _older(content, data, increments, name, version, files)
    digest = "" if found is None else found.digest
    return Content(name, content, "none", digest, is_older=bool(newer))


def _older(
    newer: delta.Content, data: Directory, increments: Directory, name: str, stamp: str, files: ExitStack
) -> delta.Content:
    """Return the content at a point; ``newer`` is the content at the next one."""
    version = chain.open_version(increments, name, stamp)
    if version is None:
        return newer
    found = chain.recorded(data, stamp)
    if found is None:
        os.close(version[0])
        raise Error(f"{name} cannot be checked: the metadata of the chain is gone")
    with prefixing_errors(tempfile.gettempdir()):
        try:
            return delta.older(newer, *version, found.size, files)
        except delta.Damaged as error:
            raise Error(f"{name} is damaged: the way back to {stamp} cannot be read: {error}") from error


def _is(content: delta.Content, data: Directory, stamp: str) -> bool:
    """Whether the content has the digest that was recorded for a point."""
    hasher = hashlib.sha1()
    for block in content.blocks():
        hasher.update(block)
    found = chain.recorded(data, stamp)
    return found is not None and found.digest == hasher.hexdigest()
