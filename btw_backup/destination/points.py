"""The points of a destination, opened: a tarball, or files of a chain, put together from its versions."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from ..errors import Error, prefixing_errors
from ..system.directories import Directory
from ..system.limits import allow_open_files
from . import chain, delta
from .catalog import Backup, Chosen, checksum
from .contents import Content, StoredFile
from .metadata import Metadata, Recorded


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


class Way(NamedTuple):
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
        self._metadata = Metadata(data)
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
            known = Recorded(0 if mirror is None else os.fstat(mirror).st_size, "")
        return StoredFile(
            name, known.size, known.digest, identity, partial(self._content, name, mirror, ways)
        )

    def _ways(self, name: str, mirror: int | None) -> list[Way]:
        """The versions that lead from the mirror to the point, the newest first."""
        found = self._versions.get(name, {})
        stamps = self._stamps
        # The mirror is the newest point's content. If rdiff-backup was killed, it may be that of the
        # next one, which was never finished; then a version of the newest is stored, too.
        newest_stamp = self._state.stamps[-1]
        if self._state.interrupted and newest_stamp in found and not self._is_mirror(name, mirror):
            stamps = [newest_stamp, *stamps]
        ways: list[Way] = []
        for stamp in filter(found.__contains__, stamps):
            if not found[stamp].ending.startswith("diff"):
                ways = []  # it needs no newer one
            assert self._increments is not None
            file = self._files.enter_context(self._increments.file(found[stamp].file))
            ways.append(Way(stamp, found[stamp].ending, file))
        return ways

    def _is_mirror(self, name: str, mirror: int | None) -> bool:
        """Whether the mirror is the file as it was at the newest point that was finished."""
        known = self._metadata.at(self._state.stamps[-1], name)
        if known is None or mirror is None:
            return known is None and mirror is None
        with open(os.dup(mirror), "rb") as file:
            return hashlib.file_digest(file, "sha1").hexdigest() == known.digest

    def _content(
        self, name: str, mirror: int | None, ways: Sequence[Way], opened: ExitStack
    ) -> delta.Content:
        """Put the file together."""
        content = None if mirror is None else delta.whole(mirror)
        scratch = delta.Scratch(opened)
        for way in ways:
            content = older(self._metadata, name, content, way, scratch)
        if content is None:
            raise Error(f"{name} is damaged: it is missing")
        return content


def older(
    metadata: Metadata, name: str, newer: delta.Content | None, way: Way, scratch: delta.Scratch
) -> delta.Content | None:
    """Follow one way to an older content of a file, None if it was not there; ``newer`` likewise.

    It is unpacked into ``scratch``. Raises Error if it is damaged.
    """
    if way.ending.startswith("missing"):
        return None
    known = metadata.at(way.stamp, name)
    if known is None:
        raise Error(f"{name} cannot be checked: the metadata of the chain is gone")
    with prefixing_errors(tempfile.gettempdir()):
        try:
            return delta.older(newer or delta.Content([]), way.file, way.ending, known.size, scratch)
        except delta.Damaged as error:
            raise Error(f"{name} is damaged: the way back to {way.stamp} cannot be read: {error}") from error
