"""``btw-backup fetch``: retrieves destinations and the configuration from the off-site repositories."""

import argparse
import os
from collections.abc import Sequence
from functools import partial

from .arguments import add_at
from .destination.restore import restoring
from .destination.view import TREE
from .errors import FAILED, Error, Usage, worst
from .messages import Messages, show, show_json
from .offsite import configuration, copies, stores
from .offsite.selection import Found, check_one_host, lines, named, newest, not_later, objects, of_host
from .programs.restic import Repository
from .system.trees import imitate
from .times import shown_moment

EXAMPLE = "btw-backup fetch --at 3d /var/backups/etc /var/backups/etc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_at(parser, "copy", "--list")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--all",
        action="store_true",
        help="retrieves the configuration and every destination of a server, each to where it was",
    )
    what.add_argument(
        "--config",
        action="store_true",
        help="retrieves the configuration directory; what is in the target already stays (default target:"
        " that of --config-dir)",
    )
    parser.add_argument(
        "--host", metavar="HOST", help="only copies of this server, if several send to the repository"
    )
    parser.add_argument(
        "--list", action="store_true", help="only lists the copies: time, NAME and source of each"
    )
    parser.add_argument(
        "--json", action="store_true", help="with --list: prints the same for programs, an array of objects"
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="the path that the destination had, or as --list prints it: server:/var/backups/etc",
    )
    parser.add_argument("target", nargs="?", help="where to put it: a missing or empty directory")


def _check_usage(args: argparse.Namespace) -> None:
    if args.list and args.target is not None:
        raise Usage("--list takes no target")
    if args.list and args.all:
        raise Usage("--list cannot be used with --all")
    if args.list and args.config and args.name is not None:
        raise Usage("--list --config takes no NAME")
    if args.json and not args.list:
        raise Usage("--json is for --list")
    if args.all and args.name is not None:
        raise Usage("--all takes no NAME and no target")
    if args.config and args.target is not None:
        raise Usage("--config takes only a target")
    if args.target is None and not (args.list or args.all or args.config):
        raise Usage("say which NAME to fetch, and the target to put it into; --list shows the names")


def run(args: argparse.Namespace) -> int:
    _check_usage(args)
    _, repositories = stores.configured(args.config_dir)
    found: list[Found] = []

    def collect(repository: Repository) -> None:
        snapshots = repository.snapshots()
        both = [*copies.of_destinations(snapshots), *copies.of_configurations(snapshots)]
        found.extend(Found(copy, repository) for copy in both)

    failed = stores.each(repositories, args.messages, collect)
    if len(failed) == len(repositories):
        return FAILED
    found = of_host(found, args.host)
    if args.list:
        _list(found, args, several=len(repositories) > 1)
        return FAILED if failed else 0
    if args.all:
        return _fetch_all(found, args)
    if args.config:
        _fetch_configuration(found, args.config_dir if args.name is None else args.name, args)
    else:
        _fetch_one(found, args)
    return 0


def _destinations(found: Sequence[Found]) -> list[Found]:
    return [one for one in found if not one.copy.is_configuration]


def _configurations(found: Sequence[Found]) -> list[Found]:
    return [one for one in found if one.copy.is_configuration]


def _list(found: Sequence[Found], args: argparse.Namespace, *, several: bool) -> None:
    found = _configurations(found) if args.config else _destinations(found)
    if args.name is not None:
        found = named(found, args.name)
    found = not_later(found, args.at)
    if args.json:
        show_json(objects(found))
        return
    for line in lines(found, several=several):
        show(line)


def _fetch_one(found: Sequence[Found], args: argparse.Namespace) -> None:
    found = not_later(named(_destinations(found), args.name), args.at)
    if not found:
        raise Error(f"there is no copy of {args.name} as old as {args.at}")
    names = sorted({one.full_name for one in found})
    if len(names) > 1:
        raise Error(f"copies of several servers have this name: use one of {', '.join(names)}")
    _fetch(newest(found), args.target, args.messages)


def _fetch_all(found: Sequence[Found], args: argparse.Namespace) -> int:
    """Retrieve everything of one server, each to where it was. Returns the worst exit status."""
    check_one_host(found)
    found = not_later(found, args.at)
    if not found:
        raise Error("there are no off-site copies" + _as_old_as(args.at))
    work = [partial(_fetch_configuration, found, args.config_dir, args)]
    for name in sorted({one.copy.name for one in _destinations(found)}):
        own = [one for one in _destinations(found) if one.copy.name == name]
        work.append(partial(_fetch, newest(own), name, args.messages))
    statuses = []
    for fetch in work:
        try:
            fetch()
        except Error as error:
            args.messages.report(error)
            statuses.append(error.status)
    return worst(statuses)


def _fetch(chosen: Found, target: str, messages: Messages) -> None:
    """Restore next to the target's marker, compare, and only then move everything to its place."""
    with restoring(target) as top:
        chosen.repository.restore(chosen.copy.snapshot.id, top.fileno())
        with top.open(TREE) as tree:
            times = tree.status()
            for entry in tree.names():
                tree.rename(entry, top)
            os.rmdir(TREE, dir_fd=top.fileno())
            imitate(tree, top)
        top.set_times(times)
    messages.summary(_fetched(chosen, target))


def _fetch_configuration(found: Sequence[Found], target: str, args: argparse.Namespace) -> None:
    """Retrieve the configuration, and name what stays as it is."""
    check_one_host(found)
    found = not_later(_configurations(found), args.at)
    if not found:
        raise Error("there is no off-site copy of the configuration" + _as_old_as(args.at))
    own = [one for one in found if one.copy.name == os.path.realpath(args.config_dir)] or found
    names = sorted({one.copy.name for one in own})
    if len(names) > 1:
        raise Error(f"there are copies of {', '.join(names)}: choose one with --config-dir")
    chosen = newest(own)
    for path in configuration.bring_back(chosen.copy, chosen.repository, target):
        show(f"kept {path}, which differs from the copy")
    args.messages.summary(_fetched(chosen, target))


def _fetched(chosen: Found, target: str) -> str:
    return f"fetched {chosen.full_name} as of {shown_moment(chosen.copy.snapshot.time)} into {target}"


def _as_old_as(at: str | None) -> str:
    return "" if at is None else f" as old as {at}"
