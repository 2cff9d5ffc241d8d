"""What identifies an off-site copy: restic's snapshots, and their tags."""

import os
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from ..programs import restic
from ..programs.snapshots import Snapshot
from ..times import format_moment, parse_moment


class Copy(NamedTuple):
    """A snapshot of a destination, or of a configuration directory.

    ``name`` is the path that this had, ``newest_time`` that of its newest point, or of the snapshot;
    ``source`` is what it was bound to, None if that is not known.
    """

    snapshot: Snapshot
    name: str
    newest_time: datetime
    source: str | None
    is_configuration: bool = False


# Tags identify a snapshot: restic returns paths unchanged only if they are UTF-8.
_NAME = "destination:"
_CONFIGURATION = "config:"
_NEWEST = "newest:"
_SOURCE = "source:"


def tags(name: str, newest_time: datetime, source: str | None) -> list[str]:
    """Return the tags of a copy; the first one is on every copy of that destination."""
    found = [_NAME + _quoted(name), _NEWEST + format_moment(newest_time)]
    return found if source is None else [*found, _SOURCE + _quoted(source)]


def configuration_tags(path: str) -> list[str]:
    """Return the tags of a copy of a configuration directory."""
    return [_CONFIGURATION + _quoted(path)]


def _quoted(text: str) -> str:
    return quote(os.fsencode(text))


def _tagged(snapshot: Snapshot, kind: str) -> list[str]:
    """What the tags of a kind say."""
    tags = [tag.removeprefix(kind) for tag in snapshot.tags if tag.startswith(kind)]
    return [os.fsdecode(unquote_to_bytes(tag)) for tag in tags]


def _copy(snapshot: Snapshot) -> Copy | None:
    """Read a snapshot's tags. Returns None for a snapshot of something else."""
    names = _tagged(snapshot, _NAME)
    points = [parse_moment(text) for text in _tagged(snapshot, _NEWEST)]
    if len(names) != 1 or len(points) != 1 or points[0] is None:
        return None
    return Copy(snapshot, names[0], points[0], next(iter(_tagged(snapshot, _SOURCE)), None))


def of_destinations(snapshots: Sequence[Snapshot]) -> list[Copy]:
    """Return the snapshots of destinations, oldest first."""
    return [copy for snapshot in snapshots if (copy := _copy(snapshot))]


def of_configurations(snapshots: Sequence[Snapshot]) -> list[Copy]:
    """Return the snapshots of configuration directories, oldest first."""
    return [
        Copy(snapshot, name, snapshot.time, None, True)
        for snapshot in snapshots
        for name in _tagged(snapshot, _CONFIGURATION)
    ]


def own(copies: Sequence[Copy], name: str) -> list[Copy]:
    """Return those that were made on this machine of a directory, given by its real path."""
    return [copy for copy in copies if (copy.name, copy.snapshot.host) == (name, restic.this_host())]
