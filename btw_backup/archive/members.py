"""The members of an archive, found from header to header without reading their data.

Besides what GNU tar writes with ``--format=posix`` this reads its older format, which is its default.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from ..errors import Error
from . import headers, names
from .headers import BLOCK, number

Read = Callable[[int, int], bytes]

# The headers of most members, so that they are read at once.
_AHEAD = 4 * BLOCK
# Members of GNU tar's older format that hold a long name for the next one, and the record that has it now.
_LONG = {b"L": b"path", b"K": b"linkpath"}
_BEFORE = (*headers.EXTENSIONS, *_LONG)
_SPARSE = b"S"
_SECONDS = re.compile(rb"(-?)(\d{1,18})(?:\.(\d*))?")
_NANOSECONDS = 10**9
# What the other fields of a member tell.
_COMMON = {b"path", b"linkpath", b"size", b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname"}


class Member(NamedTuple):
    """A member: its name as it is in the archive, its kind as tar's type flag, and where it is.

    It takes the range from ``start`` to ``end``, in bytes, headers included; its data begins at ``data``.
    ``header`` is its last header, ``extension`` what the pax headers before that hold.
    """

    name: bytes
    kind: bytes
    start: int
    data: int
    end: int
    header: bytes
    extension: bytes

    @property
    def path(self) -> str:
        """Its path relative to the source, ``.`` for the source itself."""
        return names.shown(self.name)

    @property
    def link(self) -> bytes:
        """Where a link leads to; for a hard link, the name of another member."""
        return self.records().get(b"linkpath") or self.header[157:257].rstrip(b"\0")

    @property
    def mode(self) -> int:
        """Its permissions."""
        return number(self.header[100:108]) & 0o7777

    @property
    def owner(self) -> tuple[int, int]:
        """The numbers of its user and group."""
        records = self.records()
        uid, gid = records.get(b"uid"), records.get(b"gid")
        return (
            number(self.header[108:116]) if uid is None else _whole(uid),
            number(self.header[116:124]) if gid is None else _whole(gid),
        )

    @property
    def owner_names(self) -> tuple[str, str]:
        """The names of its user and group; empty if they had none."""
        records = self.records()
        user = records.get(b"uname", self.header[265:297].rstrip(b"\0"))
        group = records.get(b"gname", self.header[297:329].rstrip(b"\0"))
        return os.fsdecode(user), os.fsdecode(group)

    @property
    def size(self) -> int:
        """The size of the file in bytes, holes included."""
        if self.kind == _SPARSE:
            return number(self.header[483:495])
        records = self.records()
        for keyword in (b"GNU.sparse.realsize", b"GNU.sparse.size", b"size"):
            if keyword in records:
                return _whole(records[keyword])
        return 0 if self.kind == headers.HARD_LINK else number(self.header[124:136])

    @property
    def device(self) -> tuple[int, int]:
        """The numbers of a device."""
        return number(self.header[329:337]), number(self.header[337:345])

    @property
    def modified(self) -> int:
        """When it was modified, in nanoseconds since 1970."""
        told = self.records().get(b"mtime")
        if told is None:
            return number(self.header[136:148]) * _NANOSECONDS
        match = _SECONDS.fullmatch(told)
        if match is None:
            raise Error(headers.NONE)
        value = int(match[2]) * _NANOSECONDS + int((match[3] or b"")[:9].ljust(9, b"0"))
        return -value if match[1] else value

    def records(self) -> Mapping[bytes, bytes]:
        """What its pax headers tell: keywords and their values."""
        return _parsed(self.extension)

    def holes(self) -> tuple[bytes, ...]:
        """What tells where the holes of a sparse file are."""
        if self.kind == _SPARSE:
            return (self.header[386:482],)
        return tuple(re.findall(rb"GNU\.sparse\.(?:offset|numbytes|map)=[^\n]*", self.extension))

    def attributes(self) -> dict[bytes, bytes]:
        """Its extended attributes and ACLs, as pax headers have them."""
        return {
            keyword: value
            for keyword, value in self.records().items()
            if keyword not in _COMMON and not keyword.startswith(b"GNU.")
        }


# Several things are asked of one member.
_parsed = lru_cache(maxsize=2)(headers.records)


def members(read: Read, start: int = 0, stop: int = sys.maxsize) -> Iterator[Member]:
    """Yield the members of an archive; ``read`` returns so many bytes of it, from a position on.

    Only those that begin between two positions, the first of which is that of a member. Raises Error if it is
    not an archive of GNU tar, or is not complete.
    """
    while start < stop and (member := member_at(read, start)) is not None:
        yield member
        start = member.end
        if start > stop:
            raise Error("a member goes on where it should end")


def member_at(read: Read, start: int) -> Member | None:
    """The member whose headers begin there; None where the archive ends. Raises Error like ``members``."""
    block = read(start, _AHEAD)
    extension = b""
    position = 0
    while True:
        header = block[position : position + BLOCK]
        if header[257:262] != b"ustar":
            _check_end(read, start, position, header)
            return None
        kind = header[156:157]
        size = number(header[124:136])
        if kind not in _BEFORE:
            break
        after = position + BLOCK - (-size // BLOCK) * BLOCK
        if len(block) < after + BLOCK:
            headers.checked_extension(after)
            block = read(start, after + _AHEAD)
        extension += _records(kind, block[position + BLOCK : position + BLOCK + size])
        position = after
    name = b""
    # Only the lengths of records tell where they begin: a value may hold anything.
    if b"path=" in extension or b" size=" in extension or b"GNU.sparse.name=" in extension:
        records = headers.records(extension)
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or b""
        size = _whole(records[b"size"]) if b"size" in records else size
    if kind == headers.HARD_LINK:
        size = 0
    data = start + position + BLOCK
    if kind == _SPARSE:
        data = _after_map(read, header, data)
    end = data - (-size // BLOCK) * BLOCK
    return Member((name or _name(header)).rstrip(b"/"), kind, start, data, end, header, extension)


def _records(kind: bytes, data: bytes) -> bytes:
    """What is before a member, as the records of a pax header."""
    return headers.record(_LONG[kind], data.rstrip(b"\0")) if kind in _LONG else data


def _after_map(read: Read, header: bytes, position: int) -> int:
    """Where the data of a sparse member of the older format begins: after the rest of its map of holes."""
    more = header[482:483]
    while more not in (b"\0", b""):
        more = read(position, BLOCK)[504:505]
        position += BLOCK
    return position


def _check_end(read: Read, start: int, position: int, header: bytes) -> None:
    """Raise Error unless this is where an archive ends."""
    if len(header) < BLOCK:
        raise Error("the archive ends too early")
    if position or read(start, len(headers.END)) != headers.END:
        raise Error(headers.NONE)


def _name(header: bytes) -> bytes:
    name = header[:100].rstrip(b"\0")
    # The older format has something else where the prefix is.
    if header[345:346] == b"\0" or header[262:263] != b"\0":
        return name
    return header[345:500].rstrip(b"\0") + b"/" + name


def _whole(value: bytes) -> int:
    """The number in a record."""
    if not re.fullmatch(rb"\d{1,19}", value):
        raise Error(headers.NONE)
    return headers.checked(int(value))
