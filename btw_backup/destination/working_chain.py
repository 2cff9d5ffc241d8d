"""A chain in the private directory: rdiff-backup adds a point to it before anybody sees it."""

import gzip
import os
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from itertools import groupby
from typing import IO, cast

from ..errors import Error
from ..programs import process, rdiff_backup
from ..system.directories import Directory
from ..system.files import BLOCK, same_content
from ..system.ownership import Owner
from ..system.trees import Linked, link_tree
from . import allowlist, chain, points
from .chain import Unusable
from .metadata import Metadata

_NOTHING_LINKED = Linked(set(), 0)
Advance = Callable[[int], None]


class WorkingChain:
    """The chain in the open ``directory``, new or a copy. Made by ``working_chain``.

    ``linked``: what a copy shares with its original. ``mirrors``: the sizes of the files that it held.
    """

    def __init__(
        self,
        directory: Directory,
        linked: Linked,
        back_up: Callable[[Callable[[], None]], process.Result],
        stage: Directory,
        time: datetime,
    ) -> None:
        self.directory = directory
        self.linked = linked
        self.mirrors: dict[str, int] = {}
        self._older: tuple[str, ...] = ()
        if directory.holds(chain.DATA):
            with directory.open(chain.DATA) as data:
                self._older = chain.read_state(data.names()).stamps
            self.mirrors = {name: directory.status(name).st_size for name in chain.mirror_names(directory)}
        self._back_up = back_up
        self._stage = stage
        self._time = time

    def add(self, changed: Collection[str], kept: Collection[str], advance: Advance) -> None:
        """Have rdiff-backup add the staged files that have ``changed`` to those that are ``kept``.

        ``advance`` is called with the size of each that it has stored, in bytes. Raises Unusable unless it
        really did.
        """
        before = self._stand_in(kept)
        moment = (self._time.timestamp(), self._time.timestamp())
        for name in changed:  # no earlier point has this mtime
            os.utime(name, moment, dir_fd=self._stage.fileno(), follow_symlinks=False)
        arriving = _Arriving(self._stage, self.directory, changed, int(moment[0]), advance)
        _check(self._back_up(arriving.look))
        arriving.look()
        failure = Unusable("rdiff-backup exited with code: 0, but did not store the new point")
        with self.directory.open(chain.DATA) as data:
            if not self._has_points(data, [*map(chain.moment, self._older), self._time]):
                raise failure
            names = sorted([*changed, *kept])
            known = Metadata(data).files(chain.read_state(data.names()).stamps[-1], names)
            if chain.mirror_names(self.directory) != names or [*known] != names:
                raise failure
            if any(not os.path.samestat(self.directory.status(name), before[name]) for name in kept):
                raise failure
            if not arriving.are_the_same():
                raise failure
            gone = self.mirrors.keys() - {*kept}
            if self._older and not self._holds_versions(data, gone, self._older[-1]):
                raise failure

    def remove_older(self, private: Directory, name: str) -> None:
        """Have rdiff-backup remove all points but the new one. Raises Unusable unless it really did."""
        _check(rdiff_backup.remove_older(private, name, self._time))
        with self.directory.open(chain.DATA) as data:
            if not self._has_points(data, [self._time]) or (
                data.holds(chain.INCREMENTS) and chain.versions(_names(data))
            ):
                raise Unusable("rdiff-backup exited with code: 0, but did not remove the older points")

    def _stand_in(self, names: Collection[str]) -> dict[str, os.stat_result]:
        """Stage what rdiff-backup takes for the same files as the mirrors, and does not read.

        One file, under many names, stands for those of the same size and time, as most parts of large
        members are. Returns the statuses of the mirrors.
        """
        found = {name: self.directory.status(name) for name in names}

        def size_and_time(name: str) -> tuple[int, int]:
            return found[name].st_size, found[name].st_mtime_ns

        for (size, time), alike in groupby(sorted(names, key=size_and_time), size_and_time):
            waiting = [*alike]
            while waiting:
                with self._stage.create(waiting.pop()) as file:
                    os.truncate(file, size)
                    os.utime(file, ns=(time, time))
                    while waiting and self._stage.link(file, waiting[-1]):
                        waiting.pop()
        return found

    def _has_points(self, data: Directory, times: list[datetime]) -> bool:
        state = chain.read_state(data.names())
        return not state.interrupted and list(map(chain.moment, state.stamps)) == times

    def _holds_versions(self, data: Directory, names: Collection[str], stamp: str) -> bool:
        """Whether the ways back to a point of files that are no longer the same are stored, undamaged."""
        found = chain.versions(_names(data)) if names else {}
        is_hashed = True
        with ExitStack() as opened:
            for name in names:
                version = found.get(name, {}).get(stamp)
                if version is None or version.ending.startswith("missing"):
                    return False
                increments = opened.enter_context(data.open(chain.INCREMENTS))
                with open(increments.open_file(version.file), "rb") as file:
                    if not version.ending.endswith(".gz"):
                        is_hashed = False
                    elif not _is_whole(cast(IO[bytes], gzip.open(file))):
                        return False
        # rdiff-backup does not gzip the delta of a compressed file: there is no checksum.
        if not is_hashed:
            with ExitStack() as files:
                try:
                    points.of_chain(self.directory, stamp, files).write_to(lambda block: None)
                except Error as error:
                    raise Unusable(*error.lines, stderr=error.stderr) from error
        return True


class _Arriving:
    """Files that rdiff-backup is to store, each compared with the staged one as soon as it is there.

    Meanwhile rdiff-backup stores the next. Each is also written to the disk: ``finish_tree`` would have to
    wait for all of them.
    """

    def __init__(
        self, stage: Directory, directory: Directory, names: Collection[str], mtime: int, advance: Advance
    ) -> None:
        self._stage = stage
        self._directory = directory
        self._names = names
        self._mtime = mtime
        self._advance = advance
        self._waiting = sorted(names, reverse=True)  # they are stored in this order, from its end
        self._same: dict[str, tuple[int, ...]] = {}

    def look(self) -> None:
        """Look at those that have been stored since the last time."""
        with suppress(FileNotFoundError):
            while self._waiting and int(self._directory.status(self._waiting[-1]).st_mtime) == self._mtime:
                name = self._waiting.pop()
                self._is_same(name)
                with self._directory.file(name) as mirror:
                    os.fsync(mirror)
                    self._advance(os.fstat(mirror).st_size)

    def are_the_same(self) -> bool:
        """Whether all of them, when rdiff-backup has ended, are what was staged."""
        return all(map(self._is_same, self._names))

    def _is_same(self, name: str) -> bool:
        """Whether one is what was staged. It is read once if nothing touches it any more."""
        with self._stage.file(name) as staged, self._directory.file(name) as mirror:
            found = os.fstat(mirror)
            version = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if self._same.get(name) != version and same_content(staged, mirror):
                self._same[name] = version
            return self._same.get(name) == version


def _check(result: process.Result) -> None:
    if result.status > 0:
        raise Unusable(result.ending(), stderr=result.stderr)
    result.check()


def _names(data: Directory) -> list[str]:
    with data.open(chain.INCREMENTS) as increments:
        return increments.names()


def _is_whole(increment: IO[bytes]) -> bool:
    """Whether an increment can be read to its end, which gzip's checksum tells, and is not empty."""
    try:
        size = sum(map(len, iter(lambda: increment.read(BLOCK), b"")))
    except (OSError, EOFError, zlib.error):
        return False
    return size > 0


@contextmanager
def working_chain(
    stage: Directory,
    private: Directory,
    chain_name: str,
    time: datetime,
    copied: Directory | None,
    owner: Owner,
) -> Iterator[WorkingChain]:
    """Prepare a chain of that name in the private directory, and start rdiff-backup.

    It is a copy of the chain ``copied``, or new if that is None; ``add`` adds what is in ``stage``. What
    ``owner`` does not own already is not shared with ``copied``, which stays as it is. Raises Error if the
    chain holds anything that does not belong in a chain, and Unusable if it is damaged.

    At the end, whatever has the chain's name is removed: the caller has moved the chain away by then.
    """

    def is_linkable(name: str, found: os.stat_result) -> bool:
        return chain.is_linkable(name) and owner.owns(found)

    with private.temporary(chain_name) as made:
        linked = _NOTHING_LINKED
        if copied is not None:
            linked = link_tree(copied, made, is_linkable, left_out=chain.is_temporary, strict=True)
            allowlist.check(made)
        with rdiff_backup.backing_up(stage, private, chain_name, time) as back_up:
            yield WorkingChain(made, linked, back_up, stage, time)
