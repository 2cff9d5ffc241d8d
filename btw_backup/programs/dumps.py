"""What PostgreSQL's programs write: dumps in custom format, and the globals, as SQL."""

import bz2
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import Error
from ..system.files import BLOCK, same_content, write_all

# The header of pg_dump's custom format (WriteHead in pg_backup_archiver.c): from archive version
# 1.15 on (PostgreSQL 16) the compression is a byte; before, it was an integer. PostgreSQL 17 and 18 write
# 1.16; a newer version is read the same way if there is a time in the expected place.
_MAGIC = b"PGDMP"
_OLDEST_VERSION, _NEWEST_VERSION = 12, 16
_BYTE_COMPRESSION = 15
_TIME_FIELDS = 7

# A statement of the globals, and what is skipped before it. An unfinished statement counts as one.
_STATEMENT = re.compile(
    rb"""(?:\s|--[^\n]*+|^\\(?:un)?restrict\ \w+$)*+
    (?P<text>(?:[eE]'(?:[^'\\]|\\.|\'\')*+'|'[^']*+'|"[^"]*+"|--[^\n]*+|[^;'"])*+(?:;|.*))""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_CREATED = re.compile(rb'CREATE (ROLE|TABLESPACE) ("(?:[^"]|"")*+"|[^\s;]+)')
# Only before the first statement and after the last: elsewhere such a line may be part of a name.
_KEYS = re.compile(
    rb"\A((?:\s|--[^\n]*+)*+)\\restrict \w+\n|^\\unrestrict \w+\n(?=(?:\s|--[^\n]*+)*+\Z)", re.MULTILINE
)


def dumped_database(dump_file: int) -> str | None:
    """Return the name of the database that a custom-format dump was made from; None if unknown."""
    header = _Header.read(dump_file)
    return header.database if header else None


def is_compressed(dump_file: int) -> bool | None:
    """Whether the data of a dump in custom format is compressed; None if unknown."""
    header = _Header.read(dump_file)
    return header.is_compressed if header else None


class ContentsStart(NamedTuple):
    """Where the table of contents of a dump begins, and how it is written.

    ``version`` is the archive's, 14 for 1.14; ``offset_size`` the number of bytes of an offset.
    """

    offset: int
    version: int
    offset_size: int


def contents_start(dump_file: int) -> ContentsStart | None:
    """Find the table of contents of a dump in custom format; None if its version is unknown."""
    header = _Header.read(dump_file)
    if header is None:
        return None
    _, version, _, _, offset_size = os.pread(dump_file, 5, len(_MAGIC))
    return ContentsStart(header.size, version, offset_size)


def same_dump(one: int, other: int) -> bool:
    """Whether two dumps in custom format differ only in the time in their headers."""
    headers = _Header.read(one), _Header.read(other)
    if headers[0] is None or headers[1] is None or headers[0].stable != headers[1].stable:
        return False
    return same_content(one, other, headers[0].size)


class _Header:
    """The start of a dump up to the name of its database."""

    def __init__(self, stable: bytes, size: int, database: str, is_compressed: bool) -> None:
        self.stable = stable  # without the time
        self.size = size
        self.database = database
        self.is_compressed = is_compressed

    @classmethod
    def read(cls, file: int) -> "_Header | None":
        """Read the header. Returns None if this is no dump, or one of an unknown version."""
        data = os.pread(file, 4096, 0)
        if len(data) < 64 or not data.startswith(_MAGIC):
            return None
        major, minor, integer = data[5], data[6], data[8]
        if major != 1 or minor < _OLDEST_VERSION or integer != 4:
            return None
        field = 1 + integer  # a sign and the bytes
        time = 11 + (1 if minor >= _BYTE_COMPRESSION else field)
        name = time + _TIME_FIELDS * field
        length = int.from_bytes(data[name + 1 : name + field], "little")
        end = name + field + length
        if data[name] or end > len(data):
            return None
        if minor > _NEWEST_VERSION and not _is_time(data[time:name], field):
            return None
        database = data[name + field : end].decode(errors="surrogateescape")
        return cls(data[:time] + data[name:end], end, database, any(data[11:time]))


def _is_time(fields: bytes, size: int) -> bool:
    """Whether these are the numbers of a ``struct tm``, each a sign and its bytes."""
    limits = (62, 60, 24, 32, 12, 1000, 2)
    numbers = [int.from_bytes(fields[at + 1 : at + size], "little") for at in range(0, len(fields), size)]
    return all(number < limit for number, limit in zip(numbers, limits, strict=True))


def same_globals(one: int, other: int) -> bool:
    """Whether two bzip2-compressed dumps of globals differ only in their restrict keys."""
    try:
        with unpacked(one) as first, unpacked(other) as second:
            return _KEYS.sub(rb"\1", first.read()) == _KEYS.sub(rb"\1", second.read())
    except (OSError, EOFError):  # the older one is damaged
        return False


def unpacked(file: int) -> bz2.BZ2File:
    """The plain text of an open dump of globals."""
    os.lseek(file, 0, os.SEEK_SET)
    return bz2.BZ2File(open(os.dup(file), "rb"))


def compress_globals(plain: int, output: int) -> None:
    """Compress an open file into another with bzip2."""
    os.lseek(plain, 0, os.SEEK_SET)
    compressor = bz2.BZ2Compressor()
    while block := os.read(plain, BLOCK):
        write_all(output, compressor.compress(block))
    write_all(output, compressor.flush())


def read_globals(packed: int) -> None:
    """Raise Error if a compressed dump of globals lacks the last line that pg_dumpall writes."""
    with unpacked(packed) as text:
        if not any(line == b"-- PostgreSQL database cluster dump complete\n" for line in text):
            raise Error("pg_dumpall exited with code: 0, but its dump is not complete")


def list_globals(packed: int) -> list[str]:
    """The roles and tablespaces in a compressed dump of globals: ``role NAME`` or ``tablespace NAME``."""
    with unpacked(packed) as text:
        matches = [match for sql in split_globals(text.read()) if (match := _CREATED.match(sql))]
    found = []
    for match in matches:
        name = match[2][1:-1].replace(b'""', b'"') if match[2].startswith(b'"') else match[2]
        found.append(f"{os.fsdecode(match[1].lower())} {os.fsdecode(name)}")
    return found


def split_globals(sql: bytes) -> Iterator[bytes]:
    r"""The statements of a dump of globals, without psql's own commands: \restrict and \unrestrict."""
    position = 0
    while (statement := _STATEMENT.match(sql, position)) and statement["text"]:
        yield statement["text"]
        position = statement.end()
