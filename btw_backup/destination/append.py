"""Adding a point to a destination: to its latest chain, in a new chain, or as a tarball."""

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple, Self

from ..archive.parts import Made, Part
from ..errors import Error, prefixing_errors, uninterrupted
from ..messages import Progress, size
from ..system.directories import Directory
from ..system.files import copy_all
from ..system.room import room_on
from ..system.trees import finish_tree
from ..times import format_moment, shown_moment
from . import chain, labels
from .catalog import ENDING_OF, Limits, full_backup_due
from .lock import REPLACED
from .sizes import remember_size
from .working_chain import WorkingChain, working_chain
from .writer import LockedDestination

_PREPARED = "tarball"


class Stored(NamedTuple):
    """What a run added. ``size`` is how much the destination grew, in bytes."""

    kind: str
    time: datetime
    size: int


def closing_line(stored: Stored | None, of: int, seconds: float) -> str:
    """Return the closing line of a backup of ``of`` bytes; ``stored`` is None if nothing had changed."""
    if stored is None:
        compared = f"{size(of)} compared, " if of else ""
        return f"nothing has changed: {compared}{seconds:.1f} s"
    time = shown_moment(stored.time)
    return f"{stored.kind} {time}: {size(stored.size)} stored of {size(of)}, {seconds:.1f} s"


class Uncompared(Exception):
    """A new chain must begin, for which everything has to be compared with the source."""


class NewPoint:
    """A point of a chain, being added: files staged in ``stage``, and others that stay as they are.

    ``progress`` shows how far it is. ``afresh``: why it begins a new chain, if it does not for another
    reason. With ``shares`` a new chain shares with the one before what stays the same. Leaving the ``with``
    block without ``commit`` adds nothing.
    """

    def __init__(
        self,
        destination: LockedDestination,
        stage: Directory,
        at: datetime,
        limits: Limits,
        progress: Progress,
        *,
        shares: bool = False,
        afresh: str | None = None,
    ) -> None:
        self._destination = destination
        self._stage = stage
        self._at = at
        self._progress = progress
        self._latest = destination.latest_chain()
        self.is_full = bool(afresh) or full_backup_due(self._latest, at, limits)
        # The chain that the working chain is a copy of.
        self._copied = None if afresh or (self.is_full and not shares) else self._latest
        self._afresh = afresh
        backup = destination.newest_backup()
        # The chain that nothing can be added to, and why.
        self._broken = backup.name if backup is not None and backup.interrupted else None
        self._working: WorkingChain | None = None
        self._is_compared = True
        self._running = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def prepare(self) -> WorkingChain:
        """Do what can be done before the files are there, once: copy the chain, start rdiff-backup."""
        if self._working is None:
            with prefixing_errors(self._destination.path):
                try:
                    self._working = self._prepared()
                except chain.Unusable as error:
                    self._working = self._begun_instead(error)
        return self._working

    def commit_archive(
        self, found: Sequence[Part | Made], before: Sequence[Part], *, compared: bool
    ) -> tuple[Stored, list[Part]]:
        """Store the parts of an archive; ``before`` are those of the newest point. Also return its parts now.

        ``compared``: those that stay were compared with the source. Otherwise Uncompared is raised if they
        would have to go into a new chain. Raises like ``commit`` besides.
        """
        self._is_compared = compared
        try:
            names = labels.names(found, before)
        except labels.Exhausted as error:
            if not compared:
                raise Uncompared from error
            self._start_afresh(str(error))
            names = labels.names([Made(part.name, part.size, part.start, None) for part in found], [])
        changed, kept = [], {}
        for part, name in zip(found, names, strict=True):
            if isinstance(part, Made):
                self._stage.rename(part.name, self._stage, name)
                changed.append(name)
            else:
                kept[name] = part.name
        stored = self.commit(changed, kept)
        return stored, [Part(name, part.size, part.start) for part, name in zip(found, names, strict=True)]

    def commit(self, changed: Collection[str], kept: Mapping[str, str] = MappingProxyType({})) -> Stored:
        """Store the point: checked, on the disk, and visible. If it raises Error, nothing has happened.

        ``changed`` are the names of the files in the stage, ``kept`` those of files of the newest point that
        were found to be the same, and what they are called there.
        """
        destination = self._destination
        with prefixing_errors(destination.path), room_on(destination.path, destination.scratch):
            working = self.prepare()
            try:
                stored = self._store(working, changed, kept)
            except chain.Unusable as error:
                stored = self._store(self._begun_instead(error), changed, kept)
            destination.rescan()
            if self._afresh is not None:
                destination.note_of_stored(f"{format_moment(self._at)}: {self._afresh}: started a new chain")
            if self._broken is not None:
                text = (
                    f"cannot add to the chain {self._broken}: started a new one; the old one is kept as it is"
                )
                destination.note_of_stored(f"{format_moment(self._at)}: {text}")
                destination.warn(f"{destination.path}: {text}")
            return stored

    def _prepared(self) -> WorkingChain:
        destination = self._destination
        copied = None
        if self._copied is not None:
            copied = self._running.enter_context(destination.directory.open(self._copied.name))
        return self._running.enter_context(
            working_chain(self._stage, destination.scratch, self._name(), self._at, copied, destination.owner)
        )

    def _name(self) -> str:
        """The name that the chain gets, or has."""
        if self.is_full or self._copied is None:
            return format_moment(self._at)
        return self._copied.name

    def _begun_instead(self, error: chain.Unusable) -> WorkingChain:
        """Begin a new chain if the latest can't be used, unless the disk is full."""
        destination = self._destination
        if self._copied is None:  # rdiff-backup may fail on a full disk without saying so: add the path
            raise Error(f"{error} (in {destination.path})", stderr=error.stderr) from error
        if destination.scratch.is_full():
            raise error
        self._running.close()  # remove the failed attempt first: its room may be needed
        if not self._is_compared:
            raise Uncompared from error
        self._broken = f"{self._copied.name} ({error})"
        self._copied = None
        self.is_full = True
        return self._prepared()

    def _start_afresh(self, reason: str) -> None:
        """Begin a new chain after all."""
        self._running.close()
        self._working = self._copied = None
        self.is_full = True
        self._afresh = reason

    def _store(self, working: WorkingChain, changed: Collection[str], kept: Mapping[str, str]) -> Stored:
        destination, name = self._destination, self._name()
        if self._copied is None:
            self._stage_kept(kept)
            changed, kept = [*changed, *kept], {}
        staged = sum(self._stage.status(each).st_size for each in changed)
        with self._progress("storing", staged) as advance:
            working.add(changed, kept, advance)
        before = working.linked.size - sum(working.mirrors.values())
        if self.is_full and self._copied is not None:
            working.remove_older(destination.scratch, name)
        with self._progress("syncing", staged) as advance:
            finished = finish_tree(working.directory, *destination.owner, working.linked.inodes, advance)
        if self.is_full:
            destination.scratch.publish(name, destination.directory)
            destination.directory.sync()
            return Stored("full", self._at, finished.own)
        added = finished.total - chain.mirror_size(working.directory) - before
        if not destination.scratch.exchange(name, destination.directory):
            _replace(destination, name)
        destination.directory.sync()
        return Stored("incremental", self._at, added)

    def _stage_kept(self, kept: Mapping[str, str]) -> None:
        """Stage files of the newest point, instead of what may stand in for them."""
        if kept and self._latest is not None:
            with self._destination.directory.open(self._latest.name) as top:
                for name, stored in kept.items():
                    self._stage.remove(name)
                    with top.file(stored) as mirror, self._stage.create(name) as staged:
                        copy_all(mirror, staged)


def _replace(destination: LockedDestination, name: str) -> None:
    """Exchange by two renames. After a kill between them, the next run finishes the work."""
    destination.private.make(REPLACED)
    with destination.private.open(REPLACED) as aside:
        destination.directory.rename(name, aside)
        try:
            destination.scratch.publish(name, destination.directory)
        except BaseException:
            aside.publish(name, destination.directory)
            raise
        destination.directory.sync()  # before the old chain goes
    destination.private.remove(REPLACED)


class NewTarball:
    """A tarball, being added: what is in ``file``, an open new file, at ``commit``.

    Leaving the ``with`` block without ``commit`` adds nothing.
    """

    def __init__(self, destination: LockedDestination, at: datetime, compression: str) -> None:
        self._destination = destination
        self._at = at
        self._name = format_moment(at) + ENDING_OF[compression]
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with prefixing_errors(self._destination.path):
            self.file = self._running.enter_context(self._destination.scratch.create(_PREPARED))
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def commit(self, size: int) -> Stored:
        """Store it. ``size`` is its archive's, in bytes. If it raises Error, nothing has happened."""
        destination = self._destination
        with prefixing_errors(destination.path):
            remember_size(self.file, size)
            os.fchown(self.file, *destination.owner)
            os.fsync(self.file)
            with uninterrupted(), destination.paired(self._name, self.file):
                destination.scratch.publish(_PREPARED, destination.directory, self._name)
                destination.directory.sync()
            destination.rescan()
        return Stored("tarball", self._at, os.fstat(self.file).st_size)
