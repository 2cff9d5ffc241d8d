"""The members of an archive in parts, found from header to header without reading their data."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..errors import Error
from . import headers
from .headers import Headers
from .stream import check_inside

Read = Callable[[int, int], bytes]
Range = tuple[int, int]

_HARD_LINK = b"1"


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


def members(read: Read) -> Iterator[Member]:
    """Yield the members of an archive; ``read`` returns so many bytes of it, from a position on.

    Raises Error if it is not one of GNU tar's format posix, or is not complete.
    """
    state = Headers()
    position = start = 0
    told: dict[bytes, bytes] = {}
    while True:
        header = read(position, headers.BLOCK)
        if len(header) < headers.BLOCK:
            raise Error("the archive ends too early")
        state.read(header)
        if state.ended:
            return
        position += headers.BLOCK
        if state.is_extended:
            told |= headers.records(read(position, state.left))
        elif header.strip(b"\0"):
            name = told.get(b"path") or _name(header)
            link = told.get(b"linkpath") or header[157:257].rstrip(b"\0")
            yield Member(name.rstrip(b"/"), header[156:157], link, start, position + state.left)
        position += state.left
        while state.left:
            step = state.step(state.left)
            state.advance(step, read(position - state.left, step) if state.collects() else b"")
        if not state.is_extended:
            start, told = position, {}


def select(read: Read, wanted: Sequence[str]) -> Selection:
    """Find where members, and what is below them, are; and the files to which hard links among them lead.

    An archive holds the content of such a file under the first of its names only. Raises Error if the
    archive is damaged, or leads out of the directory that it is unpacked in.
    """
    names = [name.encode(errors="surrogateescape") for name in wanted]
    ranges: list[Range] = []
    links: set[bytes] = set()
    for member in members(read):
        if _is_among(member.name, names):
            _add(ranges, member)
            if member.kind == _HARD_LINK and not _is_among(member.link, names):
                links.add(member.link)
    extra = {link.decode(errors="surrogateescape") for link in links}
    for name in extra:
        check_inside(name)
    if links:
        first: list[Range] = []
        for member in members(read):
            if member.name in links:
                _add(first, member)
        ranges = sorted(first + ranges)
    return Selection(ranges, extra)


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
