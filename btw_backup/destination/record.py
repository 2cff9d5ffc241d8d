"""What is remembered of the newest backup, so that the next run has less to read."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ..archive.parts import Part, Start
from ..system.directories import Directory
from ..system.files import write_all

_NAME = "newest"
_UNKNOWN = "-"


class Record(NamedTuple):
    """What is known of the newest backup: the source's fingerprint, the archive's SHA-256, tar's version.

    Each is None if it is not known. ``parts`` are those of a chain's archive.
    """

    fingerprint: str | None
    digest: str | None
    tar: str | None
    parts: Sequence[Part] = ()


NOTHING_KNOWN = Record(None, None, None)


def identity(name: str, files: Sequence[os.stat_result]) -> str:
    """What identifies the newest backup as it is now, by its name and what lstat(2) returns of its files."""
    # The ctime of a file tells that it is neither replaced nor changed since.
    about = [f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_ctime_ns}" for found in files]
    return hashlib.sha256("\n".join([name, *about]).encode()).hexdigest()


def read(private: Directory, of: str) -> Record:
    """What the private directory has of the newest backup, whose ``identity`` is given."""
    try:
        with private.file(_NAME) as fd, open(fd, "rb", closefd=False) as file:
            digest, _, text = file.read().partition(b"\n")
    except FileNotFoundError:
        return NOTHING_KNOWN
    if digest.decode(errors="replace") != hashlib.sha256(text).hexdigest():  # after a power cut, say
        return NOTHING_KNOWN
    first, *others = text.decode().splitlines()
    fields = first.split(" ")
    if fields[0] != of:
        return NOTHING_KNOWN
    fingerprint, archive, tar = (None if field == _UNKNOWN else field for field in fields[1:])
    return Record(fingerprint, archive, tar, [_part(line) for line in others])


def write(known: Record, scratch: Directory, private: Directory, of: str) -> None:
    """Remember it, prepared in the directory ``scratch``. If there is no room the next run reads more."""
    fields = [of, *(field or _UNKNOWN for field in known[:3])]
    text = "\n".join([" ".join(fields), *map(_line, known.parts), ""]).encode()
    with suppress(OSError):
        with scratch.create(_NAME) as fd:
            write_all(fd, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        scratch.rename(_NAME, private)


def _line(part: Part) -> str:
    start = part.start
    return f"{part.name} {part.size} {start.cut} {start.left} {quote_from_bytes(start.name)}"


def _part(line: str) -> Part:
    name, size, cut, left, member = line.split(" ")
    return Part(name, int(size), Start(unquote_to_bytes(member), int(cut), int(left)))
