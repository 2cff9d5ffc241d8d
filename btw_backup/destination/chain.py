"""A chain: a full backup and its incrementals, in one directory that rdiff-backup keeps.

It holds one file, or the parts of an archive.

This module owns what is known about the names and the metadata in it, found by experiment with
rdiff-backup 2.2.2. It reads them itself, since starting rdiff-backup takes 0.1 s each time.
"""

import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from ..errors import Error
from ..system.directories import Directory
from .labels import ARCHIVE, is_part

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
    rf"(?:backup|restore|remove)\.log|(?:error_log|file_statistics|session_statistics)\.{_STAMP}\.data(?:\.gz)?"
)
# They tell how names are changed for file systems that can't hold all names; ours never are.
_ALWAYS_EMPTY = ("chars_to_quote", "special_escapes")
# The content of a file at an older point is stored whole, or as a difference.
_VERSION = re.compile(rf"\.{_STAMP}\.((?:snapshot|diff|missing)(?:\.gz)?)\Z")
_RECORD = re.compile(rb"^File (.*)\n((?:  .*\n)*)", re.MULTILINE)
_FILE = re.compile(rb"^  Size (\d{1,18})\n(?:  .*\n){0,9}?  SHA1Digest ([0-9a-f]{40})$", re.MULTILINE)
# A record takes some 200 bytes: this is enough for the parts of a terabyte.
_METADATA_LIMIT = 1 << 26


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


class Metadata:
    """What rdiff-backup recorded about the files at each point, in the open directory ``data``.

    Each method raises Unusable if the metadata are damaged.
    """

    def __init__(self, data: Directory) -> None:
        self._data = data
        self._names = _stamped(_METADATA, data.names())
        self._stamps = sorted(self._names, key=moment)
        self._read: dict[str, dict[str, Recorded | None]] = {}

    def at(self, stamp: str, name: str) -> Recorded | None:
        """What is recorded about a file at a point; None if it was not there, or that is not known."""
        for newer in self._since(stamp):
            records = self._records(newer)
            if name in records:
                return records[name]
        return None

    def files(self, stamp: str, mirrors: Iterable[str]) -> dict[str, Recorded]:
        """Every file that was there at a point, and what is recorded about it, in the order of names.

        ``mirrors`` are the files that are there now.
        """
        found: dict[str, Recorded | None] = {}
        for newer in self._since(stamp):
            if newer == self._stamps[-1] and found.keys() >= {*mirrors}:
                break  # the newest metadata, which may be damaged, tell nothing more
            found = self._records(newer) | found
        return {name: known for name in sorted(found) if (known := found[name]) is not None}

    def _since(self, stamp: str) -> Iterator[str]:
        """The stamps whose metadata tell what a point was like.

        The metadata of an older point may be only what differs from the next newer ones.
        """
        since = moment(stamp)
        for newer in self._stamps:
            if moment(newer) >= since:
                yield newer
                if ".snapshot" in self._names[newer]:
                    return

    def _records(self, stamp: str) -> dict[str, Recorded | None]:
        if stamp not in self._read:
            self._read[stamp] = _parsed(_read_metadata(self._data, self._names[stamp]))
        return self._read[stamp]


def _parsed(text: bytes) -> dict[str, Recorded | None]:
    """The records of files in metadata: None for one that was not there."""
    records: dict[str, Recorded | None] = {}
    for record in _RECORD.finditer(text):
        match = _FILE.search(record[2])
        known = Recorded(int(match[1]), match[2].decode()) if match else None
        if match or b"  Type None\n" in record[2]:
            records[os.fsdecode(_unquoted(record[1]))] = known
    return records


def _quoted(name: bytes) -> bytes:
    """A path as metadata have it."""
    return name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")


def _unquoted(path: bytes) -> bytes:
    return re.sub(rb"\\(.)", lambda match: b"\n" if match[1] == b"n" else match[1], path)


def _read_metadata(data: Directory, name: str) -> bytes:
    """The text of a metadata file. Raises Unusable if it is damaged or far too large."""
    with open(data.open_file(name), "rb") as raw:
        if os.fstat(raw.fileno()).st_size > _METADATA_LIMIT:
            raise Unusable(f"{name} is damaged: it is too large")
        try:
            text = (gzip.open(raw) if name.endswith(".gz") else raw).read(_METADATA_LIMIT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise Unusable(f"{name} is damaged: {error}") from error
    if len(text) > _METADATA_LIMIT:
        raise Unusable(f"{name} is damaged: it is too large")
    return text


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
        match = _VERSION.search(entry)
        if match and is_stamp(match[1]):
            found.setdefault(entry[: match.start()], {})[match[1]] = Version(entry, match[2])
    return found


def check(chain: Directory) -> None:
    """Raise Error unless a chain holds only what rdiff-backup 2.0 to 2.2 writes for one of ours.

    rdiff-backup reads more spellings of its own names than it writes, and deletes and replaces what its
    metadata name. So the owner of a chain could lead root to other files.
    """
    names = chain.names()
    for name in names:
        _check_is(chain, name, stat.S_IFDIR if name == DATA else stat.S_IFREG)
    mirrors = sorted(name for name in names if name != DATA)
    held = check_series(mirrors) if mirrors else None
    with chain.open(DATA) as data:
        for name in data.names():
            _check_data(data, name, held)


def _belongs(name: str, held: str | None) -> bool:
    """Whether a chain that holds this may once have held a file of this name."""
    return name == held or (held == ARCHIVE and is_part(name))


def _check_is(within: Directory, name: str, kind: int) -> None:
    if stat.S_IFMT(within.status(name).st_mode) != kind:
        wanted = "directory" if kind == stat.S_IFDIR else "regular file"
        raise Error(f"{name} is not a {wanted}: refused")


def _check_data(data: Directory, name: str, held: str | None) -> None:
    if name == INCREMENTS:
        _check_is(data, name, stat.S_IFDIR)
        with data.open(INCREMENTS) as increments:
            for entry in increments.names():
                _check_is(increments, entry, stat.S_IFREG)
                match = _VERSION.search(entry)
                if not (match and is_stamp(match[1]) and _belongs(entry[: match.start()], held)):
                    raise Error(f"{DATA}/{INCREMENTS}/{entry} does not belong to this chain: refused")
        return
    _check_is(data, name, stat.S_IFREG)
    if _names(_METADATA, name) or _names(_OTHER_METADATA, name):
        _check_metadata(name, _read_metadata(data, name), held)
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


def _check_metadata(name: str, text: bytes, held: str | None) -> None:
    """Raise Error if metadata describe anything but the directory and the chain's files in it."""
    standard = bool(_METADATA.fullmatch(name))
    for line in filter(None, text.split(b"\n")):
        if path := _PATH.fullmatch(line):
            if path[1] != b"." and not (
                _belongs(os.fsdecode(_unquoted(path[1])), held) and _quoted(_unquoted(path[1])) == path[1]
            ):
                raise Error(f"{name} names a file that is not the chain's: refused")
        elif standard and not (_TYPE.fullmatch(line) or _FIELD.fullmatch(line)):
            raise Error(f"{name} describes something other than a file: refused")
