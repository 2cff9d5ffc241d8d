"""Adding a point to a destination: to its latest chain, or in a new one."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime

from ..errors import Error, naming
from ..system.files import directory, exchange, is_full, publish, remove, room_on
from ..system.trees import finish_tree
from ..times import format_moment
from . import chain, extension
from .catalog import Backup, Limits, Stored, full_backup_due, scan
from .lock import REPLACED
from .writer import Destination

Store = Callable[[], Stored]


@contextmanager
def adding(destination: Destination, stage: int, at: datetime, limits: Limits) -> Iterator[Store]:
    """Add a point: the one file in the open directory ``stage``, once what this yields is called.

    What can be done while that file is still written is done at once, and may raise Error at once.
    Leaving the block without the call adds nothing.
    """
    with ExitStack() as running:
        with naming(destination.path):
            store = running.enter_context(_way(destination, stage, at, limits))

        def finish() -> Stored:
            with naming(destination.path), room_on(destination.path, destination.run):
                stored = store()
                destination.backups = scan(destination.fd)
            return stored

        yield finish


def _way(destination: Destination, stage: int, at: datetime, limits: Limits) -> AbstractContextManager[Store]:
    """How the next point is stored."""
    newest = destination.backups[-1] if destination.backups else None
    if newest is not None and newest.interrupted:
        return _beginning_instead(destination, stage, at, newest.name)
    latest = destination.latest_chain()
    if latest is None or full_backup_due(latest, at, limits):
        return _beginning(destination, stage, at)
    return _extending_if_usable(destination, stage, at, latest)


@contextmanager
def _beginning(destination: Destination, stage: int, at: datetime) -> Iterator[Store]:
    """Make a new chain. Never raises Unusable: that is said of older ones."""
    name = format_moment(at)
    with extension.beginning(stage, destination.run, name, at) as finish:

        def store() -> Stored:
            try:
                finish()
            except Error as error:  # of a disk that was full it need not say so, and by now there is room
                raise Error(f"{error} (in {destination.path})", said=error.said) from error
            with directory(name, destination.run) as made:
                size = finish_tree(made, *destination.owner, set())
            publish(name, destination.run, name, destination.fd)
            os.fsync(destination.fd)
            return Stored("full", at, size)

        yield store


@contextmanager
def _beginning_instead(destination: Destination, stage: int, at: datetime, broken: str) -> Iterator[Store]:
    """Make a new chain, and say that nothing can be added to the broken one."""
    with _beginning(destination, stage, at) as begin:

        def store() -> Stored:
            stored = begin()
            text = f"cannot add to the chain {broken}: started a new one; the old one is kept as it is"
            destination.note_of_stored(f"{format_moment(at)}: {text}")
            destination.warn(f"{destination.path}: {text}")
            return stored

        yield store


@contextmanager
def _extending(destination: Destination, stage: int, at: datetime, extended: Backup) -> Iterator[Store]:
    """Add to a chain. Raises Unusable where that can't be done."""
    name = extended.name
    with (
        directory(name, destination.fd) as visible,
        extension.extending(visible, stage, destination.run, name, at) as finish,
    ):

        def store() -> Stored:
            linked = finish()
            before = linked.size - chain.mirror_size(visible)
            with directory(name, destination.run) as made:
                size = finish_tree(made, *destination.owner, linked.inodes)
                added = size - chain.mirror_size(made) - before
            if not exchange(name, destination.run, name, destination.fd):
                _replace(destination, name)
            os.fsync(destination.fd)
            return Stored("incremental", at, added)

        yield store


@contextmanager
def _extending_if_usable(
    destination: Destination, stage: int, at: datetime, latest: Backup
) -> Iterator[Store]:
    """Add to the latest chain, or make a new one where that can't be done and the disk is not full."""
    with ExitStack() as running:

        def begin_instead(error: chain.Unusable) -> Store:
            if is_full(destination.run):
                raise error
            running.close()  # what was made in vain goes first: its room may be needed
            broken = f"{latest.name} ({error})"
            return running.enter_context(_beginning_instead(destination, stage, at, broken))

        try:
            prepared = running.enter_context(_extending(destination, stage, at, latest))
        except chain.Unusable as error:
            prepared = begin_instead(error)

        def store() -> Stored:
            try:
                return prepared()
            except chain.Unusable as error:
                return begin_instead(error)()

        yield store


def _replace(destination: Destination, name: str) -> None:
    """Exchange by two renames; a run that comes after a kill between them finishes the work."""
    os.mkdir(REPLACED, 0o700, dir_fd=destination.private)
    with directory(REPLACED, destination.private) as aside:
        os.rename(name, name, src_dir_fd=destination.fd, dst_dir_fd=aside)
        try:
            publish(name, destination.run, name, destination.fd)
        except BaseException:
            publish(name, aside, name, destination.fd)
            raise
    remove(REPLACED, destination.private)
