"""``btw-backup ls``: lists what a point holds."""

import argparse
import os
from collections.abc import Iterator
from datetime import UTC, datetime

from .archive.members import Member
from .archive.names import is_among
from .arguments import add_at, add_destination, add_json, member_name
from .destination import binding
from .destination.contents import Content
from .destination.reader import Destination
from .entries import as_object, long_line
from .errors import FAILED, Error
from .messages import show, show_json
from .programs import dumps, postgres
from .times import shown_moment

EXAMPLE = "btw-backup ls -l /var/backups/etc ssh hosts"
STATUSES = {"1": "failed, or some of the paths are not in the backup"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_at(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "-l",
        "--long",
        action="store_true",
        help="also prints mode, owner, size, modification time, and where a link leads",
    )
    add_json(form)
    add_destination(parser)
    parser.add_argument(
        "path", nargs="*", help="a file or directory to list, relative to the source (default: everything)"
    )


def run(args: argparse.Namespace) -> int:
    with Destination.open(args.dst) as destination:
        source = binding.read(destination.directory)
        missing = {os.fsencode(member_name(path, source)): path for path in args.path}
        chosen = destination.choose(args.at, datetime.now(UTC))
        with destination.opened(chosen) as content:
            if content.is_archive():
                _show_members(_wanted(content, missing), args)
            elif args.path:
                raise Error(f"{args.dst} holds backups of a database: there are no paths in them")
            else:
                _show_objects(content, args)
    for path in missing.values():
        args.messages.error(f"{path} is not in the point {shown_moment(chosen.point.time)}")
    return FAILED if missing else 0


def _wanted(content: Content, missing: dict[bytes, str]) -> Iterator[Member]:
    """Yield the members of these names, and those below; all if there are none. Leaves what is missing."""
    names = [*missing]
    if not names:
        yield from content.members()
        return
    for member in content.members():
        matching = [name for name in names if name == b"." or is_among(member.name, (name,))]
        if matching:
            for name in matching:
                missing.pop(name, None)
            yield member


def _show_members(members: Iterator[Member], args: argparse.Namespace) -> None:
    if args.json:
        show_json(map(as_object, members))
        return
    for member in members:
        show(long_line(member) if args.long else member.path)


def _show_objects(content: Content, args: argparse.Namespace) -> None:
    """Show what a dump of a database, or of the globals, holds."""
    with content.file() as dumped:
        lines = postgres.list_dump(dumped) if content.database() is not None else dumps.list_globals(dumped)
    if args.json:
        show_json({"entry": line} for line in lines if not line.startswith(";"))
        return
    for line in lines:
        show(line)
