"""The versions of files through the points of a destination."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import NamedTuple

from ..archive.members import Member, member_at
from .delta import Content, Piece
from .history import State, Stretch


class Found(NamedTuple):
    """A member that was looked for. What has the same digest has the same headers."""

    path: str
    digest: bytes
    kind: bytes
    mode: int
    owner: tuple[int, int]
    size: int
    modified: int

    @classmethod
    def of(cls, member: Member) -> "Found":
        digest = blake2b(member.extension + member.header, digest_size=16).digest()
        kind = member.kind
        return cls(member.path, digest, kind, member.mode, member.owner, member.size, member.modified)


class Version(NamedTuple):
    """A version of a file: from which point to which it is there, and how many points that is.

    ``gone`` is the next point after these if it holds no file of this path, else None.
    """

    found: Found
    first: datetime
    last: datetime
    points: int
    gone: datetime | None


def versions(states: Iterable[State], matches: Callable[[str], bool]) -> Iterator[list[Version]]:
    """Yield the versions of matching paths, newest first: after each point those that it does not have.

    At the end come those that the oldest point has. Each stretch is looked at once, however many points
    hold it.
    """
    runs = Runs()
    index = _Index(matches)
    before: dict[object, list[Found]] = {}
    for state in states:
        index.enter(state.chosen.backup.name)
        now: dict[object, list[Found]] = {}
        for stretch in state.stretches:
            known = before.get(stretch.key)
            # Older versions of what is a file now are made of pieces of that.
            now[stretch.key] = index.look(stretch) if known is None or stretch.file() is not None else known
        lost = [found for key in before if key not in now for found in before[key]]
        came = [found for key in now if key not in before for found in now[key]]
        yield runs.add(state.chosen.point.time, lost, came)
        before = now
    yield runs.finish()


class Runs:
    """Finds for how many points in a row each file is the same, given what differs from point to point."""

    def __init__(self) -> None:
        self._times: list[datetime] = []
        # For each path that there is at the last point, since which point, and when it was gone after that.
        self._open: dict[str, tuple[Found, int, datetime | None]] = {}

    def add(self, time: datetime, lost: Iterable[Found], came: Iterable[Found]) -> list[Version]:
        """Go on with the next older point. Returns what has ended with the one before.

        ``lost`` are files of the point before that may be gone here, ``came`` those that may be new here.
        """
        coming = {found.path: found for found in came}
        ended = []
        for old in lost:
            new = coming.get(old.path)
            if new is not None and new.digest == old.digest:
                del coming[old.path]
            elif old.path in self._open:
                ended.append(self._end(old.path))
                if new is not None:
                    self._open[old.path] = new, len(self._times), None
                    del coming[old.path]
        gone = self._times[-1] if self._times else None
        for path, found in coming.items():
            self._open[path] = found, len(self._times), gone
        self._times.append(time)
        return sorted(ended, key=lambda version: version.found.path)

    def finish(self) -> list[Version]:
        """Return what there is at the oldest point."""
        return [self._end(path) for path in sorted(self._open)]

    def _end(self, path: str) -> Version:
        found, since, gone = self._open.pop(path)
        return Version(found, self._times[-1], self._times[since], len(self._times) - since, gone)


class _Known(NamedTuple):
    """Where the members of a file begin, and which of them, beginning where, match."""

    starts: "array[int]"
    places: "array[int]"
    found: list[Found]


class _Headers(NamedTuple):
    """Known headers: how many bytes they take, how many with the data, and the member if it matches."""

    own: int
    length: int
    found: Found | None


class _Index:
    """Finds the matching members in stretches.

    An older version is made of pieces of the newest, whose members are known, and of little else.
    """

    def __init__(self, matches: Callable[[str], bool]) -> None:
        self._matches = matches
        self._backup = ""
        self._files: dict[int, _Known] = {}
        # By the key of a stretch, of this backup and the one before.
        self._learned: dict[object, _Known] = {}
        self._learned_before: dict[object, _Known] = {}
        # By an open file, and where they begin in it.
        self._headers: dict[tuple[int, int], _Headers] = {}

    def enter(self, backup: str) -> None:
        """Tell which backup the following stretches are of: others have other files."""
        if backup != self._backup:
            self._backup = backup
            self._learned_before, self._learned = self._learned, {}
            self._files = {}
            self._headers = {}

    def look(self, stretch: Stretch) -> list[Found]:
        """Return the matching members."""
        if stretch.content is None:
            return [Found.of(member) for member in stretch.members() if self._matches(member.path)]
        file = stretch.file()
        if file is None:
            return [*self._pieced(stretch.content)]
        known = self._learned.get(stretch.key) or self._learned_before.get(stretch.key)
        self._learned[stretch.key] = self._files[file] = known or self._learn(stretch)
        return self._files[file].found

    def _learn(self, stretch: Stretch) -> _Known:
        """Find out where the members are in the file that a stretch consists of."""
        known = _Known(array("q"), array("q"), [])
        for member in stretch.members():
            known.starts.append(member.start)
            if self._matches(member.path):
                known.places.append(member.start)
                known.found.append(Found.of(member))
        return known

    def _pieced(self, content: Content) -> Iterator[Found]:
        position = 0
        while position < content.size:
            piece = content.rest(position)
            length, found = self._reused(piece.file, piece.start, piece.start + piece.length)
            if length:
                yield from found
                position += length
                continue
            headers = self._headers_at(content, position, piece)
            if headers is None:
                return
            if headers.found is not None:
                yield headers.found
            position += headers.length

    def _headers_at(self, content: Content, position: int, piece: Piece) -> _Headers | None:
        """The headers at a position, which is at the beginning of this piece. None where the archive ends."""
        place = piece.file, piece.start
        known = self._headers.get(place)
        if known is None or known.own > piece.length:
            member = member_at(content.read, position)
            if member is None:
                return None
            found = Found.of(member) if self._matches(member.path) else None
            known = _Headers(member.data - position, member.end - position, found)
            if known.own <= piece.length:
                self._headers[place] = known
        return known

    def _reused(self, file: int, start: int, end: int) -> tuple[int, Sequence[Found]]:
        """How much of a range of a file known members take, whole, from its start; and those that match."""
        known = self._files.get(file)
        if known is None:
            return 0, ()
        first = bisect_left(known.starts, start)
        last = bisect_right(known.starts, end) - 1
        if last <= first or known.starts[first] != start:
            return 0, ()
        stop = known.starts[last]
        places = known.places
        return stop - start, known.found[bisect_left(places, start) : bisect_left(places, stop)]
