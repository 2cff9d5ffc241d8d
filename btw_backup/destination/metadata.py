"""What rdiff-backup has recorded about the files of a chain, at each of its points."""

import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..system.directories import Directory
from .chain import METADATA, Unusable, moment, stamped

_RECORD = re.compile(rb"^File (.*)\n((?:  .*\n)*)", re.MULTILINE)
_FILE = re.compile(rb"^  Size (\d{1,18})\n(?:  .*\n){0,9}?  SHA1Digest ([0-9a-f]{40})$", re.MULTILINE)
# A record takes some 200 bytes: this is enough for the parts of a terabyte.
_LIMIT = 1 << 26


class Recorded(NamedTuple):
    """The size of a file in bytes, and its SHA1."""

    size: int
    digest: str


class Metadata:
    """What rdiff-backup recorded about the files at each point, in the open directory ``data``.

    Each method raises Unusable if the metadata are damaged.
    """

    def __init__(self, data: Directory) -> None:
        self._data = data
        self._names = stamped(METADATA, data.names())
        self._stamps = sorted(self._names, key=moment)
        self._read: dict[str, dict[str, Recorded | None]] = {}

    def at(self, stamp: str, name: str) -> Recorded | None:
        """What is recorded about a file at a point; None if it was not there, or that is not known."""
        for newer in self._since(stamp):
            records = self._records(newer)
            if name in records:
                return records[name]
        return None

    def files(self, stamp: str, mirrors: Iterable[str]) -> dict[str, Recorded]:
        """Every file that was there at a point, and what is recorded about it, in the order of names.

        ``mirrors`` are the files that are there now.
        """
        found: dict[str, Recorded | None] = {}
        for newer in self._since(stamp):
            if newer == self._stamps[-1] and found.keys() >= {*mirrors}:
                break  # the newest metadata, which may be damaged, tell nothing more
            found = self._records(newer) | found
        return {name: known for name in sorted(found) if (known := found[name]) is not None}

    def _since(self, stamp: str) -> Iterator[str]:
        """The stamps whose metadata tell what a point was like.

        The metadata of an older point may be only what differs from the next newer ones.
        """
        since = moment(stamp)
        for newer in self._stamps:
            if moment(newer) >= since:
                yield newer
                if ".snapshot" in self._names[newer]:
                    return

    def _records(self, stamp: str) -> dict[str, Recorded | None]:
        if stamp not in self._read:
            self._read[stamp] = _parsed(read(self._data, self._names[stamp]))
        return self._read[stamp]


def _parsed(text: bytes) -> dict[str, Recorded | None]:
    """The records of files in metadata: None for one that was not there."""
    records: dict[str, Recorded | None] = {}
    for record in _RECORD.finditer(text):
        match = _FILE.search(record[2])
        known = Recorded(int(match[1]), match[2].decode()) if match else None
        if match or b"  Type None\n" in record[2]:
            records[os.fsdecode(unquoted(record[1]))] = known
    return records


def quoted(name: bytes) -> bytes:
    """A path as metadata have it."""
    return name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")


def unquoted(path: bytes) -> bytes:
    """A path that metadata have."""
    return re.sub(rb"\\(.)", lambda match: b"\n" if match[1] == b"n" else match[1], path)


def read(data: Directory, name: str) -> bytes:
    """The text of a metadata file. Raises Unusable if it is damaged or far too large."""
    with open(data.open_file(name), "rb") as raw:
        if os.fstat(raw.fileno()).st_size > _LIMIT:
            raise Unusable(f"{name} is damaged: it is too large")
        try:
            text = (gzip.open(raw) if name.endswith(".gz") else raw).read(_LIMIT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise Unusable(f"{name} is damaged: {error}") from error
    if len(text) > _LIMIT:
        raise Unusable(f"{name} is damaged: it is too large")
    return text
