"""Snapshots of restic's, and what is in them, as it prints them in JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from ..errors import Error
from . import versions

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Snapshot(NamedTuple):
    """The state of a directory tree on ``host`` at one time.

    ``size`` is that of all files, in bytes; only restic 0.17 and newer know it.
    """

    id: str
    time: datetime
    host: str
    tags: tuple[str, ...]
    size: int | None


class Node(NamedTuple):
    """A file or directory of a snapshot. ``path`` begins with ``/``, ``mode`` is of permissions alone.

    ``size`` in bytes, ``mtime`` in whole microseconds since the epoch; both 0 for a directory.
    """

    path: str
    is_directory: bool
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int


@contextmanager
def understanding() -> Iterator[None]:
    """Raise Error if what restic prints is not what it should be."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        needed = versions.shown(versions.KNOWN["restic"].needed)
        raise Error(
            f"restic printed what cannot be understood: is it older than {needed}? ({error!r})"
        ) from error


def snapshot(fields: dict[str, Any]) -> Snapshot:
    tags = tuple(fields.get("tags") or ())
    size = (fields.get("summary") or {}).get("total_bytes_processed")
    return Snapshot(fields["id"], _time(fields["time"]), fields["hostname"], tags, size)


def node(fields: dict[str, Any]) -> Node:
    is_directory = fields["type"] == "dir"
    return Node(
        fields["path"],
        is_directory,
        fields.get("mode", 0) & 0o777,
        fields["uid"],
        fields["gid"],
        fields.get("size", 0),
        0 if is_directory else (_time(fields["mtime"]) - _EPOCH) // timedelta(microseconds=1),
    )


def _time(text: str) -> datetime:
    """What Go writes as RFC 3339, with up to nine decimals of seconds."""
    return datetime.fromisoformat(text)
