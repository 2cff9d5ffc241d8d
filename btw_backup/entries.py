"""The members of an archive as several commands print them."""

import os
import stat
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from .archive.members import Member
from .times import shown_moment

# tar's type flags: what they are called in JSON, and the type bits of a mode.
_KINDS: Final = {
    b"0": ("file", stat.S_IFREG),
    b"1": ("hardlink", stat.S_IFREG),
    b"2": ("symlink", stat.S_IFLNK),
    b"3": ("chardev", stat.S_IFCHR),
    b"4": ("blockdev", stat.S_IFBLK),
    b"5": ("directory", stat.S_IFDIR),
    b"6": ("fifo", stat.S_IFIFO),
}
_REGULAR = _KINDS[b"0"]
_HARD_LINK, _SYMBOLIC_LINK, _DEVICES = b"1", b"2", (b"3", b"4")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def long_line(member: Member) -> str:
    """A line about a member: mode, owner, size or device, time in UTC, path, and where a link leads."""
    mode = stat.filemode(_KINDS.get(member.kind, _REGULAR)[1] | member.mode)
    if member.kind == _HARD_LINK:
        mode = "h" + mode[1:]
    user, group = (name or str(number) for name, number in zip(member.owner_names, member.owner, strict=True))
    size = "{},{}".format(*member.device) if member.kind in _DEVICES else str(member.size)
    time = when(member.modified)
    return f"{mode} {user + '/' + group:<17} {size:>10} {time} {member.path}{_link(member)}"


def as_object(member: Member) -> dict[str, Any]:
    """The same for JSON: the size in bytes, the time with nanoseconds."""
    about = facts(member.kind, member.mode, member.owner, member.size, member.modified)
    user, group = member.owner_names
    found: dict[str, Any] = {"path": member.path, **about, "user": user, "group": group}
    if member.kind in (_HARD_LINK, _SYMBOLIC_LINK):
        found["link"] = linked(member)
    if member.kind in _DEVICES:
        found["device"] = [*member.device]
    return found


def facts(kind: bytes, mode: int, owner: tuple[int, int], size: int, modified: int) -> dict[str, Any]:
    """What JSON has of every member besides its path."""
    seconds, fraction = divmod(modified, 10**9)
    time = when(modified)
    return {
        "type": _KINDS.get(kind, _REGULAR)[0],
        "mode": f"{mode:04o}",
        "uid": owner[0],
        "gid": owner[1],
        "size": size,
        "modified": f"@{seconds}" if time.startswith("@") else f"{time[:-1]}.{fraction:09}Z",
    }


def linked(member: Member) -> str:
    """Where a link leads; for a hard link, the path of another member."""
    link = member.link
    return os.fsdecode(link.removeprefix(b"./") if member.kind == _HARD_LINK else link)


def when(modified: int) -> str:
    """A time in nanoseconds as UTC; as seconds, after an ``@``, if no calendar has it."""
    seconds = modified // 10**9
    try:
        return shown_moment(_EPOCH + timedelta(seconds=seconds))
    except OverflowError:
        return f"@{seconds}"


def _link(member: Member) -> str:
    if member.kind == _SYMBOLIC_LINK:
        return f" -> {linked(member)}"
    return f" link to {linked(member)}" if member.kind == _HARD_LINK else ""
