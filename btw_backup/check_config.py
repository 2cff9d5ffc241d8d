"""``btw-backup check-config``: says everything that is wrong with the configuration."""

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from . import workdir
from .arguments import add_json
from .config import (
    GLOBAL,
    Storage,
    check_database_name,
    database_file,
    database_names,
    load_db,
    load_fs,
    load_general,
)
from .errors import FAILED, Error, Located
from .hooks import Hooks
from .messages import show_json
from .offsite import stores
from .programs import compressors, packages, postgres, process, versions
from .system import confinement

_POSTGRES = ("pg_dump", "pg_dumpall", "pg_restore", "psql")
_ERROR, _WARNING = "error", "warning"

# What backs up to each DESTINATION: configuration files, or names of databases.
_Destinations = dict[str, list[str]]

EXAMPLE = "btw-backup check-config"
STATUSES = {"0": "nothing is wrong, although there may be warnings", "1": "something is wrong"}


class _Doubt(Error):
    """What may well do for now."""


class _Finding(NamedTuple):
    """What is wrong (an ``error``), or may well do for now (a ``warning``)."""

    severity: str
    text: str

    def as_object(self) -> dict[str, Any]:
        """What ``--json`` prints of it; a file and a line are null if it is not about one."""
        place = self.text if isinstance(self.text, Located) else None
        return {
            "severity": self.severity,
            "file": place and place.file,
            "line": place and place.line,
            "message": place.what if place else self.text,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    findings: list[_Finding] = []
    checked = 0
    for check in _checks(args.config_dir):
        checked += 1
        findings += _findings(check)
    # No fault: in some containers there is no way to confine them.
    reason = process.unconfined() if confinement.wanted() else None
    if reason is not None:
        findings.append(_Finding(_WARNING, f"rdiff-backup and tar are not confined here: {reason}"))
    findings = [*dict.fromkeys(findings)]
    faults = sum(finding.severity == _ERROR for finding in findings)
    for severity, text in findings:
        (args.messages.error if severity == _ERROR else args.messages.warning)(text)
    if args.json:
        show_json(finding.as_object() for finding in findings)
    args.messages.summary(f"{checked} checks, {faults} faults")
    return FAILED if faults else 0


def _findings(check: Callable[[], object]) -> list[_Finding]:
    try:
        check()
    except _Doubt as doubt:
        return [_Finding(_WARNING, line) for line in doubt.lines]
    except Error as error:
        return [_Finding(_ERROR, line) for line in (*error.stderr.strip().splitlines()[:1], *error.lines)]
    return []


def _checks(config_dir: str) -> Iterator[Callable[[], object]]:
    """Yield the checks. Each raises Error if something is wrong."""
    if not os.path.isdir(config_dir):
        yield partial(_miss, config_dir)
        return
    for program in ("tar", "rdiff-backup"):
        yield partial(_check_version, program)
    yield partial(_check_general, config_dir)
    yield partial(_check_offsite, config_dir)
    destinations: _Destinations = {}
    for path in workdir.broken_in(config_dir):
        yield partial(_report_broken, path)
    for work in workdir.all_in(config_dir):
        yield partial(_check_source, work)
        yield partial(_check_fs_options, work, destinations)
    names = database_names(config_dir)
    if names:
        yield from (partial(packages.find, program) for program in _POSTGRES)
        if packages.available("pg_dump"):
            yield partial(_check_version, "pg_dump")
    for name in names:
        yield partial(_check_database, config_dir, name, destinations)
    yield partial(_check_shared, destinations)


def _miss(config_dir: str) -> None:
    raise Error(f"the configuration directory does not exist: {config_dir}")


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
    repositories = stores.repositories(settings)
    if os.stat(settings.password_file).st_mode & 0o077:
        raise Error(Located("others can read the password: use chmod go=", settings.password_file))
    errors: list[str] = []
    for repository in repositories:
        try:
            repository.snapshots()
        except Error as error:
            errors += error.lines
    if errors:
        raise Error(*errors)
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
    raise Error(Located("the link src to the source is gone: make it again, or remove the directory", path))


def _check_hooks(path: str, hooks: Hooks) -> None:
    """Raise Error if a command line in a file begins with a program that can't be run."""
    for name, calls in zip(("BEFORE", "AFTER", "ON_FAILURE"), hooks, strict=True):
        for hook in calls:
            if not callable(hook) and not packages.available(hook[0]):
                raise Error(Located(f"{name}: there is no program {hook[0]}", path))


def _check_storage(path: str, storage: Storage | None) -> None:
    if storage is not None and not os.path.isdir(storage.dst):
        missing = f"DESTINATION: there is no directory {storage.dst}: create it, or mount its disk"
        raise Error(Located(missing, path))


def _note(storage: Storage | None, what: str, destinations: _Destinations) -> None:
    if storage is not None:
        destinations.setdefault(os.path.realpath(storage.dst), []).append(what)


def _check_shared(destinations: _Destinations) -> None:
    """Raise Error if two backups have the same DESTINATION. The other checks have noted them."""
    shared = [
        f"several have the DESTINATION {dst}: {', '.join(of)}" for dst, of in destinations.items() if of[1:]
    ]
    if shared:
        raise Error(*shared)


def _check_source(work: workdir.Workdir) -> None:
    if not os.path.exists(work.source):
        raise Error(Located(f"the source does not exist: {work.source}", work.path))


def _check_fs_options(work: workdir.Workdir, destinations: _Destinations) -> None:
    options = load_fs(work.config_file)
    _note(options.storage, work.config_file, destinations)
    _check_hooks(work.config_file, options.hooks)
    _check_storage(work.config_file, options.storage)
    if options.storage is not None and os.path.realpath(options.storage.dst) == os.path.realpath(work.source):
        raise Error(Located("DESTINATION is the source itself", work.config_file))
    if options.type == "tar":
        packages.find(compressors.compressor(options.compression)[0])


def _check_database(config_dir: str, name: str | None, destinations: _Destinations) -> None:
    if name is not None:
        check_database_name(name)
    options = load_db(config_dir, name)
    _note(options.storage, name or GLOBAL, destinations)
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
