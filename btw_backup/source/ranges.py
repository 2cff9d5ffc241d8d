"""Which parts of the newest archive have to be read again, and the members that tar then reads."""

import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from ..archive.names import member_of, order_of
from ..archive.parts import Part
from ..archive.stream import Named
from ..programs.tar import Source
from ..system import calls
from ..system.files import closed_at_end
from ..system.trust import opened_as_resolved
from .exclusion import Patterns
from .walk import Tree, walk

# tar can't open a longer path by its name (PATH_MAX).
_LONGEST = 4000

# With so many members, reading everything takes little more.
_MOST = 100_000

# Where something starts and stops, as orders of a walk; None is the end.
Range = tuple[bytes, bytes | None]


class Ranges(NamedTuple):
    """Runs of parts: the first of each, and the one after its last; and their ``orders``.

    ``named`` are the members to read.
    """

    runs: list[tuple[int, int]]
    orders: list[Range]
    named: Named

    def hold(self, start: bytes, stop: bytes | None) -> bool:
        """Whether any of this is read."""
        return any(
            (stop is None or first < stop) and (end is None or start < end) for first, end in self.orders
        )


@contextmanager
def ranges_of(source: Source, stored: Sequence[Part], changed: Sequence[Range]) -> Iterator[Ranges | None]:
    """Find the parts that hold what has ``changed``. None if everything has to be read.

    The names come in the order of the archive. A file with several names is stored under the first of them,
    which comes before all others if it lies outside. Before each run comes the source's own member.
    """
    runs = None if source.member else _runs(stored, changed)
    if runs is None or 2 * sum(part.size for run in runs for part in stored[slice(*run)]) > sum(
        part.size for part in stored
    ):
        yield None
        return
    orders = [(_order(stored, first) or b"", _order(stored, end)) for first, end in runs]
    size = sum(part.size for part in stored)
    with ExitStack() as opened:
        names = opened.enter_context(closed_at_end(os.memfd_create("names")))
        try:
            # tar looks up each name from the top: somebody could put a link in the place of a directory.
            top = opened.enter_context(opened_as_resolved(source.directory))
            top_without_links = opened.enter_context(closed_at_end(calls.without_links(top.fileno())))
            with open(names, "wb", closefd=False) as file:
                for name in _names(source, orders, size // 2):
                    file.write(name + b"\0")
        except (OSError, _Unknown):
            yield None
            return
        os.lseek(names, 0, os.SEEK_SET)
        yield Ranges(runs, orders, Named(names, top_without_links))


class _Unknown(Exception):
    """It can't be told what tar would do with all of the source."""


def _order(stored: Sequence[Part], place: int) -> bytes | None:
    if place == len(stored):
        return None
    path = stored[place].start.path
    assert path is not None
    return order_of(path)


def _runs(stored: Sequence[Part], changed: Sequence[Range]) -> list[tuple[int, int]] | None:
    """The runs of parts that hold these ranges. None if it is not known where parts begin."""
    places = [place for place, part in enumerate(stored) if part.start.path is not None]
    orders = [order_of(stored[place].start.path or b"") for place in places]
    if not orders or orders[0] != b"" or places[0] != 0 or sorted({*orders}) != orders:
        return None
    places.append(len(stored))
    runs: list[tuple[int, int]] = []
    for start, stop in changed:
        first = places[bisect_right(orders, start) - 1]
        end = len(stored) if stop is None else places[bisect_left(orders, stop)]
        if runs and first <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((first, end))
    return runs


def _names(source: Source, orders: Sequence[Range], most: int) -> Iterator[bytes]:
    """Yield the names. Raises _Unknown if first names of hard links have more data than ``most`` bytes."""
    tree = Tree.of(source)
    linked: set[tuple[int, int]] = set()
    names: list[bytes] = []
    tags = [tag for tag, _ in tree.tags] if source.exclude else []
    patterns = Patterns(source.exclude)
    for start, stop in orders:
        names.append(b".")
        for order, inode, _ in walk(tree, start, stop):
            if order.rpartition(b"\0")[2] in tags and patterns.first(member_of(order)) is not None:
                raise _Unknown  # tar stores an excluded tag only if it finds that itself
            if inode.st_nlink > 1 and not stat.S_ISDIR(inode.st_mode):
                linked.add((inode.st_dev, inode.st_ino))
            if len(order) > _LONGEST or len(names) > _MOST:
                raise _Unknown
            names.append(member_of(order))
    if linked:
        if any(map(_is_pattern, source.exclude)):
            raise _Unknown  # the first name may be one that is left out
        for first, size in _first_names(tree, linked, orders):
            most -= size
            if most < 0:
                raise _Unknown
            yield first
    yield from names


def _first_names(
    tree: Tree, linked: set[tuple[int, int]], orders: Sequence[Range]
) -> Iterator[tuple[bytes, int]]:
    """The first names of files, where they lie outside of these ranges, and their sizes in bytes."""
    waiting = {*linked}
    for order, inode, _ in walk(tree):
        if (inode.st_dev, inode.st_ino) in waiting:
            waiting.remove((inode.st_dev, inode.st_ino))
            if not any(start <= order and (stop is None or order < stop) for start, stop in orders):
                yield member_of(order), inode.st_size
            if not waiting:
                return


def _is_pattern(pattern: str) -> bool:
    return not pattern.startswith("./") or any(sign in pattern for sign in "*?[\\")
