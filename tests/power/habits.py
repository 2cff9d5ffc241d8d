"""What the kernel may write before it is told to: a power cut finds nothing else on the disk."""

import ctypes
import os
import random
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from .disks import Disk

_libc = ctypes.CDLL(None, use_errno=True)
# sync_file_range(2)
_WRITE_AND_WAIT = 7
# Of so many files one is written.
_YOUNG = 5

Habit = Callable[[Disk, random.Random], None]


def _late(disk: Disk, rng: random.Random) -> None:
    """Nothing, until it is told to."""


def _names_first(disk: Disk, rng: random.Random) -> None:
    """Every name and inode, at once, and no content."""
    disk.commit_names()


def _here_and_there(disk: Disk, rng: random.Random) -> None:
    """Now and then: all names, some other program's file, or a young file, its content or all of it."""
    turn = rng.randrange(5)
    if turn == 0:
        disk.commit_names()
    elif turn == 1:
        disk.sync_bystander()
    elif turn < 4 and (file := rng.choice([None, *_young_files(disk.root)])):
        with suppress(OSError), open(file, "rb", opener=_opener) as opened:  # it may be gone, or a link
            _write_content(opened) if turn == 2 else os.fsync(opened)


def _young_files(root: Path) -> list[Path]:
    """The files that were changed last."""
    found = []
    for path in root.rglob("*"):
        with suppress(OSError):
            if stat.S_ISREG((status := path.lstat()).st_mode):
                found.append((status.st_ctime_ns, path))
    return [path for _, path in sorted(found)[-_YOUNG:]]


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _write_content(file: IO[bytes]) -> None:
    _libc.sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), _WRITE_AND_WAIT)


HABITS: dict[str, Habit] = {
    "late": _late,
    "names-first": _names_first,
    "here-and-there": _here_and_there,
}
