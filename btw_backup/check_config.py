"""``btw-backup check-config``: says everything that is wrong with the configuration."""

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial

from . import offsite, workdir
from .config import (
    Storage,
    check_database_name,
    database_file,
    database_names,
    load_db,
    load_fs,
    load_general,
)
from .errors import FAILED, Error
from .hooks import Hooks
from .programs import compressors, packages, postgres, process, versions
from .system import confinement

_POSTGRES = ("pg_dump", "pg_dumpall", "pg_restore", "psql")

EXAMPLE = "btw-backup check-config"
STATUSES = {"0": "nothing is wrong, although there may be warnings", "1": "something is wrong"}


class _Doubt(Error):
    """What may well do for now."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none of its own."""


def run(args: argparse.Namespace) -> int:
    faults: list[str] = []
    checked = 0
    for check in _checks(args.config_dir):
        checked += 1
        try:
            check()
        except _Doubt as doubt:
            args.messages.warning(str(doubt))
        except Error as error:
            faults += [*error.stderr.strip().splitlines()[:1], *error.lines]
    for fault in dict.fromkeys(faults):
        args.messages.error(fault)
    # No fault: in some containers there is no way to confine them.
    reason = process.unconfined() if confinement.wanted() else None
    if reason is not None:
        args.messages.warning(f"rdiff-backup and tar are not confined here: {reason}")
    args.messages.summary(f"{checked} checks, {len(faults)} faults")
    return FAILED if faults else 0


def _checks(config_dir: str) -> Iterator[Callable[[], object]]:
    """Yield the checks. Each raises Error if something is wrong."""
    if not os.path.isdir(config_dir):
        raise Error(f"the configuration directory does not exist: {config_dir}")
    for program in ("tar", "rdiff-backup"):
        yield partial(_check_version, program)
    yield partial(_check_general, config_dir)
    yield partial(_check_offsite, config_dir)
    for path in workdir.broken_in(config_dir):
        yield partial(_report_broken, path)
    for work in workdir.all_in(config_dir):
        yield partial(_check_source, work)
        yield partial(_check_fs_options, work)
    names = database_names(config_dir)
    if names:
        yield from (partial(packages.find, program) for program in _POSTGRES)
        if packages.available("pg_dump"):
            yield partial(_check_version, "pg_dump")
    for name in names:
        yield partial(_check_database, config_dir, name)


def _check_general(config_dir: str) -> None:
    _check_hooks(os.path.join(config_dir, "config.py"), load_general(config_dir).hooks)


def _check_offsite(config_dir: str) -> None:
    settings = load_general(config_dir).offsite
    if settings is None:
        return
    untested: _Doubt | None = None
    try:
        _check_version("restic")
    except _Doubt as error:
        untested = error
    repository = offsite.repository(settings)
    if os.stat(settings.password_file).st_mode & 0o077:
        raise Error(f"{settings.password_file}: others can read the password: use chmod go=")
    repository.snapshots()
    if untested:
        raise untested


def _check_version(program: str) -> None:
    known = versions.KNOWN[program]
    found = versions.version(program)
    if found < known.needed:
        is_this = versions.shown(found) or "of unknown version"
        raise Error(f"{program} {is_this} is too old: {versions.shown(known.needed)} is needed")
    # Of its numbers, as many as the tests tell apart.
    if not known.oldest_tested <= found[: len(known.newest_tested)] <= known.newest_tested:
        tested = f"{versions.shown(known.oldest_tested)} to {versions.shown(known.newest_tested)}"
        raise _Doubt(f"{program} {versions.shown(found)} is untested: {tested} have been tested")


def _report_broken(path: str) -> None:
    raise Error(f"{path}: the link src to the source is gone: make it again, or remove the directory")


def _check_hooks(path: str, hooks: Hooks) -> None:
    """Raise Error if a command line in a file begins with a program that can't be run."""
    for name, calls in zip(("BEFORE", "AFTER", "ON_FAILURE"), hooks, strict=True):
        for hook in calls:
            if not callable(hook) and not packages.available(hook[0]):
                raise Error(f"{path}: {name}: there is no program {hook[0]}")


def _check_storage(path: str, storage: Storage | None) -> None:
    if storage is not None and not os.path.isdir(storage.dst):
        raise Error(f"{path}: DESTINATION: there is no directory {storage.dst}: create it, or mount its disk")


def _check_source(work: workdir.Workdir) -> None:
    if not os.path.exists(work.source):
        raise Error(f"{work.path}: the source does not exist: {work.source}")


def _check_fs_options(work: workdir.Workdir) -> None:
    options = load_fs(work.config_file)
    _check_hooks(work.config_file, options.hooks)
    _check_storage(work.config_file, options.storage)
    if options.type == "tar":
        packages.find(compressors.compressor(options.compression)[0])


def _check_database(config_dir: str, name: str | None) -> None:
    if name is not None:
        check_database_name(name)
    options = load_db(config_dir, name)
    server = options.server
    _check_hooks(database_file(config_dir, name), options.hooks)
    _check_storage(database_file(config_dir, name), options.storage)
    what = "the server" if name is None else f"the database {name}"
    try:
        found = postgres.server_version(name, server)
    except Error as error:
        reasons = error.stderr.strip().splitlines()
        reason = f"{what} cannot be reached: {reasons[0] if reasons else error.lines[0]}"
        raise Error(reason, *error.lines[1:]) from error
    ours = versions.version("pg_dump")
    if ours[:1] < found[:1]:
        raise _Doubt(
            f"{what} cannot be dumped: pg_dump {versions.shown(ours)} is older than PostgreSQL"
            f" {versions.shown(found)}: install postgresql-client-{found[0]}"
        )
