"""The state of a destination, and how a copy of it differs from that."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from ..destination.reader import Destination
from ..destination.view import NOTES, TREE, backup_names
from ..errors import Error
from ..programs.snapshots import Node
from ..system.directories import Directory
from ..system.trees import DEPTH
from ..times import shown_moment
from .copies import Copy


class State(NamedTuple):
    """Every file and directory of a destination's backups, and its newest point.

    The log and other notes are not part of it.
    """

    nodes: tuple[Node, ...]
    newest_time: datetime

    def digest(self) -> str:
        """A digest that changes if any of them does."""
        return digest(self.nodes)

    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(node.size for node in self.nodes)


def examine(destination: Destination) -> State:
    """Examine a destination. Raises Error if it is empty: an empty one is never sent."""
    check_holds(destination)
    directory = destination.directory
    found = [node for name in backup_names(destination) for node in nodes(name, directory)]
    return State(tuple(found), max(backup.newest_time for backup in destination.backups))


def check_holds(destination: Destination) -> None:
    """Raise Error if a destination holds no backups."""
    if not destination.backups:
        raise Error(f"{destination.path} holds no backups: nothing is sent (is its disk mounted?)")


def digest(found: Iterable[Node]) -> str:
    """A digest that changes if any of them does."""
    return hashlib.sha256(repr(sorted(found)).encode(errors="surrogateescape")).hexdigest()


def nodes(
    name: str,
    within: Directory,
    above: str = "",
    names: Callable[[Directory], Iterable[str]] = Directory.names,
    depth: int = DEPTH,
) -> Iterator[Node]:
    """Yield an entry of a directory, and what is below it, as far as ``names`` yields it."""
    found = within.status(name)
    path = f"{above}/{name}"
    is_directory = stat.S_ISDIR(found.st_mode)
    about = (stat.S_IMODE(found.st_mode) & 0o777, found.st_uid, found.st_gid)
    if not is_directory:
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        yield Node(path, False, *about, size, found.st_mtime_ns // 1000)
        return
    if depth == 0:
        raise Error(f"{path[1:]} lies deeper than anything in a backup: refused")
    yield Node(path, True, *about, 0, 0)
    with within.open(name) as inner:
        for entry in names(inner):
            yield from nodes(entry, inner, path, names, depth - 1)


def differences(
    copy: Copy,
    nodes: Iterable[Node],
    present: Iterable[Node],
    tree: str = TREE,
    passed_over: Iterable[str] = NOTES,
) -> list[str]:
    """Return lines that tell how a copy, which holds these nodes, differs from what is present.

    The copy is of ``tree``; ``passed_over`` are names in it that do not count.
    """
    sent = {path: node._replace(path=path) for node in nodes if (path := node.path.removeprefix(f"/{tree}"))}
    for name in passed_over:
        sent.pop(f"/{name}", None)
    # restic prints names that are not UTF-8 like this.
    shown = {node: os.fsencode(node.path).decode(errors="replace") for node in present}
    here = {path: node._replace(path=path) for node, path in shown.items()}
    time = shown_moment(copy.snapshot.time)
    lines = [f"{path[1:]} is not in the copy of {time}" for path in sorted(here.keys() - sent.keys())]
    lines += [f"{path[1:]} is only in the copy of {time}" for path in sorted(sent.keys() - here.keys())]
    common = sorted(here.keys() & sent.keys())
    return lines + [
        f"{path[1:]} differs from the copy of {time}" for path in common if sent[path] != here[path]
    ]
