"""Dividing an archive into parts, and comparing it with the parts of the one before.

A part ends before a member, or in the data of a large one. Where it ends depends on nothing but what it
holds, and on where the stored parts begin: so after an insertion the rest falls into place again.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Final

from ..errors import Error
from ..system.directories import Directory
from ..system.files import BLOCK, write_all
from . import headers
from .blocks import Blocks
from .headers import BEGINNING, Headers, name_at, name_of
from .parts import Made, Part, Sizes, Start

# What identifies the headers of the source's own member.
_TOP: Final = (b"./PaxHeaders/.", b"./")

Open = Callable[[str], AbstractContextManager[int]]


def compare(
    blocks: Iterator[bytes], stored: Sequence[Part], opened: Open, stage: Directory, sizes: Sizes
) -> Iterator[Part | Made]:
    """Divide an archive, and yield its parts in order: stored ones that are the same, and others.

    The others are written into ``stage``, as files ``new.N``, and nothing else is. ``opened`` opens a
    stored part by its name. Raises Error if the blocks, whose sizes are multiples of 512 bytes, are not
    a whole archive.
    """
    stream = Blocks(blocks)
    yield from _compared(stream, stored, opened, stage, sizes, count())
    stream.finish()


def compare_some(
    blocks: Iterator[bytes],
    stored: Sequence[Part],
    some: Sequence[tuple[int, int]],
    opened: Open,
    stage: Directory,
    sizes: Sizes,
) -> Iterator[Part | Made]:
    """Do the same with an archive of the members of some stored parts only; the others stay as they are.

    ``some``: the first of them, and the one after the last, for each run of such parts. In the archive the
    source's own member comes before each run, and before the first there may be others, which are left out.
    """
    stream, numbers = Blocks(blocks), count()
    while not _is_at_top(stream):
        _discard(stream)
    at = 0
    for first, end in some:
        _discard(stream)
        yield from stored[at:first]
        others_follow = end < len(stored)
        is_empty = first > 0 and others_follow and _is_at_end(stream)
        if not is_empty:
            yield from _compared(stream, stored[first:end], opened, stage, sizes, numbers, others_follow)
        at = end
    yield from stored[at:]
    stream.finish()


def _compared(
    stream: Blocks,
    stored: Sequence[Part],
    opened: Open,
    stage: Directory,
    sizes: Sizes,
    numbers: Iterator[int],
    others_follow: bool = False,
) -> Iterator[Part | Made]:
    """Compare what comes with stored parts. If others follow them, it ends before the source's own member."""
    state = Headers(sizes.cut)
    ahead = _Ahead(stored)
    is_first = True
    while not state.ended:
        if others_follow and not state.left and not is_first and _is_at_end(stream):
            return
        is_first = False
        start = _start(stream, state)
        before = ahead.take(start)
        if before is not None:
            after = _state_after(start, before, ahead.next(), sizes.cut, others_follow)
            if after is not None and (before.size >= sizes.small or after.left or after.ended):
                same = _same(stream, before, opened)
                if same == before.size:
                    state = after
                    yield before._replace(start=start._replace(path=start.path or before.start.path))
                    continue
                stream.put_back(_beginning(before, same, opened))
        name = f"new.{next(numbers)}"
        with stage.create(name) as file:
            for piece in _part(stream, state, ahead, sizes, others_follow):
                write_all(file, piece)
            size = os.fstat(file).st_size
        yield Made(name, size, start, before)


class _Ahead:
    """The stored parts that may still come: those after the last one that was taken."""

    def __init__(self, stored: Sequence[Part]) -> None:
        self._stored = stored
        self._taken = 0
        numbered = reversed([*enumerate(stored)])  # of two that begin alike, the first counts
        self._places = {(part.start.name, part.start.cut): place for place, part in numbered}

    def begins(self, name: bytes) -> bool:
        """Whether the member begins one of them."""
        return self._places.get((name, 0), -1) >= self._taken

    def take(self, start: Start) -> Part | None:
        """Take the one that begins like this, if there is one."""
        place = self._places.get((start.name, start.cut), -1)
        if place < self._taken:
            return None
        self._taken = place + 1
        return self._stored[place]

    def next(self) -> Part | None:
        """The one after that which was taken; None at the end."""
        return self._stored[self._taken] if self._taken < len(self._stored) else None


def _start(stream: Blocks, state: Headers) -> Start:
    if state.left:
        return Start(state.name, state.cut, state.left)
    block = stream.peek(BEGINNING)
    return Start(name_at(block, 0), path=headers.path_at(block))


def _state_after(
    start: Start, part: Part, following: Part | None, cut: int, others_follow: bool
) -> Headers | None:
    """The state after a part that is the same as a stored one; None if that can't be told from it."""
    if start.left > part.size:
        return Headers(cut, start.name, start.cut + 1, start.left - cut) if part.size == cut else None
    if start.left != part.start.left:
        return None
    if following is None:
        state = Headers(cut)
        state.ended = not others_follow
        return state
    begin = following.start
    return Headers(cut, begin.name, begin.cut, begin.left) if begin.left else Headers(cut)


def _same(stream: Blocks, part: Part, opened: Open) -> int:
    """Pass over what is the same as in a stored part, whole blocks. Returns how many bytes that is."""
    offset = 0
    with opened(part.name) as file:
        while offset < part.size and (block := stream.peek()):
            if len(block) > part.size - offset:
                block = block[: part.size - offset]
            if os.pread(file, len(block), offset) != block:
                break
            stream.skip(len(block))
            offset += len(block)
    return offset


def _beginning(part: Part, count: int, opened: Open) -> Iterator[bytes]:
    """Yield the first ``count`` bytes of a stored part."""
    with opened(part.name) as file:
        offset = 0
        while offset < count:
            block = os.pread(file, min(BLOCK, count - offset), offset)
            if not block:
                raise Error(f"{part.name} changed while it was read")
            offset += len(block)
            yield block


def _is_at_top(stream: Blocks) -> bool:
    """Whether the source's own member comes. Raises Error if nothing comes."""
    block = stream.peek()
    if not block:
        raise Error("the archive ends too early")
    return name_of(block[: headers.BLOCK]) in _TOP


def _is_at_end(stream: Blocks) -> bool:
    """Whether the members of a run of parts end here."""
    return _is_at_top(stream) or not stream.peek()[: headers.BLOCK].strip(b"\0")


def _discard(stream: Blocks) -> None:
    """Pass over a member."""
    state = Headers()
    while True:
        block = stream.peek()
        if len(block) < headers.BLOCK:
            raise Error("the archive ends too early")
        if state.left:
            step = state.step(len(block))
            state.advance(step, block[:step] if state.collects() else b"")
            stream.skip(step)
        else:
            state.read(block[: headers.BLOCK])
            stream.skip(headers.BLOCK)
        if not state.left and not state.is_extended:
            return


def _part(
    stream: Blocks, state: Headers, ahead: _Ahead, sizes: Sizes, others_follow: bool
) -> Iterator[bytes]:
    """Yield the stream up to where the part that begins here ends."""
    held, is_over = 0, False
    while not is_over:
        block = stream.peek(BEGINNING)
        if not block:
            raise Error("the archive ends too early")
        end, is_over = _end(state, block, held, ahead, sizes, others_follow)
        yield block[:end]
        stream.skip(end)
        held += end


def _end(
    state: Headers, block: bytes, held: int, ahead: _Ahead, sizes: Sizes, others_follow: bool
) -> tuple[int, bool]:
    """How much of a block belongs to a part that holds so much already, and whether that is over then."""
    position, length = 0, len(block)
    while position < length:
        if state.left:
            step = state.step(length - position)
            data = block[position : position + step] if state.collects() else b""
            position += step
            if state.advance(step, data):
                return position, True
            continue
        if position > 0 and length - position < BEGINNING <= length:
            return position, False  # not all of the headers may be here yet
        name = None
        if not state.is_extended:
            name = name_at(block, position)
            size, end = headers.extent_at(block, position)
            if held + position and _ends_before(name, size, held + position, ahead, sizes, others_follow):
                return position, True
            if size <= sizes.cut and end <= length:
                position = end
                continue
        is_cut = state.read(block[position : position + headers.BLOCK], name)
        position += headers.BLOCK
        if is_cut or state.ended:
            return position, True
    return position, False


def _ends_before(name: bytes, size: int, held: int, ahead: _Ahead, sizes: Sizes, others_follow: bool) -> bool:
    """Whether a part that holds so many bytes ends before the member of this name, with data of this size."""
    if others_follow and (not name or name in _TOP):
        return True
    if not name:
        return False
    if held >= sizes.least and (held >= sizes.most or zlib.crc32(name) % sizes.one_of == 0):
        return True
    if held >= sizes.small and ahead.begins(name):
        return True
    return size > sizes.cut
