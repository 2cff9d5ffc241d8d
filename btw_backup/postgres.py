"""Running PostgreSQL's programs, and telling whether two dumps hold the same."""

import bz2
import os
from itertools import zip_longest
from typing import IO, NamedTuple

from . import process
from .errors import Error
from .files import BLOCK, same_content

# The header of pg_dump's custom format (WriteHead in pg_backup_archiver.c): from archive version
# 1.15 on (PostgreSQL 16) the compression is a byte, before it was an integer.
_MAGIC = b"PGDMP"
_KNOWN_VERSIONS = range(12, 17)
_BYTE_COMPRESSION = 15
_TIME_FIELDS = 7


class Server(NamedTuple):
    """How to reach a server: a libpq connection string, and the account that runs the programs."""

    connection: str | None
    run_as: process.Account | None


def dump(database: str, server: Server, output: int) -> None:
    """Write the database in custom format to a regular file, in which pg_dump can seek.

    Raises Error, with what pg_dump said, where it fails.
    """
    _run(["pg_dump", "--format=custom"], server, output, {"PGDATABASE": database})


def dump_globals(server: Server, output: int) -> None:
    """Write the SQL of roles and tablespaces, uncompressed."""
    _run(["pg_dumpall", "--globals-only"], server, output, {})


def _run(argv: list[str], server: Server, output: int, env: dict[str, str]) -> None:
    # The database's name goes by the environment, where a leading dash or an equals sign in it
    # means nothing; libpq takes it when the connection string has no dbname.
    if server.connection is not None:
        argv.append(f"--dbname={server.connection}")
    if server.run_as is not None and os.geteuid() not in (0, server.run_as.uid):
        raise Error(f"RUN_AS: only root can run {argv[0]} as {server.run_as.name}")
    process.run(argv, stdout=output, env=env, account=server.run_as).check()


def dumped_database(dump_file: int) -> str | None:
    """The name of the database that a custom-format dump was made of, None if it can't be told."""
    header = _Header.read(dump_file)
    return header.database if header else None


def same_dump(one: int, other: int) -> bool:
    """Whether two dumps in custom format differ in nothing but the time in their headers."""
    headers = _Header.read(one), _Header.read(other)
    if headers[0] is None or headers[1] is None or headers[0].stable != headers[1].stable:
        return False
    return same_content(one, other, headers[0].size)


class _Header:
    """The start of a dump up to the name of its database."""

    def __init__(self, stable: bytes, size: int, database: str) -> None:
        self.stable = stable  # without the time
        self.size = size
        self.database = database

    @classmethod
    def read(cls, file: int) -> "_Header | None":
        """None where this is no dump, or one of a version that we don't know."""
        data = os.pread(file, 4096, 0)
        if len(data) < 64 or not data.startswith(_MAGIC):
            return None
        major, minor, integer = data[5], data[6], data[8]
        if major != 1 or minor not in _KNOWN_VERSIONS or integer != 4:
            return None
        field = 1 + integer  # a sign and the bytes
        time = 11 + (1 if minor >= _BYTE_COMPRESSION else field)
        name = time + _TIME_FIELDS * field
        length = int.from_bytes(data[name + 1 : name + field], "little")
        end = name + field + length
        if data[name] or end > len(data):
            return None
        database = data[name + field : end].decode(errors="surrogateescape")
        return cls(data[:time] + data[name:end], end, database)


def same_globals(one: int, other: int) -> bool:
    """Whether two bzip2-compressed dumps of globals differ in nothing but their restrict keys."""
    try:
        with _plain(one) as first, _plain(other) as second:
            pairs = zip_longest(_statements(first), _statements(second))
            return all(mine == theirs for mine, theirs in pairs)
    except (OSError, EOFError):  # the older one is damaged
        return False


def _plain(file: int) -> bz2.BZ2File:
    os.lseek(file, 0, os.SEEK_SET)
    return bz2.BZ2File(open(os.dup(file), "rb"))


def _statements(text: IO[bytes]):  # type: ignore[no-untyped-def]
    r"""The lines without \restrict and \unrestrict, whose keys are random."""
    return (line for line in text if not line.startswith((b"\\restrict ", b"\\unrestrict ")))


def compress_globals(plain: int, output: int) -> None:
    """Compress an open file into another with bzip2."""
    os.lseek(plain, 0, os.SEEK_SET)
    with bz2.BZ2File(open(os.dup(output), "wb"), "w") as packed:
        while block := os.read(plain, BLOCK):
            packed.write(block)
