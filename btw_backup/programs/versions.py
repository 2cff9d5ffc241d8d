"""The versions of the programs that we run: which ones are new enough, and which ones are tested."""

import re
from functools import cache
from typing import NamedTuple

from . import process

Version = tuple[int, ...]


class Known(NamedTuple):
    """The oldest version that works, and the oldest and the newest that the tests have run with."""

    needed: Version
    oldest_tested: Version
    newest_tested: Version


KNOWN = {
    # --sort came with 1.28.
    "tar": Known((1, 28), (1, 34), (1, 35)),
    # The command line is that of 2.2 and newer.
    "rdiff-backup": Known((2, 2), (2, 2, 2), (2, 2, 7)),
    # --json and --parent work like this since 0.14.
    "restic": Known((0, 14), (0, 14), (0, 19)),
    # Since 12, pg_restore must be told where to write.
    "pg_dump": Known((12,), (15,), (18,)),
}


@cache
def version(program: str) -> Version:
    """Return the program's version, () if unknown. A run asks each program only once.

    Raises Error if there is no such program.
    """
    printed = process.output([program, "version" if program == "restic" else "--version"])
    found = re.search(r"\d+(?:\.\d+)*", printed.partition("\n")[0])
    return tuple(map(int, found[0].split("."))) if found else ()


def shown(version: Version) -> str:
    """Return a version as people write it."""
    return ".".join(map(str, version))
