"""A destination opened for writing.

Every change is prepared in the private directory ``.btw-backup`` and made visible by one rename:
nobody ever sees it half done, and a killed run leaves nothing to repair.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from ..errors import Error, prefixing_errors, uninterrupted
from ..system.directories import Directory
from ..system.files import write_all
from ..system.ownership import UNCHANGED, Owner
from ..system.room import room_on
from ..system.trust import resolve
from ..times import format_moment, shown_moment
from . import chain, log, record
from .catalog import CHECKSUM, ENDING_OF, Backup, Limits, full_backup_due
from .lock import UNPAIRED, locked, private_directory, scratch_directory
from .reader import Destination, open_directory
from .record import NOTHING_KNOWN, Record
from .retention import Decision, Policy, decide

_STAGE = "stage"


class LockedDestination(Destination):
    """An open destination, locked by this process. Made by ``working_on``.

    ``private`` is its private directory. ``scratch`` is a directory in that, empty at the start and removed
    at the end, in which entries are prepared before they are published. ``owner`` gets what is made;
    ``warn`` is called with what the administrator should know.
    """

    def __init__(
        self,
        path: str,
        directory: Directory,
        private: Directory,
        scratch: Directory,
        owner: Owner,
        warn: Callable[[str], None],
    ) -> None:
        super().__init__(path, directory)
        self.private = private
        self.scratch = scratch
        self.owner = owner
        self.warn = warn
        for entry in self.broken:
            warn(f"{path}: {entry}")

    def newest_backup(self) -> Backup | None:
        """The newest backup."""
        return self.backups[-1] if self.backups else None

    def latest_chain(self) -> Backup | None:
        """The newest backup if it is a chain that can be added to."""
        backup = self.newest_backup()
        return backup if backup and backup.is_chain and not backup.interrupted else None

    def next_time(self, clock: Callable[[], float] = time.time) -> datetime:
        """Return the time of a new point: now, waiting up to a second if another point has that time.

        ``clock`` gives seconds since the epoch. Raises Error if the newest point is in the future.
        """
        newest_time = max(
            (backup.newest_time for backup in self.backups), default=datetime.min.replace(tzinfo=UTC)
        )
        while True:
            at = clock()
            moment = datetime.fromtimestamp(int(at), UTC)
            if newest_time > moment:
                raise Error(
                    f"the newest point of {self.path} ({shown_moment(newest_time)}) is dated in the future:"
                    " set the clock right, or wait until then"
                )
            # Whatever has a name of that second, no backup among it, would be in the way of the new one.
            if newest_time < moment and not any(
                name.startswith(format_moment(moment)) for name in self.directory.names()
            ):
                return moment
            time.sleep(1 - at % 1)

    def mirrors(self, backup: Backup) -> list[str]:
        """The names of the files of a chain's newest point."""
        with prefixing_errors(backup.name), self.directory.open(backup.name) as top:
            return chain.mirror_names(top)

    def size(self, backup: Backup) -> int | None:
        """The size of what a backup's newest point holds, in bytes; None if it is not known."""
        if not backup.is_chain:
            return self.directory.status(backup.name).st_size if backup.compression == "none" else None
        with prefixing_errors(backup.name), self.directory.open(backup.name) as top:
            return chain.mirror_size(top)

    def note(self, text: str) -> None:
        """Append a line to log.txt."""
        log.note(text, self.path, self.directory, self.scratch, self.owner)

    def note_unchanged(self, at: datetime, limits: Limits) -> None:
        """Append the line for a run that added no point to a chain, full or incremental."""
        kind = "full" if full_backup_due(self.latest_chain(), at, limits) else "incremental"
        text = f"no change in the data to be backed up: skipping creation of new {kind} backup"
        self.note(f"{format_moment(at)}: {text}")

    def note_success(self, at: datetime) -> None:
        """Remember that a run succeeded, whether or not it had something to store."""
        try:
            log.note_success(at, self.scratch, self.private)
        except OSError as error:
            self.warn(f"{self.path}: the time of this run could not be noted: {error.strerror}")

    def keep(self, name: str, content: bytes) -> None:
        """Have a small file of ours hold this. If that fails, the backup still counts: warn instead."""
        with suppress(OSError, Error), self.directory.file(name) as fd:
            found = os.fstat(fd)
            uid, gid = self.owner
            is_theirs = uid in (-1, found.st_uid) and gid in (-1, found.st_gid)
            if is_theirs and os.read(fd, len(content) + 1) == content:
                return
        try:
            with self.scratch.create(name) as fd:
                write_all(fd, content)
                os.fchown(fd, *self.owner)
                os.fsync(fd)
            self.scratch.rename(name, self.directory)
            self.directory.sync()
        except OSError as error:
            self.warn(f"{os.path.join(self.path, name)} could not be written: {error.strerror}")

    def note_of_stored(self, text: str) -> None:
        """Append a line about a stored point. If that fails, the backup still counts: warn instead."""
        try:
            self.note(text)
        except Error as error:
            self.warn(f"{error}, so this could not be noted: {text}")

    @contextmanager
    def stored_file(self, backup: Backup, mirror: str = "") -> Iterator[int]:
        """Open a file of a backup's newest point: the tarball, or a chain's ``mirror``."""
        with prefixing_errors(os.path.join(self.path, backup.name)):
            if backup.is_chain:
                with self.directory.open(backup.name) as top:
                    fd = top.open_file(mirror)
            else:
                fd = self.directory.open_file(backup.name)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def stage(self) -> Iterator[Directory]:
        """Yield a private directory to stage a dump in."""
        with self.scratch.temporary(_STAGE) as stage, room_on(self.path, stage):
            yield stage

    @contextmanager
    def paired(self, name: str, prepared: int | None = None) -> Iterator[None]:
        """Add or remove the checksum of an uncompressed tarball together with it, in the block.

        ``prepared`` is the open tarball if it is added, None if it is removed. If a kill or a power cut
        interrupts the block, the next run removes a checksum without a tarball.
        """
        if not name.endswith(ENDING_OF["none"]):
            yield
            return
        with self.private.create(name + UNPAIRED):
            self.private.sync()  # btrfs may write the checksum's name first, if another program syncs a file
            if prepared is not None:
                self._add_checksum(prepared, name)
            yield
            if prepared is None:
                self.directory.remove(name + CHECKSUM)
        self.private.remove(name + UNPAIRED)

    def _add_checksum(self, prepared: int, name: str) -> None:
        with open(prepared, "rb", closefd=False) as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with self.scratch.create(CHECKSUM) as fd:
            write_all(fd, f"{digest}  {name}\n".encode())
            os.fchown(fd, *self.owner)
            os.fsync(fd)
        self.scratch.publish(CHECKSUM, self.directory, name + CHECKSUM)

    def remove(self, backup: Backup) -> None:
        """Remove a backup, all of it or, if that fails, nothing."""
        with prefixing_errors(self.path):
            with uninterrupted(), self.paired(backup.name):
                self.directory.rename(backup.name, self.scratch)
            self.directory.sync()
            with self.keeping_record():  # the newest backup may share files with it
                self.scratch.remove(backup.name)

    def prune(self, policy: Policy) -> list[Decision]:
        """Remove the backups that a policy does not keep. Returns what was decided of each, oldest first."""
        decisions = decide(self.backups, policy)
        for decision in decisions:
            if not decision.keep:
                self.remove(decision.backup)
        return decisions

    def make_destination(self, name: str) -> None:
        """Make a destination in this directory of them, unless it holds something of that name."""
        if self.directory.holds(name):
            return
        self.scratch.make(name)
        with self.scratch.open(name) as made:
            os.fchown(made.fileno(), *self.owner)
        with suppress(FileExistsError):  # by somebody else, meanwhile
            self.scratch.publish(name, self.directory)
        self.directory.sync()

    def recorded(self) -> Record:
        """Return what was recorded with the newest backup."""
        identity = self._identity()
        return NOTHING_KNOWN if identity is None else record.read(self.private, identity)

    def record(self, known: Record) -> None:
        """Record what the source was like when the newest backup was equal to it."""
        identity = self._identity()
        if identity is not None:
            record.write(known, self.scratch, self.private, identity)

    def _identity(self) -> str | None:
        """What identifies the newest backup as it is now; None if there is none."""
        backup = self.newest_backup()
        if backup is None or not self.directory.holds(backup.name):  # it is being removed
            return None
        if not backup.is_chain:
            return record.identity(backup.name, [self.directory.status(backup.name)])
        with prefixing_errors(backup.name), self.directory.open(backup.name) as top:
            return record.identity(backup.name, [top.status(name) for name in chain.mirror_names(top)])

    @contextmanager
    def keeping_record(self) -> Iterator[None]:
        """Keep the record valid although the block changes the number of links of the backups' files."""
        known = self.recorded()
        yield
        if known != NOTHING_KNOWN:
            self.record(known)


@contextmanager
def _opened(path: str, follow: bool) -> Iterator[Directory]:
    """The open destination. Raises Error if somebody else may have led its path to where it is."""
    with open_directory(path, follow=follow) as directory:
        way = resolve(os.path.abspath(path))
        if not way.secure or way.real != directory.path():
            raise Error(
                f"{path}: refused, because it leads to {directory.path()} by a symbolic link that others"
                " can make: name the real path"
            )
        yield directory


@contextmanager
def working_on(
    path: str,
    warn: Callable[[str], None],
    owner: Owner = UNCHANGED,
    wait: timedelta = timedelta(),
    *,
    follow: bool = True,
) -> Iterator[LockedDestination]:
    """Open and lock a destination. Raises Busy if another process holds it for longer than ``wait``.

    ``owner`` gets what is made; ``warn`` is called with what the administrator should know. ``follow``: the
    path may be a symbolic link, if only we can have made it.
    """
    with (
        _opened(path, follow) as directory,
        prefixing_errors(path),
        private_directory(path, directory) as private,
        locked(path, private, wait),
        scratch_directory(directory, private) as scratch,
        room_on(path, scratch),
    ):
        yield LockedDestination(path, directory, private, scratch, owner, warn)
