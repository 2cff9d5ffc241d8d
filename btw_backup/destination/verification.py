"""What is remembered of the last verifications: of a destination, of its off-site copy, by a restore test.

Whoever verifies needs no lock, and may not be able to write. So this is noted where it can be, in the
private directory if that is there and ours, and nowhere else; that it can't be is no failure.
"""

import os
import re
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple, Self

from ..errors import Error
from ..system.directories import Directory
from ..system.files import write_all
from ..times import format_moment, parse_moment
from .lock import PRIVATE, is_private

LOCAL, OFFSITE, RESTORE_TEST = "verified", "verified-offsite", "restored"
_PREPARED = ".new"
# What was verified: every point, only the newest one, only another one; part of the off-site data.
ALL, NEWEST, POINT, PART = "all", "newest", "point", "part"

_LINE = re.compile(rf"(\S+) (\d+) (ok|damaged) ({ALL}|{NEWEST}|{POINT}|{PART})\n")


class Verification(NamedTuple):
    """A verification: when it ended, how many seconds it took, whether all was well, and what it was of."""

    ended: datetime
    seconds: int
    is_ok: bool
    scope: str

    def line(self) -> str:
        """As it is stored."""
        return f"{format_moment(self.ended)} {self.seconds} {self.result} {self.scope}\n"

    @property
    def result(self) -> str:
        return "ok" if self.is_ok else "damaged"

    @classmethod
    def of(cls, line: str) -> Self | None:
        """The inverse of ``line``; None if it is not one."""
        match = _LINE.fullmatch(line)
        ended = match and parse_moment(match[1])
        if not match or ended is None:
            return None
        return cls(ended, int(match[2]), match[3] == "ok", match[4])

    def outdates(self, other: Self | None) -> bool:
        """Whether this is to be remembered instead. What is well in part does not outdate more, or damage."""
        return self.scope == ALL or not self.is_ok or other is None or (other.is_ok and other.scope != ALL)


def last(destination: Directory, name: str = LOCAL) -> Verification | None:
    """Return what is noted; None if nothing is, or if we can't trust or read it."""
    with suppress(OSError, Error), destination.open(PRIVATE) as private:
        if is_private(private, [0, os.geteuid()]):
            return _read(private, name)
    return None


def _read(private: Directory, name: str) -> Verification | None:
    with suppress(FileNotFoundError), private.file(name) as fd:
        return Verification.of(os.read(fd, 200).decode(errors="replace"))
    return None


def note(found: Verification, destination: Directory, name: str = LOCAL) -> None:
    """Note it, in one step, unless what is noted says more, or the private directory is not ours."""
    with suppress(OSError, Error), destination.open(PRIVATE) as private:
        if not is_private(private, [os.geteuid()]) or not found.outdates(_read(private, name)):
            return
        prepared = name + _PREPARED
        private.remove(prepared)  # from a run that was killed
        with private.create(prepared) as fd:
            write_all(fd, found.line().encode())
            os.fsync(fd)
        private.rename(prepared, private, name)
