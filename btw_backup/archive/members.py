"""The members of an archive in parts, found from header to header without reading their data."""

import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

from ..errors import Error
from . import headers
from .headers import BEGINNING, Headers
from .parts import FULL
from .stream import check_inside

Read = Callable[[int, int], bytes]
Range = tuple[int, int]

_HARD_LINK = b"1"
_AHEAD = 2048


class Member(NamedTuple):
    """A member: its name, its kind as tar's type flag, where a link leads to, and the range that it takes.

    The range, in bytes, begins with the first of its headers.
    """

    name: bytes
    kind: bytes
    link: bytes
    start: int
    end: int


class Selection(NamedTuple):
    """Ranges of an archive, in bytes; what is to be unpacked of them, besides what was asked for."""

    ranges: list[Range]
    extra: set[str]


def members(read: Read, start: int = 0, stop: int = sys.maxsize) -> Iterator[Member]:
    """Yield the members of an archive; ``read`` returns so many bytes of it, from a position on.

    Only those that begin between two positions, the first of which is that of a member. Raises Error if it is
    not an archive of GNU tar's format posix, or is not complete.
    """
    state = Headers()
    position = start
    told: dict[bytes, bytes] = {}
    window = _Window(read)
    while position < stop:
        header = window.read(position, headers.BLOCK)
        if len(header) < headers.BLOCK:
            raise Error("the archive ends too early")
        state.read(header)
        if state.ended:
            return
        position += headers.BLOCK
        if state.is_extended:
            data = window.read(position, state.left)
            told |= headers.records(data)
            position += state.left
            while state.left:
                step = state.step(state.left)
                state.advance(step, data[-state.left :][:step])
        else:
            if header.strip(b"\0"):
                name = told.get(b"path") or _name(header)
                link = told.get(b"linkpath") or header[157:257].rstrip(b"\0")
                yield Member(name.rstrip(b"/"), header[156:157], link, start, position + state.left)
            position += state.left
            state.left = 0
            start, told = position, {}


class _Window:
    """Reads a little more than what is asked for: the headers of a member follow one another."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._start = 0
        self._data = b""

    def read(self, position: int, length: int) -> bytes:
        start = position - self._start
        if start < 0 or start + length > len(self._data):
            self._data = self._read(position, max(length, _AHEAD))
            self._start, start = position, 0
        return self._data[start : start + length]


def select(read: Read, sizes: Sequence[int], wanted: Sequence[str]) -> Selection:
    """Find where members, and what is below them, are; and the files to which hard links among them lead.

    ``sizes`` are those of the archive's parts, in bytes. An archive holds the content of a hard-linked file
    under the first of its names only. Raises Error if the archive is damaged, or leads out of the directory
    that it is unpacked in.
    """
    parts = _Parts(read, sizes)
    names = [os.fsencode(name) for name in wanted]
    found = parts.find(names)
    links = {member.link for member in found if member.kind == _HARD_LINK}
    links = {link for link in links if not _is_among(link, names)}
    for link in links:
        check_inside(os.fsdecode(link))
    first = [member for member in parts.find(links) if member.name in links]
    ranges: list[Range] = []
    for member in sorted({*found, *first}, key=lambda member: member.start):
        _add(ranges, member)
    return Selection(ranges, set(map(os.fsdecode, links)))


class _Parts:
    """The parts of an archive, in which members are sorted by name; found from few of their headers.

    In the data of a member there may be headers, too, of whatever its owner likes. So a part counts as
    beginning with a member only if it is neither as long as data is cut, nor follows such a part.
    """

    def __init__(self, read: Read, sizes: Sequence[int]) -> None:
        self._read = read
        starts = [0, *accumulate(sizes)]
        is_cut = [False, *(size == FULL.cut for size in sizes)]
        self._begins = [
            start for place, start in enumerate(starts[:-1]) if not any(is_cut[place : place + 2])
        ]
        self._end = starts[-1]

    def find(self, names: Collection[bytes]) -> list[Member]:
        """The members of these names, and all below them."""
        found = {name: self._find(name) for name in names}
        # What is not where it should be may be elsewhere, if the archive is in another order.
        missing = [name for name in names if not found[name]]
        others = self._among(0, self._end, missing) if missing else []
        return [*chain.from_iterable(found.values()), *others]

    def _find(self, name: bytes) -> list[Member]:
        path = name.removeprefix(b"./")
        if not self._begins or self._begins[0] != 0 or path == b".":
            return []
        order = path.replace(b"/", b"\0")
        first = bisect_right(self._begins, order, key=self._order) - 1
        last = bisect_left(self._begins, order + b"\1", key=self._order)
        end = self._begins[last] if last < len(self._begins) else self._end
        return self._among(self._begins[max(first, 0)], end, [name])

    def _among(self, start: int, end: int, names: Sequence[bytes]) -> list[Member]:
        return [member for member in members(self._read, start, end) if _is_among(member.name, names)]

    def _order(self, start: int) -> bytes:
        """The place of the member that begins there, see ``walk``."""
        path = headers.path_at(self._read(start, BEGINNING))
        return (path or b"").replace(b"/", b"\0")


def _is_among(name: bytes, names: Sequence[bytes]) -> bool:
    return any(name == wanted or name.startswith(wanted + b"/") for wanted in names)


def _add(ranges: list[Range], member: Member) -> None:
    if ranges and ranges[-1][1] == member.start:
        ranges[-1] = ranges[-1][0], member.end
    else:
        ranges.append((member.start, member.end))


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
    return prefix + b"/" + name if prefix else name
