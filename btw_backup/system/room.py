"""Tells which disk is full: a program that fails for lack of room may not say so."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Error, Undecided
from .directories import Directory


class NoRoom(Undecided):
    """A disk is full, and the message names it."""


@contextmanager
def room_on(path: str, directory: Directory) -> Iterator[None]:
    """If the block fails while the disk of ``directory`` is full, raise NoRoom, which names ``path``.

    Use it inside whatever removes what filled the disk: once that is gone, nothing tells.
    """
    try:
        yield
    except NoRoom:
        raise
    except Error as error:
        if directory.is_full() or os.strerror(errno.ENOSPC) in error.stderr:
            raise NoRoom(f"{path}: no space left on this disk ({error})") from error
        raise
