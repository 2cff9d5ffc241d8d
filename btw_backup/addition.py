"""Adding a point to a destination: to its latest chain, or in a new one."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime

from . import chain, extension
from .backups import Backup, Limits, Stored, full_backup_due, scan
from .destination import Destination
from .errors import Error, naming
from .files import directory, exchange, finish_tree, is_full, publish, remove
from .private import REPLACED
from .spans import format_moment


@contextmanager
def adding(
    destination: Destination, stage: int, at: datetime, limits: Limits
) -> Iterator[Callable[[], Stored]]:
    """Add a point: the one file in the open directory ``stage``, once what this yields is called.

    What can be done while that file is still written is done at once. Leaving the block without
    the call adds nothing.
    """
    latest = destination.latest_chain()
    extended = None if latest is None or full_backup_due(latest, at, limits) else latest
    broken = next((backup.name for backup in destination.backups[-1:] if backup.interrupted), None)
    with ExitStack() as running:

        def begin() -> Callable[[], Stored]:
            return running.enter_context(_beginning(destination, stage, at))

        def give_up(name: str, error: Error) -> Callable[[], Stored]:
            nonlocal broken
            if is_full(destination.run):
                raise error
            broken = f"{name} ({error})"
            remove(name, destination.run)
            return begin()

        with naming(destination.path):
            if extended is None:
                store = begin()
            else:
                try:
                    store = running.enter_context(_extending(destination, stage, extended, at))
                except chain.Unusable as error:
                    store = give_up(extended.name, error)

        def finish() -> Stored:
            with naming(destination.path):
                try:
                    stored = store()
                except chain.Unusable as error:
                    if extended is None:
                        raise
                    stored = give_up(extended.name, error)()
                destination.backups = scan(destination.fd)
            if broken is not None:
                text = f"cannot add to the chain {broken}: started a new one; the old one is kept as it is"
                destination.note(f"{format_moment(at)}: {text}")
                destination.warn(f"{destination.path}: {text}")
            return stored

        yield finish


@contextmanager
def _beginning(destination: Destination, stage: int, at: datetime) -> Iterator[Callable[[], Stored]]:
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
def _extending(
    destination: Destination, stage: int, extended: Backup, at: datetime
) -> Iterator[Callable[[], Stored]]:
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
