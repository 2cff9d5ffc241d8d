"""``btw-backup list``: lists the backups in a destination."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from .arguments import add_destinations, add_json, destinations
from .destination import binding
from .destination.catalog import listing
from .destination.collection import Destinations
from .destination.lock import PRIVATE
from .destination.reader import Destination
from .destination.sizes import Measured, measure
from .errors import FAILED, Usage
from .messages import Messages, show, size
from .times import age, local_moment, shown_moment

EXAMPLE = "btw-backup list --long /var/backups/etc"
STATUSES = {"1": "failed, or an entry of a destination can't be read; the others are listed"}

_ROW = "{:<27} {:<11} {:>9} {:>9} {:>9}"
_HEAD = ("point", "kind", "stored", "restored", "age")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "-l",
        "--long",
        action="store_true",
        help="also prints the source, and the size and the age of each point",
    )
    add_json(form)
    parser.add_argument("--local", action="store_true", help="with --long, prints local times instead of UTC")
    add_destinations(parser)


def run(args: argparse.Namespace) -> int:
    if args.local and not args.long:
        raise Usage("--local is for --long")
    chosen = destinations(args)
    now = datetime.now(UTC)
    if args.json:
        return _print_json(chosen, now, args.messages)
    form = partial(_long_lines, now, local_moment if args.local else shown_moment) if args.long else _lines
    return chosen.each(args.messages, partial(_print_lines, form), headings=True)


def _print_lines(form: Callable[[Destination], Iterable[str]], dst: str, messages: Messages) -> int:
    with Destination.open(dst) as destination:
        for line in form(destination):
            show(line)
        return _reported(destination, messages)


def _lines(destination: Destination) -> list[str]:
    return listing(destination.backups)


def _long_lines(now: datetime, shown: Callable[[datetime], str], destination: Destination) -> Iterator[str]:
    source = binding.read(destination.directory)
    if source is not None:
        yield f"source: {source}"
    yield from table(measure(destination.directory), now, shown)


def _print_json(destinations: Destinations, now: datetime, messages: Messages) -> int:
    """Print one array for all destinations, unless there is only one and it can't be read."""
    import json  # a plain list does not wait for it

    found: list[list[dict[str, Any]]] = []

    def collect(dst: str, messages: Messages) -> int:
        with Destination.open(dst) as destination:
            source = binding.read(destination.directory)
            points = measure(destination.directory)
            found.append(objects(points, now, source, dst if destinations.named else None))
            return _reported(destination, messages)

    status = destinations.each(messages, collect)
    if found or destinations.named:
        print(json.dumps([point for points in found for point in points], indent=2))
    return status


def _reported(destination: Destination, messages: Messages) -> int:
    """Name the entries that can't be read, or a directory that holds none. Returns the exit status."""
    if not destination.backups and not destination.broken:
        others = {*destination.directory.names()} - {"lost+found"}
        if others and PRIVATE not in others:  # no run has ever worked on it
            messages.warning(f"{destination.path} holds other things, and no backups")
    for line in destination.broken:
        messages.error(line)
    return FAILED if destination.broken else 0


def table(
    points: Sequence[Measured], now: datetime, shown: Callable[[datetime], str] = shown_moment
) -> list[str]:
    """Return the lines of ``--long``: one that names the columns, and one for each point.

    Each begins with the point's time as ``shown``, that of an incremental after a space.
    """
    rows = [_ROW.format(*_HEAD)] if points else []
    for point in points:
        time = " " * (point.kind == "incremental") + shown(point.time)
        restored = "?" if point.restored is None else size(point.restored)
        old = age((now - point.time).total_seconds())
        rows.append(_ROW.format(time, point.kind, size(point.stored), restored, old))
    return rows


def objects(
    points: Sequence[Measured], now: datetime, source: str | None, dst: str | None = None
) -> list[dict[str, Any]]:
    """Return what ``--json`` prints: sizes in bytes, the age in seconds; ``dst`` if it has to be named.

    ``source`` is None if it is not known.
    """
    naming = {} if dst is None else {"destination": dst}
    return [
        {
            **naming,
            "source": source,
            "backup": point.backup,
            "time": shown_moment(point.time),
            "kind": point.kind,
            "stored": point.stored,
            "restored": point.restored,
            "age": int((now - point.time).total_seconds()),
        }
        for point in points
    ]
