"""The parts in which an archive is stored: how large they are, and how each begins."""

import os
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from ..errors import Error
from . import headers
from .headers import BEGINNING, Headers, is_cut_short, name_at


class Sizes(NamedTuple):
    """When a part ends, in bytes.

    At ``most`` it ends before the next member; from ``least`` on, before one member of ``one_of``, chosen
    by its name; from ``small`` on, before a member that begins a stored part. A member with more data than
    ``cut`` begins a part with its headers, and its data is cut at its start and every so many bytes from
    there. So a part is hardly ever larger than ``most`` and ``cut``.
    """

    least: int = 4 << 20
    most: int = 16 << 20
    cut: int = 4 << 20
    small: int = 1
    one_of: int = 64


INCREMENTAL: Final = Sizes()
# A full backup joins what has become small.
FULL: Final = Sizes(small=1 << 20)


class Start(NamedTuple):
    """How a part begins: with the header that ``name`` identifies, or in the data of that member.

    ``cut`` tells how often the data was cut before, ``left`` how many bytes of it follow; 0 at a header.
    ``path`` is that of the member, relative to the source, None if it is not known.
    """

    name: bytes
    cut: int = 0
    left: int = 0
    path: bytes | None = None


class Part(NamedTuple):
    """A stored part: the name of its file, its size in bytes, and how it begins."""

    name: str
    size: int
    start: Start


class Made(NamedTuple):
    """A part that differs: the name of its file in the stage, its size in bytes, and how it begins.

    ``replaces``: the stored part that begins in the same way.
    """

    name: str
    size: int
    start: Start
    replaces: Part | None


def parts(files: Iterable[tuple[str, int]], cut: int) -> Iterator[Part]:
    """Yield the stored parts of an archive, given the names and descriptors of its files, in order.

    ``cut`` is what it was in ``Sizes``. Raises Error if they are not one.
    """
    state = Headers(cut)
    for name, file in files:
        size = os.fstat(file).st_size
        if state.ended:
            raise Error(f"{name} follows the end of the archive")
        block = b"" if state.left else os.pread(file, BEGINNING, 0)
        if state.left:
            yield Part(name, size, Start(state.name, state.cut, state.left))
        else:
            yield Part(name, size, Start(name_at(block, 0), path=headers.path_at(block)))
        position = 0
        while position < size and not state.ended:
            if state.left:
                step = state.step(size - position)
                data = os.pread(file, step, position) if state.collects() else b""
                position += step
                if state.advance(step, data) and position < size:
                    raise Error(f"{name} goes on where it should end")
            else:
                header = os.pread(file, headers.BLOCK, position)
                if not state.is_extended and len(header) == headers.BLOCK and is_cut_short(header):
                    is_cut = state.read(header, name_at(os.pread(file, BEGINNING, position), 0))
                else:
                    is_cut = state.read(header)
                position += headers.BLOCK
                if is_cut and position < size:
                    raise Error(f"{name} goes on where it should end")
