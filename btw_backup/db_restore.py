"""``btw-backup db-restore``: restores a database or the database globals."""

import argparse
import os
import sys
from datetime import UTC, datetime

from .arguments import add_at, add_destination
from .config import load_db
from .destination.catalog import GLOBALS
from .destination.contents import Content
from .destination.reader import Destination
from .errors import Error, Usage, prefixing_errors
from .programs import postgres
from .programs.server import Server
from .system.files import closed_at_end, write_all
from .times import format_moment

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
            database = content.database()
            if args.output is not None:
                _write(content, args.output)
            elif args.globals:
                if content.name != GLOBALS:
                    raise Error(f"{args.dst} does not hold backups of the globals")
                with content.file() as packed:
                    postgres.replay_globals(packed, load_db(args.config_dir, None).server)
            elif database is None:
                raise Error(f"{args.dst} does not hold backups of a database")
            else:
                with content.file() as dumped:
                    server = load_db(args.config_dir, database).server
                    if args.create:
                        _restore_into_new(args.db, dumped, server, args.jobs)
                    else:
                        _restore_into(args.db, dumped, server, args.jobs, clean=args.clean)
    what = args.output or args.db or "the globals"
    args.messages.summary(f"restored {format_moment(chosen.point.time)} into {what}")
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    ways = [args.globals, args.db is not None, args.output is not None]
    if sum(ways) != 1:
        raise Usage("say where to restore to: a database name, -g (--global), or --output FILE")
    if args.db is None and (args.create or args.clean or args.jobs > 1):
        raise Usage("--create, --clean and --jobs are for a database")
    if args.create and args.clean:
        raise Usage("--create is for a database that does not exist, --clean for one that does")
    if args.clean and args.jobs > 1:
        raise Usage("--clean works in one transaction: --jobs cannot be used with it")


def _restore_into_new(database: str, dumped: int, server: Server, jobs: int) -> None:
    postgres.create_database(database, dumped, server)
    try:
        postgres.restore(database, dumped, server, jobs=jobs, new=True)
    except BaseException:
        postgres.drop_database(database, server)
        raise


def _restore_into(database: str, dumped: int, server: Server, jobs: int, *, clean: bool) -> None:
    if not clean and postgres.holds_objects(database, server):
        raise Error(f"the database {database} is not empty: use --clean to replace what it holds")
    postgres.restore(database, dumped, server, clean=clean, jobs=jobs)


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
