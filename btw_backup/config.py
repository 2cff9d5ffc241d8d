"""Configuration files: Python that is executed, and checked options that come of it.

A configuration file is code that root runs, so a file that somebody else could have written is
refused before a line of it is executed.
"""

import ast
import os
import re
import stat
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from .backups import Limits
from .errors import Error, naming
from .files import closing
from .postgres import Server
from .process import Account
from .spans import parse_span

TYPES = ("rdiff", "tar")
COMPRESSIONS = ("bzip2", "zstd", "gzip", "xz", "none")


@dataclass(frozen=True)
class FsOptions:
    """The options of a filesystem backup."""

    type: str
    limits: Limits
    exclude: tuple[str, ...]
    one_file_system: bool
    compression: str
    quick_check: bool


@dataclass(frozen=True)
class DbOptions:
    """The options of a database's backup, or of the globals'."""

    limits: Limits
    server: Server


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
)
DB_OPTIONS = (
    *_CHAINS,
    Option("CONNECTION", _connection, None, "A libpq connection string, without a dbname."),
    Option("RUN_AS", _account, None, "The system's user that runs the PostgreSQL programs."),
)


def load_fs(path: str) -> FsOptions:
    """The options in a working directory's ``config.py``. Raises Error with every fault in it."""
    values = _load(path, FS_OPTIONS, required=("TYPE",))
    return FsOptions(
        type=values["TYPE"],
        limits=_limits(values),
        exclude=values["EXCLUDE"],
        one_file_system=values["ONE_FILE_SYSTEM"],
        compression=values["COMPRESSION"],
        quick_check=values["QUICK_CHECK"],
    )


def load_db(config_dir: str, name: str | None) -> DbOptions:
    """The options for a database, or with None for the globals. Raises Error with every fault."""
    values = _load(_db_file(config_dir, name), DB_OPTIONS)
    return DbOptions(_limits(values), Server(values["CONNECTION"], values["RUN_AS"]))


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
    text = _read_trusted(path)
    if text is None and not required:
        return values
    found, lines = _execute(text or b"", path)
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


def _execute(text: bytes, path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Run the file. Returns its names in upper case with their values, and their lines."""
    scope: dict[str, Any] = {"__file__": path, "__name__": "config"}
    try:
        tree = ast.parse(text, path)
        exec(compile(tree, path, "exec"), scope)
    except SyntaxError as error:
        raise Error(f"{path}:{error.lineno or 1}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = places[-1].lineno if places else 1
        raise Error(f"{path}:{line}: {type(error).__name__}: {error}") from error
    lines = {
        node.id: node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    options = {name: value for name, value in scope.items() if re.fullmatch(r"[A-Z][A-Z0-9_]*", name)}
    return options, lines


def _read_trusted(path: str) -> bytes | None:
    """The file's content, None where there is no file. Raises Error where others could write it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if os.path.islink(path):
            raise Error(f"{path}: a symbolic link to a file that does not exist") from None
        return None
    except OSError as error:
        raise Error(f"{path}: {error.strerror}") from error
    with naming(path), closing(fd):
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Error(f"{path}: not a regular file")
        _check_trust(path, found)
        own = os.path.dirname(os.path.abspath(path))
        for directory in _passed(os.path.abspath(path)):
            _check_trust(directory, os.stat(directory), in_own=directory == own)
        with open(fd, "rb", closefd=False) as file:
            return file.read()


def _passed(path: str) -> Iterator[str]:
    """Every directory that the system passes on the way to a file, also by symbolic links."""
    current = "/"
    waiting = path.split("/")[::-1]
    while waiting:
        yield current
        step = os.path.normpath(os.path.join(current, waiting.pop()))
        if os.path.islink(step):
            target = os.readlink(step)
            waiting += target.split("/")[::-1]
            current = "/" if target.startswith("/") else current
        else:
            current = step


def _check_trust(path: str, found: os.stat_result, *, in_own: bool = True) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise Error(f"{path}: refused, because it belongs to user {found.st_uid}: chown it to yourself")
    # In a sticky directory, such as /tmp, nobody can replace what is ours (inode(7)).
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and (in_own or not found.st_mode & stat.S_ISVTX):
        raise Error(f"{path}: refused, because others can write it: use chmod go-w")
