"""One destination while something writes to it: its lock, its log, and how backups get into it.

Every change is prepared in the private directory ``.btw-backup`` and made visible by one rename,
so nothing that is seen is ever half done, and a killed run leaves nothing to repair.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta

from ..errors import Error, naming, uninterrupted
from ..system.files import (
    closing,
    create,
    directory,
    exists,
    open_regular,
    publish,
    remove,
    room_on,
    temporary_directory,
    write_all,
)
from ..system.ownership import UNCHANGED, Owner
from ..times import format_moment
from . import record
from .catalog import (
    ARCHIVE,
    CHECKSUM,
    ENDING_OF,
    Backup,
    Limits,
    Stored,
    full_backup_due,
    mirror_of,
    open_destination,
    scan,
)
from .lock import UNPAIRED, locked, private_directory, run_directory
from .record import Record
from .sizes import remember_size

LOG = "log.txt"
_PREPARED = "tarball"
_STAGE = "stage"


class Destination:
    """An open destination, locked by this process. Made by ``working_on``.

    ``run`` is the descriptor of a private directory that is empty at the start and goes at the
    end; what is prepared in it can be published.
    """

    def __init__(
        self, path: str, fd: int, private: int, run: int, owner: Owner, warn: Callable[[str], None]
    ) -> None:
        self.warn = warn
        self.path = path
        self.fd = fd
        self.private = private
        self.run = run
        self.owner = owner
        self.backups = scan(fd)

    def next_time(self, clock: Callable[[], float] = time.time) -> datetime:
        """The time of a new point: now, but never that of another. Waits a second where it must.

        ``clock`` gives seconds since the epoch. Raises Error where the newest point is in the future.
        """
        newest = max((backup.newest for backup in self.backups), default=datetime.min.replace(tzinfo=UTC))
        while True:
            at = clock()
            moment = datetime.fromtimestamp(int(at), UTC)
            if newest > moment:
                raise Error(
                    f"the newest point of {self.path} ({format_moment(newest)}) is dated in the future:"
                    " set the clock right, or wait until then"
                )
            if newest < moment and not exists(format_moment(moment), self.fd):
                return moment
            time.sleep(1 - at % 1)

    def latest_chain(self) -> Backup | None:
        """The newest backup where it is a chain that can be added to."""
        newest = self.backups[-1] if self.backups else None
        return newest if newest and newest.is_chain and not newest.interrupted else None

    def check_series(self, mirror: str) -> None:
        """Raise Error where a chain here holds another file than ``mirror``."""
        for backup in self.backups:
            if backup.is_chain and (held := mirror_of(backup, self.fd)) not in (mirror, None):
                raise Error(
                    f"{self.path} holds backups of something else ({backup.name}/{held}):"
                    " use another destination"
                )
        if mirror != ARCHIVE and any(not backup.is_chain for backup in self.backups):
            raise Error(f"{self.path} holds backups of something else (tarballs): use another destination")

    def note(self, text: str) -> None:
        """Append a line to log.txt."""
        with naming(os.path.join(self.path, LOG)):
            if not exists(LOG, self.fd):
                with create(LOG, self.run) as new, suppress(FileExistsError):
                    os.fchown(new, *self.owner)
                    publish(LOG, self.run, LOG, self.fd)
            with closing(open_regular(LOG, self.fd, os.O_RDWR | os.O_APPEND)) as fd:
                found = os.fstat(fd)
                if found.st_nlink != 1:
                    raise Error(f"{os.path.join(self.path, LOG)} is a hard link: refused")
                torn = found.st_size > 0 and os.pread(fd, 1, found.st_size - 1) != b"\n"
                try:
                    write_all(fd, b"\n" * torn + text.encode(errors="surrogateescape") + b"\n")
                    os.fsync(fd)
                except OSError:
                    os.ftruncate(fd, found.st_size)
                    raise

    def note_of_stored(self, text: str) -> None:
        """Append a line about a point that is there: where that fails, it is no failure of the backup."""
        try:
            self.note(text)
        except Error as error:
            self.warn(f"{error}, so this could not be noted: {text}")

    @contextmanager
    def opened(self, backup: Backup, mirror: str) -> Iterator[int]:
        """The file that a backup holds at its newest point: the tarball, or a chain's mirror."""
        with naming(os.path.join(self.path, backup.name)):
            if backup.is_chain:
                with directory(backup.name, self.fd) as top:
                    fd = open_regular(mirror, top)
            else:
                fd = open_regular(backup.name, self.fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def prepared(self) -> AbstractContextManager[int]:
        """A new file in the private directory, for ``add_tarball``."""
        return create(_PREPARED, self.run)

    @contextmanager
    def stage(self) -> Iterator[int]:
        """A private directory to stage a dump in: its descriptor."""
        with temporary_directory(_STAGE, self.run) as stage, room_on(self.path, stage):
            yield stage

    @contextmanager
    def _with_checksum(self, name: str) -> Iterator[bool]:
        """Whether the backup is one that has a checksum beside it.

        Where the block is not ended, the next run removes a checksum whose tarball is not there.
        """
        if not name.endswith(ENDING_OF["none"]):
            yield False
            return
        with create(name + UNPAIRED, self.private):
            yield True
        remove(name + UNPAIRED, self.private)

    def _add_checksum(self, prepared: int, name: str) -> None:
        """Store the SHA256 of a tarball that is about to be published."""
        with open(prepared, "rb", closefd=False) as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with create(CHECKSUM, self.run) as fd:
            write_all(fd, f"{digest}  {name}\n".encode())
            os.fchown(fd, *self.owner)
            os.fsync(fd)
        publish(CHECKSUM, self.run, name + CHECKSUM, self.fd)

    def remove(self, backup: Backup) -> None:
        """Remove a backup: it is there, whole, or gone."""
        with naming(self.path):
            with uninterrupted(), self._with_checksum(backup.name) as has_checksum:
                os.rename(backup.name, backup.name, src_dir_fd=self.fd, dst_dir_fd=self.run)
                if has_checksum:
                    remove(backup.name + CHECKSUM, self.fd)
                os.fsync(self.fd)
            remove(backup.name, self.run)

    def add_tarball(self, prepared: int, name: str, at: datetime, size: int) -> Stored:
        """Publish the file that ``prepared`` gave, under its name. ``size``: when restored, in bytes."""
        with naming(self.path):
            remember_size(prepared, size)
            os.fchown(prepared, *self.owner)
            os.fsync(prepared)
            with uninterrupted(), self._with_checksum(name) as has_checksum:
                if has_checksum:
                    self._add_checksum(prepared, name)
                publish(_PREPARED, self.run, name, self.fd)
                os.fsync(self.fd)
            self.backups = scan(self.fd)
        return Stored("tarball", at, os.fstat(prepared).st_size)

    def recorded(self, newest: int) -> Record | None:
        """What was recorded with the newest backup, ``newest`` being its open file."""
        return record.read(self.private, self.backups[-1].name, newest)

    def record(self, known: Record, newest: int) -> None:
        """Remember what the source was like when the newest backup was equal to it."""
        record.write(known, self.run, self.private, self.backups[-1].name, newest)

    @contextmanager
    def keeping_record(self) -> Iterator[None]:
        """Let the record stay valid although the block changes how many links the backups' files have."""
        newest = self.backups[-1] if self.backups else None
        mirror = mirror_of(newest, self.fd) if newest and newest.is_chain else ""
        if newest is None or mirror is None:
            yield
            return
        with self.opened(newest, mirror) as file:
            known = self.recorded(file)
            yield
            if known is not None:
                self.record(known, file)

    def note_unchanged(self, at: datetime, limits: Limits) -> None:
        """Append the line that says that no point was added to a chain, full or incremental."""
        kind = "full" if full_backup_due(self.latest_chain(), at, limits) else "incremental"
        text = f"no change in the data to be backed up: skipping creation of new {kind} backup"
        self.note(f"{format_moment(at)}: {text}")


@contextmanager
def working_on(
    path: str,
    warn: Callable[[str], None],
    owner: Owner = UNCHANGED,
    wait: timedelta = timedelta(),
) -> Iterator[Destination]:
    """Open and lock a destination. Raises Busy where another process holds it for longer than ``wait``.

    ``warn`` is called with what the administrator should know; ``owner`` gets what is made.
    """
    fd = open_destination(path)
    try:
        with (
            naming(path),
            private_directory(path, fd) as private,
            locked(path, private, wait),
            run_directory(fd, private) as run,
            room_on(path, run),
        ):
            yield Destination(path, fd, private, run, owner, warn)
    finally:
        os.close(fd)
