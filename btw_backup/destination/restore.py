"""Where something is restored to: a new or empty directory, marked until all is there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Error, naming
from ..system.files import directory

# Stands in the target until all is restored and checked.
INCOMPLETE = ".btw-backup-restore-incomplete"


@contextmanager
def restoring(target: str) -> Iterator[int]:
    """The open target, made when missing. Raises Error where it is not empty.

    Where the block fails, what it left there stays marked as incomplete, and the Error says so.
    """
    with naming(target):
        os.makedirs(target, mode=0o700, exist_ok=True)
        if os.listdir(target):
            raise Error(f"{target} is not empty: restore into a new or an empty directory")
        with directory(os.path.realpath(target)) as top:
            os.close(os.open(INCOMPLETE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=top))
            try:
                yield top
            except Error as error:
                lines = [*error.lines, f"{target} is incomplete: do not use what is in it"]
                raise Error(*lines, said=error.said) from error
            times = os.fstat(top)
            os.unlink(INCOMPLETE, dir_fd=top)
            os.utime(top, ns=(times.st_atime_ns, times.st_mtime_ns))
            os.fsync(top)
