"""``btw-backup fetch``: retrieves a destination from the off-site repository."""

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime

from . import offsite
from .arguments import add_at
from .destination.restore import restoring
from .destination.view import TREE
from .errors import Error, Usage
from .messages import show
from .offsite import Copy
from .programs.restic import Repository
from .system.trees import imitate
from .times import format_moment, latest_moment

EXAMPLE = "btw-backup fetch --at 3d /var/backups/etc /var/backups/etc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_at(parser, "copy", "--list")
    parser.add_argument(
        "--list", action="store_true", help="only lists the copies: time, NAME and source of each"
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="the path that the destination had; if several servers send to the repository, as --list"
        " prints it: server:/var/backups/etc",
    )
    parser.add_argument("target", nargs="?", help="where to put it: a missing or empty directory")


def run(args: argparse.Namespace) -> int:
    if args.list and args.target is not None:
        raise Usage("--list takes no target")
    if not args.list and args.target is None:
        raise Usage("say which NAME to fetch, and the target to put it into; --list shows the names")
    _, repository = offsite.configured(args.config_dir)
    copies = offsite.copies(repository.snapshots())
    if args.name is not None:
        copies = _named(copies, args.name)
    if args.at is not None:
        latest = latest_moment(args.at, datetime.now(UTC))
        copies = [copy for copy in copies if copy.snapshot.time.replace(microsecond=0) <= latest]
    if args.list:
        for copy in copies:
            source = "" if copy.source is None else f" ({copy.source})"
            show(f"{format_moment(copy.snapshot.time)} {_full_name(copy)}{source}")
        return 0
    if not copies:
        raise Error(f"there is no copy of {args.name} as old as {args.at}")
    if len({_full_name(copy) for copy in copies}) > 1:
        names = ", ".join(sorted({_full_name(copy) for copy in copies}))
        raise Error(f"copies of several servers have this name: use one of {names}")
    _fetch(repository, copies[-1], args.target)
    time = format_moment(copies[-1].snapshot.time)
    args.messages.summary(f"fetched {_full_name(copies[-1])} as of {time} into {args.target}")
    return 0


def _full_name(copy: Copy) -> str:
    return f"{copy.snapshot.host}:{copy.name}"


def _named(copies: Sequence[Copy], name: str) -> list[Copy]:
    """Return the copies of this name. If there are none, raise Error, which lists the known names."""
    found = [copy for copy in copies if os.path.normpath(name) == copy.name or name == _full_name(copy)]
    if not found:
        known = ", ".join(sorted({_full_name(copy) for copy in copies})) or "it holds none"
        raise Error(f"the off-site repository holds no copy of {name} ({known})")
    return found


def _fetch(repository: Repository, copy: Copy, target: str) -> None:
    """Restore next to the target's marker, compare, and only then move everything to its place."""
    with restoring(target) as top:
        repository.restore(copy.snapshot.id, top.fileno())
        with top.open(TREE) as tree:
            times = tree.status()
            for entry in tree.names():
                tree.rename(entry, top)
            os.rmdir(TREE, dir_fd=top.fileno())
            imitate(tree, top)
        top.set_times(times)
