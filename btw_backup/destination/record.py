"""What is remembered of the newest backup, so that the next run has less to read."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from ..archive.parts import Part, Start
from ..system.directories import Directory
from ..system.files import write_all

_NAME = "newest"
_UNKNOWN = "-"
_FORMAT = "2"  # of what is remembered: nothing is known from another


class Stretch(NamedTuple):
    """Members that follow one another in the archive, from the one with the order ``start`` on.

    ``digest`` is of their inodes, None if it would not reveal every later change.
    """

    start: bytes
    digest: str | None


class Record(NamedTuple):
    """What is known of the newest backup: the options of its walk, the archive's SHA-256, tar's version.

    Each is None if it is not known. ``parts`` are those of a chain's archive, ``stretches`` those of the
    walk.
    """

    options: str | None
    digest: str | None
    tar: str | None
    parts: Sequence[Part] = ()
    stretches: Sequence[Stretch] = ()


NOTHING_KNOWN = Record(None, None, None)


def identity(name: str, files: Sequence[os.stat_result]) -> str:
    """What identifies the newest backup as it is now, by its name and what lstat(2) returns of its files."""
    # The ctime of a file tells that it is neither replaced nor changed since.
    about = [f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_ctime_ns}" for found in files]
    return hashlib.sha256("\n".join([_FORMAT, name, *about]).encode()).hexdigest()


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
    options, archive, tar = (None if field == _UNKNOWN else field for field in fields[1:4])
    parts, stretches = others[: int(fields[4])], others[int(fields[4]) :]
    return Record(options, archive, tar, [*map(_part, parts)], [*map(_stretch, stretches)])


def write(known: Record, scratch: Directory, private: Directory, of: str) -> None:
    """Remember it, prepared in the directory ``scratch``. If there is no room the next run reads more."""
    fields = [of, *(field or _UNKNOWN for field in known[:3]), str(len(known.parts))]
    stretches = [f"{stretch.digest or _UNKNOWN} {stretch.start.hex()}" for stretch in known.stretches]
    text = "\n".join([" ".join(fields), *map(_line, known.parts), *stretches, ""]).encode()
    with suppress(OSError):
        with scratch.create(_NAME) as fd:
            write_all(fd, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        scratch.rename(_NAME, private)


def _line(part: Part) -> str:
    start = part.start
    path = _UNKNOWN if start.path is None else start.path.hex()
    return f"{part.name} {part.size} {start.cut} {start.left} {path} {start.name.hex()}"


def _part(line: str) -> Part:
    name, size, cut, left, path, member = line.split(" ")
    known = None if path == _UNKNOWN else bytes.fromhex(path)
    return Part(name, int(size), Start(bytes.fromhex(member), int(cut), int(left), known))


def _stretch(line: str) -> Stretch:
    digest, start = line.split(" ")
    return Stretch(bytes.fromhex(start), None if digest == _UNKNOWN else digest)
