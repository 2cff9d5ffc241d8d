"""Arguments that several commands share, converted once."""

import argparse
import os
import re
from datetime import timedelta

from .destination.collection import Destinations
from .errors import FAILED, Error
from .system.ownership import UNCHANGED, parse_owner
from .times import parse_span


def span(text: str) -> timedelta:
    """Convert a time span on the command line, for argparse."""
    try:
        return parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _wait(text: str) -> timedelta:
    """Convert how long to wait, for argparse: a span, or a number of seconds."""
    return span(f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text) else text)


def add_destination(parser: argparse.ArgumentParser) -> None:
    """Add ``dst``, the directory of backups."""
    parser.add_argument("dst", help="the directory that holds the backups; it must exist")


def add_destinations(parser: argparse.ArgumentParser) -> None:
    """Add ``dst``, any number; see ``destinations``."""
    parser.add_argument(
        "dst",
        nargs="*",
        help="a directory that holds backups, or one that holds such directories (default: every DESTINATION"
        " in a configuration file)",
    )
    parser.set_defaults(parser=parser)


def destinations(args: argparse.Namespace) -> Destinations:
    """Return the destinations that were named or, if none was, all that are configured.

    A configuration file with errors is reported, and keeps nobody from the destinations in others. Exits with
    a usage error if there are none at all.
    """
    if args.dst:
        return Destinations.of(args.dst)
    from .config import configured  # whoever names them does not wait for it

    found: list[str] = []
    status = 0
    for backup in configured(args.config_dir):
        try:
            storage = backup.load().storage
        except Error as error:
            args.messages.report(error)
            status = FAILED
            continue
        if storage is not None:
            found.append(storage.dst)
    if not found and not status:
        args.parser.error("the following arguments are required: dst (no DESTINATION is configured)")
    return Destinations.configured(found, status)


def add_at(parser: argparse._ActionsContainer, which: str = "point", listed_by: str = "list") -> None:
    """Add ``--at``, which selects a point, or something else that has a time."""
    parser.add_argument(
        "--at",
        metavar="TIME",
        help=f"selects the newest {which} not later than this: a time that {listed_by} prints, the day, hour"
        " or minute that it begins with, in UTC or with an offset, or a span before now, such as 3d (default:"
        f" the newest {which})",
    )


def member_name(path: str, source: str | None) -> str:
    """Return an archive's name for a path in the source. Raises Error if the path leads out of that.

    ``source`` is the source's own path, None if it is not known: for ``from_source``.
    """
    if ".." in path.split("/") or not path:
        raise Error(f"not a path in the backup: {path!r}")
    normal = os.path.normpath("/" + from_source(path, source)).lstrip("/")
    return f"./{normal}" if normal else "."


def from_source(path: str, source: str | None) -> str:
    """Return the path as seen from the source, after a slash, if it is an absolute one of something in there.

    Others, and patterns for paths, are returned as they are: relative to the source.
    """
    absolute = "/" + os.path.normpath(path).lstrip("/") if path.startswith("/") else path
    if source is None or not f"{absolute}/".startswith(f"{source.rstrip('/')}/"):
        return path
    return "/" + absolute[len(source) :].lstrip("/")


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add ``--json``: output for programs."""
    parser.add_argument(
        "--json", action="store_true", help="prints the same for programs: an array of objects"
    )


def add_adopt(parser: argparse.ArgumentParser) -> None:
    """Add ``--adopt``, which binds a destination to another source."""
    parser.add_argument(
        "--adopt",
        action="store_true",
        help="goes on in dst although its backups are of another source: for a source that has moved",
    )


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Add ``--wait``: how long a command that writes waits for another."""
    parser.add_argument(
        "--wait",
        type=_wait,
        default=timedelta(),
        metavar="SPAN",
        help="waits that long, such as 10m, or so many seconds, for another run on the same destination to"
        " end, instead of exiting 75",
    )


def add_owner(parser: argparse.ArgumentParser) -> None:
    """Add ``--uid``: who gets the created files."""
    parser.add_argument(
        "-u",
        "--uid",
        dest="owner",
        type=parse_owner,
        default=UNCHANGED,
        metavar="UID[:GID]",
        help="gives the created files to this user and group, names or numbers, as chown takes them:"
        " also UID: and :GID",
    )
