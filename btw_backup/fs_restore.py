"""``btw-backup fs-restore``: restores a filesystem hierarchy."""

import argparse
import os
from contextlib import ExitStack, suppress
from datetime import UTC, datetime

from .arguments import add_at, add_destination
from .destination.contents import Content
from .destination.labels import ARCHIVE
from .destination.reader import Destination
from .destination.restore import restoring
from .errors import FAILED, Error
from .messages import Messages
from .programs.tar import unpacking
from .system.directories import Directory
from .times import format_moment

EXAMPLE = "btw-backup fs-restore --at 3d /var/backups/etc /root/etc-restored hosts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_at(parser)
    add_destination(parser)
    parser.add_argument("target", help="where to restore to: a missing or empty directory")
    parser.add_argument(
        "path", nargs="*", help="a file or directory to restore, relative to the source (default: everything)"
    )


def run(args: argparse.Namespace) -> int:
    members = {_member(path): path for path in args.path}
    with Destination.open(args.dst) as destination:
        chosen = destination.choose(args.at, datetime.now(UTC))
        with destination.opened(chosen) as content:
            if chosen.backup.is_chain and content.name != ARCHIVE:
                raise Error(f"{args.dst} holds backups of a database: use db-restore")
            missing = _restore(content, args.target, list(members), args.messages)
    for member in missing:
        args.messages.error(f"{members[member]} is not in the backup {chosen.backup.name}")
    args.messages.summary(f"restored {format_moment(chosen.point.time)} into {args.target}")
    return FAILED if missing else 0


def _member(path: str) -> str:
    """Return the archive's name for a path. Raises Error if the path leads out of the source."""
    normal = os.path.normpath("/" + path)
    if ".." in path.split("/") or not path:
        raise Error(f"not a path in the backup: {path!r}")
    return "." if normal.lstrip("/") == "" else "./" + normal.lstrip("/")


def _restore(content: Content, target: str, members: list[str], messages: Messages) -> list[str]:
    """Unpack into the target. Returns the members that the archive lacks."""
    with restoring(target) as top:
        selection = content.select(members)
        extra = selection.extra if selection else set()
        with (
            messages.progress(content.size(selection)) as advance,
            unpacking(top, [*members, *extra]) as unpacked,
        ):
            content.write_to(unpacked.write, advance, selection)
        for name in extra:
            _remove_extra(name, top)
        return [member for member in members if not os.path.lexists(os.path.join(target, member))]


def _remove_extra(name: str, top: Directory) -> None:
    """Remove a file that was not asked for, and the directories that were made only for it."""
    *above, last = [part for part in name.split("/") if part not in ("", ".")]
    with ExitStack() as opened:
        passed = [top]
        for part in above:
            # An archive may hold a link in the place of a directory: none is followed.
            passed.append(opened.enter_context(passed[-1].open(part)))
        passed[-1].unlink(last)
        with suppress(OSError):  # a directory that is not empty holds what was asked for
            while above:
                passed.pop()
                os.rmdir(above.pop(), dir_fd=passed[-1].fileno())
