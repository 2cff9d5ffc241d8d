"""A point compared with the tree as it is now."""

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Self

from .archive.differences import ATTRIBUTES, CONTENT, GONE, NEW, TYPE, Difference, pairs
from .archive.headers import DIRECTORY, HARD_LINK
from .destination.contents import Content
from .errors import prefixing_errors
from .messages import Progress
from .programs.tar import Aspect, Source, comparing
from .system.directories import Directory
from .walk import Tree, path_of, walk

# How often something may vanish.
_TRIES = 1000


class _Item(NamedTuple):
    """A member, or a file that is there now: size in bytes, mode, owner, modification time in nanoseconds.

    Of a member also whether it is a directory, and the name that it is a hard link to, empty if it is none.
    """

    size: int
    mode: int
    owner: tuple[int, int]
    modified: int
    is_directory: bool = False
    link: bytes = b""

    def kept(self) -> Self:
        return self


def against(
    content: Content, directory: str, progress: Progress, ignored: Collection[Aspect] = ()
) -> Iterator[Difference]:
    """Yield what differs in a directory from a point; tar compares modes, owners, times and contents.

    Aspects that are ``ignored`` may differ. Raises Error if either can't be read.
    """
    with prefixing_errors(directory), Directory.at(directory) as top:
        with progress("comparing", content.size()) as advance, comparing(top) as compared:
            content.write_to(compared.write, advance)
            told = compared.differences()
        for name, old, new in pairs(_stored(content), _found(directory)):
            path = name.removeprefix(b"./").decode(errors="surrogateescape")
            if old is None or new is None:
                change = NEW if old is None else GONE
            else:
                change = _change(_aspects(told, name, old, new).difference(ignored), old.is_directory)
            if change:
                yield Difference(path, change, old and old.size, new and new.size)


def _stored(content: Content) -> Iterator[tuple[bytes, _Item]]:
    for member in content.members():
        link = member.link if member.kind == HARD_LINK else b""
        about = member.size, member.mode, member.owner, member.modified
        yield member.name, _Item(*about, is_directory=member.kind == DIRECTORY, link=link)


def _found(directory: str) -> Iterator[tuple[bytes, _Item]]:
    tree = Tree.of(Source(directory, "", (), (), one_file_system=False))
    for order, inode in _walked(tree):
        path = path_of(order)
        owner = inode.st_uid, inode.st_gid
        about = _Item(inode.st_size, stat.S_IMODE(inode.st_mode), owner, inode.st_mtime_ns)
        yield (b"./" + path if path else b"."), about


def _walked(tree: Tree) -> Iterator[tuple[bytes, os.stat_result]]:
    """Walk a tree in which files may vanish meanwhile."""
    start = b""
    for left in reversed(range(_TRIES)):
        try:
            for order, inode, _ in walk(tree, start):
                yield order, inode
                start = order + b"\0"  # what comes next
            return
        except FileNotFoundError:
            if not left:
                raise


def _aspects(told: Mapping[bytes, set[Aspect]], name: bytes, old: _Item, new: _Item) -> set[Aspect]:
    """In what a file differs from a member. If that is a hard link, tar does not compare its content.

    Then it is what is told of the first name or, if that has become another file, what times and modes tell.
    """
    aspects = told.get(name, set())
    if not old.link or Aspect.TYPE in aspects:
        return aspects
    if Aspect.LINK not in aspects and old.link in told:
        return told[old.link]
    found = {Aspect.CONTENT} if old.modified != new.modified else set()
    found |= {Aspect.MODE} if old.mode != new.mode else set()
    return found | ({Aspect.OWNER} if old.owner != new.owner else set())


def _change(aspects: set[Aspect], is_directory: bool) -> str:
    """How a file has changed, as ``differences.change`` has it."""
    if Aspect.TYPE in aspects:
        return TYPE
    found = CONTENT if Aspect.CONTENT in aspects else ""
    if aspects & {Aspect.MODE, Aspect.OWNER} or (aspects == {Aspect.TIME} and not is_directory):
        found += ATTRIBUTES
    return found
