"""Getting at what a point holds: choosing it, opening it, and checking it while it is read."""

import hashlib
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple

from ..archive.stream import first_names
from ..errors import Error, naming
from ..programs import compressors
from ..system.files import BLOCK, closing, directory, open_regular, room_on
from ..system.trees import check_tree
from ..times import format_moment, last_moment, parse_span
from . import chain
from .catalog import DUMP, Backup, Point, checksum


class Chosen(NamedTuple):
    """A point, and the backup that it belongs to."""

    backup: Backup
    point: Point


def all_points(backups: Sequence[Backup]) -> list[Chosen]:
    """Every point, oldest first."""
    found = [Chosen(backup, point) for backup in backups for point in backup.points]
    return sorted(found, key=lambda chosen: chosen.point.time)


def choose(backups: Sequence[Backup], at: str | None, now: datetime) -> Chosen:
    """The newest point, or the newest one not later than ``at``.

    ``at`` is what ``list`` prints, the day, hour or minute that it begins with, or a span before
    ``now``. Raises Error where there is no such point.
    """
    points = all_points(backups)
    if not points:
        raise Error("the destination holds no backups")
    if at is None:
        return points[-1]
    last = latest(at, now)
    for chosen in reversed(points):
        if chosen.point.time <= last:
            return chosen
    oldest = format_moment(points[0].point.time)
    raise Error(f"there is no point as old as {at}: the oldest is {oldest}")


def latest(at: str, now: datetime) -> datetime:
    """The last second that ``at`` means."""
    moment = last_moment(re.sub(r"\.t[.a-z]+$", "", at))
    if moment is not None:
        return moment
    try:
        return now - parse_span(at)
    except (ValueError, OverflowError):
        raise Error(
            f"not a time: {at!r}: use what list prints, or its beginning, such as 2026-11-22, or a span: 3d"
        ) from None


class Content:
    """The file of one point, open and not yet checked.

    ``name`` is that of the file in the chain, or of the tarball; ``digest`` the SHA1 or
    SHA256 that it must have, None where none was recorded, empty where that is gone.
    """

    def __init__(self, name: str, file: int, compression: str, digest: str | None) -> None:
        self.advance: Callable[[int], None] = lambda count: None  # told of each number of bytes read
        self.name = name
        self.file = file
        self.compression = compression
        self.digest = digest

    def size(self) -> int | None:
        """How much ``pump`` will read, in bytes; None where nobody knows before."""
        return os.fstat(self.file).st_size if self.compression == "none" else None

    def database(self) -> str | None:
        """The name of the database that the file is a dump of."""
        return self.name[: -len(DUMP)] if self.name.endswith(DUMP) else None

    def first_names(self, members: Sequence[str]) -> set[str]:
        """What must be unpacked besides those members of the archive, and is not wanted itself."""
        if not members:
            return set()
        with compressors.decompressed(self.file, self.compression) as stream:
            try:
                return first_names(stream, members)
            except tarfile.TarError as error:
                raise Error(f"{self.name} is damaged: {error}") from error

    def check(self) -> None:
        """Raise Error where the file is not what was stored."""
        self.pump(lambda block: None)

    def pump(self, write: Callable[[bytes], object]) -> None:
        """Write all of it, uncompressed. Raises Error in the end where it is not what was stored."""
        hasher = hashlib.new("sha256" if self.digest and len(self.digest) == 64 else "sha1")
        with compressors.decompressed(self.file, self.compression) as stream:
            while block := stream.read(BLOCK):
                if self.digest is not None:
                    hasher.update(block)
                write(block)
                self.advance(len(block))
            if not stream.sound():
                raise Error(f"{self.name} is damaged", said=stream.said())
        if self.digest == "":
            raise Error(f"{self.name} cannot be checked: the metadata of the chain is gone")
        if self.digest not in (None, hasher.hexdigest()):
            raise Error(f"{self.name} is damaged: its content is not what was backed up")


@contextmanager
def opened(destination: int, chosen: Chosen) -> Iterator[Content]:
    """The content of a point. That of an older point of a chain takes space under TMPDIR."""
    backup, point = chosen
    with naming(backup.name):
        if not backup.is_chain:
            with closing(open_regular(backup.name, destination)) as file:
                yield Content(backup.name, file, backup.compression, checksum(backup.name, destination))
            return
        with directory(backup.name, destination) as top:
            name = chain.mirror_name(top)
            if name is None:
                raise Error(f"{backup.name} does not hold one file, as a chain does")
            digest = chain.recorded_digest(top, point.stamp) or ""
            if point == backup.points[-1] and not backup.interrupted:
                with closing(open_regular(name, top)) as file:
                    yield Content(name, file, "none", digest)
                return
            check_tree(top)
            with tempfile.TemporaryDirectory(prefix="btw-backup.") as scratch, directory(scratch) as target:
                with room_on(tempfile.gettempdir(), target):
                    _restore(destination, top, chosen, target)
                with (
                    directory(chain.RESTORED, target) as restored,
                    closing(open_regular(name, restored)) as file,
                ):
                    yield Content(name, file, "none", digest)


def verify_older(destination: int, chosen: Chosen) -> bool:
    """Check an older point of a chain without restoring it. False where that can't be done.

    What has the digest of the archive or dump that was stored is that, and was whole then. Raises
    Error where it is damaged.
    """
    backup, point = chosen
    if not backup.is_chain or backup.interrupted or point == backup.points[-1]:
        return False
    with naming(backup.name), directory(backup.name, destination) as top:
        check_tree(top)
        if chain.recorded_digest(top, point.stamp) is None:
            return False
    chain.verify(destination, backup.name, point.stamp)
    return True


def _restore(destination: int, top: int, chosen: Chosen, target: int) -> None:
    """Restore an older point of a chain into the directory ``target``."""
    backup, point = chosen
    if backup.interrupted:
        chain.repaired_copy(top, target, "chain")
        chain.restore(target, "chain", point.stamp, target)
    else:
        chain.restore(destination, backup.name, point.stamp, target)
