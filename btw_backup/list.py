"""``btw-backup list``: lists the backups in a destination."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from .arguments import add_destination
from .destination.catalog import listing
from .destination.reader import Destination
from .destination.sizes import Measured, measure
from .errors import FAILED
from .messages import size
from .times import age, format_moment

EXAMPLE = "btw-backup list --long /var/backups/etc"

_ROW = "{:<27} {:<11} {:>9} {:>9} {:>9}"
_HEAD = ("backup", "kind", "stored", "restored", "age")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "-l", "--long", action="store_true", help="also prints the size and the age of each point"
    )
    form.add_argument("--json", action="store_true", help="prints the same for programs: an array of objects")
    add_destination(parser)


def run(args: argparse.Namespace) -> int:
    with Destination.open(args.dst) as destination:
        now = datetime.now(UTC)
        if args.json:
            import json  # a plain list does not wait for it

            print(json.dumps(objects(measure(destination.directory), now), indent=2))
        else:
            long = args.long
            for line in table(measure(destination.directory), now) if long else listing(destination.backups):
                print(line)
        for line in destination.broken:
            args.messages.error(line)
        return FAILED if destination.broken else 0


def table(points: Sequence[Measured], now: datetime) -> list[str]:
    """Return the lines of ``--long``: one that names the columns, and one for each point."""
    rows = [_ROW.format(*_HEAD)] if points else []
    for point in points:
        name = f" {format_moment(point.time)}" if point.kind == "incremental" else point.backup
        restored = "?" if point.restored is None else size(point.restored)
        old = age((now - point.time).total_seconds())
        rows.append(_ROW.format(name, point.kind, size(point.stored), restored, old))
    return rows


def objects(points: Sequence[Measured], now: datetime) -> list[dict[str, Any]]:
    """Return what ``--json`` prints: sizes in bytes, the age in seconds."""
    return [
        {
            "backup": point.backup,
            "time": f"{format_moment(point.time)}Z",
            "kind": point.kind,
            "stored": point.stored,
            "restored": point.restored,
            "age": int((now - point.time).total_seconds()),
        }
        for point in points
    ]
