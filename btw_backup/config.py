"""Configuration files: the options that they may set, checked and converted once."""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

from .backups import Limits
from .errors import Error
from .hooks import NO_HOOKS, Hook, Hooks
from .postgres import Server
from .process import Account
from .retention import Policy
from .spans import parse_span
from .trusted import execute, read_trusted

TYPES = ("rdiff", "tar")
COMPRESSIONS = ("bzip2", "zstd", "gzip", "xz", "none")


class FsOptions(NamedTuple):
    """The options of a filesystem backup."""

    type: str
    limits: Limits
    exclude: tuple[str, ...]
    one_file_system: bool
    compression: str
    quick_check: bool
    hooks: Hooks


class Offsite(NamedTuple):
    """Where off-site copies are kept, and when they are made and removed.

    ``address`` is restic's name of a repository; ``env`` are variables that its store needs;
    ``keep`` is None where no copy is ever removed.
    """

    address: str
    password_file: str
    env: dict[str, str]
    auto: bool
    keep: Policy | None


class General(NamedTuple):
    """The options for all backups."""

    hooks: Hooks
    offsite: Offsite | None


NOTHING_GENERAL = General(NO_HOOKS, None)


class DbOptions(NamedTuple):
    """The options of a database's backup, or of the globals'."""

    limits: Limits
    server: Server
    hooks: Hooks


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in choices or not isinstance(value, str):
            raise ValueError(f"must be one of {', '.join(map(repr, choices))}, not {value!r}")
        return value

    return convert


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"must be a whole number, 0 or more, not {value!r}")
    return value


def _span(value: Any) -> timedelta:
    if not isinstance(value, str):
        raise ValueError(f"must be a time span such as '24h' or '7d', not {value!r}")
    return parse_span(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, not {value!r}")
    return value


def _patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"must be a list of tar patterns, not {value!r}")
    for item in value:
        # GNU tar compares with ./path: such a pattern matches nothing, without a word.
        if item.startswith("/") or item.endswith("/") or not item or "\0" in item:
            raise ValueError(f"{item!r} matches nothing: write it like './var/cache' or '*.o'")
    return tuple(value)


def _connection(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise ValueError(f"must be a libpq connection string, not {value!r}")
    return value


def _account(value: Any) -> Account | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"must be the name of a user of this system, not {value!r}")
    try:
        return Account.named(value)
    except (KeyError, ValueError) as error:
        raise ValueError(f"there is no user {value!r} on this system") from error


def _hook(value: Any) -> tuple[Hook, ...]:
    if callable(value):
        return (value,)
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"must be a command line, a list of strings, or a function, not {value!r}")
    return (tuple(value),) if value else ()


def _text(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise ValueError(f"must be a string, not {value!r}")
    return value


def _variables(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(part, str) for pair in value.items() for part in pair
    ):
        raise ValueError("must be a dictionary of environment variables, strings all")
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in text:
            raise ValueError(f"{name!r} is not an environment variable")
    return value


def _policy(value: Any) -> Policy | None:
    if not isinstance(value, dict) or not all(word in Policy._fields for word in value):
        words = ", ".join(map(repr, Policy._fields))
        raise ValueError(f"must be a dictionary such as {{'daily': 14}}, of the words {words}, not {value!r}")
    counts = {word: _count(count) for word, count in value.items() if word != "within"}
    policy = Policy(**counts, within=_span(value["within"]) if "within" in value else None)
    return policy if policy.keeps_anything() else None


class Option(NamedTuple):
    """One name that a configuration file may set."""

    name: str
    convert: Callable[[Any], Any]
    default: Any
    about: str


_CHAINS = (
    Option(
        "MAX_INCREMENTAL_COUNT",
        _count,
        10,
        "The number of incremental backups after which a full one is made (rdiff).",
    ),
    Option(
        "MAX_INCREMENTAL_SPAN",
        _span,
        "24h",
        "The longest time between two full backups, such as '24h' or '7d' (rdiff).",
    ),
)
_HOOKS = (
    Option("BEFORE", _hook, [], "What is run before: a command line (a list) or a function of one argument."),
    Option("AFTER", _hook, [], "What is run after, whatever became of the backup."),
    Option("ON_FAILURE", _hook, [], "What is run when the backup failed."),
)
GENERAL_OPTIONS = (
    *_HOOKS,
    Option(
        "OFFSITE", _text, None, "The restic repository of off-site copies, such as 's3:https://…/bucket'."
    ),
    Option("OFFSITE_PASSWORD_FILE", _text, None, "The file that holds the repository's password."),
    Option("OFFSITE_ENV", _variables, {}, "Environment variables for restic: credentials of the store."),
    Option("OFFSITE_AUTO", _flag, False, "Whether each backup that stored something is sent at once."),
    Option(
        "OFFSITE_KEEP", _policy, {}, "Which off-site copies are kept, such as {'daily': 14}; default: all."
    ),
)
FS_OPTIONS = (
    Option("TYPE", _one_of(TYPES), None, "What is made: 'rdiff' (chains of incrementals) or 'tar'."),
    *_CHAINS,
    Option("EXCLUDE", _patterns, [], "What is left out: tar patterns, such as ['./tmp', '*.o']."),
    Option("ONE_FILE_SYSTEM", _flag, False, "Whether to stay on the file system of the source."),
    Option(
        "COMPRESSION",
        _one_of(COMPRESSIONS),
        "bzip2",
        "How tarballs are compressed: 'bzip2', 'zstd', 'gzip', 'xz' or 'none' (tar).",
    ),
    Option(
        "QUICK_CHECK",
        _flag,
        True,
        "Whether files with unchanged inodes are taken for unchanged without reading them.",
    ),
    *_HOOKS,
)
DB_OPTIONS = (
    *_CHAINS,
    Option("CONNECTION", _connection, None, "A libpq connection string, without a dbname."),
    Option("RUN_AS", _account, None, "The system's user that runs the PostgreSQL programs."),
    *_HOOKS,
)


def load_general(config_dir: str) -> General:
    """What the general ``config.py`` sets for all backups. Raises Error with every fault in it."""
    path = os.path.join(config_dir, "config.py")
    values = _load(path, GENERAL_OPTIONS)
    return General(_hooks(values), _offsite(values, path))


def _offsite(values: Mapping[str, Any], path: str) -> Offsite | None:
    address, password_file = values["OFFSITE"], values["OFFSITE_PASSWORD_FILE"]
    if address is None:
        for name in ("OFFSITE_AUTO", "OFFSITE_KEEP"):
            if values[name]:
                raise Error(f"{path}: {name} is set, but OFFSITE is not")
        return None
    if password_file is None:
        raise Error(f"{path}: OFFSITE is set, but OFFSITE_PASSWORD_FILE is not")
    password_file = os.path.join(os.path.dirname(path), os.path.expanduser(password_file))
    return Offsite(
        address, password_file, values["OFFSITE_ENV"], values["OFFSITE_AUTO"], values["OFFSITE_KEEP"]
    )


def load_fs(path: str, general: General = NOTHING_GENERAL) -> FsOptions:
    """The options in a working directory's ``config.py``. Raises Error with every fault in it."""
    values = _load(path, FS_OPTIONS, required=("TYPE",))
    return FsOptions(
        type=values["TYPE"],
        limits=_limits(values),
        exclude=values["EXCLUDE"],
        one_file_system=values["ONE_FILE_SYSTEM"],
        compression=values["COMPRESSION"],
        quick_check=values["QUICK_CHECK"],
        hooks=_hooks(values).within(general.hooks),
    )


def load_db(config_dir: str, name: str | None, general: General = NOTHING_GENERAL) -> DbOptions:
    """The options for a database, or with None for the globals. Raises Error with every fault."""
    values = _load(_db_file(config_dir, name), DB_OPTIONS)
    server = Server(values["CONNECTION"], values["RUN_AS"])
    return DbOptions(_limits(values), server, _hooks(values).within(general.hooks))


def check_database_name(name: str) -> None:
    """Raise Error for a name that must not become part of a path."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise Error(f"not a database name that can be backed up: {name!r}")
    if name == "global":
        raise Error("the name global is reserved for the database globals: use -g (--global)")


def default_text(type_: str) -> str:
    """The text of a new ``config.py``: the type, and every other option as a comment."""
    parts = ["# Options of this backup. This file is executed as Python.\n"]
    for option in FS_OPTIONS:
        assignment = f"TYPE = {type_!r}" if option.name == "TYPE" else f"# {option.name} = {option.default!r}"
        parts.append(f"# {option.about}\n{assignment}\n")
    return "\n".join(parts).replace("'", '"')


def database_names(config_dir: str) -> list[str | None]:
    """The databases that have a configuration file; None stands for the globals."""
    names: set[str] = set()
    for directory in (config_dir, os.path.join(config_dir, "db")):
        with suppress(FileNotFoundError, NotADirectoryError):
            names |= {name[:-3] for name in os.listdir(directory) if name.endswith(".py")}
            if directory == config_dir:
                names.discard("config")
    return [None if name == "global" else name for name in sorted(names)]


def _hooks(values: Mapping[str, Any]) -> Hooks:
    return Hooks(values["BEFORE"], values["AFTER"], values["ON_FAILURE"])


def _limits(values: Mapping[str, Any]) -> Limits:
    return Limits(values["MAX_INCREMENTAL_COUNT"], values["MAX_INCREMENTAL_SPAN"])


def _db_file(config_dir: str, name: str | None) -> str:
    """The file for a database; older versions looked under ``db/``."""
    current = os.path.join(config_dir, f"{name or 'global'}.py")
    older = os.path.join(config_dir, "db", f"{name or 'global'}.py")
    if name == "config":  # CONFIG_DIR/config.py is the general file
        return older
    if os.path.lexists(older):
        if os.path.lexists(current):
            raise Error(f"both {current} and {older} exist: remove one of them")
        return older
    return current


def _load(path: str, options: tuple[Option, ...], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Each option's checked value; defaults where there is no file. Raises Error with every fault."""
    values = {o.name: None if o.default is None else o.convert(o.default) for o in options}
    text = read_trusted(path)
    if text is None and not required:
        return values
    found, lines = execute(text or b"", path)
    known = {option.name: option for option in options}
    faults = [(1, f"{name} is not set: {known[name].about}") for name in required if name not in found]
    for name, value in found.items():
        if name not in known:
            faults.append((lines.get(name, 1), f"unknown option {name}{_nearest(name, known)}"))
            continue
        try:
            values[name] = known[name].convert(value)
        except ValueError as error:
            faults.append((lines.get(name, 1), f"{name} {error}"))
    if faults:
        raise Error(*(f"{path}:{line}: {fault}" for line, fault in sorted(faults)))
    return values


def _nearest(name: str, known: Mapping[str, Option]) -> str:
    import difflib  # needed only here, on the way to an error

    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]}?" if near else ""
