"""What a destination holds: its backups and their restore points, read from names alone."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from ..errors import Error
from ..system.directories import Directory
from ..times import format_moment, parse_moment, shown_moment
from . import chain

# What a chain holds besides archives: a database's dump, the globals.
DUMP = ".dump"
GLOBALS = "global.sql.bz2"

# The endings of tarballs, and how each is compressed.
ENDINGS = {".tbz": "bzip2", ".tar.zst": "zstd", ".tar.gz": "gzip", ".tar.xz": "xz", ".tar": "none"}
ENDING_OF = {compression: ending for ending, compression in ENDINGS.items()}
# The ending of a file that sha256sum(1) can check, next to an uncompressed tarball.
CHECKSUM = ".sha256"
_TRIES = 5
_TARBALL = re.compile(r"([^.]+)(\.[.a-z]+)")


class Point(NamedTuple):
    """One moment that can be restored. ``stamp`` is rdiff-backup's name of it, None for a tarball."""

    time: datetime
    stamp: str | None


class Backup(NamedTuple):
    """An entry of a destination: a tarball, which has one point, or a chain."""

    name: str
    is_chain: bool
    points: tuple[Point, ...]
    interrupted: bool = False

    @property
    def compression(self) -> str:
        """How its file is compressed; that of a chain is not."""
        return "none" if self.is_chain else ENDINGS[self.name[self.name.index(".") :]]

    @property
    def newest_time(self) -> datetime:
        return max(point.time for point in self.points)


class Catalog(NamedTuple):
    """The backups of a destination, oldest first, and what is wrong with each entry that can't be read."""

    backups: tuple[Backup, ...]
    broken: tuple[str, ...] = ()


class Limits(NamedTuple):
    """When a chain ends: how many incrementals it may have, and how long it may go on."""

    incremental_count: int
    incremental_span: timedelta


def full_backup_due(chain: Backup | None, now: datetime, limits: Limits) -> bool:
    """Whether the next point must be a full backup; ``chain`` is what it could be added to."""
    return (
        chain is None
        or len(chain.points) > limits.incremental_count
        or now - chain.points[0].time > limits.incremental_span
    )


def scan(directory: Directory) -> Catalog:
    """Find the backups in a destination. Anything else is ignored."""
    found = list(_entries(directory))
    backups = tuple(entry for entry in found if isinstance(entry, Backup))
    return Catalog(backups, tuple(entry for entry in found if isinstance(entry, str)))


def holds_backups(directory: Directory) -> bool:
    """Whether a directory holds backups, be it only some that can't be read."""
    return next(_entries(directory), None) is not None


def _entries(directory: Directory) -> Iterator[Backup | str]:
    """Yield each backup, oldest first, or what is wrong with it."""
    for name in sorted(directory.names()):
        try:
            backup = _examine(name, directory)
        except FileNotFoundError:  # a chain was exchanged or a backup removed meanwhile
            continue
        except Error as error:
            yield str(error)
        except OSError as error:
            yield f"{name}: {error.strerror or error}"
        else:
            if backup is not None:
                yield backup


def listing(backups: Iterable[Backup]) -> list[str]:
    """The lines that ``list`` prints."""
    lines = []
    for backup in backups:
        lines.append(backup.name)
        lines.extend(f" {format_moment(point.time)}" for point in backup.points[1:])
    return lines


def is_tarball(name: str) -> bool:
    """Whether this is the name of a tarball."""
    return _tarball_time(name) is not None


def _tarball_time(name: str) -> datetime | None:
    match = _TARBALL.fullmatch(name)
    return parse_moment(match[1]) if match is not None and match[2] in ENDINGS else None


def _examine(name: str, directory: Directory) -> Backup | None:
    if (time := parse_moment(name)) is not None:
        return _examine_chain(name, time, directory) if directory.holds_directory(name) else None
    time = _tarball_time(name)
    if time is None or not stat.S_ISREG(directory.status(name).st_mode):
        return None
    return Backup(name, False, (Point(time, None),))


def _examine_chain(name: str, time: datetime, directory: Directory) -> Backup | None:
    for _ in range(_TRIES):
        with directory.open(name) as top:
            try:
                state = _read_state(name, top)
            except FileNotFoundError:
                state = None
            # A chain that was exchanged meanwhile is being removed: it may have been half gone.
            if top.status().st_ino == directory.status(name).st_ino:
                break
    else:
        raise Error(f"{name} is changing too fast: try again")
    if state is None:
        return None
    if not state.stamps:
        return None
    # The full backup has the time of the chain's name, whatever time rdiff-backup recorded.
    points = [Point(chain.moment(stamp), stamp) for stamp in state.stamps]
    points[0] = Point(time, points[0].stamp)
    return Backup(name, True, tuple(points), state.interrupted)


def _read_state(name: str, top: Directory) -> chain.State | None:
    """What the names in a chain tell, None if it is none."""
    if not top.holds(chain.DATA):
        return None
    if not top.holds_directory(chain.DATA):
        raise Error(f"{name}/{chain.DATA} is not a directory: refused")
    with top.open(chain.DATA) as data:
        return chain.read_state(data.names())


def checksum(name: str, directory: Directory) -> str | None:
    """Return the SHA-256 stored next to an uncompressed tarball: nothing else reveals a flipped bit."""
    try:
        with directory.file(name + CHECKSUM) as fd:
            match = re.match(rb"[0-9a-f]{64}\b", os.read(fd, 65))
    except FileNotFoundError:
        return None
    if match is None:
        raise Error(f"{name}{CHECKSUM} is damaged")
    return match[0].decode()


class Chosen(NamedTuple):
    """A point, and the backup that it belongs to."""

    backup: Backup
    point: Point


def all_points(backups: Iterable[Backup]) -> list[Chosen]:
    """Every point, oldest first."""
    found = [Chosen(backup, point) for backup in backups for point in backup.points]
    return sorted(found, key=lambda chosen: chosen.point.time)


def choose(backups: Sequence[Backup], at: str | None, latest: datetime | None) -> Chosen:
    """Return the newest point, or the newest one not later than ``latest``, the meaning of ``at``.

    Raises Error if there is no such point.
    """
    points = all_points(backups)
    if not points:
        raise Error("the destination holds no backups")
    if latest is None:
        return points[-1]
    for chosen in reversed(points):
        if chosen.point.time <= latest:
            return chosen
    oldest = shown_moment(points[0].point.time)
    raise Error(f"there is no point as old as {at}: the oldest is {oldest}")
