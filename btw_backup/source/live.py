"""A point compared with the tree as it is now."""

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple, Self

from ..archive.differences import ATTRIBUTES, CONTENT, GONE, NEW, TYPE, Difference, pairs
from ..archive.headers import DIRECTORY, HARD_LINK
from ..archive.names import member_of, shown
from ..destination.contents import Content
from ..errors import prefixing_errors
from ..messages import Progress
from ..programs.tar import Aspect, Source, comparing
from ..system.directories import Directory
from .walk import Tree, leaves_out, walk, with_large


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
    content: Content,
    directory: str,
    progress: Progress,
    ignored: Collection[Aspect] = (),
    source: Source | None = None,
) -> Iterator[Difference]:
    """Yield what differs in a directory from a point; tar compares modes, owners, times and contents.

    Aspects that are ``ignored`` may differ. ``source``: what would be archived of the directory, by default
    all; anything else is not new. Raises Error if either can't be read.
    """
    source = source or Source(os.path.realpath(directory), "", (), (), one_file_system=False)
    with prefixing_errors(directory), Directory.at(directory) as top:
        with progress("comparing", content.size()) as advance, comparing(top) as compared:
            content.write_to(compared.write, advance)
            told = compared.differences()
        for name, old, new in pairs(_stored(content), _found(source)):
            if new is None:
                new = _left_out(source, name)
            path = shown(name)
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


def _found(source: Source) -> Iterator[tuple[bytes, _Item]]:
    source = with_large(source)
    for order, inode, _ in walk(Tree.of(source, leaves_out(source)), failed=_pass_over_vanished):
        yield member_of(order), _item(inode)


def _pass_over_vanished(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _left_out(source: Source, name: bytes) -> _Item | None:
    """What is there now of a member that would no longer be archived; None if it is gone."""
    path = os.path.join(os.fsencode(source.directory), name)
    parent = os.path.dirname(path)
    with suppress(OSError):
        if os.path.realpath(parent) == os.path.normpath(parent):  # no link on the way
            return _item(os.lstat(path))
    return None


def _item(inode: os.stat_result) -> _Item:
    return _Item(inode.st_size, stat.S_IMODE(inode.st_mode), (inode.st_uid, inode.st_gid), inode.st_mtime_ns)


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
