"""Configuration files: each is read once, and its options are checked."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from . import workdir
from .destination.catalog import Limits
from .destination.retention import Policy
from .errors import Error, Located
from .hooks import NO_HOOKS, Hooks
from .messages import suggestion
from .options import DB_OPTIONS, FS_OPTIONS, GENERAL_OPTIONS, Option, pattern
from .programs.server import Server
from .system.ownership import UNCHANGED, Owner
from .system.trust import execute, read_trusted


class Storage(NamedTuple):
    """Where a backup is stored, and how.

    ``owner`` gets what is made; ``keep`` says which backups stay once another is stored, None if all do;
    ``wait`` is for another run there; ``adopt``: although its backups are of another source.
    """

    dst: str
    owner: Owner
    keep: Policy | None = None
    wait: timedelta = timedelta()
    adopt: bool = False


class FsOptions(NamedTuple):
    """The options of a filesystem backup. ``storage`` is None if none is configured.

    ``exclude_from`` are the patterns in that file; a size is in bytes.
    """

    storage: Storage | None
    type: str
    limits: Limits
    exclude: tuple[str, ...]
    exclude_from: tuple[str, ...]
    exclude_caches: bool
    exclude_if_present: tuple[str, ...]
    exclude_larger_than: int | None
    one_file_system: bool
    compression: str
    quick_check: bool
    share_parts: bool
    hooks: Hooks


class Offsite(NamedTuple):
    """Where off-site copies are kept, and when they are made and removed.

    ``config_dir`` goes off-site, too. ``addresses`` are restic's names of repositories, which have one
    password; ``env`` holds variables that their stores need; ``limit_upload`` is in KiB/s, 0 for any;
    ``keep`` is None if no copy is ever removed.
    """

    config_dir: str
    addresses: tuple[str, ...]
    password_file: str
    env: dict[str, str]
    limit_upload: int
    auto: bool
    keep: Policy | None


class General(NamedTuple):
    """The options for all backups."""

    hooks: Hooks
    offsite: Offsite | None


# What the globals are called, where a database has its name.
GLOBAL = "global"
NOTHING_GENERAL = General(NO_HOOKS, None)


class DbOptions(NamedTuple):
    """The options of a backup of a database or of the globals. ``storage`` is None if none is configured."""

    storage: Storage | None
    limits: Limits
    server: Server
    compression: int
    hooks: Hooks


def load_general(config_dir: str) -> General:
    """Load what the general ``config.py`` sets for all backups. Raises Error with all errors in it."""
    path = os.path.join(config_dir, "config.py")
    values = _load(path, GENERAL_OPTIONS)
    return General(_hooks(values), _offsite(values, path))


def _offsite(values: Mapping[str, Any], path: str) -> Offsite | None:
    addresses, password_file = values["OFFSITE"], values["OFFSITE_PASSWORD_FILE"]
    if not addresses:
        for name in ("OFFSITE_AUTO", "OFFSITE_KEEP", "OFFSITE_LIMIT_UPLOAD"):
            if values[name]:
                raise Error(Located(f"{name} is set, but OFFSITE is not", path))
        return None
    if password_file is None:
        raise Error(Located("OFFSITE is set, but OFFSITE_PASSWORD_FILE is not", path))
    return Offsite(
        os.path.dirname(path),
        # What has no scheme is a folder.
        tuple(one if re.match(r"[a-z0-9]+:", one) else _below(path, one) for one in addresses),
        _below(path, password_file),
        values["OFFSITE_ENV"],
        values["OFFSITE_LIMIT_UPLOAD"],
        values["OFFSITE_AUTO"],
        values["OFFSITE_KEEP"],
    )


def _below(config_file: str, path: str) -> str:
    """Return a path that may be relative to the directory of a configuration file."""
    return os.path.join(os.path.dirname(config_file), os.path.expanduser(path))


def load_fs(path: str, general: General = NOTHING_GENERAL) -> FsOptions:
    """Load the options in a working directory's ``config.py``. Raises Error with all errors in it."""
    values = _load(path, FS_OPTIONS, required=("TYPE",))
    return FsOptions(
        storage=_storage(values, path),
        type=values["TYPE"],
        limits=_limits(values),
        exclude=values["EXCLUDE"],
        exclude_from=_patterns_in(values["EXCLUDE_FROM"], path),
        exclude_caches=values["EXCLUDE_CACHES"],
        exclude_if_present=values["EXCLUDE_IF_PRESENT"],
        exclude_larger_than=values["EXCLUDE_LARGER_THAN"],
        one_file_system=values["ONE_FILE_SYSTEM"],
        compression=values["COMPRESSION"],
        quick_check=values["QUICK_CHECK"],
        share_parts=values["SHARE_PARTS"],
        hooks=_hooks(values).within(general.hooks),
    )


def _patterns_in(name: str | None, config: str) -> tuple[str, ...]:
    """The patterns in a file, named relative to a ``config.py``. Raises Error with all errors in it."""
    if name is None:
        return ()
    path = _below(config, name)
    text = read_trusted(path)
    if text is None:
        raise Error(f"{config}: EXCLUDE_FROM: there is no file {path}")
    patterns, errors = [], []
    for number, line in enumerate(text.split(b"\n"), start=1):
        if (stripped := line.strip()) and not stripped.startswith(b"#"):
            try:
                patterns.append(pattern(os.fsdecode(stripped)))
            except ValueError as error:
                errors.append(f"{path}:{number}: {error}")
    if errors:
        raise Error(*errors)
    return tuple(patterns)


def load_db(config_dir: str, name: str | None, general: General = NOTHING_GENERAL) -> DbOptions:
    """Load the options for a database, or with None for the globals. Raises Error with all errors.

    A database whose file sets neither CONNECTION nor RUN_AS is on the server of the globals.
    """
    path = database_file(config_dir, name)
    values = _load(path, DB_OPTIONS)
    server = Server(values["CONNECTION"], values["RUN_AS"], path)
    if name is not None and server.connection is None and server.run_as is None:
        server = load_db(config_dir, None).server
    return DbOptions(
        storage=_storage(values, path),
        limits=_limits(values),
        server=server,
        compression=values["DUMP_COMPRESSION"],
        hooks=_hooks(values).within(general.hooks),
    )


def check_database_name(name: str) -> None:
    """Raise Error for a name that must not become part of a path."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise Error(f"not a database name that can be backed up: {name!r}")
    if name == GLOBAL:
        raise Error("the name global is reserved for the database globals: use -g (--global)")


def default_text(type_: str) -> str:
    """Return the text of a new ``config.py``: the type, and every other option as a comment."""
    import textwrap  # for a new file alone

    parts = ["# Options of this backup. This file is executed as Python.\n"]
    for option in FS_OPTIONS:
        assignment = f"TYPE = {type_!r}" if option.name == "TYPE" else f"# {option.name} = {option.default!r}"
        about = textwrap.fill(option.about, 88, initial_indent="# ", subsequent_indent="# ")
        parts.append(f"{about}\n{assignment}\n")
    return "\n".join(parts).replace("'", '"')


def database_names(config_dir: str) -> list[str | None]:
    """Return the databases that have a configuration file; None stands for the globals."""
    names: set[str] = set()
    for directory in (config_dir, os.path.join(config_dir, "db")):
        with suppress(FileNotFoundError, NotADirectoryError):
            names |= {name[:-3] for name in os.listdir(directory) if name.endswith(".py")}
            if directory == config_dir:
                names.discard("config")
    return [None if name == GLOBAL else name for name in sorted(names)]


class Configured(NamedTuple):
    """A backup that has a configuration file: of the source of ``work``, of a database, or of the globals.

    ``names`` are what it may be called; ``load`` returns its options, and raises Error with all errors.
    """

    names: tuple[str, ...]
    work: workdir.Workdir | None
    database: str | None
    load: Callable[[], FsOptions | DbOptions]


def configured(config_dir: str, general: General = NOTHING_GENERAL) -> Iterator[Configured]:
    """Yield every backup that has a configuration file, that of a filesystem first."""
    for work in workdir.all_in(config_dir):
        name = os.path.basename(work.path).rpartition(".")[0]
        yield Configured((work.source, name), work, None, partial(load_fs, work.config_file, general))
    for database in database_names(config_dir):
        load = partial(load_db, config_dir, database, general)
        yield Configured((database or GLOBAL,), None, database, load)


def _storage(values: Mapping[str, Any], path: str) -> Storage | None:
    dst, owner, keep = values["DESTINATION"], values["OWNER"], values["KEEP"]
    if dst is not None:
        return Storage(dst, owner or UNCHANGED, keep)
    for name in ("OWNER", "KEEP"):
        if values[name] is not None:
            raise Error(Located(f"{name} is set, but DESTINATION is not", path))
    return None


def _hooks(values: Mapping[str, Any]) -> Hooks:
    return Hooks(values["BEFORE"], values["AFTER"], values["ON_FAILURE"])


def _limits(values: Mapping[str, Any]) -> Limits:
    return Limits(values["MAX_INCREMENTAL_COUNT"], values["MAX_INCREMENTAL_SPAN"])


def database_file(config_dir: str, name: str | None) -> str:
    """Return the path of a database's file; older versions looked in ``db/``."""
    current = os.path.join(config_dir, f"{name or GLOBAL}.py")
    older = os.path.join(config_dir, "db", f"{name or GLOBAL}.py")
    if name == "config":  # CONFIG_DIR/config.py is the general file
        return older
    if os.path.lexists(older):
        if os.path.lexists(current):
            raise Error(f"both {current} and {older} exist: remove one of them")
        return older
    return current


def _load(path: str, options: tuple[Option, ...], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return each option's checked value, or its default. Raises Error with all errors in the file."""
    values = {o.name: None if o.default is None else o.convert(o.default) for o in options}
    text = read_trusted(path)
    if text is None and not required:
        return values
    found, lines = execute(text or b"", path)
    known = {option.name: option for option in options}
    errors = [(1, f"{name} is not set: {known[name].about}") for name in required if name not in found]
    for name, value in found.items():
        if name not in known:
            errors.append((lines.get(name, 1), f"unknown option {name}{suggestion(name, known)}"))
            continue
        try:
            values[name] = known[name].convert(value)
        except ValueError as error:
            errors.append((lines.get(name, 1), f"{name} {error}"))
    if errors:
        raise Error(*(Located(error, path, line) for line, error in sorted(errors)))
    return values
