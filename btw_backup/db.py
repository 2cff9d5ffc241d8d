"""``btw-backup db``: makes a database backup."""

import argparse
import os
import time
from collections.abc import Callable
from datetime import datetime

from . import hooks, offsite
from .arguments import add_destination, add_owner, add_wait
from .config import DbOptions, check_database_name, load_db, load_general
from .destination.append import adding
from .destination.catalog import DUMP, GLOBALS, Stored, summary
from .destination.writer import Destination, working_on
from .errors import Error
from .messages import Messages
from .programs import postgres
from .system.files import create

EXAMPLE = "btw-backup db shop /var/backups/shop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-g",
        "--global",
        dest="globals",
        action="store_true",
        help="back up the globals (roles and tablespaces) instead of a database",
    )
    add_owner(parser)
    add_wait(parser)
    parser.add_argument("db", nargs="?", help="the name of the database")
    add_destination(parser)


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    # Exit status 1, as the original has it: scripts know these texts.
    if args.globals and args.db is not None:
        raise Error("-g (--global) cannot be used with a database name")
    if not args.globals and args.db is None:
        raise Error("either -g (--global) or a database name must be specified")
    if args.db is not None:
        check_database_name(args.db)
    general = load_general(args.config_dir)
    options = load_db(args.config_dir, args.db, general)
    mirror = GLOBALS if args.globals else args.db + DUMP
    warn = args.messages.warning
    described = hooks.Run("db", args.db or "", os.path.abspath(args.dst))
    with offsite.Sending(general.offsite, args.messages) as sending:
        with (
            hooks.on_failure(options.hooks, described, warn),
            working_on(args.dst, warn, args.owner, args.wait) as destination,
        ):
            destination.check_series(mirror)
            at = destination.next_time()
            with hooks.around(options.hooks, described, warn):
                stored, size = _back_up(args.db, mirror, destination, at, options, args.messages)
            sending.take(destination)
        args.messages.closing(summary(stored, size, time.monotonic() - started))
        return sending.finish()


def _back_up(
    database: str | None,
    mirror: str,
    destination: Destination,
    at: datetime,
    options: DbOptions,
    messages: Messages,
) -> tuple[Stored | None, int]:
    """Dump, and store the dump where it has changed. Also returns its size in bytes."""
    with destination.stage() as stage, create(mirror, stage) as dumped:
        with messages.progress(_size_before(destination, mirror)) as advance:
            _dump(database, options, dumped, destination, advance)
        size = os.fstat(dumped).st_size
        if _unchanged(destination, mirror, dumped):
            destination.note_unchanged(at, options.limits)
            return None, size
        with adding(destination, stage, at, options.limits) as add:
            (postgres.read_globals if database is None else postgres.read_dump)(dumped)
            return add(), size


def _size_before(destination: Destination, mirror: str) -> int | None:
    """The size of the previous dump in bytes, if there is one."""
    latest = destination.latest_chain()
    if latest is None:
        return None
    with destination.opened(latest, mirror) as previous:
        return os.fstat(previous).st_size


def _dump(
    database: str | None,
    options: DbOptions,
    output: int,
    destination: Destination,
    advance: Callable[[int], None],
) -> None:
    if database is None:
        with destination.prepared() as plain:
            postgres.dump_globals(options.server, plain)
            postgres.compress_globals(plain, output)
        return
    postgres.dump(database, options.server, output, advance)
    dumped = postgres.dumped_database(output)
    if dumped not in (database, None):
        raise Error(f"CONNECTION leads to the database {dumped} instead of {database}: leave out its dbname")


def _unchanged(destination: Destination, mirror: str, dumped: int) -> bool:
    latest = destination.latest_chain()
    if latest is None:
        return False
    same = postgres.same_globals if mirror == GLOBALS else postgres.same_dump
    with destination.opened(latest, mirror) as previous:
        return same(previous, dumped)
