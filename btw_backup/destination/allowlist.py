"""What may be in a chain: only what rdiff-backup 2.0 to 2.2 writes for one of ours.

rdiff-backup reads more spellings of its own names than it writes, and deletes and replaces what its
metadata name. So the owner of a chain could lead root to other files.
"""

import os
import re
import stat

from ..errors import Error
from ..system.directories import Directory
from . import metadata
from .chain import (
    ALWAYS_EMPTY,
    DATA,
    INCREMENT,
    INCREMENTS,
    LOGS,
    MARKER,
    METADATA,
    OTHER_METADATA,
    VERSION,
    check_series,
    is_stamp,
)
from .labels import ARCHIVE, is_part


def check(chain: Directory) -> None:
    """Raise Error unless a chain holds only that."""
    names = chain.names()
    for name in names:
        _check_is(chain, name, stat.S_IFDIR if name == DATA else stat.S_IFREG)
    mirrors = sorted(name for name in names if name != DATA)
    held = check_series(mirrors) if mirrors else None
    with chain.open(DATA) as data:
        for name in data.names():
            _check_data(data, name, held)


def _belongs(name: str, held: str | None) -> bool:
    """Whether a chain that holds this may once have held a file of this name."""
    return name == held or (held == ARCHIVE and is_part(name))


def _check_is(within: Directory, name: str, kind: int) -> None:
    if stat.S_IFMT(within.status(name).st_mode) != kind:
        wanted = "directory" if kind == stat.S_IFDIR else "regular file"
        raise Error(f"{name} is not a {wanted}: refused")


def _check_data(data: Directory, name: str, held: str | None) -> None:
    if name == INCREMENTS:
        _check_is(data, name, stat.S_IFDIR)
        with data.open(INCREMENTS) as increments:
            for entry in increments.names():
                _check_is(increments, entry, stat.S_IFREG)
                match = VERSION.search(entry)
                if not (match and is_stamp(match[1]) and _belongs(entry[: match.start()], held)):
                    raise Error(f"{DATA}/{INCREMENTS}/{entry} does not belong to this chain: refused")
        return
    _check_is(data, name, stat.S_IFREG)
    if _names(METADATA, name) or _names(OTHER_METADATA, name):
        _check_metadata(name, metadata.read(data, name), held)
    elif ALWAYS_EMPTY.fullmatch(name):
        if data.status(name).st_size:
            raise Error(f"{DATA}/{name} is not empty: refused")
    elif not any(_names(pattern, name) for pattern in (MARKER, INCREMENT, LOGS)):
        raise Error(f"{DATA}/{name} does not belong in a chain: refused")


def _names(pattern: re.Pattern[str], name: str) -> bool:
    """Whether a name has this form and its stamp, if any, is a time."""
    match = pattern.fullmatch(name)
    return match is not None and (match.lastindex is None or is_stamp(match[1]))


# Each record of metadata begins with the path that it describes.
_PATH = re.compile(rb"(?:File |# file: )(.*)")
_TYPE = re.compile(rb"  Type (?:dir|reg|None)")
# The fields of regular files and directories. Others would make links, devices, or resource forks.
_FIELDS = (
    rb"  (?:Size|ModTime|Uid|Gid|Permissions|NumHardLinks|Inode|DeviceLoc) -?\d+",
    rb"  SHA1Digest [0-9a-f]{40}",
    rb"  [UG]name .*",
)
_FIELD = re.compile(b"|".join(_FIELDS))


def _check_metadata(name: str, text: bytes, held: str | None) -> None:
    """Raise Error if metadata describe anything but the directory and the chain's files in it."""
    standard = bool(METADATA.fullmatch(name))
    for line in filter(None, text.split(b"\n")):
        if path := _PATH.fullmatch(line):
            name_of_file = metadata.unquoted(path[1])
            is_ours = _belongs(os.fsdecode(name_of_file), held) and metadata.quoted(name_of_file) == path[1]
            if path[1] != b"." and not is_ours:
                raise Error(f"{name} names a file that is not the chain's: refused")
        elif standard and not (_TYPE.fullmatch(line) or _FIELD.fullmatch(line)):
            raise Error(f"{name} describes something other than a file: refused")
