"""The versions of the programs that we run: which ones will do, and which ones have been tried."""

import re
from functools import cache
from typing import NamedTuple

from . import process

Version = tuple[int, ...]


class Known(NamedTuple):
    """The oldest version that will do, and the oldest and the newest that the tests have been run with."""

    needed: Version
    oldest: Version
    newest: Version


KNOWN = {
    # --sort came with 1.28.
    "tar": Known((1, 28), (1, 34), (1, 35)),
    # Its command line is that of 2.2 and newer.
    "rdiff-backup": Known((2, 2), (2, 2, 2), (2, 2, 7)),
    # --json and --parent are used as this version has them.
    "restic": Known((0, 14), (0, 14), (0, 19)),
    # pg_restore needs to be told where to write since 12.
    "pg_dump": Known((12,), (15,), (18,)),
}


@cache
def version(program: str) -> Version:
    """The program's version, () where it can't be told. It is asked once in a run at most.

    Raises Error where there is no such program.
    """
    said = process.output([program, "version" if program == "restic" else "--version"])
    found = re.search(r"\d+(?:\.\d+)*", said.partition("\n")[0])
    return tuple(map(int, found[0].split("."))) if found else ()


def shown(version: Version) -> str:
    """As people write it."""
    return ".".join(map(str, version))
