"""PostgreSQL's programs: dumping and restoring."""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from ..errors import Error
from ..system.confinement import READING
from ..system.files import BLOCK
from . import dumps, process
from .server import Server, wrong_database
from .versions import Version

_MAINTENANCE = "postgres"
_DUPLICATE_OBJECT = "42710"
# Codes below are of successes and warnings (PostgreSQL's appendix A).
_ERRORS = "03"
# Statements as pg_restore writes them, each on a line.
_CREATE = re.compile(rb"CREATE DATABASE .* WITH TEMPLATE = template0 (.*);$")
_SETTING = re.compile(rb"--|SET |SELECT pg_catalog\.set_config|\\restrict |\n")
_COUNT_OBJECTS = rb"""
SELECT (SELECT count(*) FROM pg_catalog.pg_class c
        WHERE c.relnamespace <> ALL (s.system) AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f'))
     + (SELECT count(*) FROM pg_catalog.pg_proc p WHERE p.pronamespace <> ALL (s.system))
     + (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata)
FROM (SELECT array_agg(oid) AS system FROM pg_catalog.pg_namespace
      WHERE nspname = 'information_schema' OR nspname LIKE 'pg\_%') s;
"""

# Of a partitioned table the partitions count; extensions bring their own tables.
_LIST_TABLES = b"""
SELECT pg_catalog.encode(pg_catalog.convert_to(pg_catalog.format('%I.%I', n.nspname, c.relname),
       pg_catalog.pg_client_encoding()), 'hex')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass
                  AND d.objid = c.oid AND d.deptype = 'e');
"""

# -2: dropping it was interrupted (pg_database.h).
_LIST = b"""
SELECT pg_catalog.encode(pg_catalog.namesend(datname), 'hex') FROM pg_catalog.pg_database
WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2;
"""
_ASK_VERSION = b"SELECT pg_catalog.current_setting('server_version_num');"


def dump(
    database: str, server: Server, compression: int, output: int, advance: Callable[[int], None]
) -> None:
    """Write the database in custom format to a regular file, in which pg_dump can seek.

    ``compression`` is 0 for none, up to 9. ``advance`` is told of each number of bytes written. Raises
    Error, with pg_dump's stderr, if it fails.
    """

    def written() -> int:
        return os.fstat(output).st_size

    argv = ["pg_dump", "--format=custom", f"--compress={compression}"]
    server.run(argv, database, stdout=output, meanwhile=_teller(written, advance)).check()
    found = dumps.dumped_database(output)
    if found is None:
        server.confirm(database)
    elif found != database:
        raise wrong_database(database, found)


def _teller(done: Callable[[], int], advance: Callable[[int], None]) -> Callable[[], None]:
    """Return what is to be called now and then, and tells ``advance`` by how much ``done`` has grown."""
    told = 0

    def tell() -> None:
        nonlocal told
        now = max(done(), told)
        advance(now - told)
        told = now

    return tell


def source(database: str | None, server: Server) -> str | None:
    """Name a database, or with None the globals, and its server. None if that does not answer."""
    address = server.address(database or _MAINTENANCE)
    what = "globals" if database is None else f"database {database}"
    return None if address is None else f"{what} of {address}"


def dump_globals(server: Server, output: int) -> None:
    """Write the SQL of roles and tablespaces, uncompressed."""
    server.run(["pg_dumpall", "--globals-only"], None, stdout=output).check()


def read_dump(dump_file: int) -> None:
    """Have pg_restore read a dump to its end. Raises Error if it can't."""
    os.lseek(dump_file, 0, os.SEEK_SET)
    process.run(["pg_restore", "--file=/dev/null"], stdin=dump_file, confined=READING).check()


def list_dump(dump_file: int) -> list[str]:
    """What ``pg_restore --list`` prints of a dump, line by line."""
    os.lseek(dump_file, 0, os.SEEK_SET)
    with tempfile.TemporaryFile() as listed:
        process.run(["pg_restore", "--list"], stdin=dump_file, stdout=listed, confined=READING).check()
        listed.seek(0)
        return listed.read().decode(errors="surrogateescape").splitlines()


def restore(
    database: str,
    dump_file: int,
    server: Server,
    *,
    clean: bool = False,
    jobs: int = 1,
    new: bool = False,
    entries: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Load a dump into a database, in one transaction unless ``jobs`` is more than 1.

    ``clean``: drop what is restored first; ``new``: the caller drops the database if this
    fails; ``entries``: the numbers of those that are restored, in this order, instead of all; ``advance`` is
    told of each number of bytes read, unless jobs read in parallel. Raises Error if it fails, with the
    database as it was; parallel jobs can't be one transaction, so an empty database is emptied again.
    """
    argv = ["pg_restore", "--exit-on-error"]
    if clean:
        argv += ["--clean", "--if-exists"]
    with ExitStack() as stack:
        passed = []
        if entries is not None:
            passed.append(stack.enter_context(_written(entries, server)))
            argv.append(f"--use-list=/proc/self/fd/{passed[0]}")
        if jobs == 1:
            os.lseek(dump_file, 0, os.SEEK_SET)
            argv.append("--single-transaction")
            # They share the offset.
            tell = _teller(lambda: os.lseek(dump_file, 0, os.SEEK_CUR), advance)
            server.run_writing(argv, database, stdin=dump_file, pass_fds=passed, meanwhile=tell).check()
            return
        passed.append(stack.enter_context(_readable(dump_file, server)))
        argv += [f"--jobs={jobs}", f"/proc/self/fd/{passed[-1]}"]
        result = server.run_writing(argv, database, pass_fds=passed)
    if result.status != 0 and not new:
        try:
            _drop_contents(database, dump_file, server)
        except Error as error:
            raise Error(
                result.ending(), f"{database} is not empty any more: {error}", stderr=result.stderr
            ) from error
    result.check()


@contextmanager
def _written(entries: Sequence[int], server: Server) -> Iterator[int]:
    """Yield a file that lists entries of a dump for pg_restore."""
    with tempfile.TemporaryFile() as file:
        file.write(b"".join(b"%d;\n" % number for number in entries))
        file.flush()
        with _readable(file.fileno(), server) as readable:
            yield readable


@contextmanager
def _readable(file: int, server: Server) -> Iterator[int]:
    """Yield the file, or a copy if another account has to open it again by its descriptor."""
    if server.run_as is None or server.run_as.is_ours():
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
    """Yield the SQL that pg_restore makes of a dump."""
    os.lseek(dump_file, 0, os.SEEK_SET)
    with tempfile.TemporaryFile() as script:
        argv = ["pg_restore", *options, "--file=-"]
        process.run(argv, stdin=dump_file, stdout=script, confined=READING).check()
        script.seek(0)
        yield script


def _drop_contents(database: str, dump_file: int, server: Server) -> None:
    """Drop what a dump holds: the statements with which pg_restore --clean begins."""
    with _script(dump_file, "--clean", "--if-exists") as script:
        drops = b"".join(_drops(script))
    server.ask(database, [drops]).check()


def _drops(script: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the statements that drop what a script makes: the first ones after its settings.

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
    """Whether a database holds tables, views, sequences or functions. Raises Error if it is missing."""
    return server.ask(database, [_COUNT_OBJECTS]).check().printed.strip() != "0"


def count_rows(database: str, server: Server) -> tuple[int, int]:
    """Return how many tables a database has, and how many rows are in them: each row is counted."""
    listed = server.ask(database, [_LIST_TABLES]).check().printed.split()
    # A policy must not hide rows from whoever is no superuser: better an error.
    statements = [b"SET row_security = off;"]
    statements += [b"SELECT pg_catalog.count(*) FROM ONLY %b;" % bytes.fromhex(name) for name in listed]
    counts = server.ask(database, statements).check().printed.split()
    return len(listed), sum(map(int, counts))


def databases(server: Server) -> list[str]:
    """Return the names of the databases that allow connections, without templates, sorted."""
    printed = server.ask(_MAINTENANCE, [_LIST]).check().printed
    return sorted(os.fsdecode(bytes.fromhex(line)) for line in printed.split())


def server_version(database: str | None, server: Server) -> Version:
    """Return the server's version. Raises Error if a database, or with None the server, can't be reached."""
    printed = server.ask(database or _MAINTENANCE, [_ASK_VERSION]).check().printed
    return divmod(int(printed), 10_000)


def create_database(database: str, dump_file: int, server: Server) -> None:
    """Create a database with the encoding and locale of the dumped one. Raises Error if it exists."""
    with _script(dump_file, "--create", "--schema-only") as script:
        settings = next((m[1] for line in script if (m := _CREATE.match(line))), b"")
    statement = b"CREATE DATABASE %b WITH TEMPLATE = template0 %b;" % (_identifier(database), settings)
    server.ask(_MAINTENANCE, [statement]).check()


def drop_database(database: str, server: Server) -> None:
    """Drop a database that this run created."""
    statement = b"DROP DATABASE IF EXISTS %b WITH (FORCE);" % _identifier(database)
    server.ask(_MAINTENANCE, [statement]).check()


def _identifier(name: str) -> bytes:
    return b'"%b"' % os.fsencode(name).replace(b'"', b'""')


def replay_globals(packed: int, server: Server) -> None:
    """Run the stored SQL. What exists already is left as it is; other errors raise Error."""
    with dumps.unpacked(packed) as text:
        statements = list(dumps.split_globals(text.read()))
    answer = server.ask(_MAINTENANCE, statements, keep_going=True).check()
    failed = answer.printed.splitlines()
    messages = list(answer.messages())
    reported = ""
    for number in range(len(statements)):
        if failed[number : number + 1] == ["false"]:  # psql's variable ERROR
            continue
        own = [message for message in messages if message.number == number]
        if {message.code for message in own if message.code >= _ERRORS} != {_DUPLICATE_OBJECT}:
            reported += "".join(message.text for message in own)
            reported += "" if own else f"the statement {number + 1} of the globals was not run\n"
    if reported:
        raise Error("some of the globals could not be restored", stderr=reported)
