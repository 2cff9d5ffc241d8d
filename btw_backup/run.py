"""``btw-backup run``: makes every backup that has a DESTINATION."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from . import db, fs, workdir
from .arguments import add_wait
from .config import GLOBAL, DbOptions, FsOptions, General, database_names, load_db, load_fs, load_general
from .errors import Error, Usage, worst
from .messages import suggestion

EXAMPLE = "btw-backup run www shop"


class _Job(NamedTuple):
    """A backup that is configured. ``names`` are what it may be called on the command line."""

    names: tuple[str, ...]
    load: Callable[[], FsOptions | DbOptions]
    back_up: Callable[..., int]


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
    for job in _chosen([*_jobs(args.config_dir, general)], args.name):
        messages = args.messages.about(job.names[0])
        try:
            options = job.load()
            if options.storage is not None:
                storage = options.storage._replace(wait=args.wait)
                statuses.append(job.back_up(options, storage, general.offsite, messages))
            elif args.name:
                raise Error(f"{job.names[0]} has no DESTINATION in its configuration file")
        except Error as error:
            messages.report(error)
            statuses.append(error.status)
    if not statuses:
        raise Error("there is nothing to run: set DESTINATION in the configuration file of a backup")
    return worst(statuses)


def _jobs(config_dir: str, general: General) -> Iterator[_Job]:
    for work in workdir.all_in(config_dir):
        name = os.path.basename(work.path).rpartition(".")[0]
        yield _Job(
            (work.source, name), partial(load_fs, work.config_file, general), partial(fs.back_up, work)
        )
    for database in database_names(config_dir):
        yield _Job(
            (database or GLOBAL,),
            partial(load_db, config_dir, database, general),
            partial(db.back_up, database),
        )


def _chosen(jobs: Sequence[_Job], names: Sequence[str]) -> list[_Job]:
    """Return those of the jobs that have one of the names, all if there are no names."""
    names = [workdir.normalize(name) if name.startswith("/") else name for name in names]
    known = [name for job in jobs for name in job.names]
    for name in names:
        if name not in known:
            raise Usage(f"no backup of {name} is configured{suggestion(name, known)}")
    return [job for job in jobs if not names or {*names} & {*job.names}]
