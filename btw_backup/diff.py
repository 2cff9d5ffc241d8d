"""``btw-backup diff``: says what has changed between two points, or since one."""

import argparse
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

from . import workdir
from .archive.differences import GONE, NEW, Difference
from .arguments import add_destination, add_json
from .config import load_fs
from .destination.comparison import differences
from .destination.contents import Content
from .destination.reader import Destination
from .errors import Error, Usage
from .messages import show, show_json, size
from .programs.tar import Source
from .source.examination import source_at
from .source.live import against

EXAMPLE = "btw-backup diff /var/backups/etc 3d"
STATUSES = {"0": "done, whether or not anything differs"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "--against",
        metavar="DIRECTORY",
        help="compares a point (default: the newest) with this directory, such as the source",
    )
    add_destination(parser)
    parser.add_argument(
        "time",
        nargs="*",
        metavar="TIME",
        help="the older point, then the newer one (default: the newest), each as for --at",
    )


def run(args: argparse.Namespace) -> int:
    _check_usage(args)
    now = datetime.now(UTC)
    times = [*args.time, None, None]
    totals = _Totals()
    with Destination.open(args.dst) as destination, ExitStack() as opened:
        old = opened.enter_context(destination.opened(destination.choose(times[0], now)))
        _check_archive(old, args.dst)
        if args.against is not None:
            source = _source(args.against, args.dst, args.config_dir)
            found = against(old, args.against, args.messages.progress, source=source)
        else:
            new = opened.enter_context(destination.opened(destination.choose(times[1], now)))
            _check_archive(new, args.dst)
            found = differences(old, new)
        _show(totals.counted(found), args.json)
    args.messages.summary(str(totals))
    return 0


def _source(directory: str, dst: str, config_dir: str) -> Source | None:
    """What ``fs`` would archive of a directory; None if that is not a source."""
    work = workdir.find(config_dir, workdir.normalize(os.path.abspath(directory)))
    if work is None:
        return None
    return source_at(os.path.realpath(directory), [dst, work.path], load_fs(work.config_file))


def _check_usage(args: argparse.Namespace) -> None:
    if args.against is None and len(args.time) not in (1, 2):
        raise Usage("give the time of the older point, or of two points, or --against DIRECTORY")
    if args.against is not None and len(args.time) > 1:
        raise Usage("--against compares one point")


def _check_archive(content: Content, dst: str) -> None:
    if not content.is_archive():
        raise Error(f"{dst} holds backups of a database: they cannot be compared")


def _show(found: Iterable[Difference], as_json: bool) -> None:
    """Print the differences, sorted by path."""
    in_order = sorted(found, key=lambda difference: difference.path)
    if as_json:
        show_json(difference._asdict() for difference in in_order)
        return
    for difference in in_order:
        show(f"{difference.change:<3}{difference.path}")


class _Totals:
    """How many files are new, gone and changed, and how large they are."""

    def __init__(self) -> None:
        self._numbers = dict.fromkeys(("new", "gone", "changed"), 0)
        self._bytes = dict.fromkeys(self._numbers, 0)

    def counted(self, found: Iterable[Difference]) -> Iterator[Difference]:
        """Yield what is found, and count it."""
        for difference in found:
            kind = {NEW: "new", GONE: "gone"}.get(difference.change, "changed")
            self._numbers[kind] += 1
            self._bytes[kind] += (difference.before if kind == "gone" else difference.after) or 0
            yield difference

    def __str__(self) -> str:
        return ", ".join(
            f"{self._numbers[kind]} {kind} ({size(self._bytes[kind])})" for kind in self._numbers
        )
