"""A chain: a full backup and its incrementals, in one directory that rdiff-backup keeps.

This module owns what is known about the names and the metadata in it, found by experiment with
rdiff-backup 2.2.2. It reads them itself, since starting rdiff-backup takes 0.1 s each time.
"""

import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from ..errors import Error
from ..system.directories import Directory

DATA = "rdiff-backup-data"
INCREMENTS = "increments"
_TEMPORARY = re.compile(r"rdiff-backup\.tmp\.\d+")

# Below this size a copy costs no more than a link.
_LINKABLE = 64 * 1024

_STAMP = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d))"
_LAST_STAMP = re.compile(rf".*\.{_STAMP}\.", re.DOTALL)
_INCREMENT = re.compile(rf"increments\.{_STAMP}\.dir")
_MARKER = re.compile(rf"current_mirror\.{_STAMP}\.data")
_METADATA = re.compile(rf"mirror_metadata\.{_STAMP}\.(?:snapshot|diff)(?:\.gz)?")
_OTHER_METADATA = re.compile(
    rf"(?:access_control_lists|extended_attributes)\.{_STAMP}\.(?:snapshot|diff)(?:\.gz)?"
)
_LOGS = re.compile(
    rf"(?:backup|restore)\.log|(?:error_log|file_statistics|session_statistics)\.{_STAMP}\.data(?:\.gz)?"
)
# They tell how names are changed for file systems that can't hold all names; ours never are.
_ALWAYS_EMPTY = ("chars_to_quote", "special_escapes")
# The content of a file at an older point is stored whole, or as a difference.
_VERSION = re.compile(rf"\.{_STAMP}\.(?:snapshot|diff|missing)(?:\.gz)?")
_FILE = re.compile(rb"^  Size (\d{1,18})\n(?:  .*\n){0,9}?  SHA1Digest ([0-9a-f]{40})$", re.MULTILINE)
_METADATA_LIMIT = 1 << 20


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


def _stamped(pattern: re.Pattern[str], names: Iterable[str]) -> dict[str, str]:
    """The names that match, by their stamps."""
    matches = [match for name in names if (match := pattern.fullmatch(name))]
    return {match[1]: match[0] for match in matches if is_stamp(match[1])}


def read_state(names: Iterable[str]) -> State:
    """Derive the points from the names in ``rdiff-backup-data``.

    This agrees with ``rdiff-backup list increments`` whenever that is right.
    """
    names = list(names)
    markers = sorted(_stamped(_MARKER, names), key=moment)
    if not markers:
        return State((), False)
    stamps = {*_stamped(_INCREMENT, names), markers[0]}
    return State(tuple(sorted(stamps, key=moment)), len(markers) > 1)


def is_temporary(name: str) -> bool:
    """Whether a killed rdiff-backup left this: a file, or a directory for trying out the file system."""
    return _TEMPORARY.fullmatch(name) is not None


def mirror_name(chain: Directory) -> str | None:
    """The name of the one file that the chain backs up; None if there is not exactly one."""
    names = [name for name in chain.names() if name != DATA and not is_temporary(name)]
    return names[0] if len(names) == 1 else None


def mirror_size(chain: Directory) -> int:
    """The size of the file that the chain backs up, as it is at the newest point, in bytes."""
    name = mirror_name(chain)
    return 0 if name is None else chain.status(name).st_size


def is_linkable(name: str, found: os.stat_result) -> bool:
    """Whether a working copy of a chain may share this file with it.

    Metadata and logs are never shared: rdiff-backup obeys the former, and appends to the latter.
    """
    copied = (_METADATA, _OTHER_METADATA, _LOGS)
    return found.st_size >= _LINKABLE and not any(pattern.fullmatch(name) for pattern in copied)


class Recorded(NamedTuple):
    """The size of a file in bytes, and its SHA1."""

    size: int
    digest: str


def recorded(data: Directory, stamp: str) -> Recorded | None:
    """Return what rdiff-backup recorded about the file at a point; None if nothing.

    The metadata of an older point are a difference to the next newer one that mentions the file.
    """
    names = _stamped(_METADATA, data.names())
    for newer in sorted((s for s in names if moment(s) >= moment(stamp)), key=moment):
        if match := _FILE.search(_read_metadata(data, names[newer])):
            return Recorded(int(match[1]), match[2].decode())
    return None


def _read_metadata(data: Directory, name: str) -> bytes:
    """The text of a metadata file. Raises Unusable if it is damaged or far too large."""
    with open(data.open_file(name), "rb") as raw:
        if os.fstat(raw.fileno()).st_size > _METADATA_LIMIT:
            raise Unusable(f"{name} is damaged: too large for a chain of one file")
        try:
            text = (gzip.open(raw) if name.endswith(".gz") else raw).read(_METADATA_LIMIT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise Unusable(f"{name} is damaged: {error}") from error
    if len(text) > _METADATA_LIMIT:
        raise Unusable(f"{name} is damaged: too large for a chain of one file")
    return text


def open_version(increments: Directory, name: str, stamp: str) -> tuple[int, str] | None:
    """Open the file that leads from the next newer content of ``name`` to that at a point; also its ending.

    Returns None if there is none: rdiff-backup stores nothing for a file that has not changed.
    """
    for ending in ("diff.gz", "snapshot.gz", "diff", "snapshot", "missing"):
        with suppress(FileNotFoundError):
            return increments.open_file(f"{name}.{stamp}.{ending}"), ending
    return None


def check(chain: Directory) -> None:
    """Raise Error unless a chain holds only what rdiff-backup 2.0 to 2.2 writes for one of ours.

    rdiff-backup reads more spellings of its own names than it writes, and deletes and replaces what its
    metadata name. So the owner of a chain could lead root to other files.
    """
    mirror: str | None = None
    for name in chain.names():
        if name == DATA:
            _check_is(chain, name, stat.S_IFDIR)
        elif mirror is None:
            _check_is(chain, name, stat.S_IFREG)
            mirror = name
        else:
            raise Error(f"it holds {mirror} and {name}, but a chain holds only one file: refused")
    with chain.open(DATA) as data:
        for name in data.names():
            _check_data(data, name, mirror)


def _check_is(within: Directory, name: str, kind: int) -> None:
    if stat.S_IFMT(within.status(name).st_mode) != kind:
        wanted = "directory" if kind == stat.S_IFDIR else "regular file"
        raise Error(f"{name} is not a {wanted}: refused")


def _check_data(data: Directory, name: str, mirror: str | None) -> None:
    if name == INCREMENTS:
        _check_is(data, name, stat.S_IFDIR)
        with data.open(INCREMENTS) as increments:
            for entry in increments.names():
                _check_is(increments, entry, stat.S_IFREG)
                version = entry.removeprefix(mirror or "")
                if not _names(_VERSION, version):
                    raise Error(f"{DATA}/{INCREMENTS}/{entry} does not belong to this chain: refused")
        return
    _check_is(data, name, stat.S_IFREG)
    if _names(_METADATA, name) or _names(_OTHER_METADATA, name):
        _check_metadata(name, _read_metadata(data, name), mirror)
    elif name in _ALWAYS_EMPTY:
        if data.status(name).st_size:
            raise Error(f"{DATA}/{name} is not empty: refused")
    elif not any(_names(pattern, name) for pattern in (_MARKER, _INCREMENT, _LOGS)):
        raise Error(f"{DATA}/{name} does not belong in a chain: refused")


def _names(pattern: re.Pattern[str], name: str) -> bool:
    """Whether a name has this form and its stamp, if any, is a time."""
    match = pattern.fullmatch(name)
    return match is not None and (match.lastindex is None or is_stamp(match[1]))


# Each record of metadata begins with the path that it describes.
_PATH = re.compile(rb"(?:File |# file: )(.*)")
_TYPE = re.compile(rb"  Type (?:dir|reg|None)")
# The fields of regular files and directories. Others would make links, devices, or resource forks.
_FIELDS = (
    rb"  (?:Size|ModTime|Uid|Gid|Permissions|NumHardLinks|Inode|DeviceLoc) -?\d+",
    rb"  SHA1Digest [0-9a-f]{40}",
    rb"  [UG]name .*",
)
_FIELD = re.compile(b"|".join(_FIELDS))


def _check_metadata(name: str, text: bytes, mirror: str | None) -> None:
    """Raise Error if metadata describe anything but the directory and the one file in it."""
    quoted = os.fsencode(mirror or "").replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    standard = bool(_METADATA.fullmatch(name))
    for line in filter(None, text.split(b"\n")):
        if path := _PATH.fullmatch(line):
            if path[1] not in (b".", quoted):
                raise Error(f"{name} names a file that is not the chain's: refused")
        elif standard and not (_TYPE.fullmatch(line) or _FIELD.fullmatch(line)):
            raise Error(f"{name} describes something other than a file: refused")
