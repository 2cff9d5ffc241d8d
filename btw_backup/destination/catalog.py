"""What a destination holds: its backups and their points, read from names alone."""

import os
import re
import stat
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from ..errors import Error, naming
from ..messages import size
from ..system.files import directory, open_regular
from ..times import format_moment, parse_moment
from . import chain

# What a chain holds: the archive of a hierarchy, a database's dump, the globals.
ARCHIVE = "backup.tar"
DUMP = ".dump"
GLOBALS = "global.sql.bz2"

# The endings of tarballs, and how each is compressed.
ENDINGS = {".tbz": "bzip2", ".tar.zst": "zstd", ".tar.gz": "gzip", ".tar.xz": "xz", ".tar": "none"}
ENDING_OF = {compression: ending for ending, compression in ENDINGS.items()}
# What sha256sum(1) writes, beside a tarball that is not compressed.
CHECKSUM = ".sha256"
_TARBALL = re.compile(r"([^.]+)(\.[.a-z]+)")


class Point(NamedTuple):
    """One moment that can be restored. ``stamp`` is rdiff-backup's name of it, empty for a tarball."""

    time: datetime
    stamp: str


class Backup(NamedTuple):
    """An entry of a destination: a tarball, which has one point, or a chain."""

    name: str
    is_chain: bool
    points: tuple[Point, ...]
    interrupted: bool = False

    @property
    def compression(self) -> str:
        """How its file is compressed; that of a chain is plain."""
        return "none" if self.is_chain else ENDINGS[self.name[self.name.index(".") :]]

    @property
    def newest(self) -> datetime:
        return max(point.time for point in self.points)


class Stored(NamedTuple):
    """What a run added. ``size`` is what it added to the destination, in bytes."""

    kind: str
    time: datetime
    size: int


def summary(stored: Stored | None, of: int, seconds: float) -> str:
    """The closing line of a backup of ``of`` bytes; None: nothing had changed."""
    if stored is None:
        compared = f"{size(of)} compared, " if of else ""
        return f"nothing has changed: {compared}{seconds:.1f} s"
    time = format_moment(stored.time)
    return f"{stored.kind} {time}: {size(stored.size)} stored of {size(of)}, {seconds:.1f} s"


class Limits(NamedTuple):
    """When a chain ends: how many incrementals it may have, and how long it may go on."""

    incremental_count: int
    incremental_span: timedelta


def full_backup_due(chain: Backup | None, now: datetime, limits: Limits) -> bool:
    """Whether the next point must be a full backup, ``chain`` being what it could be added to."""
    return (
        chain is None
        or len(chain.points) > limits.incremental_count
        or now - chain.points[0].time > limits.incremental_span
    )


def open_destination(path: str) -> int:
    """Open the directory of backups. Raises Error where there is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Error(f"the destination does not exist: {path}: create it, or mount its disk") from None
    except NotADirectoryError:
        raise Error(f"the destination is not a directory: {path}") from None
    except OSError as error:
        raise Error(f"cannot open the destination: {path}: {error.strerror}") from error


def scan(destination: int) -> list[Backup]:
    """The backups in an open destination, oldest first. What is not a backup is passed over."""
    found = [backup for entry in os.scandir(destination) if (backup := _examine(entry, destination))]
    return sorted(found, key=lambda backup: backup.name)


def listing(backups: Sequence[Backup]) -> list[str]:
    """The lines that ``list`` prints."""
    lines = []
    for backup in backups:
        lines.append(backup.name)
        lines.extend(f" {format_moment(point.time)}" for point in backup.points[1:])
    return lines


def is_tarball(name: str) -> bool:
    """Whether this is what a tarball is called."""
    match = _TARBALL.fullmatch(name)
    return match is not None and match[2] in ENDINGS and parse_moment(match[1]) is not None


def _examine(entry: os.DirEntry[str], destination: int) -> Backup | None:
    if (time := parse_moment(entry.name)) is not None:
        return _examine_chain(entry.name, time, destination) if _is(entry, stat.S_IFDIR) else None
    if not is_tarball(entry.name) or not _is(entry, stat.S_IFREG):
        return None
    time = parse_moment(entry.name.partition(".")[0])
    return None if time is None else Backup(entry.name, False, (Point(time, ""),))


def _is(entry: os.DirEntry[str], kind: int) -> bool:
    is_kind = entry.is_dir if kind == stat.S_IFDIR else entry.is_file
    return is_kind(follow_symlinks=False)


def _examine_chain(name: str, time: datetime, destination: int) -> Backup | None:
    try:
        with directory(name, destination) as top, directory(chain.DATA, top) as data:
            state = chain.read_state(os.listdir(data))
    except FileNotFoundError:
        return None
    except NotADirectoryError:  # what O_NOFOLLOW gives for a link
        raise Error(f"{name}/{chain.DATA} is not a directory: refused") from None
    except OSError as error:
        raise Error(f"{name}: {error.strerror}") from error
    if not state.stamps:
        return None
    # The full backup goes by the chain's name, whatever second rdiff-backup took for it.
    points = [Point(chain.moment(stamp), stamp) for stamp in state.stamps]
    points[0] = Point(time, points[0].stamp)
    return Backup(name, True, tuple(points), state.interrupted)


def checksum(name: str, destination: int) -> str | None:
    """The SHA256 stored beside a tarball that is not compressed: only that finds a flipped bit in it."""
    try:
        fd = open_regular(name + CHECKSUM, destination)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        match = re.match(rb"[0-9a-f]{64}\b", file.read(64))
    if match is None:
        raise Error(f"{name}{CHECKSUM} is damaged")
    return match[0].decode()


def mirror_of(backup: Backup, destination: int) -> str | None:
    """The name of the file that a chain backs up."""
    with naming(backup.name), directory(backup.name, destination) as top:
        return chain.mirror_name(top)
