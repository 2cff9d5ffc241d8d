"""What a destination is bound to: the source whose backups it holds, noted there when a run succeeds.

A source is named in words: the path of a file hierarchy, a database and its server. The owner of the
destination can forge the note, so it is only ever shown, and compared.
"""

import hashlib
import os
from contextlib import suppress

from ..errors import Error
from ..system.directories import Directory
from . import chain
from .labels import ARCHIVE
from .reader import Destination

TYPE_CHECKING = False  # what only reads does not wait for what writes
if TYPE_CHECKING:
    from .writer import LockedDestination

NOTE = "source.txt"
# No path is longer than 4096 bytes (limits.h), and a digest follows.
_LONGEST = 8192


def read(directory: Directory) -> str | None:
    """Return the source that is noted in a destination; None if none is, or the note is damaged."""
    with suppress(OSError, Error), directory.file(NOTE) as fd:
        content = os.read(fd, _LONGEST)
        name, _, digest = content.removesuffix(b"\n").rpartition(b"\n")
        if name and digest == _digest(name):
            return os.fsdecode(name)
    return None


def _digest(name: bytes) -> bytes:
    return hashlib.sha256(name).hexdigest().encode()


def check(destination: Destination, source: str | None, *, adopt: bool) -> None:
    """Raise Error if the backups are of another source, unless ``adopt`` is set; None is any source."""
    bound = read(destination.directory)
    is_empty = not destination.backups and not destination.broken
    if adopt or is_empty or source is None or bound in (None, source):
        return
    command = "fs" if source.startswith("/") else "db"
    raise Error(
        f"{destination.path} holds backups of {bound}, not of {source}: use another destination,"
        f" or {command} --adopt if the source has moved"
    )


def check_series(destination: "LockedDestination", mirror: str) -> None:
    """Raise Error if a chain holds another file than ``mirror``: no source can adopt that."""
    bound = read(destination.directory) or "something else"
    for backup in destination.backups:
        if backup.is_chain and (held := chain.series(destination.mirrors(backup))) not in (mirror, None):
            raise Error(
                f"{destination.path} holds backups of {bound} ({backup.name}/{held}), not {mirror}:"
                " use another destination"
            )
    if mirror != ARCHIVE and any(not backup.is_chain for backup in destination.backups):
        raise Error(
            f"{destination.path} holds backups of {bound} (tarballs), not {mirror}: use another destination"
        )


def bind(destination: "LockedDestination", source: str | None) -> None:
    """Note the source, if it is known, once a run has succeeded."""
    if source is not None:
        name = os.fsencode(source)
        destination.keep(NOTE, name + b"\n" + _digest(name) + b"\n")
