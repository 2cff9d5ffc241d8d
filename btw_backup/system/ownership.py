"""Who gets the created files: what ``-u`` takes."""

import grp
import os
import pwd
from typing import NamedTuple

from ..errors import Error


class Owner(NamedTuple):
    """User and group by number; -1 leaves one as it is (chown(2))."""

    uid: int = -1
    gid: int = -1

    def owns(self, found: os.stat_result) -> bool:
        """Whether a file of that status belongs to the user that a new one would belong to."""
        uid = os.geteuid() if self.uid == -1 else self.uid
        return found.st_uid == uid and self.gid in (-1, found.st_gid)


UNCHANGED = Owner()


def parse_owner(text: str) -> Owner:
    """Convert what chown(1) takes: ``UID``, ``UID:``, ``UID:GID`` or ``:GID``, names or numbers.

    Raises Error for an unknown user or group, and for an owner that we may not give files to.
    """
    user, colon, group = text.partition(":")
    if not user and not group:
        raise Error(f"not a user or group: {text!r}")
    uid = _user(user) if user else -1
    if group:
        gid = _group(group)
    elif colon:
        gid = _login_group(user, uid)
    else:
        gid = -1
    _check_allowed(text, uid, gid)
    return Owner(uid, gid)


def _user(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return _number(name, f"there is no user {name!r} on this system")


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return _number(name, f"there is no group {name!r} on this system")


def _number(text: str, otherwise: str) -> int:
    # 2**32 - 1 means "leave as it is" to the kernel.
    if text.isascii() and text.isdigit() and int(text) < 2**32 - 1:
        return int(text)
    raise Error(otherwise)


def _login_group(user: str, uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError as error:
        raise Error(f"user {user} has no login group: give a group after the colon") from error


def _check_allowed(text: str, uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        return
    if uid not in (-1, os.geteuid()) or gid not in (-1, os.getegid(), *os.getgroups()):
        raise Error(f"only root can give files to {text}")
