"""The sizes of points, as stored and as restored."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

from ..errors import Error
from ..system.directories import Directory
from . import chain
from .catalog import Backup, scan
from .metadata import Metadata

# The size of a compressed tarball's archive, in decimal digits, as an extended attribute.
_SIZE = "user.btw-backup.size"
_TRIES = 3


class Measured(NamedTuple):
    """A point, the name of its backup, and sizes in bytes.

    ``kind`` is ``tarball``, ``full`` or ``incremental``; ``restored`` is None if it is not known.
    """

    backup: str
    time: datetime
    kind: str
    stored: int
    restored: int | None


def remember_size(fd: int, size: int) -> None:
    """Note the size of a tarball's archive, in bytes, if the file system has extended attributes."""
    with suppress(OSError):
        os.setxattr(fd, _SIZE, b"%d" % size)


def measure(destination: Directory) -> list[Measured]:
    """Measure every point in a destination, in the order of ``list``. Raises Error if one can't be read.

    A file that chains share is counted for the oldest of them.
    """
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):  # a chain was extended meanwhile, or a backup removed
            counted: set[tuple[int, int]] = set()
            backups = scan(destination).backups
            return [point for backup in backups for point in _measure(backup, destination, counted)]
    raise Error("the destination is changing too fast: try again")


def _measure(backup: Backup, destination: Directory, counted: set[tuple[int, int]]) -> Iterator[Measured]:
    try:
        if backup.is_chain:
            with destination.open(backup.name) as top:
                yield from _measure_chain(backup, top, counted)
        else:
            stored = destination.status(backup.name).st_size
            restored = stored if backup.compression == "none" else _remembered(backup.name, destination)
            yield Measured(backup.name, backup.newest_time, "tarball", stored, restored)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Error(f"{backup.name}: {error.strerror}") from error


def _remembered(name: str, destination: Directory) -> int | None:
    """The size that ``remember_size`` noted for a tarball; None if there is none that makes sense."""
    try:
        with destination.file(name) as fd:
            noted = os.getxattr(fd, _SIZE)
    except FileNotFoundError:
        raise
    except (Error, OSError):
        return None
    return int(noted) if re.fullmatch(rb"[0-9]{1,18}", noted) else None


def _measure_chain(backup: Backup, top: Directory, counted: set[tuple[int, int]]) -> Iterator[Measured]:
    """Measure the points of a chain. The newest is the mirror; older ones are stored under their stamps."""
    with top.open(chain.DATA) as data:
        sizes = _sizes_by_moment(data)
        if data.holds(chain.INCREMENTS):
            with data.open(chain.INCREMENTS) as increments:
                sizes += _sizes_by_moment(increments)
        metadata, mirrors = Metadata(data), chain.mirror_names(top)
        for point in backup.points:
            assert point.stamp is not None
            stored = sizes[chain.moment(point.stamp)]
            if point == backup.points[-1]:
                stored += _uncounted(top, counted)
            kind = "full" if point == backup.points[0] else "incremental"
            yield Measured(backup.name, point.time, kind, stored, _recorded(metadata, point.stamp, mirrors))


def _uncounted(top: Directory, counted: set[tuple[int, int]]) -> int:
    """The size in bytes of files that were not counted yet."""
    size = 0
    for _, found in _files(top):
        if (found.st_dev, found.st_ino) not in counted:
            counted.add((found.st_dev, found.st_ino))
            size += found.st_size
    return size


def _recorded(metadata: Metadata, stamp: str, mirrors: list[str]) -> int | None:
    """The size of what a point holds; None if its metadata are missing, damaged or unreadable."""
    try:
        files = metadata.files(stamp, mirrors)
    except FileNotFoundError:
        raise
    except (Error, OSError):
        return None
    return sum(file.size for file in files.values()) if files else None


def _files(within: Directory) -> Iterator[tuple[str, os.stat_result]]:
    """The names, and what lstat(2) returns, of entries that are not directories."""
    for name in within.names():
        found = within.status(name)
        if not stat.S_ISDIR(found.st_mode):
            yield name, found


def _sizes_by_moment(within: Directory) -> Counter[datetime]:
    """The total size in bytes, for each moment, of files whose names carry its stamp."""
    sizes: Counter[datetime] = Counter()
    for name, found in _files(within):
        if (stamp := chain.stamp_of(name)) is not None:
            sizes[chain.moment(stamp)] += found.st_size
    return sizes
