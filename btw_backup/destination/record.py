"""What is remembered of the newest backup, so that the next run has less to read."""

import os
from contextlib import suppress
from typing import NamedTuple

from ..system.directories import Directory
from ..system.files import write_all

_NAME = "newest"
_UNKNOWN = "-"


class Record(NamedTuple):
    """What is known of the newest backup: the source's fingerprint, the SHA-256 of its archive.

    Either is None if it is not known.
    """

    fingerprint: str | None
    digest: str | None


NOTHING_KNOWN = Record(None, None)


def read(private: Directory, name: str, newest: int) -> Record:
    """What the private directory has of the newest backup: its name, and its open file."""
    try:
        with private.file(_NAME) as fd:
            fields = os.read(fd, 4096).split(b" ", 2)
    except FileNotFoundError:
        return NOTHING_KNOWN
    if len(fields) != 3 or fields[2] != _identity(name, newest):
        return NOTHING_KNOWN
    known = [None if field == _UNKNOWN else field for field in (fields[0].decode(), fields[1].decode())]
    return Record(*known)


def write(known: Record, run: Directory, private: Directory, name: str, newest: int) -> None:
    """Remember it, prepared in the directory ``run``. If there is no room the next run reads more."""
    line = f"{known.fingerprint or _UNKNOWN} {known.digest or _UNKNOWN} ".encode()
    with suppress(OSError):
        with run.create(_NAME) as fd:
            write_all(fd, line + _identity(name, newest))
        run.rename(_NAME, private)


def _identity(name: str, newest: int) -> bytes:
    # The ctime of a backup's file tells that it is neither replaced nor changed since.
    found = os.fstat(newest)
    return f"{name} {found.st_dev} {found.st_ino} {found.st_size} {found.st_ctime_ns}\n".encode()
