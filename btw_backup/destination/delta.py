"""Reads the older content of a file from what rdiff-backup stores.

That is a gzipped librsync delta: a magic number, then commands to copy a range of the newer content
or to take the bytes that follow (librsync's delta format, as ``rdiff delta`` writes it). Reading it here
needs no program that could be misled by somebody else's files, and no room except for the deltas.
"""

import gzip
import os
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO, NamedTuple

from ..errors import Error
from ..system.files import BLOCK, write_all

_MAGIC = 0x72730236
_END = 0x00
_LONGEST_SHORT_LITERAL = 0x40  # the command is its length
_LITERAL = 0x41  # four of them: the length takes 1, 2, 4 or 8 bytes
_COPY = 0x45  # sixteen: start and length likewise
_RESERVED = 0x55
# rdiff-backup's blocks grow with the square root of the size: no file has this many.
MOST_PIECES = 1 << 21
_SLACK = 1 << 20


class Damaged(Error):
    """A stored file is not as rdiff-backup wrote it."""


class Piece(NamedTuple):
    """A range of an open file, in bytes."""

    file: int
    start: int
    length: int


class Content:
    """The bytes of pieces, one after the other. Their files must stay open while it is used."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self._starts = [0]
        for piece in pieces:
            self._starts.append(self._starts[-1] + piece.length)

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self._starts[-1]

    def file(self) -> int | None:
        """The open file that holds exactly this content; None if there is none."""
        [piece] = self.pieces if len(self.pieces) == 1 else [None]
        if piece is None or piece != whole(piece.file).pieces[0]:
            return None
        return piece.file

    def blocks(self) -> Iterator[bytes]:
        """Yield all of it. It ends early if a file has become shorter meanwhile."""
        for piece in self.pieces:
            start, end = piece.start, piece.start + piece.length
            while start < end:
                block = os.pread(piece.file, min(BLOCK, end - start), start)
                if not block:
                    return
                start += len(block)
                yield block

    def read(self, start: int, length: int) -> bytes:
        """The bytes of a range, fewer if the content ends there."""
        length = min(length, self._starts[-1] - start)
        if length <= 0:
            return b""
        at = bisect_right(self._starts, start) - 1
        piece, skipped = self.pieces[at], start - self._starts[at]
        if skipped + length <= piece.length:
            return os.pread(piece.file, length, piece.start + skipped)
        return b"".join(os.pread(piece.file, piece.length, piece.start) for piece in self.cut(start, length))

    def rest(self, start: int) -> Piece:
        """What follows of the piece that holds a byte."""
        at = bisect_right(self._starts, start) - 1
        piece, skipped = self.pieces[at], start - self._starts[at]
        return Piece(piece.file, piece.start + skipped, piece.length - skipped)

    def cut(self, start: int, length: int) -> Iterator[Piece]:
        """Yield the pieces of a range. Raises Damaged if it is not inside the content."""
        if length <= 0 or start < 0 or start + length > self.size:
            raise Damaged("a range is outside the file")
        at = bisect_right(self._starts, start) - 1
        while length:
            piece = self.pieces[at]
            skipped = start - self._starts[at]
            taken = min(length, piece.length - skipped)
            if taken:
                yield Piece(piece.file, piece.start + skipped, taken)
            start, length, at = start + taken, length - taken, at + 1


def whole(file: int) -> Content:
    """The content of an open file, as large as it is now."""
    return Content([Piece(file, 0, os.fstat(file).st_size)])


class Scratch:
    """An unnamed file under TMPDIR to which data are appended. ``opened`` closes it."""

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened
        self._file: int | None = None

    def end(self) -> tuple[int, int]:
        """The open file, which is at its end, and how long it is."""
        if self._file is None:
            self._file = self._opened.enter_context(tempfile.TemporaryFile()).fileno()
        return self._file, os.lseek(self._file, 0, os.SEEK_END)


def older(newer: Content, version: int, ending: str, size: int, scratch: Scratch) -> Content:
    """Return the content of an older version, stored whole or as a difference to the ``newer`` content.

    ``version`` is an open file, ``ending`` what ``chain.Version`` tells of it; ``size`` is what the content
    has, in bytes. It is unpacked into ``scratch``. Raises Damaged.
    """
    plain = whole(version).pieces[0] if not ending.endswith(".gz") else _unpacked(version, size, scratch)
    content = Content([plain]) if ending.startswith("snapshot") else Content(_followed(plain, newer, size))
    if content.size != size:
        raise Damaged("it gives another size than the recorded one")
    return content


def _unpacked(version: int, size: int, scratch: Scratch) -> Piece:
    """Unpack an open gzip file, that of a version of ``size`` bytes."""
    most = 2 * size + _SLACK  # commands and literals; what somebody has doctored could be endless
    if os.fstat(version).st_size > most:
        raise Damaged("it is too large for its content")
    file, start = scratch.end()
    length = 0
    with open(os.dup(version), "rb") as packed:
        packed.seek(0)
        try:
            unpacked = gzip.open(packed)
            while block := unpacked.read(BLOCK):
                # Not into a buffer: closing the file would write it, and fail once more if the disk is full.
                write_all(file, block)
                length += len(block)
                if length > most:
                    raise Damaged("it is too large for its content")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(str(error)) from error
    return Piece(file, start, length)


def _followed(delta: Piece, newer: Content, size: int) -> list[Piece]:
    """Return the pieces of ``size`` bytes that a delta puts together. Raises Damaged."""
    pieces: list[Piece] = []
    end = delta.start + delta.length
    with open(os.dup(delta.file), "rb", buffering=BLOCK) as commands:
        commands.seek(delta.start)
        if _number(commands, 4) != _MAGIC:
            raise Damaged("it is not a delta")
        while (command := _number(commands, 1)) != _END:
            if command >= _RESERVED or len(pieces) > MOST_PIECES or size < 0:
                raise Damaged("it is not a delta of this file")
            if command >= _COPY:
                start = _number(commands, 1 << ((command - _COPY) >> 2))
                length = _number(commands, 1 << ((command - _COPY) & 3))
                size -= length
                for piece in newer.cut(start, length):
                    _append(pieces, piece)
                continue
            length = command
            if command > _LONGEST_SHORT_LITERAL:
                length = _number(commands, 1 << (command - _LITERAL))
            if not 0 < length <= end - commands.tell():
                raise Damaged("it ends too early")
            size -= length
            _append(pieces, Piece(delta.file, commands.tell(), length))
            commands.seek(length, os.SEEK_CUR)
    return pieces


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Add a piece, as part of the last one if it follows that."""
    if pieces and (last := pieces[-1]).file == piece.file and last.start + last.length == piece.start:
        pieces[-1] = last._replace(length=last.length + piece.length)
    else:
        pieces.append(piece)


def _number(commands: IO[bytes], width: int) -> int:
    data = commands.read(width)
    if len(data) < width:
        raise Damaged("it ends too early")
    return int.from_bytes(data)
