"""Reading the older content of a file out of what rdiff-backup stores of it.

It stores a librsync delta, gzipped: a magic number, then commands to copy a range of the newer content
or to take the bytes that follow (librsync's delta format, as ``rdiff delta`` writes it). To follow them
takes no program that does what files of somebody else tell it, and no room but for the deltas.
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
from ..system.files import BLOCK

_MAGIC = 0x72730236
_END = 0x00
_LONGEST_SHORT_LITERAL = 0x40  # the command is its length
_LITERAL = 0x41  # four of them: the length takes 1, 2, 4 or 8 bytes
_COPY = 0x45  # sixteen: start and length likewise
_RESERVED = 0x55
# rdiff-backup's blocks grow with the root of the size: this many are reached by no file.
_MOST_PIECES = 1 << 21


class Damaged(Error):
    """What is stored can't be what rdiff-backup wrote."""


class Piece(NamedTuple):
    """A range of an open file, in bytes."""

    file: int
    start: int
    length: int


class Content:
    """The bytes of pieces, one after the other. The pieces' files are open as long as it is used."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self._starts = [0]
        for piece in pieces:
            self._starts.append(self._starts[-1] + piece.length)

    @property
    def size(self) -> int:
        """In bytes."""
        return self._starts[-1]

    def file(self) -> int | None:
        """The open file that holds just this, None if there is none."""
        [piece] = self.pieces if len(self.pieces) == 1 else [None]
        if piece is None or piece != whole(piece.file).pieces[0]:
            return None
        return piece.file

    def blocks(self) -> Iterator[bytes]:
        """All of it. A file that has become shorter meanwhile ends it early."""
        for piece in self.pieces:
            start, end = piece.start, piece.start + piece.length
            while start < end:
                block = os.pread(piece.file, min(BLOCK, end - start), start)
                if not block:
                    return
                start += len(block)
                yield block

    def cut(self, start: int, length: int) -> Iterator[Piece]:
        """The pieces of a range. Raises Damaged if it is not inside."""
        if length <= 0 or start < 0 or start + length > self.size:
            raise Damaged("a range lies outside of the file")
        at = bisect_right(self._starts, start) - 1
        while length:
            piece = self.pieces[at]
            skipped = start - self._starts[at]
            taken = min(length, piece.length - skipped)
            if taken:
                yield Piece(piece.file, piece.start + skipped, taken)
            start, length, at = start + taken, length - taken, at + 1


def whole(file: int) -> Content:
    """All of an open file, as it is now."""
    return Content([Piece(file, 0, os.fstat(file).st_size)])


def older(newer: Content, version: int, ending: str, opened: ExitStack) -> Content:
    """The content of a version of a file, which is stored whole or as its difference to the ``newer`` one.

    ``version`` and ``ending`` are what ``chain.open_version`` gives. What it needs open is closed by
    ``opened``. Raises Damaged.
    """
    if ending == "missing":
        raise Damaged("the file was not there")
    plain = _unpacked(version, opened) if ending.endswith(".gz") else version
    if ending.startswith("snapshot"):
        return whole(plain)
    return Content(_followed(plain, newer))


def _unpacked(version: int, opened: ExitStack) -> int:
    """The unpacked content of an open gzip file, in a file under TMPDIR that has no name."""
    scratch = opened.enter_context(tempfile.TemporaryFile())
    with open(os.dup(version), "rb") as packed:
        packed.seek(0)
        try:
            unpacked = gzip.open(packed)
            while block := unpacked.read(BLOCK):
                scratch.write(block)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(str(error)) from error
    scratch.flush()
    return scratch.fileno()


def _followed(delta: int, newer: Content) -> list[Piece]:
    """The pieces that a delta puts together. Raises Damaged."""
    pieces: list[Piece] = []
    with open(os.dup(delta), "rb", buffering=BLOCK) as commands:
        commands.seek(0)
        if _number(commands, 4) != _MAGIC:
            raise Damaged("it is no delta")
        while (command := _number(commands, 1)) != _END:
            if command >= _RESERVED or len(pieces) > _MOST_PIECES:
                raise Damaged("it is no delta of this file")
            if command >= _COPY:
                start = _number(commands, 1 << ((command - _COPY) >> 2))
                length = _number(commands, 1 << ((command - _COPY) & 3))
                pieces.extend(newer.cut(start, length))
                continue
            length = command
            if command > _LONGEST_SHORT_LITERAL:
                length = _number(commands, 1 << (command - _LITERAL))
            pieces.append(Piece(delta, commands.tell(), length))
            commands.seek(length, os.SEEK_CUR)
    return pieces


def _number(commands: IO[bytes], width: int) -> int:
    data = commands.read(width)
    if len(data) < width:
        raise Damaged("it ends too early")
    return int.from_bytes(data)
