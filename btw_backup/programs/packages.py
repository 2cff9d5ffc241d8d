"""Where the programs are, and which package of Debian brings each."""

import shutil

from ..errors import Undecided

# Those that are not named as the program.
_PACKAGES = {
    "bwrap": "bubblewrap",
    "pg_dump": "postgresql-client",
    "pg_dumpall": "postgresql-client",
    "pg_restore": "postgresql-client",
    "psql": "postgresql-client",
    "xz": "xz-utils",
}


def available(program: str) -> bool:
    """Whether the program is on the PATH."""
    return shutil.which(program) is not None


def find(program: str) -> str:
    """Return the program's path. Raises Undecided with the name of its package if it is not installed."""
    path = shutil.which(program)
    if path is None:
        raise Undecided(f"{program} not found: install the package {_PACKAGES.get(program, program)}")
    return path
