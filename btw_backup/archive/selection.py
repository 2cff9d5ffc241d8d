"""Where some members of an archive in parts are, found from few of its headers."""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

from . import headers
from .members import Member, Read, members
from .names import is_among, order_of, place_of, to_path
from .parts import FULL
from .stream import check_inside

Range = tuple[int, int]


def stretches(sizes: Sequence[int]) -> list[range]:
    """Divide parts, given their sizes in bytes, into the shortest runs that surely begin with a member each.

    In the data of a member there may be headers, too, of whatever its owner likes. So a part counts as
    beginning with a member only if it is neither as long as data is cut, nor follows such a part. Data of
    older chains is cut less often, at a multiple of today's length.
    """
    is_cut = [False, *(size % FULL.cut == 0 for size in sizes)]
    begins = [place for place in range(len(sizes)) if not any(is_cut[place : place + 2])]
    if sizes and begins[:1] != [0]:
        begins.insert(0, 0)
    return [range(first, end) for first, end in pairwise([*begins, len(sizes)])]


class Selection(NamedTuple):
    """What must be unpacked of an archive to get some members: ranges, in bytes; none means everything.

    ``extra``: the first names of hard-linked files, besides what was asked for. ``above``: the directories
    above that, without what else is in them.
    """

    ranges: list[Range]
    extra: set[str]
    above: list[str]


def select(read: Read, sizes: Sequence[int], wanted: Sequence[str]) -> Selection:
    """Find where members, and what is below them, are; and what must be unpacked besides.

    ``sizes`` are those of the archive's parts, in bytes. An archive holds the content of a hard-linked file
    under the first of its names only. Raises Error if the archive is damaged, or leads out of the directory
    that it is unpacked in.
    """
    parts = _Parts(read, sizes)
    names = [os.fsencode(name) for name in wanted]
    found = parts.find(names)
    links = _others([member.link for member in found if member.link], names)
    first = [member for member in parts.find(links) if member.name in links]
    directories = [*filter(None, map(parts.directory, _above(names, {member.name for member in found})))]
    ranges: list[Range] = []
    for member in sorted({*found, *first, *directories}, key=lambda member: member.start):
        _add(ranges, member)
    above = [os.fsdecode(member.name) for member in directories]
    return Selection(ranges, set(map(os.fsdecode, links)), above)


def select_of_whole(archive: Iterable[Member], wanted: Sequence[str]) -> Selection:
    """Do the same with an archive that is unpacked from its start."""
    names = [os.fsencode(name) for name in wanted]
    found, links, directories = set(), set(), []
    possible = {*_above(names, names)}
    for member in archive:
        if is_among(member.name, names):
            found.add(member.name)
            if member.kind == headers.HARD_LINK:
                links.add(member.link)
        elif member.kind == headers.DIRECTORY and member.name in possible:
            directories.append(member.name)
    needed = {*_above(names, found)}
    above = [os.fsdecode(name) for name in directories if name in needed]
    return Selection([], set(map(os.fsdecode, _others(links, names))), above)


def _above(names: Sequence[bytes], found: Collection[bytes]) -> list[bytes]:
    """The directories above those names that were found, but for those that are asked for themselves."""
    there = [name.split(b"/") for name in names if name in found]
    above = {b"/".join(words[:depth]) for words in there for depth in range(2, len(words))}
    return sorted(name for name in above if not is_among(name, names))


def _others(links: Iterable[bytes], names: Sequence[bytes]) -> set[bytes]:
    """Those that are not among the wanted members. Raises Error if one leads outside."""
    others = {link for link in links if not is_among(link, names)}
    for link in others:
        check_inside(os.fsdecode(link))
    return others


class _Found(NamedTuple):
    """A member: its name, the name that it is a hard link to, empty if it is none, and its range."""

    name: bytes
    link: bytes
    start: int
    end: int


class _Parts:
    """The parts of an archive, in which members are sorted by name; found from few of their headers."""

    def __init__(self, read: Read, sizes: Sequence[int]) -> None:
        self._read = read
        starts = [0, *accumulate(sizes)]
        self._begins = [starts[places.start] for places in stretches(sizes)]
        self._end = starts[-1]

    def find(self, names: Collection[bytes]) -> list[_Found]:
        """The members of these names, and all below them."""
        found = {name: self._find(name) for name in names}
        # What is not where it should be may be elsewhere, if the archive is in another order.
        missing = [name for name in names if not found[name]]
        others = self._among(0, self._end, missing) if missing else []
        return [*chain.from_iterable(found.values()), *others]

    def _find(self, name: bytes) -> list[_Found]:
        path = to_path(name)
        if not self._begins or not path:
            return []
        order = order_of(path)
        first = bisect_right(self._begins, order, key=self._order) - 1
        last = bisect_left(self._begins, order + b"\1", key=self._order)
        end = self._begins[last] if last < len(self._begins) else self._end
        return self._among(self._begins[max(first, 0)], end, [name])

    def directory(self, name: bytes) -> _Found | None:
        """The member of this name alone, if that is a directory."""
        order = place_of(name)
        first = bisect_right(self._begins, order, key=self._order) - 1
        for found in members(self._read, self._begins[max(first, 0)], self._end):
            if found.name == name and found.kind == headers.DIRECTORY:
                return _Found(name, b"", found.start, found.end)
            if place_of(found.name) > order:
                break
        return None

    def _among(self, start: int, end: int, names: Sequence[bytes]) -> list[_Found]:
        return [
            _Found(found.name, found.link if found.kind == headers.HARD_LINK else b"", found.start, found.end)
            for found in members(self._read, start, end)
            if is_among(found.name, names)
        ]

    def _order(self, start: int) -> bytes:
        """The place of the member that begins there."""
        return order_of(headers.path_at(self._read(start, headers.BEGINNING)) or b"")


def _add(ranges: list[Range], member: _Found) -> None:
    if ranges and ranges[-1][1] == member.start:
        ranges[-1] = ranges[-1][0], member.end
    else:
        ranges.append((member.start, member.end))
