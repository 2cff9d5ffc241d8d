"""Running PostgreSQL's programs, and telling whether two dumps hold the same."""

import bz2
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import IO, Any, NamedTuple

from ..errors import Error
from ..system.files import BLOCK, same_content, write_all
from . import process

# The header of pg_dump's custom format (WriteHead in pg_backup_archiver.c): from archive version
# 1.15 on (PostgreSQL 16) the compression is a byte, before it was an integer. PostgreSQL 17 and 18 write
# 1.16; a newer one is read likewise, if there is a time in the time's place.
_MAGIC = b"PGDMP"
_OLDEST_VERSION, _NEWEST_VERSION = 12, 16
_BYTE_COMPRESSION = 15
_TIME_FIELDS = 7

_MAINTENANCE = "postgres"
_DUPLICATE_OBJECT = "42710"
# Statements as pg_restore writes them, each on a line.
_CREATE = re.compile(rb"CREATE DATABASE .* WITH TEMPLATE = template0 (.*);$")
_SETTING = re.compile(rb"--|SET |SELECT pg_catalog\.set_config|\\restrict |\n")
_COUNT_OBJECTS = r"""
SELECT (SELECT count(*) FROM pg_catalog.pg_class c
        WHERE c.relnamespace <> ALL (s.system) AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f'))
     + (SELECT count(*) FROM pg_catalog.pg_proc p WHERE p.pronamespace <> ALL (s.system))
     + (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata)
FROM (SELECT array_agg(oid) AS system FROM pg_catalog.pg_namespace
      WHERE nspname = 'information_schema' OR nspname LIKE 'pg\_%') s;
"""


class Server(NamedTuple):
    """How to reach a server: a libpq connection string, and the account that runs the programs."""

    connection: str | None
    run_as: process.Account | None


def dump(database: str, server: Server, output: int, advance: Callable[[int], None]) -> None:
    """Write the database in custom format to a regular file, in which pg_dump can seek.

    ``advance`` is told of each number of bytes written. Raises Error, with what pg_dump said, where
    it fails.
    """
    told = 0

    def tell() -> None:
        nonlocal told
        written = os.fstat(output).st_size
        advance(written - told)
        told = written

    settings = {"stdout": output, "meanwhile": tell}
    _run(["pg_dump", "--format=custom"], server, {"PGDATABASE": database}, **settings).check()


def dump_globals(server: Server, output: int) -> None:
    """Write the SQL of roles and tablespaces, uncompressed."""
    _run(["pg_dumpall", "--globals-only"], server, {}, stdout=output).check()


def _run(argv: list[str], server: Server, env: dict[str, str], **settings: Any) -> process.Result:
    # The database's name goes by the environment, where a leading dash or an equals sign in it
    # means nothing; libpq takes it when the connection string has no dbname.
    if server.connection is not None:
        argv.insert(1, f"--dbname={server.connection}")
    elif argv[0] == "pg_restore":  # without a database it would print its script
        argv.insert(1, "--dbname=application_name=btw-backup")
    if server.run_as is not None and os.geteuid() not in (0, server.run_as.uid):
        raise Error(f"RUN_AS: only root can run {argv[0]} as {server.run_as.name}")
    return process.run(argv, env=env, account=server.run_as, **settings)


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
        """None where this is no dump, or one of a version that cannot be read."""
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
        return cls(data[:time] + data[name:end], end, database)


def _is_time(fields: bytes, size: int) -> bool:
    """Whether these are the numbers of a ``struct tm``, each a sign and its bytes."""
    limits = (62, 60, 24, 32, 12, 1000, 2)
    numbers = [int.from_bytes(fields[at + 1 : at + size], "little") for at in range(0, len(fields), size)]
    return all(number < limit for number, limit in zip(numbers, limits, strict=True))


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


def _statements(text: IO[bytes]) -> Iterator[bytes]:
    r"""The lines without \restrict and \unrestrict, whose keys are random."""
    return (line for line in text if not line.startswith((b"\\restrict ", b"\\unrestrict ")))


def compress_globals(plain: int, output: int) -> None:
    """Compress an open file into another with bzip2."""
    os.lseek(plain, 0, os.SEEK_SET)
    compressor = bz2.BZ2Compressor()
    while block := os.read(plain, BLOCK):
        write_all(output, compressor.compress(block))
    write_all(output, compressor.flush())


def read_globals(packed: int) -> None:
    """Raise Error where a compressed dump of globals does not end as pg_dumpall ends it."""
    with _plain(packed) as text:
        if not any(line == b"-- PostgreSQL database cluster dump complete\n" for line in text):
            raise Error("pg_dumpall exited with code: 0, but its dump is not complete")


def read_dump(dump_file: int) -> None:
    """Have pg_restore read a dump to its end. Raises Error where it can't."""
    os.lseek(dump_file, 0, os.SEEK_SET)
    process.run(["pg_restore", "--file=/dev/null"], stdin=dump_file).check()


def restore(
    database: str,
    dump_file: int,
    server: Server,
    *,
    clean: bool = False,
    jobs: int = 1,
    new: bool = False,
) -> None:
    """Load a dump into a database, in one transaction unless ``jobs`` is more than 1.

    ``clean``: drop what the dump holds first; ``new``: the caller drops the database when this
    fails. Raises Error where it fails, with the database as it was; parallel jobs can't be one
    transaction, so an empty database is emptied again.
    """
    argv = ["pg_restore", "--exit-on-error"]
    if clean:
        argv += ["--clean", "--if-exists"]
    if jobs == 1:
        os.lseek(dump_file, 0, os.SEEK_SET)
        _run([*argv, "--single-transaction"], server, {"PGDATABASE": database}, stdin=dump_file).check()
        return
    with _readable(dump_file, server) as file:
        argv += [f"--jobs={jobs}", f"/proc/self/fd/{file}"]
        result = _run(argv, server, {"PGDATABASE": database}, pass_fds=[file])
    if result.status != 0 and not new:
        try:
            _drop_contents(database, dump_file, server)
        except Error as error:
            raise Error(
                result.ending(), f"{database} is not empty any more: {error}", said=result.said
            ) from error
    result.check()


@contextmanager
def _readable(file: int, server: Server) -> Iterator[int]:
    """The file, or where another account is to open it again by its descriptor, a copy for that."""
    if server.run_as is None or server.run_as.uid == os.geteuid():
        yield file
        return
    with tempfile.TemporaryFile() as copied:
        offset = 0
        while sent := os.sendfile(copied.fileno(), file, offset, BLOCK):
            offset += sent
        os.fchown(copied.fileno(), server.run_as.uid, -1)
        yield copied.fileno()


@contextmanager
def _script(dump_file: int, *options: str) -> Iterator[IO[bytes]]:
    """The SQL that pg_restore makes of a dump."""
    os.lseek(dump_file, 0, os.SEEK_SET)
    with tempfile.TemporaryFile() as script:
        process.run(["pg_restore", *options, "--file=-"], stdin=dump_file, stdout=script).check()
        script.seek(0)
        yield script


def _drop_contents(database: str, dump_file: int, server: Server) -> None:
    """Drop what a dump holds: the statements with which pg_restore --clean begins."""
    with _script(dump_file, "--clean", "--if-exists") as script:
        drops = b"".join(_drops(script))
    _query(database, server, drops.decode(errors="surrogateescape"), {}).check()


def _drops(script: Iterable[bytes]) -> Iterator[bytes]:
    """The statements that drop what a script makes: the first ones after its settings.

    A name may hold line breaks. What is made, and its rows, follow below the first ``-- Name:``.
    """
    before, inside = True, False
    for line in script:
        if inside or not _SETTING.match(line):
            yield line
            before, inside = False, not line.endswith(b";\n")
        elif line.startswith((b"-- Name: ", b"-- Data for Name: ")) or (not before and line != b"\n"):
            return


def holds_objects(database: str, server: Server) -> bool:
    """Whether a database holds tables, views, sequences or functions. Raises Error where it is missing."""
    return _query(database, server, _COUNT_OBJECTS, {}).check().printed.strip() != "0"


def check_reachable(database: str | None, server: Server) -> None:
    """Raise Error where a database, or with None the server, can't be reached."""
    _query(database or _MAINTENANCE, server, "SELECT 1;", {}).check()


def create_database(database: str, dump_file: int, server: Server) -> None:
    """Create a database with the encoding and locale of the dumped one. Raises Error where it exists."""
    with _script(dump_file, "--create", "--schema-only") as script:
        settings = next((m[1] for line in script if (m := _CREATE.match(line))), b"")
    statement = f'CREATE DATABASE :"name" WITH TEMPLATE = template0 {settings.decode()};'
    _query(_MAINTENANCE, server, statement, {"name": database}).check()


def drop_database(database: str, server: Server) -> None:
    """Drop a database that this run created."""
    _query(_MAINTENANCE, server, 'DROP DATABASE IF EXISTS :"name" WITH (FORCE);', {"name": database}).check()


def replay_globals(packed: int, server: Server) -> None:
    """Run the stored SQL. What exists already is left as it is; other errors raise Error."""
    with _plain(packed) as text:
        script = b"".join(_statements(text)).decode(errors="surrogateescape")
    result = _query(_MAINTENANCE, server, script, {"ON_ERROR_STOP": "0", "VERBOSITY": "sqlstate"})
    result.check()
    codes = re.findall(r"ERROR:\s+(\S+)", result.said)
    if any(code != _DUPLICATE_OBJECT for code in codes):
        raise Error("some of the globals could not be restored", said=result.said)


class _Answer(NamedTuple):
    """What psql printed, and how it ended."""

    result: process.Result
    printed: str

    def check(self) -> "_Answer":
        self.result.check()
        return self

    @property
    def said(self) -> str:
        return self.result.said


def _query(database: str, server: Server, sql: str, variables: dict[str, str]) -> _Answer:
    """Run SQL by psql; in it ``:"name"`` stands for a variable as an identifier."""
    argv = ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--file=-"]
    for name, value in {"ON_ERROR_STOP": "1", **variables}.items():
        argv.append(f"--set={name}={value}")
    with tempfile.TemporaryFile() as script, tempfile.TemporaryFile() as printed:
        script.write(sql.encode(errors="surrogateescape"))
        script.seek(0)
        result = _run(argv, server, {"PGDATABASE": database}, stdin=script, stdout=printed)
        printed.seek(0)
        return _Answer(result, printed.read().decode(errors="replace"))
