"""``btw-backup fs-restore``: restores a filesystem hierarchy."""

import argparse
import os
import stat
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from tempfile import TemporaryDirectory
from typing import NamedTuple

from .archive.names import is_among, to_name
from .arguments import add_at, add_destination, member_name
from .destination import binding
from .destination.contents import Content
from .destination.in_place import KEPT, restoring_in_place
from .destination.reader import Destination
from .destination.restore import restoring
from .errors import FAILED, Error, Usage
from .messages import Messages, show
from .programs.tar import unpacking
from .system.directories import Directory
from .system.files import BLOCK, write_all
from .times import shown_moment

EXAMPLE = "btw-backup fs-restore --at 3d /var/backups/etc /root/etc-restored hosts"
STATUSES = {"1": "failed, or some of the paths are not in the backup"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_at(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--in-place",
        action="store_true",
        help="restores into a directory that holds things: replaces what differs, and keeps what it replaces"
        f" below {KEPT}TIME in the target",
    )
    how.add_argument(
        "--to-stdout",
        action="store_true",
        help="writes one file, which is given instead of the target, to standard output",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="with --in-place, only prints what would be changed"
    )
    add_destination(parser)
    parser.add_argument(
        "target", help="where to restore to: a missing or empty directory, unless --in-place is given"
    )
    parser.add_argument(
        "path", nargs="*", help="a file or directory to restore, relative to the source (default: everything)"
    )


def run(args: argparse.Namespace) -> int:
    if args.dry_run and not args.in_place:
        raise Usage("--dry-run needs --in-place")
    if args.to_stdout and args.path:
        raise Usage("--to-stdout writes one file: name only that after dst")
    paths = [args.target] if args.to_stdout else args.path
    restore = _to_stdout if args.to_stdout else _in_place if args.in_place else _into_new
    with Destination.open(args.dst) as destination:
        source = binding.read(destination.directory)
        members = {member_name(path, source): path for path in paths}
        chosen = destination.choose(args.at, datetime.now(UTC))
        with destination.opened(chosen) as content:
            if not content.is_archive():
                raise Error(f"{args.dst} holds backups of a database: use db-restore")
            restored = restore(content, members, args)
    time = shown_moment(chosen.point.time)
    for member in restored.missing:
        args.messages.error(f"{members[member]} is not in the point {time}")
    args.messages.summary(f"{restored.what} {time} {restored.where}")
    return FAILED if restored.missing else 0


class _Restored(NamedTuple):
    """What was restored, for the closing line, and the members that the archive lacks."""

    what: str
    where: str
    missing: list[str]


def _into_new(content: Content, members: Mapping[str, str], args: argparse.Namespace) -> _Restored:
    with restoring(args.target, ", or use --in-place") as top:
        missing = _unpack(content, top, list(members), args.messages)
    return _Restored("restored", f"into {args.target}", missing)


def _in_place(content: Content, members: Mapping[str, str], args: argparse.Namespace) -> _Restored:
    wanted = [os.fsencode(member) for member in members] or [_source(content)]
    with restoring_in_place(args.target, datetime.now(UTC)) as place:
        missing = _unpack(content, place.staged, list(members), args.messages)
        changes = [*place.put(partial(_is_wanted, wanted), acts=not args.dry_run)]
    if args.dry_run:
        for change in changes:
            show(f"{change.action} {change.path}")
    counts = Counter(change.action for change in changes)
    done = f"{counts['create']} created, {counts['replace']} replaced"
    if counts["replace"] and not args.dry_run:
        done += f" and kept in {place.kept}"
    return _Restored("would restore" if args.dry_run else "restored", f"into {args.target}: {done}", missing)


def _source(content: Content) -> bytes:
    """The name of the first member: the source itself, a directory or a single file."""
    return next((member.name for member in content.members()), b".")


def _is_wanted(wanted: Collection[bytes], path: str) -> bool:
    """Whether a path below the target, empty for itself, is one of the members or below one."""
    return b"." in wanted or is_among(to_name(os.fsencode(path)), wanted)


def _to_stdout(content: Content, members: Mapping[str, str], args: argparse.Namespace) -> _Restored:
    [(member, path)] = members.items()
    if member == ".":
        member = os.fsdecode(_source(content))
    with TemporaryDirectory(prefix="btw-backup-") as temporary, Directory.at(temporary) as top:
        missing = _unpack(content, top, [member], args.messages)
        if not missing:
            *above, name = member.split("/")
            with top.below(above) as parent:
                if not stat.S_ISREG(parent.status(name).st_mode):
                    raise Error(f"{path} is not a regular file: restore it into a directory")
                with parent.file(name) as file:
                    for block in iter(partial(os.read, file, BLOCK), b""):
                        write_all(sys.stdout.fileno(), block)
    return _Restored("restored", "to standard output", missing)


def _unpack(content: Content, top: Directory, members: list[str], messages: Messages) -> list[str]:
    """Unpack into a directory. Returns the members that the archive lacks."""
    selection = content.select(members)
    extra, above = (selection.extra, selection.above) if selection else (set(), [])
    with (
        messages.progress("restoring", content.size(selection)) as advance,
        unpacking(top, [*members, *extra], above) as unpacked,
    ):
        content.write_to(unpacked.write, advance, selection)
    for name in extra:
        _remove_extra(name, top)
    return [member for member in members if not os.path.lexists(os.path.join(top.path(), member))]


def _remove_extra(name: str, top: Directory) -> None:
    """Remove a file that was not asked for, and the directories that were made only for it."""
    *above, last = [part for part in name.split("/") if part not in ("", ".")]
    # An archive may hold a link in the place of a directory: none is followed.
    with top.below(above) as parent:
        parent.unlink(last)
    with suppress(OSError):  # a directory that is not empty holds what was asked for
        while above:
            last = above.pop()
            with top.below(above) as parent:
                os.rmdir(last, dir_fd=parent.fileno())
