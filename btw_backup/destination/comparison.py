"""What has changed between two points."""

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from functools import cache, cached_property
from typing import NamedTuple, Self

from ..archive import headers
from ..archive.differences import GONE, NEW, Difference, change, pairs
from ..archive.members import Member, member_at, members
from ..archive.names import shown
from ..archive.selection import stretches
from ..errors import Error
from ..system.files import BLOCK
from ..system.limits import allow_open_files
from . import delta
from .contents import Content, StoredFile

_Key = tuple[object, ...]


def differences(old: Content, new: Content) -> Iterator[Difference]:
    """Yield what differs between the archives of two points.

    Parts that are the same in both are not read; of the others the headers are, and the data of files that
    may be the same. Raises Error if one is damaged.
    """
    with ExitStack() as opened:
        sides = _Side(old, opened), _Side(new, opened)
        same = sides[0].keys() & sides[1].keys()
        comparison = _Comparison(*sides)
        for name, before, after in pairs(sides[0].items(same), sides[1].items(same)):
            found = comparison.compare(name, before, after)
            if found is not None:
                yield found


class _Item(NamedTuple):
    """A member: in which stretch, where it begins in that, and itself, or None to be read again."""

    stretch: int
    start: int
    member: Member | None

    def kept(self) -> Self:
        return self._replace(member=None)


class _Side:
    """The archive of one point, whose stretches are opened when they are needed."""

    def __init__(self, content: Content, opened: ExitStack) -> None:
        self._name = content.name
        self._opened = opened
        files = content.files
        if content.is_compressed():
            unpacked = delta.whole(opened.enter_context(content.file()))
            files = [StoredFile(content.name, unpacked.size, None, object(), lambda _: unpacked)]
        self._stretches = [files[places.start : places.stop] for places in stretches([f.size for f in files])]
        self._contents: dict[int, delta.Content] = {}
        allow_open_files(4 * len(files))

    def keys(self) -> set[_Key]:
        """What the stretches are known by."""
        return {self._key(number) for number in range(len(self._stretches))}

    def items(self, left_out: Collection[_Key]) -> Iterator[tuple[bytes, _Item]]:
        """Yield all members with their names, but for those of some stretches."""
        for number in range(len(self._stretches)):
            if self._key(number) not in left_out:
                for member in self._members(number):
                    yield member.name, _Item(number, member.start, member)

    def member(self, item: _Item) -> Member:
        """The member, read again if that is needed."""
        member = item.member or member_at(self.content(item.stretch).read, item.start)
        assert member is not None
        return member

    @cached_property
    def first_names(self) -> dict[bytes, _Item]:
        """The members that are the first names of hard-linked files, by their names."""
        links = {
            item.member.link
            for _, item in self.items(())
            if item.member is not None and item.member.kind == headers.HARD_LINK
        }
        return {name: item.kept() for name, item in self.items(()) if name in links}

    def content(self, number: int) -> delta.Content:
        """What a stretch holds."""
        if number not in self._contents:
            pieces = [
                piece for file in self._stretches[number] for piece in file.content(self._opened).pieces
            ]
            self._contents[number] = delta.Content(pieces)
        return self._contents[number]

    def _key(self, number: int) -> _Key:
        return tuple(file.key for file in self._stretches[number])

    def _members(self, number: int) -> Iterator[Member]:
        content = self.content(number)
        is_last = number == len(self._stretches) - 1
        try:
            yield from members(content.read, stop=sys.maxsize if is_last else content.size)
        except Error as error:
            raise Error(f"{self._name} is damaged: {error}", stderr=error.stderr) from error


class _Comparison:
    """Compares members of two sides."""

    def __init__(self, old: _Side, new: _Side) -> None:
        self._old = old
        self._new = new
        self._identity = cache(_identity)

    def compare(self, name: bytes, before: _Item | None, after: _Item | None) -> Difference | None:
        """The difference between two members of one name, if there is one."""
        old = self._old.member(before) if before else None
        new = self._new.member(after) if after else None
        if old is None or new is None:
            found = GONE if new is None else NEW
        else:
            assert before and after
            found = change(old, new, lambda: self._same_data(before, old, after, new))
        if not found:
            return None
        path = shown(name)
        return Difference(path, found, old and old.size, new and new.size)

    def _same_data(self, before: _Item, old: Member, after: _Item, new: Member) -> bool:
        """Whether two files have the same content, also if that is stored under another name."""
        if headers.HARD_LINK in (old.kind, new.kind):
            first = self._old.first_names.get(old.link) if old.kind == headers.HARD_LINK else before
            second = self._new.first_names.get(new.link) if new.kind == headers.HARD_LINK else after
            if first is None or second is None:
                return False
            before, old, after, new = first, self._old.member(first), second, self._new.member(second)
        length = new.end - new.data
        if old.end - old.data != length or old.size != new.size or old.holes() != new.holes():
            return False
        one, other = self._old.content(before.stretch), self._new.content(after.stretch)
        start, shift = old.data, new.data - old.data
        while length:
            first_piece, second_piece = one.rest(start), other.rest(start + shift)
            step = min(length, first_piece.length, second_piece.length)
            if not self._is_one_place(first_piece, second_piece):
                step = min(step, BLOCK)
                block = os.pread(first_piece.file, step, first_piece.start)
                if len(block) < step or block != os.pread(second_piece.file, step, second_piece.start):
                    return False
            start, length = start + step, length - step
        return True

    def _is_one_place(self, one: delta.Piece, other: delta.Piece) -> bool:
        """Whether two pieces begin at the same place of the same file, which then need not be read."""
        return one.start == other.start and self._identity(one.file) == self._identity(other.file)


def _identity(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino
