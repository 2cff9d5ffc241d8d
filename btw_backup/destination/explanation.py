"""``RESTORE.txt``: what a destination says of itself to whoever has it, but not this program."""

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..errors import Error
from ..messages import one_line
from ..times import shown_moment
from . import binding, chain
from .catalog import GLOBALS, Backup
from .labels import ARCHIVE
from .writer import LockedDestination

NAME = "RESTORE.txt"
_TAR = "tar --numeric-owner --acls --xattrs --xattrs-include='*' -C /root/restored"
_MAKE = "mkdir -m 700 /root/restored"


class Example(NamedTuple):
    """A backup, as an example of its kind. ``mirror``: what ``chain.series`` returns, None for a tarball."""

    backup: Backup
    mirror: str | None


def explain(destination: LockedDestination) -> None:
    """Write it if what it has to say has changed. If that fails, warn: the backup counts."""
    try:
        examples = [_example(destination, backup) for backup in _newest_of_each_kind(destination.backups)]
    except Error as error:
        destination.warn(str(error))
        return
    source = binding.read(destination.directory)
    content = os.fsencode(text(source, os.uname().nodename, examples))
    destination.keep(NAME, content)


def _newest_of_each_kind(backups: Sequence[Backup]) -> list[Backup]:
    return list({backup.is_chain: backup for backup in backups}.values())


def _example(destination: LockedDestination, backup: Backup) -> Example:
    return Example(backup, chain.series(destination.mirrors(backup)) if backup.is_chain else None)


def text(source: str | None, host: str, examples: Sequence[Example]) -> str:
    """Return the text, with commands for a shell in the directory."""
    lines = [
        f"Backups of {one_line(source or 'an unknown source')}, made by btw-backup on {host}.",
        "A backup's name is its time in UTC. Where there is btw-backup, `btw-backup list -l .` tells more.",
        "Without it, as root in this directory (psql and pg_restore may need -h and -U to reach the server):",
    ]
    for example in examples:
        lines += ["", *_lines(example)]
    return "\n".join([*lines, ""])


def _lines(example: Example) -> Iterator[str]:
    backup, mirror = example
    if mirror is None:
        yield "A tarball, such as the newest:"
        yield from _commands(_MAKE, f"{_TAR} --force-local -xpf {backup.name}")
        return
    yield "A directory is a chain of a full backup and incrementals. The newest point of the newest chain:"
    yield from _commands(*_loading(backup.name, mirror))
    if len(backup.points) == 1:
        return
    yield "An older point, here the oldest one of that chain; the first command lists them all:"
    oldest = shown_moment(backup.points[0].time)
    yield from _commands(
        f"rdiff-backup list increments {backup.name}",
        f"rdiff-backup restore --at {oldest} {backup.name} /root/older",
        *_loading("/root/older", mirror),
    )


def _loading(directory: str, mirror: str) -> tuple[str, ...]:
    """The commands that load the files of a point."""
    if mirror == ARCHIVE:
        return _MAKE, f"cat {directory}/{ARCHIVE}* | {_TAR} -xp"
    path = shlex.quote(f"{directory}/{mirror}")
    if mirror == GLOBALS:
        return (f"bzip2 -dc {path} | psql -X postgres",)
    return (f"pg_restore --create -d postgres {path}",)


def _commands(*commands: str) -> Iterator[str]:
    return (f"    {command}" for command in commands)
