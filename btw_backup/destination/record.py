"""What is remembered of the newest backup, so that the next run has less to read."""

import os
from contextlib import suppress
from typing import NamedTuple

from ..system.files import create, open_regular, write_all

_NAME = "newest"


class Record(NamedTuple):
    """What is known of the newest backup: the source's fingerprint, the archive's SHA-256, tar's version.

    Each is ``-`` where it is not known.
    """

    fingerprint: str
    digest: str
    tar: str = "-"


def read(private: int, name: str, newest: int) -> Record | None:
    """What the private directory has of the newest backup: its name, and its open file."""
    try:
        fd = open_regular(_NAME, private)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        fields = file.read().split(b" ", 3)
    if len(fields) != 4 or fields[3] != _identity(name, newest):
        return None
    return Record(*(field.decode() for field in fields[:3]))


def write(known: Record, run: int, private: int, name: str, newest: int) -> None:
    """Remember it, prepared in the directory ``run``. Where there is no room the next run reads more."""
    line = f"{known.fingerprint} {known.digest} {known.tar} ".encode() + _identity(name, newest)
    with suppress(OSError):
        with create(_NAME, run) as fd:
            write_all(fd, line)
        os.rename(_NAME, _NAME, src_dir_fd=run, dst_dir_fd=private)


def _identity(name: str, newest: int) -> bytes:
    # The ctime of a backup's file says that it is neither replaced nor changed since.
    found = os.fstat(newest)
    return f"{name} {found.st_dev} {found.st_ino} {found.st_size} {found.st_ctime_ns}\n".encode()
