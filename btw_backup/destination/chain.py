"""A chain: a full backup and its incrementals, in one directory that rdiff-backup keeps.

It holds one file, or the parts of an archive.

This module owns what is known about the names in it, found by experiment with rdiff-backup 2.2.2. It reads
them itself, since starting rdiff-backup takes 0.1 s each time.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from ..errors import Error
from ..system.directories import Directory
from .labels import ARCHIVE, is_part

DATA = "rdiff-backup-data"
INCREMENTS = "increments"
_TEMPORARY = re.compile(r"rdiff-backup\.tmp\.\d+")

_STAMP = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d))"
_LAST_STAMP = re.compile(rf".*\.{_STAMP}\.", re.DOTALL)
INCREMENT = re.compile(rf"increments\.{_STAMP}\.dir")
MARKER = re.compile(rf"current_mirror\.{_STAMP}\.data")
METADATA = re.compile(rf"mirror_metadata\.{_STAMP}\.(?:snapshot|diff)(?:\.gz)?")
OTHER_METADATA = re.compile(
    rf"(?:access_control_lists|extended_attributes)\.{_STAMP}\.(?:snapshot|diff)(?:\.gz)?"
)
_GROWING_LOGS = re.compile(r"(?:backup|restore|remove)\.log")
LOGS = re.compile(
    rf"{_GROWING_LOGS.pattern}|(?:error_log|file_statistics|session_statistics)\.{_STAMP}\.data(?:\.gz)?"
)
# They tell how names are changed for file systems that can't hold all names; ours never are.
ALWAYS_EMPTY = re.compile("chars_to_quote|special_escapes")
# The content of a file at an older point is stored whole, or as a difference.
VERSION = re.compile(rf"\.{_STAMP}\.((?:snapshot|diff|missing)(?:\.gz)?)\Z")


class Unusable(Error):
    """The chain is damaged, or rdiff-backup can't add to it."""


class State(NamedTuple):
    """What the names in ``rdiff-backup-data`` tell.

    ``stamps``: rdiff-backup's own names of the points, oldest first. ``interrupted``: it was
    killed while it added a point, so the mirror may be half of one and half of the other.
    """

    stamps: tuple[str, ...]
    interrupted: bool


def moment(stamp: str) -> datetime:
    """Return the UTC time of one of rdiff-backup's stamps; they carry an offset if TZ was set."""
    return datetime.fromisoformat(stamp).astimezone(UTC)


def is_stamp(stamp: str) -> bool:
    """Whether a stamp names a time that exists."""
    try:
        moment(stamp)
    except (ValueError, OverflowError):
        return False
    return True


def stamp_of(name: str) -> str | None:
    """The stamp in the name of a file under ``rdiff-backup-data``; None if there is none."""
    match = _LAST_STAMP.match(name)  # the name of a database may contain one, too
    return match[1] if match and is_stamp(match[1]) else None


def stamped(pattern: re.Pattern[str], names: Iterable[str]) -> dict[str, str]:
    """The names that match, by their stamps."""
    matches = [match for name in names if (match := pattern.fullmatch(name))]
    return {match[1]: match[0] for match in matches if is_stamp(match[1])}


def read_state(names: Iterable[str]) -> State:
    """Derive the points from the names in ``rdiff-backup-data``.

    This agrees with ``rdiff-backup list increments`` whenever that is right.
    """
    names = list(names)
    markers = sorted(stamped(MARKER, names), key=moment)
    if not markers:
        return State((), False)
    stamps = {*stamped(INCREMENT, names), markers[0]}
    return State(tuple(sorted(stamps, key=moment)), len(markers) > 1)


def is_temporary(name: str) -> bool:
    """Whether a killed rdiff-backup left this: a file, or a directory for trying out the file system."""
    return _TEMPORARY.fullmatch(name) is not None


def mirror_names(chain: Directory) -> list[str]:
    """The names of the files that the chain backs up, in the order of the archive if they are its parts."""
    return sorted(name for name in chain.names() if name != DATA and not is_temporary(name))


def series(mirrors: Iterable[str]) -> str | None:
    """What a chain with these files holds: the name of the file, or of the first part of an archive.

    None if they can't be those of a chain.
    """
    names = sorted(mirrors)
    if len(names) == 1 or (names and names[0] == ARCHIVE and all(map(is_part, names))):
        return names[0]
    return None


def check_series(mirrors: list[str]) -> str:
    """Return what ``series`` does. Raises Error if these can't be the files of a chain."""
    held = series(mirrors)
    if held is None:
        strange = next(name for name in mirrors if not is_part(name) or ARCHIVE not in mirrors)
        other = next(name for name in [*mirrors, "nothing"] if name != strange)
        raise Error(f"it holds {strange} besides {other}, which a chain does not: refused")
    return held


def mirror_size(chain: Directory) -> int:
    """The size of what the chain backs up, as it is at the newest point, in bytes."""
    return sum(chain.status(name).st_size for name in mirror_names(chain))


def is_linkable(name: str) -> bool:
    """Whether a working copy of a chain may share a file of this name with it.

    What rdiff-backup obeys is not shared, and neither is what it appends to. All else it replaces or
    removes. A link takes a fifth of the time of a copy, which also has to be written to the disk.
    """
    copied = (METADATA, OTHER_METADATA, MARKER, ALWAYS_EMPTY, _GROWING_LOGS)
    return not any(pattern.fullmatch(name) for pattern in copied)


class Version(NamedTuple):
    """The name of the file that leads from the next newer content of a file to that at a point.

    ``ending`` tells how: a ``diff``, a ``snapshot`` (all of it), or ``missing``, perhaps with ``.gz``.
    """

    file: str
    ending: str


def versions(increments: Iterable[str]) -> dict[str, dict[str, Version]]:
    """The versions of each file, by their stamps, given the names in the directory of increments.

    There is none if the file has not changed.
    """
    found: dict[str, dict[str, Version]] = {}
    for entry in increments:
        match = VERSION.search(entry)
        if match and is_stamp(match[1]):
            found.setdefault(entry[: match.start()], {})[match[1]] = Version(entry, match[2])
    return found
