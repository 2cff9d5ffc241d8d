"""What happened: ``log.txt``, for people, and the time of the last success, for programs."""

import os
import stat
from contextlib import suppress
from datetime import UTC, datetime

from ..errors import Error, prefixing_errors
from ..system.directories import Directory
from ..system.files import write_all
from ..system.ownership import Owner
from ..times import format_moment, parse_moment
from .lock import PRIVATE, is_private

LOG = "log.txt"
_SUCCESS = "success"


def note(text: str, path: str, destination: Directory, scratch: Directory, owner: Owner) -> None:
    """Append a line to log.txt in the destination at ``path``. A new log.txt is prepared in ``scratch``."""
    with prefixing_errors(os.path.join(path, LOG)):
        if not destination.holds(LOG):
            with scratch.create(LOG) as new, suppress(FileExistsError):
                os.fchown(new, *owner)
                scratch.publish(LOG, destination)
        with destination.file(LOG, os.O_RDWR | os.O_APPEND) as fd:
            found = os.fstat(fd)
            if found.st_nlink != 1:
                raise Error(f"{os.path.join(path, LOG)} is a hard link: refused")
            torn = found.st_size > 0 and os.pread(fd, 1, found.st_size - 1) != b"\n"
            try:
                write_all(fd, b"\n" * torn + text.encode(errors="surrogateescape") + b"\n")
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, found.st_size)
                raise


def note_success(at: datetime, scratch: Directory, private: Directory) -> None:
    """Remember when a run last succeeded, prepared in ``scratch``."""
    with scratch.create(_SUCCESS) as fd:
        write_all(fd, f"{format_moment(at)}\n".encode())
        os.fsync(fd)
    scratch.rename(_SUCCESS, private)


def last_success(destination: Directory) -> datetime | None:
    """Return when a run last succeeded, whether or not it had something to store; None if unknown.

    A user who can't read the private directory gets the time of the last line in log.txt: a run that
    finds nothing changed writes one.
    """
    with suppress(OSError, Error), destination.open(PRIVATE) as private, private.file(_SUCCESS) as fd:
        if is_private(private, [0, os.geteuid()]):
            return parse_moment(os.read(fd, 100).decode(errors="replace").strip())
    with suppress(OSError):
        found = destination.status(LOG)
        if stat.S_ISREG(found.st_mode) and found.st_size:
            return datetime.fromtimestamp(int(found.st_mtime), UTC)
    return None
