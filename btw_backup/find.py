"""``btw-backup find``: finds files by their names in every point."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from .arguments import add_destination, add_json, from_source
from .destination import binding
from .destination.catalog import Chosen
from .destination.history import State, states
from .destination.reader import Destination
from .destination.versions import Version, versions
from .entries import facts, when
from .errors import FAILED
from .messages import Messages, show_json, size
from .patterns import matcher
from .times import earliest_moment, latest_moment, shown_moment

EXAMPLE = "btw-backup find --since 30d /var/backups/etc '*.conf' 'ssh/*key*'"
STATUSES = {"1": "failed, or nothing matches"}

_ROW = "{:<20}  {:<20}  {:>6}  {:>8}  {:<20}  {}"
_HEAD = ("from", "to", "points", "size", "modified", "path")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    time = "a time that list prints, the day, hour or minute that it begins with, or a span before now"
    parser.add_argument("--since", metavar="TIME", help=f"looks only into points not older than this: {time}")
    parser.add_argument("--until", metavar="TIME", help="looks only into points not newer than this")
    parser.add_argument("-i", "--ignore-case", action="store_true", help="ignores the case of letters")
    add_json(parser)
    add_destination(parser)
    parser.add_argument(
        "pattern",
        nargs="+",
        help="a shell pattern for the last component of a path or, if it holds a /, for the whole path",
    )


def run(args: argparse.Namespace) -> int:
    with Destination.open(args.dst) as destination:
        source = binding.read(destination.directory)
        patterns = [from_source(pattern, source) for pattern in args.pattern]
        if source is not None and "/" in patterns:  # the source itself: a directory, or a single file
            patterns = [".", f"/{os.path.basename(source)}", *(one for one in patterns if one != "/")]
        matches = matcher(patterns, ignores_case=args.ignore_case)
        points = _between(destination.points(), args.since, args.until, datetime.now(UTC))
        with args.messages.progress("searching", len(points), " points") as advance:
            ended = versions(_told(states(destination, points), advance), matches)
            found = (version for some in ended for version in _flushed(some))
            number = show_json(map(_object, found)) if args.json else _print(found, args.messages)
        for line in destination.broken:
            args.messages.error(line)
        return 0 if number and not destination.broken else FAILED


def _between(points: list[Chosen], since: str | None, until: str | None, now: datetime) -> list[Chosen]:
    first = earliest_moment(since, now) if since is not None else None
    last = latest_moment(until, now) if until is not None else None
    return [
        chosen
        for chosen in points
        if (first is None or first <= chosen.point.time) and (last is None or chosen.point.time <= last)
    ]


def _told(found: Iterator[State], advance: Callable[[int], None]) -> Iterator[State]:
    """The states, of each of which progress is told."""
    for state in found:
        yield state
        advance(1)


def _flushed(some: list[Version]) -> Iterator[Version]:
    """The versions; they are shown while older points are still being read."""
    yield from some
    sys.stdout.flush()


def _print(found: Iterator[Version], messages: Messages) -> int:
    """Print a table. Returns the number of its lines."""
    number = 0
    for version in found:
        if not number:
            messages.show(_ROW.format(*_HEAD))
        messages.show(_line(version))
        number += 1
    return number


def _line(version: Version) -> str:
    found = version.found
    gone = f" (gone since {shown_moment(version.gone)})" if version.gone else ""
    first, last = shown_moment(version.first), shown_moment(version.last)
    modified = when(found.modified)
    return _ROW.format(first, last, version.points, size(found.size), modified, found.path + gone)


def _object(version: Version) -> dict[str, Any]:
    found = version.found
    return {
        "path": found.path,
        "first": shown_moment(version.first),
        "last": shown_moment(version.last),
        "points": version.points,
        "gone": shown_moment(version.gone) if version.gone else None,
        **facts(found.kind, found.mode, found.owner, found.size, found.modified),
    }
