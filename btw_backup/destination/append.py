"""Adding a point to a destination: to its latest chain, in a new chain, or as a tarball."""

import os
from contextlib import ExitStack
from datetime import datetime
from typing import NamedTuple, Self

from ..errors import Error, prefixing_errors, uninterrupted
from ..messages import size
from ..system.directories import Directory
from ..system.room import room_on
from ..system.trees import finish_tree
from ..times import format_moment
from . import chain
from .catalog import ENDING_OF, Limits, full_backup_due
from .lock import REPLACED
from .sizes import remember_size
from .working_chain import working_chain
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
    time = format_moment(stored.time)
    return f"{stored.kind} {time}: {size(stored.size)} stored of {size(of)}, {seconds:.1f} s"


class NewPoint:
    """A point of a chain, being added: the file ``name`` in the directory ``stage``, as it is at ``commit``.

    ``afresh``: why it begins a new chain, if it does not for another reason. Leaving the ``with`` block
    without ``commit`` adds nothing.
    """

    def __init__(
        self,
        destination: LockedDestination,
        stage: Directory,
        name: str,
        at: datetime,
        limits: Limits,
        afresh: str | None = None,
    ) -> None:
        self._destination = destination
        self._stage = stage
        self._name = name
        self._at = at
        latest = destination.latest_chain()
        self._extended = None if afresh or full_backup_due(latest, at, limits) else latest
        self._afresh = afresh
        backup = destination.newest_backup()
        # The chain that nothing can be added to, and why.
        self._broken = backup.name if backup is not None and backup.interrupted else None
        self._running = ExitStack()

    def __enter__(self) -> Self:
        """Do what can be done before the file is there: copy the chain, start rdiff-backup."""
        try:
            with prefixing_errors(self._destination.path):
                try:
                    self._prepare()
                except chain.Unusable as error:
                    self._begin_instead(error)
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def commit(self) -> Stored:
        """Store the point: checked, on the disk, and visible. If it raises Error, nothing has happened."""
        destination = self._destination
        with prefixing_errors(destination.path), room_on(destination.path, destination.scratch):
            try:
                stored = self._store()
            except chain.Unusable as error:
                self._begin_instead(error)
                stored = self._store()
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

    def _prepare(self) -> None:
        """Make the working chain: a copy of the one to extend, or a new one."""
        destination = self._destination
        visible = None
        if self._extended is not None:
            visible = self._running.enter_context(destination.directory.open(self._extended.name))
        self._visible = visible
        self._chain_name = format_moment(self._at) if self._extended is None else self._extended.name
        self._working = self._running.enter_context(
            working_chain(self._stage, self._name, destination.scratch, self._chain_name, self._at, visible)
        )

    def _begin_instead(self, error: chain.Unusable) -> None:
        """Begin a new chain if the latest can't be extended, unless the disk is full."""
        destination = self._destination
        if self._extended is None:  # rdiff-backup may fail on a full disk without saying so: add the path
            raise Error(f"{error} (in {destination.path})", stderr=error.stderr) from error
        if destination.scratch.is_full():
            raise error
        self._running.close()  # remove the failed attempt first: its room may be needed
        self._broken = f"{self._extended.name} ({error})"
        self._extended = None
        self._prepare()

    def _store(self) -> Stored:
        destination = self._destination
        self._working.add()
        made, linked = self._working.directory, self._working.linked
        total = finish_tree(made, *destination.owner, linked.inodes)
        if self._visible is None:
            destination.scratch.publish(self._chain_name, destination.directory)
            destination.directory.sync()
            return Stored("full", self._at, total)
        before = linked.size - chain.mirror_size(self._visible)
        added = total - chain.mirror_size(made) - before
        if not destination.scratch.exchange(self._chain_name, destination.directory):
            _replace(destination, self._chain_name)
        destination.directory.sync()
        return Stored("incremental", self._at, added)


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
