"""The target of a restore: a new or empty directory, marked as incomplete until all is there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import Error, prefixing_errors
from ..system import calls
from ..system.directories import Directory

# This file is in the target until all is restored, checked, and on the disk.
INCOMPLETE = ".btw-backup-restore-incomplete"


@contextmanager
def restoring(target: str, otherwise: str = "") -> Iterator[Directory]:
    """Open the target, or make it. Raises Error if it is not empty; ``otherwise`` then says what else to do.

    If the block fails, the target stays marked as incomplete, and the Error tells so.
    """
    with prefixing_errors(target):
        os.makedirs(target, mode=0o700, exist_ok=True)
        with Directory.at(os.path.realpath(target), follow=False) as top:
            if top.names():
                raise Error(f"{target} is not empty: restore into a new or an empty directory{otherwise}")
            # It stays open, so that no other file can get its inode number.
            with top.create(INCOMPLETE) as marker:
                top.sync()  # btrfs may write a restored file first, if another program syncs it
                try:
                    yield top
                    calls.syncfs(top.fileno())
                except Error as error:
                    lines = [*error.lines, f"{target} is incomplete: do not use what is in it"]
                    raise Error(*lines, stderr=error.stderr) from error
                times = top.status()
                with suppress(FileNotFoundError):
                    # The source may hold a file of that name, which has then replaced the marker.
                    if os.path.samestat(top.status(INCOMPLETE), os.fstat(marker)):
                        top.unlink(INCOMPLETE)
            top.set_times(times)
            top.sync()
        with Directory.at(os.path.dirname(os.path.realpath(target))) as parent:
            parent.sync()
