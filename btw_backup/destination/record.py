"""What is remembered of the newest backup, so that the next run has less to read."""

import os
from contextlib import suppress
from typing import NamedTuple

from ..system.directories import Directory
from ..system.files import write_all

_NAME = "newest"
_UNKNOWN = "-"


class Record(NamedTuple):
    """What is known of the newest backup: the source's fingerprint, the archive's SHA-256, tar's version.

    Each is None if it is not known.
    """

    fingerprint: str | None
    digest: str | None
    tar: str | None


NOTHING_KNOWN = Record(None, None, None)


def read(private: Directory, name: str, file: int) -> Record:
    """What the private directory has of the newest backup: its name, and its open file."""
    try:
        with private.file(_NAME) as fd:
            fields = os.read(fd, 4096).split(b" ", 3)
    except FileNotFoundError:
        return NOTHING_KNOWN
    if len(fields) != 4 or fields[3] != _identity(name, file):
        return NOTHING_KNOWN
    return Record(*(None if field == _UNKNOWN else field for field in map(bytes.decode, fields[:3])))


def write(known: Record, scratch: Directory, private: Directory, name: str, file: int) -> None:
    """Remember it, prepared in the directory ``scratch``. If there is no room the next run reads more."""
    line = "".join(f"{field or _UNKNOWN} " for field in known).encode()
    with suppress(OSError):
        with scratch.create(_NAME) as fd:
            write_all(fd, line + _identity(name, file))
        scratch.rename(_NAME, private)


def _identity(name: str, file: int) -> bytes:
    # The ctime of a backup's file tells that it is neither replaced nor changed since.
    found = os.fstat(file)
    return f"{name} {found.st_dev} {found.st_ino} {found.st_size} {found.st_ctime_ns}\n".encode()
