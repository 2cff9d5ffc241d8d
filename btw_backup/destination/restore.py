"""Where something is restored to: a new or empty directory, marked until all is there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import Error, naming
from ..system import calls
from ..system.directories import Directory

# Stands in the target until all is restored, checked, and on the disk.
INCOMPLETE = ".btw-backup-restore-incomplete"


@contextmanager
def restoring(target: str) -> Iterator[Directory]:
    """The open target, made when missing. Raises Error if it is not empty.

    If the block fails, what it left there stays marked as incomplete, and the Error tells so.
    """
    with naming(target):
        os.makedirs(target, mode=0o700, exist_ok=True)
        with Directory.at(os.path.realpath(target), follow=False) as top:
            if top.names():
                raise Error(f"{target} is not empty: restore into a new or an empty directory")
            with top.create(INCOMPLETE) as marker:
                marked = os.fstat(marker).st_ino
            try:
                yield top
                calls.syncfs(top.fileno())
            except Error as error:
                lines = [*error.lines, f"{target} is incomplete: do not use what is in it"]
                raise Error(*lines, said=error.said) from error
            times = top.status()
            with suppress(FileNotFoundError):
                # A source may hold a file of that name, which has then taken the marker's place.
                if top.status(INCOMPLETE).st_ino == marked:
                    top.unlink(INCOMPLETE)
            top.set_times(times)
            top.sync()
        with Directory.at(os.path.dirname(os.path.realpath(target))) as parent:
            parent.sync()
