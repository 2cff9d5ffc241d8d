"""A view of a destination that does not change while others work on the destination.

It is a hard-linked copy, made under the lock.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from ..errors import Busy, Error, prefixing_errors, uninterrupted
from ..system.directories import Directory
from ..system.trees import copy_attributes, link_tree
from . import binding, explanation
from .catalog import CHECKSUM
from .lock import VIEW
from .log import LOG
from .reader import Destination
from .writer import LockedDestination, working_on

# The name of the copy in the view's directory.
TREE = "destination"
# What is said of the backups: copied with them, but no reason to send them again.
NOTES = (LOG, binding.NOTE, explanation.NAME)


class View(NamedTuple):
    """A copy of a destination, ``TREE`` in the open directory ``directory``.

    ``name`` is the real path of the destination, ``path`` the one for messages; ``source`` is what it is
    bound to, if that is known; ``private`` is its private directory.
    """

    path: str
    name: str
    source: str | None
    directory: Directory
    private: Directory


@contextmanager
def viewing(destination: LockedDestination) -> Iterator[View]:
    """Yield a view of a locked destination, which may be unlocked before the block ends.

    Raises Busy if another process has a view of it.
    """
    path = destination.path
    with ExitStack() as opened:
        private = opened.enter_context(destination.private.duplicate())
        with prefixing_errors(path):
            try:
                private.make(VIEW)
            except FileExistsError:
                raise Busy(f"another process is sending {path} off-site: try again later") from None
            directory = opened.enter_context(private.open(VIEW))
            fcntl.flock(directory.fileno(), fcntl.LOCK_EX)
            opened.callback(_remove, path, private)  # while it is locked: nobody else removes it
            with destination.keeping_record():
                _fill(directory, destination)
        source = binding.read(destination.directory)
        yield View(path, destination.directory.path(), source, directory, private)


def backup_names(destination: Destination) -> Iterator[str]:
    """The names of all entries that belong to the backups of a destination."""
    for backup in destination.backups:
        yield backup.name
        if not backup.is_chain and destination.directory.holds(backup.name + CHECKSUM):
            yield backup.name + CHECKSUM


def _fill(view: Directory, destination: LockedDestination) -> None:
    names = [*backup_names(destination)]
    names += filter(destination.directory.holds, NOTES)
    view.make(TREE)
    with view.open(TREE) as tree:
        linked = link_tree(destination.directory, tree, _is_replaced, names)
        copy_attributes(destination.directory, tree, linked.inodes)


def _is_replaced(name: str, found: os.stat_result) -> bool:
    """Whether a file is only ever replaced: rdiff-backup's logs, and ours, grow in place."""
    return not name.endswith((".log", LOG))


def _remove(path: str, private: Directory) -> None:
    """Remove the view, under the lock, so that the record of the newest backup stays valid."""
    with uninterrupted(), ExitStack() as locked:
        with suppress(Error):  # without the lock the next backup has to read more
            destination = locked.enter_context(working_on(path, lambda text: None))
            locked.enter_context(destination.keeping_record())
        with prefixing_errors(path):
            private.remove(VIEW)
