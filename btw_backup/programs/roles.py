"""Roles that a dump needs and a server lacks."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ..errors import Error
from .server import Server, literal

# pg_restore shows the statement that failed, in SQL, below an error in the language of the server.
_STATEMENT = "Command was: "
_NAME = r'("(?:[^"]|"")+"|[^\s";,]+)'
_NAMING = re.compile(
    rf" OWNER TO {_NAME};| FOR ROLE {_NAME} |^(?:GRANT|REVOKE) .* (?:TO|FROM) {_NAME}"
    rf"|^CREATE POLICY .* TO {_NAME}"
)
_MISSING = """
SELECT pg_catalog.encode(pg_catalog.textsend(name), 'hex') FROM pg_catalog.unnest({names}) name
WHERE name NOT IN (SELECT rolname::text FROM pg_catalog.pg_roles);
"""


@contextmanager
def explaining(server: Server) -> Iterator[None]:
    """Have an Error of pg_restore in the block say which role is missing, if that is the reason."""
    try:
        yield
    except Error as error:
        missing: Sequence[str] = ()
        with suppress(Error):  # what failed is more important
            missing = _missing(_named(error.stderr), server)
        if not missing:
            raise
        hint = f'role "{missing[0]}" does not exist: restore the globals first, with db-restore -g'
        raise Error(*error.lines, hint, stderr=error.stderr) from error


def _named(stderr: str) -> list[str]:
    """The roles that the statement which failed names."""
    found = _NAMING.search(stderr.partition(_STATEMENT)[2])
    names = [name for name in (found.groups() if found else ()) if name is not None and name != "PUBLIC"]
    return [name[1:-1].replace('""', '"') if name.startswith('"') else name for name in names]


def _missing(names: Sequence[str], server: Server) -> list[str]:
    """Those roles that the server lacks."""
    if not names:
        return []
    array = ", ".join(literal(os.fsencode(name)) for name in names)
    statement = _MISSING.format(names=f"ARRAY[{array}]::pg_catalog.text[]")
    printed = server.ask("postgres", [statement.encode()]).check().printed
    return [os.fsdecode(bytes.fromhex(line)) for line in printed.split()]
