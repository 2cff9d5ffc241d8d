"""How large points are, as they are stored and as they were, and how old in words."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

from ..errors import Error
from ..system.files import closing, directory, open_regular
from . import chain
from .catalog import Backup, scan

# The size of a compressed tarball's archive, in decimal digits, as an extended attribute.
_SIZE = "user.btw-backup.size"
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d)")
_TRIES = 3


class Measured(NamedTuple):
    """A point, the name of its backup, and sizes in bytes.

    ``kind`` is ``tarball``, ``full`` or ``incremental``; ``restored`` is None where it is not known.
    """

    backup: str
    time: datetime
    kind: str
    stored: int
    restored: int | None


def remember_size(fd: int, size: int) -> None:
    """Note on a tarball how large its archive is, in bytes, where the file system can keep that."""
    with suppress(OSError):
        os.setxattr(fd, _SIZE, b"%d" % size)


def measure(destination: int) -> list[Measured]:
    """Every point in an open destination, in the order of ``list``. Raises Error where one can't be read."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):  # a chain was extended meanwhile, or a backup removed
            return [point for backup in scan(destination) for point in _measure(backup, destination)]
    raise Error("the destination is changing too fast: try again")


def _measure(backup: Backup, destination: int) -> Iterator[Measured]:
    try:
        if backup.is_chain:
            with directory(backup.name, destination) as top:
                yield from _measure_chain(backup, top)
        else:
            stored = os.lstat(backup.name, dir_fd=destination).st_size
            restored = stored if backup.compression == "none" else _remembered(backup.name, destination)
            yield Measured(backup.name, backup.newest, "tarball", stored, restored)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Error(f"{backup.name}: {error.strerror}") from error


def _remembered(name: str, destination: int) -> int | None:
    """What ``remember_size`` noted of a tarball; None where nothing, or nothing that makes sense."""
    try:
        with closing(open_regular(name, destination)) as fd:
            noted = os.getxattr(fd, _SIZE)
    except FileNotFoundError:
        raise
    except (Error, OSError):
        return None
    return int(noted) if re.fullmatch(rb"[0-9]{1,18}", noted) else None


def _measure_chain(backup: Backup, top: int) -> Iterator[Measured]:
    """A chain's points. The way back to a point is stored under its stamp, the newest as the mirror."""
    with directory(chain.DATA, top) as data:
        sizes = _sizes_by_moment(data)
        if "increments" in os.listdir(data):
            with directory("increments", data) as increments:
                sizes += _sizes_by_moment(increments)
    for point in backup.points:
        stored = sizes[chain.moment(point.stamp)]
        if point == backup.points[-1]:
            stored += sum(entry.stat(follow_symlinks=False).st_size for entry in _files(top))
        kind = "full" if point == backup.points[0] else "incremental"
        yield Measured(backup.name, point.time, kind, stored, _recorded(top, point.stamp))


def _recorded(top: int, stamp: str) -> int | None:
    """The size of the file at a point; None where its metadata are missing, damaged or unreadable."""
    try:
        found = chain.recorded(top, stamp)
    except FileNotFoundError:
        raise
    except (Error, OSError):
        return None
    return None if found is None else found.size


def _files(within: int) -> list[os.DirEntry[str]]:
    with os.scandir(within) as entries:
        return [entry for entry in entries if entry.is_file(follow_symlinks=False)]


def _sizes_by_moment(within: int) -> Counter[datetime]:
    """The size in bytes of all files of a directory whose names carry a stamp, for each moment."""
    sizes: Counter[datetime] = Counter()
    for entry in _files(within):
        if stamps := _STAMP.findall(entry.name):  # the name of a database may look like one, too
            with suppress(ValueError, OverflowError):  # of a stamp that is no time
                sizes[chain.moment(stamps[-1])] += entry.stat(follow_symlinks=False).st_size
    return sizes


def age(seconds: float) -> str:
    """An age in words, rounded down: ``45s``, ``12m``, ``3h 12m``, ``5d 3h``."""
    if seconds < 0:
        return f"-{age(-seconds)}"
    minutes, hours, days = (int(seconds // length) for length in (60, 3600, 86400))
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m" if minutes else f"{int(seconds)}s"
