"""A PostgreSQL server: how programs reach it, and what it answers to psql."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from ..errors import Error
from ..system.confinement import Confinement
from . import process
from .account import Account
from .environment import OVERRULING, environment

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
# What a server that speaks English answers to a user of the system who is not one of its roles.
_NO_ROLE = re.compile(r'FATAL: +(role "[^"\n]*" does not exist|Peer authentication failed for user)')
_PLACE = re.compile(r"^LOCATION: .*\n", re.MULTILINE)  # in the server's source


class Message(NamedTuple):
    """What psql reported about a statement: its number, from 0, and the SQLSTATE."""

    number: int
    code: str
    text: str


class Answer(NamedTuple):
    """What psql printed, and how it ended."""

    result: process.Result
    printed: str

    def check(self) -> Self:
        """Return self. Raises Error if psql failed."""
        self.result.check()
        return self

    def messages(self) -> Iterator[Message]:
        """Yield the messages about the statements; psql kept going."""
        stderr = self.result.stderr
        found = list(_MESSAGE.finditer(stderr))
        ends = [*(match.start() for match in found[1:]), len(stderr)]
        for match, end in zip(found, ends, strict=True):
            text = _PLACE.sub("", stderr[match.start() : end])
            yield Message((int(match[1]) - _FIRST_LINE) // _LINES, match[2], text)


class Server(NamedTuple):
    """How to reach a server: a libpq connection string, and the account that runs the programs.

    ``file`` is the configuration file that says so, or can.
    """

    connection: str | None
    run_as: Account | None
    file: str

    def run(self, argv: list[str], database: str | None, **settings: Any) -> process.Result:
        """Run a program with the settings of the connection, which may lead to another database.

        Raises Error, with the way out, if the server does not know who runs it.
        """
        # The database's name goes by the environment, where a leading dash or an equals sign in it
        # means nothing; libpq takes it when the connection string has no dbname, nor a service.
        env = {} if database is None else {"PGDATABASE": database}
        surroundings = None
        if self.connection is not None:
            argv.insert(1, f"--dbname={self.connection}")
            # Whatever CONNECTION leaves open the environment may tell, but it must not contradict it.
            surroundings = environment(argv[0], without=OVERRULING)
        elif argv[0] == "pg_restore":  # without a database it would print its script
            argv.insert(1, "--dbname=application_name=btw-backup")
        if self.run_as is not None and os.geteuid() not in (0, self.run_as.uid):
            raise Error(f"RUN_AS: only root can run {argv[0]} as {self.run_as.name}")
        result = process.run(
            argv,
            surroundings=surroundings,
            env=env,
            account=self.run_as,
            # What these run comes from a dump, and psql's \! is a shell.
            confined=Confinement(network=True) if argv[0] in ("pg_restore", "psql") else None,
            **settings,
        )
        if result.status != 0 and self.run_as is None and _NO_ROLE.search(result.stderr):
            way_out = f'set RUN_AS = "postgres" in {self.file}, or CONNECTION if it is on another server'
            raise Error(result.ending(), way_out, stderr=result.stderr)
        return result

    def address(self, database: str) -> str | None:
        """Return ``host:port`` or ``directory:port``, as libpq has them; None if the server does not answer.

        They outlast an upgrade of PostgreSQL: pg_upgradecluster gives the new cluster the port of the old
        one, while the system identifier changes.
        """
        argv = ["psql", "--no-psqlrc", "--no-password", r"--command=\echo :HOST :PORT"]
        with tempfile.TemporaryFile() as printed:
            try:
                self.run(argv, database, stdout=printed).check()
            except Error:  # whatever is wrong, the program that dumps says it
                return None
            printed.seek(0)
            text = printed.read().decode(errors="surrogateescape")
        host, _, port = text.rstrip("\n").rpartition(" ")
        return f"{os.path.realpath(host) if host.startswith('/') else host}:{port}"

    def run_writing(self, argv: list[str], database: str, **settings: Any) -> process.Result:
        """Run a program that writes into a database, once the server has confirmed that it is that one.

        Whatever writes passes here, or is a statement for ``ask``, which confirms it in the same session.
        """
        self.confirm(database)
        return self.run(argv, database, **settings)

    def confirm(self, database: str) -> None:
        """Raise Error unless the connection leads to this database."""
        self.ask(database, []).check()

    def ask(self, database: str, statements: Sequence[bytes], *, keep_going: bool = False) -> Answer:
        """Send statements to the server, each as it is, once it has confirmed that it is this database.

        psql itself reads none of them: what a dump holds must not be a command of psql's, which root would
        run. ``keep_going``: print for each statement only whether it failed, and go on; then the answer has
        numbered messages. Raises Error if the database is another one.
        """
        argv = ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--file=-"]
        argv += ["--output=/dev/null", "--set=VERBOSITY=verbose"] if keep_going else ["--set=ON_ERROR_STOP=1"]
        with tempfile.TemporaryFile() as script, tempfile.TemporaryFile() as printed:
            script.write(_ASK.format(wanted=literal(os.fsencode(database))).encode())
            for statement in statements:
                script.write(f"SELECT {literal(statement)} \\gexec\n".encode())
                script.write(b"\\echo :ERROR\n" if keep_going else b"")
            script.seek(0)
            result = self.run(argv, database, stdin=script, stdout=printed)
            printed.seek(0)
            verdict, _, rest = printed.read().decode(errors="surrogateescape").partition("\n")
        if verdict.startswith("wrong "):
            raise wrong_database(database, verdict.removeprefix("wrong "))
        if verdict != "right":
            raise Error(result.ending(), stderr=result.stderr)
        return Answer(result, rest)


def wrong_database(database: str, found: str) -> Error:
    """Return the error for a connection that leads to another database."""
    return Error(
        f"CONNECTION leads to the database {found} instead of {database}: leave out its dbname,"
        " and that of a service"
    )


def literal(text: bytes) -> str:
    """Return an expression of SQL for a text in the client's encoding."""
    return f"pg_catalog.convert_from('\\x{text.hex()}'::pg_catalog.bytea, pg_catalog.pg_client_encoding())"
