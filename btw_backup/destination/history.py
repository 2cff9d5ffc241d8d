"""What a destination held at its points, newest first, with everything opened once."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from typing import NamedTuple

from ..archive.members import Member, members
from ..archive.selection import stretches
from ..errors import Error
from ..system.directories import Directory
from ..system.limits import allow_open_files
from . import chain, delta, points
from .catalog import Chosen
from .contents import is_archive
from .metadata import Metadata
from .reader import Destination

_TRIES = 5


class Stretch(NamedTuple):
    """A run of parts that begins with a member, or all of a tarball.

    What has the same ``key`` holds the same. ``members`` yields its members; ``content`` is what it holds,
    None if that is compressed.
    """

    key: object
    content: delta.Content | None
    members: Callable[[], Iterator[Member]]

    def file(self) -> int | None:
        """The open file that holds it, and nothing else; None if there is none."""
        return None if self.content is None else self.content.file()


class State(NamedTuple):
    """What there is at a point. It can be read until the next one is asked for."""

    chosen: Chosen
    stretches: Sequence[Stretch]


def states(destination: Destination, wanted: Sequence[Chosen]) -> Iterator[State]:
    """Yield what there is at these points of archives, which are in order, oldest first; the newest first.

    Raises Error.
    """
    for name, group in groupby(reversed(wanted), key=lambda chosen: chosen.backup.name):
        chosen = [*group]
        if not chosen[0].backup.is_chain:
            yield from _tarball(destination, chosen[0])
            continue
        by_stamp = {each.point.stamp: each for each in chosen}
        with ExitStack() as files:
            for stamp, parts in _opened(destination, name, files):
                if stamp in by_stamp:
                    yield State(by_stamp.pop(stamp), _divided(parts))
                if not by_stamp:
                    break


def _tarball(destination: Destination, chosen: Chosen) -> Iterator[State]:
    with destination.opened(chosen) as content:
        key = [(file.identity, file.digest) for file in content.files]
        yield State(chosen, [Stretch((chosen.backup.name, *key), None, content.members)])


def _divided(parts: Sequence["_Part"]) -> list[Stretch]:
    found = []
    for places in stretches([part.content.size for part in parts]):
        own = parts[places.start : places.stop]
        content = delta.Content([piece for part in own for piece in part.content.pieces])
        stop = sys.maxsize if places.stop == len(parts) else content.size
        key = tuple(part.key for part in own)
        found.append(Stretch(key, content, partial(members, content.read, stop=stop)))
    return found


class _Part(NamedTuple):
    """A part as it is at some points: what has the same key holds the same."""

    key: object
    content: delta.Content


def _opened(destination: Destination, name: str, files: ExitStack) -> Iterator[tuple[str, Sequence[_Part]]]:
    """Open a chain, even if a backup adds a point to it just now, and yield its parts at each point."""
    for _ in range(_TRIES):
        with ExitStack() as opened:
            try:
                top = opened.enter_context(destination.directory.open(name))
                found = _Chain(top, opened)
            except FileNotFoundError:
                found = None
            if not destination.directory.holds(name):
                raise Error(f"{name} has been removed meanwhile")
            if found is not None and top.status().st_ino == destination.directory.status(name).st_ino:
                files.push(opened.pop_all())
                return found.states()
    raise Error(f"{name} is changing too fast: try again")


class _Chain:
    """An open chain, of which everything that is needed is open."""

    def __init__(self, top: Directory, files: ExitStack) -> None:
        data = files.enter_context(top.open(chain.DATA))
        state = chain.read_state(data.names())
        if not state.stamps:
            raise Error("it holds no point")
        self._stamps = state.stamps
        self._files = files
        self._mirrors = chain.mirror_names(top)
        self._metadata = Metadata(data)
        self._newest = points.of_chain(top, state.stamps[-1], files).files
        if not is_archive(self._newest[0].name):
            raise Error("the destination holds backups of a database: there are no paths in them")
        self._ways = self._open_ways(data)

    def _open_ways(self, data: Directory) -> Mapping[str, Mapping[str, points.Way]]:
        """The open versions of each point, by the names of the parts that they lead to."""
        if not data.holds(chain.INCREMENTS):
            return {}
        increments = self._files.enter_context(data.open(chain.INCREMENTS))
        found: dict[str, dict[str, points.Way]] = {}
        versions = chain.versions(increments.names())
        allow_open_files(sum(map(len, versions.values())) + len(self._mirrors))
        for name, by_stamp in versions.items():
            for stamp in by_stamp.keys() & {*self._stamps[:-1]}:
                file = self._files.enter_context(increments.file(by_stamp[stamp].file))
                found.setdefault(stamp, {})[name] = points.Way(stamp, by_stamp[stamp].ending, file)
        return found

    def states(self) -> Iterator[tuple[str, Sequence[_Part]]]:
        """Yield the parts at each point, the newest first."""
        scratch = delta.Scratch(self._files)
        parts = {file.name: _Part(file.key, file.content(self._files)) for file in self._newest}
        pieces = len(parts)
        for stamp in reversed(self._stamps):
            ways = self._ways.get(stamp, {})
            known = self._metadata.files(stamp, self._mirrors) if ways else {}
            for name, way in ways.items():
                newer = parts.pop(name, None)
                if name in known:
                    content = points.older(self._metadata, name, newer and newer.content, way, scratch)
                    if content is not None:
                        parts[name] = _Part(known[name], content)
                        pieces += len(content.pieces) - (len(newer.content.pieces) if newer else 0)
                if pieces > delta.MOST_PIECES:  # made by somebody who wants us to use up the memory
                    raise Error(f"{name} is damaged: it is made of too many pieces")
            yield stamp, [parts[name] for name in sorted(parts)]
