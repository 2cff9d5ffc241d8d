"""``btw-backup db-restore``: restores a database or the database globals."""

import argparse
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from .arguments import add_at, add_destination
from .config import load_db
from .destination.catalog import GLOBALS
from .destination.contents import Content
from .destination.reader import Destination
from .errors import Error, Usage, prefixing_errors
from .messages import show
from .programs import postgres, roles, toc
from .programs.server import Server
from .programs.tables import Tables
from .system.files import closed_at_end, write_all
from .times import shown_moment

EXAMPLE = "btw-backup db-restore --create /var/backups/shop shop_restored"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_at(parser)
    parser.add_argument(
        "-g",
        "--global",
        dest="globals",
        action="store_true",
        help="replays the globals (roles and tablespaces); existing roles are not an error",
    )
    parser.add_argument("--create", action="store_true", help="creates the database, which must not exist")
    parser.add_argument(
        "--clean", action="store_true", help="replaces objects of the same names in the database"
    )
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAME",
        help="restores only this table, view or sequence, with all that belongs to it; NAME may be"
        " SCHEMA.NAME; can be repeated",
    )
    parser.add_argument(
        "--schema",
        action="append",
        default=[],
        metavar="NAME",
        help="restores only what is in this schema; can be repeated",
    )
    parser.add_argument(
        "--list", action="store_true", help="only lists the tables, views and sequences in the dump"
    )
    parser.add_argument(
        "--jobs", type=_jobs, default=1, metavar="N", help="restores with N connections in parallel"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="writes the dump itself to a new file (- for standard output)"
    )
    add_destination(parser)
    parser.add_argument("db", nargs="?", help="the name of the database to restore into")


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    _check_usage(args)
    with Destination.open(args.dst) as destination:
        chosen = destination.choose(args.at, datetime.now(UTC))
        with destination.opened(chosen) as content:
            if args.output is not None:
                _write(content, args.output)
            elif args.globals:
                _replay_globals(content, args)
            else:
                _use_dump(content, args)
    if not args.list:
        what = args.output or args.db or "the globals"
        args.messages.summary(f"restored {shown_moment(chosen.point.time)} into {what}")
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    ways = [args.globals, args.db is not None, args.output is not None, args.list]
    if sum(ways) != 1:
        raise Usage(
            "say where to restore to: a database name, -g (--global), or --output FILE; or use --list"
        )
    if args.db is None and (args.create or args.clean or args.jobs > 1):
        raise Usage("--create, --clean and --jobs are for a database")
    if args.db is None and (args.table or args.schema):
        raise Usage("--table and --schema are for a database")
    if args.create and args.clean:
        raise Usage("--create is for a database that does not exist, --clean for one that does")
    if args.clean and args.jobs > 1:
        raise Usage("--clean works in one transaction: --jobs cannot be used with it")
    if (args.table or args.schema) and args.jobs > 1 and not args.create:
        raise Usage("--table and --schema work in one transaction: --jobs cannot be used without --create")


def _replay_globals(content: Content, args: argparse.Namespace) -> None:
    if content.name != GLOBALS:
        raise Error(f"{args.dst} does not hold backups of the globals")
    with content.file() as packed:
        postgres.replay_globals(packed, load_db(args.config_dir, None).server)


def _use_dump(content: Content, args: argparse.Namespace) -> None:
    """List a dump, or restore all of it or some of its tables."""
    database = content.database()
    if database is None:
        raise Error(f"{args.dst} does not hold backups of a database")
    with content.file() as dumped:
        if args.list:
            for entry in toc.relations(toc.read(dumped)):
                show(f"{entry.kind.lower():<17} {entry.schema}.{entry.name}")
            return
        server = load_db(args.config_dir, database).server
        tables = Tables.of(dumped, args.table, args.schema) if args.table or args.schema else None
        with (
            roles.explaining(server),
            args.messages.progress(f"restoring into {args.db}", content.size()) as advance,
        ):
            restore = partial(postgres.restore, args.db, dumped, server, advance=advance)
            if args.create:
                _restore_into_new(args.db, dumped, server, tables, partial(restore, jobs=args.jobs))
            elif tables is None:
                if not args.clean and postgres.holds_objects(args.db, server):
                    raise Error(f"the database {args.db} is not empty: use --clean to replace what it holds")
                restore(clean=args.clean, jobs=args.jobs)
            else:
                tables.check(args.db, server, clean=args.clean)
                restore(clean=args.clean, entries=tables.numbers(args.db, server))


def _restore_into_new(
    database: str, dumped: int, server: Server, tables: Tables | None, restore: Callable[..., None]
) -> None:
    postgres.create_database(database, dumped, server)
    try:
        restore(entries=None if tables is None else tables.numbers(database, server), new=True)
    except BaseException:
        postgres.drop_database(database, server)
        raise


def _write(content: Content, path: str) -> None:
    """Write the stored file to a new file, which is removed again if that fails."""
    if path == "-":
        content.write_to(lambda block: write_all(sys.stdout.fileno(), block))
        return
    with prefixing_errors(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with closed_at_end(fd):
                content.write_to(lambda block: write_all(fd, block))
                os.fsync(fd)
        except BaseException:
            os.unlink(path)
            raise
