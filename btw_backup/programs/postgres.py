"""PostgreSQL's programs: dumping and restoring."""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from ..errors import Error
from ..system.confinement import READING, Confinement
from ..system.files import BLOCK
from . import dumps, process
from .environment import OVERRULING, environment

_MAINTENANCE = "postgres"
_DUPLICATE_OBJECT = "42710"
# Names that are longer than the server's are compared as the server cuts them.
_ASK = r"""SELECT pg_catalog.set_config('search_path', '', false) AS path,
       pg_catalog.current_database() AS reached,
       pg_catalog.current_database() OPERATOR(pg_catalog.=) {wanted}::pg_catalog.name AS right
\gset
\if :right
\echo right
\else
\echo wrong :reached
\quit
\endif
"""
# Where the statements follow in psql's input, and how many lines each has when it keeps going.
_FIRST_LINE = _ASK.count("\n") + 1
_LINES = 2
# A message of psql's with VERBOSITY=verbose: its word for ERROR is in the language of the server.
_MESSAGE = re.compile(r"^psql:<stdin>:(\d+): [^:\n]+:\s+(\w{5}): ", re.MULTILINE)
_PLACE = re.compile(r"^LOCATION: .*\n", re.MULTILINE)  # in the server's source
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

    _client(["pg_dump", "--format=custom"], server, database, stdout=output, meanwhile=tell).check()
    found = dumps.dumped_database(output)
    if found is None:
        confirm(database, server)
    elif found != database:
        raise _wrong(database, found)


def dump_globals(server: Server, output: int) -> None:
    """Write the SQL of roles and tablespaces, uncompressed."""
    _client(["pg_dumpall", "--globals-only"], server, None, stdout=output).check()


def confirm(database: str, server: Server) -> None:
    """Raise Error unless the server says that it is this database that it is asked in."""
    _psql(database, server, []).check()


def _writing(argv: list[str], server: Server, database: str, **settings: Any) -> process.Result:
    """Run a program that writes into a database, once the server has said that it is that one.

    Whatever writes passes here, or is a statement for ``_psql``, which asks in the same session.
    """
    confirm(database, server)
    return _client(argv, server, database, **settings)


def _client(argv: list[str], server: Server, database: str | None, **settings: Any) -> process.Result:
    """Run a program with the settings of a connection, which may lead to another database."""
    # The database's name goes by the environment, where a leading dash or an equals sign in it
    # means nothing; libpq takes it when the connection string has no dbname, nor a service.
    env = {} if database is None else {"PGDATABASE": database}
    surroundings = None
    if server.connection is not None:
        argv.insert(1, f"--dbname={server.connection}")
        # Whatever CONNECTION leaves open the environment may tell, but it must not contradict it.
        surroundings = environment(argv[0], without=OVERRULING)
    elif argv[0] == "pg_restore":  # without a database it would print its script
        argv.insert(1, "--dbname=application_name=btw-backup")
    if server.run_as is not None and os.geteuid() not in (0, server.run_as.uid):
        raise Error(f"RUN_AS: only root can run {argv[0]} as {server.run_as.name}")
    return process.run(
        argv,
        surroundings=surroundings,
        env=env,
        account=server.run_as,
        # What these run comes from a dump, and psql's \! is a shell.
        confined=Confinement(network=True) if argv[0] in ("pg_restore", "psql") else None,
        **settings,
    )


def _wrong(database: str, found: str) -> Error:
    return Error(
        f"CONNECTION leads to the database {found} instead of {database}: leave out its dbname,"
        " and that of a service"
    )


def read_dump(dump_file: int) -> None:
    """Have pg_restore read a dump to its end. Raises Error where it can't."""
    os.lseek(dump_file, 0, os.SEEK_SET)
    process.run(["pg_restore", "--file=/dev/null"], stdin=dump_file, confined=READING).check()


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
        _writing([*argv, "--single-transaction"], server, database, stdin=dump_file).check()
        return
    with _readable(dump_file, server) as file:
        argv += [f"--jobs={jobs}", f"/proc/self/fd/{file}"]
        result = _writing(argv, server, database, pass_fds=[file])
    if result.status != 0 and not new:
        try:
            _drop_contents(database, dump_file, server)
        except Error as error:
            raise Error(
                result.ending(), f"{database} is not empty any more: {error}", stderr=result.stderr
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
        argv = ["pg_restore", *options, "--file=-"]
        process.run(argv, stdin=dump_file, stdout=script, confined=READING).check()
        script.seek(0)
        yield script


def _drop_contents(database: str, dump_file: int, server: Server) -> None:
    """Drop what a dump holds: the statements with which pg_restore --clean begins."""
    with _script(dump_file, "--clean", "--if-exists") as script:
        drops = b"".join(_drops(script))
    _psql(database, server, [drops]).check()


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
    return _psql(database, server, [_COUNT_OBJECTS]).check().printed.strip() != "0"


def check_reachable(database: str | None, server: Server) -> None:
    """Raise Error where a database, or with None the server, can't be reached."""
    confirm(database or _MAINTENANCE, server)


def create_database(database: str, dump_file: int, server: Server) -> None:
    """Create a database with the encoding and locale of the dumped one. Raises Error where it exists."""
    with _script(dump_file, "--create", "--schema-only") as script:
        settings = next((m[1] for line in script if (m := _CREATE.match(line))), b"")
    statement = b"CREATE DATABASE %b WITH TEMPLATE = template0 %b;" % (_identifier(database), settings)
    _psql(_MAINTENANCE, server, [statement]).check()


def drop_database(database: str, server: Server) -> None:
    """Drop a database that this run created."""
    statement = b"DROP DATABASE IF EXISTS %b WITH (FORCE);" % _identifier(database)
    _psql(_MAINTENANCE, server, [statement]).check()


def _identifier(name: str) -> bytes:
    return b'"%b"' % os.fsencode(name).replace(b'"', b'""')


def replay_globals(packed: int, server: Server) -> None:
    """Run the stored SQL. What exists already is left as it is; other errors raise Error."""
    with dumps.unpacked(packed) as text:
        statements = list(dumps.split_globals(text.read()))
    answer = _psql(_MAINTENANCE, server, statements, keep_going=True).check()
    failed = answer.printed.splitlines()
    messages = list(_messages(answer.result.stderr))
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


class _Message(NamedTuple):
    """What psql said of a statement: its number, from 0, and the SQLSTATE."""

    number: int
    code: str
    text: str


def _messages(stderr: str) -> Iterator[_Message]:
    found = list(_MESSAGE.finditer(stderr))
    ends = [*(match.start() for match in found[1:]), len(stderr)]
    for match, end in zip(found, ends, strict=True):
        text = _PLACE.sub("", stderr[match.start() : end])
        yield _Message((int(match[1]) - _FIRST_LINE) // _LINES, match[2], text)


class _Answer(NamedTuple):
    """What psql printed, and how it ended."""

    result: process.Result
    printed: str

    def check(self) -> "_Answer":
        self.result.check()
        return self


def _psql(database: str, server: Server, statements: Sequence[bytes], *, keep_going: bool = False) -> _Answer:
    """Send statements to the server, each as it is, once that has said that it is this database.

    psql itself reads none of them: what a dump holds must not be a command of psql's, which root would
    run. ``keep_going``: print for each statement only whether it failed, and go on; what is said then
    has numbers. Raises Error where the database is another one.
    """
    argv = ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--file=-"]
    argv += ["--output=/dev/null", "--set=VERBOSITY=verbose"] if keep_going else ["--set=ON_ERROR_STOP=1"]
    with tempfile.TemporaryFile() as script, tempfile.TemporaryFile() as printed:
        script.write(_ASK.format(wanted=_literal(os.fsencode(database))).encode())
        for statement in statements:
            script.write(f"SELECT {_literal(statement)} \\gexec\n".encode())
            script.write(b"\\echo :ERROR\n" if keep_going else b"")
        script.seek(0)
        result = _client(argv, server, database, stdin=script, stdout=printed)
        printed.seek(0)
        verdict, _, rest = printed.read().decode(errors="surrogateescape").partition("\n")
    if verdict.startswith("wrong "):
        raise _wrong(database, verdict.removeprefix("wrong "))
    if verdict != "right":
        raise Error(result.ending(), stderr=result.stderr)
    return _Answer(result, rest)


def _literal(text: bytes) -> str:
    """An expression of SQL for a text in the client's encoding."""
    return f"pg_catalog.convert_from('\\x{text.hex()}'::pg_catalog.bytea, pg_catalog.pg_client_encoding())"
