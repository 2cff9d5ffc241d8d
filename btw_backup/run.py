"""``btw-backup run``: makes every backup that has a DESTINATION."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

from . import db, fs, workdir
from .arguments import add_wait
from .config import Configured, configured, load_general
from .errors import Error, Usage, worst
from .messages import suggestion

EXAMPLE = "btw-backup run www shop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_wait(parser)
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="*",
        help="only this one: the name that fs-init was given, the source's path, a database, or global"
        " (default: all that have a DESTINATION)",
    )


def run(args: argparse.Namespace) -> int:
    general = load_general(args.config_dir)
    statuses = []
    for backup in _chosen([*configured(args.config_dir, general)], args.name):
        messages = args.messages.about(backup.names[0])
        back_up: Callable[..., int]
        back_up = partial(fs.back_up, backup.work) if backup.work else partial(db.back_up, backup.database)
        try:
            options = backup.load()
            if options.storage is not None:
                storage = options.storage._replace(wait=args.wait)
                statuses.append(back_up(options, storage, general.offsite, messages))
            elif args.name:
                raise Error(f"{backup.names[0]} has no DESTINATION in its configuration file")
        except Error as error:
            messages.report(error)
            statuses.append(error.status)
    if not statuses:
        raise Error("there is nothing to run: set DESTINATION in the configuration file of a backup")
    return worst(statuses)


def _chosen(backups: Sequence[Configured], names: Sequence[str]) -> list[Configured]:
    """Return those of the backups that have one of the names, all if there are no names."""
    names = [workdir.normalize(name) if name.startswith("/") else name for name in names]
    known = [name for backup in backups for name in backup.names]
    for name in names:
        if name not in known:
            raise Usage(f"no backup of {name} is configured{suggestion(name, known)}")
    return [backup for backup in backups if not names or {*names} & {*backup.names}]
