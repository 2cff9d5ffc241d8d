"""The headers of a tar stream: where its members begin, and how much data each has.

Only what GNU tar writes with ``--format=posix``: pax headers, then the header that they are for.
"""

import re
import sys
from typing import Final

from ..errors import Error
from .names import to_path

BLOCK: Final = 512
_ZEROS = bytes(BLOCK)
# An archive ends with two of them.
END: Final = 2 * _ZEROS
# More than the headers of a member take, but for those of the oddest.
BEGINNING: Final = 1 << 16
_RECORD = re.compile(rb"(\d{1,10}) ([^=]+)=")
# Longer than any that is not doctored.
_LONGEST_EXTENSION = 1 << 28
EXTENSIONS: Final = (b"x", b"g")
HARD_LINK: Final = b"1"
DIRECTORY: Final = b"5"
NONE: Final = "this is not an archive of GNU tar's format posix"


class Headers:
    """Follows an archive from header to header, through blocks of any multiple of 512 bytes.

    ``name`` identifies the member whose data comes now, ``left`` is how much of that is still to come,
    in bytes, and ``cut`` how often it was cut before. ``ended``: the archive is complete.
    """

    def __init__(self, every: int = sys.maxsize, name: bytes = b"", cut: int = 0, left: int = 0) -> None:
        """Begin with a header, or in the data of a member.

        Data that is longer is cut ``every`` so many bytes, before the first of them, too.
        """
        self._every = every
        self.name = name
        self.cut = cut
        self.left = left
        self.ended = False
        # Between an extension, a pax header, and what it is for an archive can't be divided.
        self.is_extended = False
        self._until_cut = self._every
        self._extension: bytearray | None = None
        self._size: int | None = None
        self._zeros = 0

    def read(self, header: bytes, name: bytes | None = None) -> bool:
        """Read the header, 512 bytes, that follows the data before. Returns whether it is cut after it.

        ``name`` is what ``name_at`` returns of it, if that was asked for. Raises Error if it is none.
        """
        if header == _ZEROS:
            self._zeros += 1
            self.ended = self._zeros == 2
            return False
        if self._zeros or header[257:262] != b"ustar":
            raise Error(NONE)
        kind = header[156:157]
        size = number(header[124:136])
        if kind in EXTENSIONS:
            checked_extension(size)
            if not self.is_extended:
                self.name = name_of(header) if name is None else name
            self.is_extended = True
            self._extension = bytearray() if size else None
        else:
            if not self.is_extended:
                self.name = name_of(header) if name is None else name
            if self._size is not None:
                size, self._size = self._size, None
            if kind == HARD_LINK:
                size = 0
            self.is_extended = False
        self.left = -(-size // BLOCK) * BLOCK
        self._until_cut = self._every
        # A header changes with the time of its file, most of the data may stay.
        self.cut = int(self.left > self._every and not self.is_extended)
        return self.cut > 0

    def step(self, available: int) -> int:
        """How many of the bytes that follow are data up to its end, or to where it is cut."""
        return min(self.left, self._until_cut, available)

    def collects(self) -> bool:
        """Whether the data is to be given to ``advance``, since it tells of the next member."""
        return self._extension is not None

    def advance(self, count: int, data: bytes = b"") -> bool:
        """Pass over so many bytes of data, at most ``step``. Returns whether it is cut there."""
        if self._extension is not None:
            self._extension += data
        self.left -= count
        self._until_cut -= count
        if not self.left:
            if self._extension is not None:
                # Only the lengths of records tell where they begin: a value may hold anything.
                size = records(bytes(self._extension)).get(b"size") if b" size=" in self._extension else None
                self._size = checked(int(size)) if size and re.fullmatch(rb"\d{1,19}", size) else None
                self._extension = None
            return False
        if self._until_cut:
            return False
        self.cut += 1
        self._until_cut = self._every
        return not self.is_extended


def name_of(header: bytes) -> bytes:
    """What identifies a header: its name fields, in which a long name is cut short."""
    return header[:100].rstrip(b"\0") + header[345:500].rstrip(b"\0")


def is_cut_short(header: bytes) -> bool:
    """Whether a pax header holds only the beginning of a long name, which others may share."""
    return header[99] != 0 and header[156:157] in EXTENSIONS


def name_at(block: bytes, position: int) -> bytes:
    """What identifies the headers there: their name fields or, if those are cut short, the path."""
    header = block[position : position + BLOCK]
    path = path_at(block[position:]) if len(header) == BLOCK and is_cut_short(header) else None
    return path or name_of(header)


def extent_at(block: bytes, position: int) -> tuple[int, int]:
    """The size in bytes of the data of the member whose headers are there, and where the member ends.

    A size that is in a pax header, of 8 GiB or more, counts as endless. If the block does not hold all of the
    headers, or they are no member's, the size is 0, and the end is endless.
    """
    while block[position + 156 : position + 157] in EXTENSIONS:
        data = position + BLOCK
        size = number(block[position + 124 : position + 136])
        if b" size=" in block[data : data + size]:
            return sys.maxsize, sys.maxsize
        position = data - (-size // BLOCK) * BLOCK
    if len(block) < position + BLOCK or block[position + 257 : position + 262] != b"ustar":
        return 0, sys.maxsize
    is_link = block[position + 156 : position + 157] == HARD_LINK
    size = 0 if is_link else number(block[position + 124 : position + 136])
    return size, position + BLOCK - (-size // BLOCK) * BLOCK


def path_at(block: bytes) -> bytes | None:
    """The path of the member whose headers a block begins with, as a walk of the source has it.

    That is without ``./`` and a slash at its end, empty for the source itself. None if the block does not
    hold enough to tell it, or the archive ends.
    """
    header = block[:BLOCK]
    told: dict[bytes, bytes] = {}
    while header[156:157] in EXTENSIONS:
        size = number(header[124:136])
        end = BLOCK - (-size // BLOCK) * BLOCK
        if len(block) < end + BLOCK:
            return None
        told |= records(block[BLOCK : BLOCK + size])
        block = block[end:]
        header = block[:BLOCK]
    if header == _ZEROS:  # the end of the archive
        return None
    prefix = header[345:500].rstrip(b"\0")
    name = header[:100].rstrip(b"\0")
    path = told.get(b"path") or (prefix + b"/" + name if prefix else name)
    return to_path(path)


def checked_extension(size: int) -> int:
    """The size of what a pax header holds, in bytes. Raises Error if it can't be real."""
    if size > _LONGEST_EXTENSION:
        raise Error(NONE)
    return size


def record(keyword: bytes, value: bytes) -> bytes:
    """A record of a pax header, the inverse of ``records``."""
    rest = b" %s=%s\n" % (keyword, value)
    length = len(rest) + len(str(len(rest)))
    length += len(str(length)) - len(str(len(rest)))
    return b"%d%s" % (length, rest)


def records(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: keywords and their values (pax(1), Extended Header).

    Raises Error if one does not end where it says.
    """
    found: dict[bytes, bytes] = {}
    position = 0
    while match := _RECORD.match(data, position):
        position += int(match[1])
        if position <= match.end() or data[position - 1 : position] != b"\n":
            raise Error(NONE)
        found[match[2]] = data[match.end() : position - 1]
    return found


def number(field: bytes) -> int:
    """The value of a numeric field: octal, or in base 256 if it needs more digits."""
    if field[:1] >= b"\x80":
        return checked(int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1)))
    digits = field.strip(b" \0")
    try:
        if digits.isdigit():  # int() takes other signs, too
            return int(digits, 8)
    except ValueError:
        raise Error(NONE) from None
    if digits:
        raise Error(NONE)
    return 0


def checked(size: int) -> int:
    """The size. Raises Error if no file can have it."""
    if size >= 1 << 63:
        raise Error(NONE)
    return size
