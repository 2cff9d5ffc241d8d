"""``btw-backup db``: makes a database backup."""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from fnmatch import fnmatchcase

from . import hooks
from .arguments import add_adopt, add_destination, add_owner, add_wait
from .config import GLOBAL, DbOptions, General, Offsite, Storage, check_database_name, load_db, load_general
from .destination import binding, success
from .destination.append import NewPoint, Stored, closing_line
from .destination.catalog import DUMP, GLOBALS
from .destination.collection import Destinations
from .destination.writer import LockedDestination, working_on
from .errors import Error, Usage, worst
from .messages import Messages
from .offsite import automatic
from .programs import dumps, postgres
from .system.directories import Directory

EXAMPLE = "btw-backup db shop /var/backups/shop"

# The globals before they are compressed.
_PLAIN = "plain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-g",
        "--global",
        dest="globals",
        action="store_true",
        help="backs up the globals (roles and tablespaces) instead of a database",
    )
    add_owner(parser)
    parser.add_argument(
        "--all",
        action="store_true",
        help="backs up every database to dst/NAME, and the globals to dst/global; makes these directories",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="with --all: leaves out the databases whose names match this shell pattern; can be repeated",
    )
    add_adopt(parser)
    add_wait(parser)
    parser.add_argument("db", nargs="?", help="the name of the database")
    add_destination(parser)


def run(args: argparse.Namespace) -> int:
    _check_usage(args)
    if args.db is not None:
        check_database_name(args.db)
    general = load_general(args.config_dir)
    if args.all:
        return _back_up_all(general, args)
    return back_up(
        args.db, load_db(args.config_dir, args.db, general), _storage(args), general.offsite, args.messages
    )


def _storage(args: argparse.Namespace) -> Storage:
    return Storage(args.dst, args.owner, wait=args.wait, adopt=args.adopt)


def _check_usage(args: argparse.Namespace) -> None:
    if args.all and (args.globals or args.db is not None):
        raise Usage("--all cannot be used with -g (--global) or a database name")
    if args.exclude and not args.all:
        raise Usage("--exclude is for --all")
    # Not a usage error: scripts know these texts, and the exit status 1.
    if args.globals and args.db is not None:
        raise Error("-g (--global) cannot be used with a database name")
    if not args.globals and args.db is None and not args.all:
        raise Error("either -g (--global) or a database name must be specified")


def _back_up_all(general: General, args: argparse.Namespace) -> int:
    """Back up the globals and every database that is not excluded. Returns the worst exit status."""
    options = load_db(args.config_dir, None, general)
    described = hooks.Run("db", "", os.path.abspath(args.dst))
    warn = args.messages.warning
    with (
        hooks.on_failure(options.hooks, described, warn),
        working_on(args.dst, warn, args.owner, args.wait) as collection,
    ):
        if collection.backups:
            raise Error(f"{args.dst} holds backups itself: --all needs a directory for destinations")
        names, refused = _chosen(postgres.databases(options.server), args.exclude)
        for name in (GLOBAL, *names):
            collection.make_destination(name)
    for refusal in refused:
        args.messages.report(refusal)
    sources = {os.path.join(args.dst, name): None if name == GLOBAL else name for name in (GLOBAL, *names)}

    def each(dst: str, messages: Messages) -> int:
        database, storage = sources[dst], _storage(args)._replace(dst=dst)
        own = load_db(args.config_dir, database, general)
        # The owner of a collection could have put a link into it.
        return back_up(database, own, storage, general.offsite, messages, follow=False)

    status = Destinations(tuple(sources), named=True).each(args.messages, each)
    return worst([status, *(refusal.status for refusal in refused)])


def _chosen(databases: Sequence[str], exclude: Sequence[str]) -> tuple[list[str], list[Error]]:
    """Return the names that match no pattern, and the errors for those that can't be backed up."""
    names, refused = [], []
    for name in databases:
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            continue
        try:
            check_database_name(name)
            names.append(name)
        except Error as error:
            refused.append(error)
    return names, refused


def back_up(
    database: str | None,
    options: DbOptions,
    storage: Storage,
    off_site: Offsite | None,
    messages: Messages,
    *,
    follow: bool = True,
) -> int:
    """Back up a database, or with None the globals. Returns the exit status.

    ``follow``: the destination's path may be a symbolic link.
    """
    started = time.monotonic()
    mirror = GLOBALS if database is None else database + DUMP
    dst, warn = storage.dst, messages.warning
    described = hooks.Run("db", database or "", os.path.abspath(dst))
    with automatic.sending(off_site, messages) as sending:
        with (
            hooks.on_failure(options.hooks, described, warn),
            working_on(dst, warn, storage.owner, storage.wait, follow=follow) as destination,
        ):
            binding.check_series(destination, mirror)
            at = destination.next_time()
            with hooks.around(options.hooks, described, warn):
                source = postgres.source(database, options.server)
                binding.check(destination, source, adopt=storage.adopt)
                stored, size = _store(database, mirror, destination, at, options, messages)
            success.conclude(destination, at, source, storage.keep if stored else None)
            sending.take(destination)
        messages.summary(closing_line(stored, size, time.monotonic() - started))
        return sending.finish()


def _store(
    database: str | None,
    mirror: str,
    destination: LockedDestination,
    at: datetime,
    options: DbOptions,
    messages: Messages,
) -> tuple[Stored | None, int]:
    """Dump, and store the dump if it has changed. Also return its size in bytes."""
    with destination.stage() as stage, stage.create(mirror) as dumped:
        with _latest(destination, mirror) as latest:
            before = None if latest is None else os.fstat(latest).st_size
            with messages.progress(f"dumping {database or 'globals'}", before) as advance:
                _dump(database, options, dumped, stage, advance)
            same = dumps.same_globals if database is None else dumps.same_dump
            if latest is not None and same(latest, dumped):
                destination.note_unchanged(at, options.limits)
                return None, os.fstat(dumped).st_size
            afresh = _other_compression(latest, dumped) if latest is not None and database else None
        with NewPoint(destination, stage, at, options.limits, messages.progress, afresh=afresh) as point:
            point.prepare()  # which takes as long as reading the dump
            (dumps.read_globals if database is None else postgres.read_dump)(dumped)
            return point.commit([mirror]), os.fstat(dumped).st_size


@contextmanager
def _latest(destination: LockedDestination, mirror: str) -> Iterator[int | None]:
    """Open the newest dump, if it is in a chain that can be added to."""
    latest = destination.latest_chain()
    if latest is None:
        yield None
        return
    with destination.stored_file(latest, mirror) as file:
        yield file


def _dump(
    database: str | None,
    options: DbOptions,
    output: int,
    stage: Directory,
    advance: Callable[[int], None],
) -> None:
    if database is None:
        with stage.create(_PLAIN) as plain:
            postgres.dump_globals(options.server, plain)
            dumps.compress_globals(plain, output)
        stage.remove(_PLAIN)  # everything left in the stage is stored
        return
    postgres.dump(database, options.server, options.compression, output, advance)


def _other_compression(latest: int, dumped: int) -> str | None:
    """Why a dump can't be stored as a difference to the latest one: only one of them is compressed."""
    if dumps.is_compressed(latest) == (now := dumps.is_compressed(dumped)):
        return None
    return f"dumps are {'now' if now else 'no longer'} compressed"
