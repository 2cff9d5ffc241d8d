"""The options that configuration files may set: their checks, conversions and descriptions."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from .destination.retention import Policy
from .errors import Error
from .hooks import Hook
from .programs.account import Account
from .system.ownership import Owner, parse_owner
from .times import parse_span

TYPES = ("rdiff", "tar")
COMPRESSIONS = ("bzip2", "zstd", "gzip", "xz", "none")
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


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


def _level(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9:
        raise ValueError(f"must be a whole number from 0 to 9, not {value!r}")
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
    return tuple(map(pattern, value))


def pattern(text: str) -> str:
    """Return a tar pattern. Raises ValueError for one that matches nothing."""
    # GNU tar compares with ./path: such a pattern silently matches nothing.
    if text.startswith("/") or text.endswith("/") or not text or "\0" in text:
        raise ValueError(f"{text!r} matches nothing: write it like './var/cache' or '*.o'")
    return text


def _file_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"must be a list of file names, not {value!r}")
    for item in value:
        if item in ("", ".", "..") or "/" in item or "\0" in item:
            raise ValueError(f"{item!r} is not the name of a file in a directory")
    return tuple(value)


def _size(value: Any) -> int | None:
    if value is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]*)([KMGT]?)", value) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"must be a size such as '500M' or '2G', not {value!r}")
    return int(found[1]) << _SHIFTS[found[2]]


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


def _directory(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.startswith("/") or "\0" in value):
        raise ValueError(f"must be the absolute path of a directory, not {value!r}")
    return value


def _owner(value: Any) -> Owner | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"must be a user and a group such as 'backup:', not {value!r}")
    try:
        return parse_owner(value)
    except Error as error:
        raise ValueError(str(error)) from error


def _text(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise ValueError(f"must be a string, not {value!r}")
    return value


def _repositories(value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(found, (list, tuple)) or not all(
        isinstance(item, str) and item and "\0" not in item for item in found
    ):
        raise ValueError("must be a restic repository, or a list of them")
    return tuple(dict.fromkeys(found))


def _variables(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(part, str) for pair in value.items() for part in pair
    ):
        raise ValueError("must be a dictionary of environment variables, all of them strings")
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
    if value and not policy.keeps_anything():
        raise ValueError(f"must keep something, such as {{'daily': 14}}, not {value!r}")
    return policy if value else None


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
        "The longest time between two full backups (rdiff). With '24h', nearly every daily run makes a full"
        " one: set '7d' for those.",
    ),
)
_STORAGE = (
    Option("DESTINATION", _directory, None, "Where 'run' stores this backup: a directory that exists."),
    Option("OWNER", _owner, None, "Whom 'run' gives what it makes, such as 'backup:', as -u does."),
    Option(
        "KEEP",
        _policy,
        {},
        "Which backups 'run' keeps when it has stored one, such as {'daily': 14, 'monthly': 12};"
        " default: all.",
    ),
)
_HOOKS = (
    Option(
        "BEFORE", _hook, [], "Runs before the backup: a command line (a list) or a function of one argument."
    ),
    Option("AFTER", _hook, [], "Runs after the backup, successful or not."),
    Option("ON_FAILURE", _hook, [], "Runs if the backup failed."),
)
GENERAL_OPTIONS = (
    *_HOOKS,
    Option(
        "OFFSITE",
        _repositories,
        [],
        "The restic repository of off-site copies, such as 's3:https://…/bucket', or a list of several.",
    ),
    Option("OFFSITE_PASSWORD_FILE", _text, None, "The file that holds the repository's password."),
    Option("OFFSITE_ENV", _variables, {}, "Environment variables for restic: credentials of the store."),
    Option("OFFSITE_LIMIT_UPLOAD", _count, 0, "How many KiB are sent off-site per second at most; 0: any."),
    Option("OFFSITE_AUTO", _flag, False, "Whether each backup that stored something is sent right away."),
    Option(
        "OFFSITE_KEEP", _policy, {}, "Which off-site copies are kept, such as {'daily': 14}; default: all."
    ),
)
FS_OPTIONS = (
    Option(
        "TYPE",
        _one_of(TYPES),
        None,
        "The type of backup, which must be set: 'rdiff' (chains of incrementals) or 'tar'.",
    ),
    *_STORAGE,
    *_CHAINS,
    Option(
        "EXCLUDE",
        _patterns,
        [],
        "Tar patterns to leave out: './tmp' is that directory of the source, '*.o' such files anywhere.",
    ),
    Option(
        "EXCLUDE_FROM",
        _text,
        None,
        "A file with more such patterns, one a line, such as 'exclude.txt' beside this one.",
    ),
    Option(
        "EXCLUDE_CACHES", _flag, False, "Whether directories with a CACHEDIR.TAG are stored without contents."
    ),
    Option(
        "EXCLUDE_IF_PRESENT",
        _file_names,
        [],
        "Directories with such a file are stored without contents, such as ['.nobackup'].",
    ),
    Option("EXCLUDE_LARGER_THAN", _size, None, "Larger files are left out, such as '500M' or '2G'."),
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
        "Whether files with unchanged inodes count as unchanged without being read.",
    ),
    Option(
        "SHARE_PARTS",
        _flag,
        True,
        "Whether a full backup shares the parts that have not changed with the one before (rdiff).",
    ),
    *_HOOKS,
)
DB_OPTIONS = (
    *_STORAGE,
    *_CHAINS,
    Option(
        "CONNECTION",
        _connection,
        None,
        "A libpq connection string without a dbname, such as 'host=/run/pg16 port=5433'.",
    ),
    Option("RUN_AS", _account, None, "The local user that runs the PostgreSQL programs."),
    Option(
        "DUMP_COMPRESSION",
        _level,
        0,
        "How much dumps are compressed, 0 to 9: compressed, small changes take much room.",
    ),
    *_HOOKS,
)
