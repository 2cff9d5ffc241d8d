"""A chain: a full backup and its incrementals, kept by rdiff-backup in one directory.

What is known of rdiff-backup was found by experiment with version 2.2.2, and holds up to 2.2.7.
"""

import gzip
import os
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from ..errors import Error
from ..programs import process
from ..system.files import directory, open_regular
from ..system.trees import link_tree

DATA = "rdiff-backup-data"
RESTORED = "restored"
_TEMPORARY = "rdiff-backup.tmp."

# The environment could ask 2.2.6 and 2.2.7 for another interface than their usual one: it asks for none.
_OWN_API = {"RDIFF_BACKUP_API_VERSION": "{}"}
# What these two say of remote hosts, at each start.
_PASSING = re.compile(r"^WARNING: Server will be called with deprecated command line.*\n?", re.MULTILINE)

# Below this size a copy costs no more than a link.
LINKABLE = 64 * 1024

_STAMP = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d))"
_INCREMENT = re.compile(rf"increments\.{_STAMP}\.dir")
_MARKER = re.compile(rf"current_mirror\.{_STAMP}\.data")
# What rdiff-backup itself records of a directory with one file.
_METADATA = re.compile(rf"mirror_metadata\.{_STAMP}\.(?:snapshot|diff)(?:\.gz)?")
_FILE = re.compile(rb"^  Size (\d{1,18})\n(?:  .*\n){0,9}?  SHA1Digest ([0-9a-f]{40})$", re.MULTILINE)
_METADATA_LIMIT = 1 << 20


class Unusable(Error):
    """The chain is damaged, or rdiff-backup can't go on with it."""


class State(NamedTuple):
    """What the names under ``rdiff-backup-data`` say.

    ``stamps``: rdiff-backup's own names of the points, oldest first. ``interrupted``: it was
    killed while it added a point, so the mirror may be half of one and half of the other.
    """

    stamps: tuple[str, ...]
    interrupted: bool


def moment(stamp: str) -> datetime:
    """The UTC time of one of rdiff-backup's stamps; they carry an offset where TZ was set."""
    return datetime.fromisoformat(stamp).astimezone(UTC)


def _stamped(pattern: re.Pattern[str], names: list[str]) -> dict[str, str]:
    """The names that match, by their stamps. One whose stamp is no time is not rdiff-backup's."""
    found = {}
    for name in names:
        if match := pattern.fullmatch(name):
            with suppress(ValueError, OverflowError):
                moment(match[1])
                found[match[1]] = name
    return found


def read_state(names: list[str]) -> State:
    """Derive the points from the names in ``rdiff-backup-data``.

    This agrees with ``rdiff-backup list increments`` wherever that is right, without the 0.1 s
    that each start of it takes.
    """
    markers = sorted(_stamped(_MARKER, names), key=moment)
    if not markers:
        return State((), False)
    stamps = {*_stamped(_INCREMENT, names), markers[0]}
    return State(tuple(sorted(stamps, key=moment)), len(markers) > 1)


def mirror_name(chain: int) -> str | None:
    """The name of the one file that the chain backs up, None where there is not just one."""
    # A killed rdiff-backup leaves rdiff-backup.tmp.N.
    names = [name for name in os.listdir(chain) if name != DATA and not name.startswith(_TEMPORARY)]
    return names[0] if len(names) == 1 else None


def open_temporary(chain: int) -> int | None:
    """A descriptor of the file that is to become the mirror, None where rdiff-backup writes none yet."""
    for name in os.listdir(chain):
        if name.startswith(_TEMPORARY):
            with suppress(FileNotFoundError):  # renamed meanwhile
                return open_regular(name, chain)
    return None


class Recorded(NamedTuple):
    """The size of a file in bytes, and its SHA1."""

    size: int
    digest: str


def recorded_digest(chain: int, stamp: str) -> str | None:
    """The SHA1 that rdiff-backup recorded of the file at a point, None where there is none."""
    found = recorded(chain, stamp)
    return None if found is None else found.digest


def recorded(chain: int, stamp: str) -> Recorded | None:
    """What rdiff-backup recorded of the file at a point, None where there is nothing.

    Metadata of older points are differences to the next newer one that says anything of the file.
    """
    with directory(DATA, chain) as data:
        names = _stamped(_METADATA, os.listdir(data))
        for newer in sorted((s for s in names if moment(s) >= moment(stamp)), key=moment):
            if match := _FILE.search(_read_metadata(data, names[newer])):
                return Recorded(int(match[1]), match[2].decode())
    return None


def _read_metadata(data: int, name: str) -> bytes:
    """The text of a metadata file. Raises Unusable where it is damaged or far too large."""
    with open(open_regular(name, data), "rb") as raw:
        try:
            text = (gzip.open(raw) if name.endswith(".gz") else raw).read(_METADATA_LIMIT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise Unusable(f"{name} is damaged: {error}") from error
    if len(text) > _METADATA_LIMIT:
        raise Unusable(f"{name} is damaged: too large for a chain of one file")
    return text


def restore(within: int, name: str, stamp: str, target: int) -> None:
    """Restore a point of the chain ``name`` to a new directory ``restored`` in ``target``.

    rdiff-backup gives status 0 also for damaged content, so compare with ``recorded_digest``.
    """
    # Otherwise it opens a log in the chain, which may lie on a read-only disk.
    argv = ["-v0", "--terminal-verbosity", "2", "restore", "--at", stamp]
    argv += [name, f"/proc/self/fd/{target}/{RESTORED}"]
    with started(argv, within, target) as program:
        ended(program).check()


def verify(within: int, name: str, stamp: str) -> None:
    """Have rdiff-backup compare a point with its recorded digest. Raises Error where it differs."""
    argv = ["rdiff-backup", "-v0", "--terminal-verbosity", "2", "verify", "--at", stamp, name]
    result = process.run(argv, cwd=within, env=_OWN_API)
    if result.status != 0:
        said = _PASSING.sub("", result.said)
        raise Error(f"rdiff-backup cannot verify {name} at {stamp}", said=said)


def repaired_copy(chain: int, within: int, name: str) -> None:
    """Make a copy of an interrupted chain, brought back to its last point, without touching it."""
    os.mkdir(name, 0o700, dir_fd=within)
    with directory(name, within) as copied:
        # All of it: later versions set a file's attributes where it stands, through hard links.
        link_tree(chain, copied, sys.maxsize)
        with directory(DATA, copied) as data:
            check_metadata(data, mirror_name(copied))
            with started(["-v2", "regress", name], within, within) as program:
                result = ended(program)
            if result.status in (0, 2):
                return
            # Killed before it wrote any increment: it finds nothing to do, and does nothing else.
            markers = sorted((m[1], m[0]) for n in os.listdir(data) if (m := _MARKER.fullmatch(n)))
            for _, marker in markers[1:]:
                os.unlink(marker, dir_fd=data)


def mirror_size(chain: int) -> int:
    """The size of the file that the chain backs up, as it is at the newest point, in bytes."""
    name = mirror_name(chain)
    return 0 if name is None else os.lstat(name, dir_fd=chain).st_size


def started(argv: Sequence[str], cwd: int, writable: int, stdin: int = process.DEVNULL) -> process.Program:
    """A running rdiff-backup, with its temporary files in the open directory ``writable``."""
    env = {**_OWN_API, "TMPDIR": f"/proc/self/fd/{writable}"}
    argv = ["rdiff-backup", *argv]
    return process.Program(argv, stdin=stdin, cwd=cwd, pass_fds=[writable], env=env)


def ended(program: process.Program, meanwhile: Callable[[], None] | None = None) -> process.Result:
    """How it ended, with what it said in short; ``meanwhile`` as in ``Program.wait``."""
    result = program.wait(meanwhile)
    # It shows its own tracebacks, as on a full disk: their last line says it all.
    said = _PASSING.sub("", result.said)
    head, traceback, trace = said.partition("Traceback (most recent call last):\n")
    return result._replace(said=head + trace.splitlines()[-1] if traceback else said)


def check_metadata(data: int, name: str | None) -> None:
    """Raise Error where the metadata names another file than the mirror.

    rdiff-backup deletes and replaces what its metadata names, and who owns the chain could have
    written ``../`` there; or still could, in a file that is not ours alone.
    """
    quoted = os.fsencode(name or "").replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    allowed = {b"File .", b"File " + quoted}
    for entry in os.listdir(data):
        if not _METADATA.fullmatch(entry):
            continue
        if os.lstat(entry, dir_fd=data).st_nlink != 1:  # that of one file is too small to be linked
            raise Error(f"{entry} is too large for a chain of one file: refused")
        for line in _read_metadata(data, entry).splitlines():
            if line.startswith((b"File ", b"  Alternate")) and line not in allowed:
                raise Error(f"{entry} names another file than the chain's: refused")
