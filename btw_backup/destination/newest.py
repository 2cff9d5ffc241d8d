"""The archive of the newest chain, with which the next one is compared."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from ..archive import parts
from ..archive.headers import BEGINNING, name_at
from ..archive.parts import Part, Start
from ..errors import Error, prefixing_errors
from ..system.directories import Directory
from ..system.limits import allow_open_files
from . import chain
from .catalog import Backup
from .writer import LockedDestination


class NewestArchive:
    """The parts of an archive in an open chain, none if there is no chain.

    ``unusable``: why the next backup has to begin a new chain, if it has to.
    """

    def __init__(self, top: Directory | None, found: Sequence[Part], unusable: str | None) -> None:
        self._top = top
        self.parts = list(found)
        self.unusable = unusable

    def open(self, name: str) -> AbstractContextManager[int]:
        """Open a part."""
        assert self._top is not None
        return self._top.file(name)


@contextmanager
def newest_archive(
    destination: LockedDestination, backup: Backup | None, known: Sequence[Part]
) -> Iterator[NewestArchive]:
    """Open the archive of the newest backup, a chain. ``known`` are its parts if they were recorded."""
    if backup is None:
        yield NewestArchive(None, [], None)
        return
    with destination.directory.open(backup.name) as top:
        unusable = None
        if not known:
            with prefixing_errors(backup.name):
                mirrors = chain.mirror_names(top)
                chain.check_series(mirrors)
                known, unusable = _examine(top, mirrors)
        # A part is hardly ever so large; the archive of an older version, in one file, often is.
        if len(known) == 1 and known[0].size > 2 * (parts.FULL.most + parts.FULL.cut):
            unusable = "the archive is now kept in parts"
        yield NewestArchive(top, known, unusable)


def _examine(top: Directory, mirrors: list[str]) -> tuple[list[Part], str | None]:
    """Find out how each part begins. If that can't be found out, also return why."""
    if len(mirrors) == 1:
        with top.file(mirrors[0]) as file:
            start = Start(name_at(os.pread(file, BEGINNING, 0), 0))
            return [Part(mirrors[0], os.fstat(file).st_size, start)], None
    with ExitStack() as opened:
        allow_open_files(len(mirrors))
        files = [(name, opened.enter_context(top.file(name))) for name in mirrors]
        try:
            return list(parts.parts(files, parts.FULL.cut)), None
        except Error as error:
            return [], f"the parts of the newest backup are no archive ({error})"
