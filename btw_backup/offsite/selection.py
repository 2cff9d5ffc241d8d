"""Which copy is fetched, and from which repository."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from ..errors import Error
from ..programs.restic import Repository
from ..times import latest_moment, shown_moment
from .copies import Copy


class Found(NamedTuple):
    """A copy in a repository."""

    copy: Copy
    repository: Repository

    @property
    def full_name(self) -> str:
        """The host and the path that the copy is of."""
        return f"{self.copy.snapshot.host}:{self.copy.name}"


def of_host(found: Sequence[Found], host: str | None) -> list[Found]:
    """Return the copies of a host, or of any. Raises Error if there are none of that host."""
    own = [one for one in found if host in (None, one.copy.snapshot.host)]
    if host is not None and not own:
        raise Error(f"there are no off-site copies of the server {host} ({_hosts(found) or 'nor of any'})")
    return own


def check_one_host(found: Sequence[Found]) -> None:
    """Raise Error if the copies are of several hosts."""
    if len({one.copy.snapshot.host for one in found}) > 1:
        raise Error(f"there are copies of several servers: choose one with --host ({_hosts(found)})")


def _hosts(found: Sequence[Found]) -> str:
    return ", ".join(sorted({one.copy.snapshot.host for one in found}))


def named(found: Sequence[Found], name: str) -> list[Found]:
    """Return the copies of this name. If there are none, raise Error, which lists the known names."""
    own = [one for one in found if name == one.full_name or os.path.normpath(name) == one.copy.name]
    if not own:
        known = ", ".join(sorted({one.full_name for one in found})) or "there are none"
        raise Error(f"there is no off-site copy of {name} ({known})")
    return own


def not_later(found: Sequence[Found], at: str | None) -> list[Found]:
    """Return the copies that are not later than ``at`` means."""
    if at is None:
        return list(found)
    latest = latest_moment(at, datetime.now(UTC))
    return [one for one in found if one.copy.snapshot.time.replace(microsecond=0) <= latest]


def newest(found: Sequence[Found]) -> Found:
    """Return the newest copy of a name; of those that end with the same point, that in the first repository.

    ``found`` are its copies, in the order of the repositories and of time.
    """
    last = {one.repository: one for one in found}
    return max(last.values(), key=lambda one: one.copy.newest_time)


def lines(found: Sequence[Found], *, several: bool) -> list[str]:
    """Return a line for each copy, oldest first; ``several``: with the repositories that have it."""
    places: dict[tuple[datetime, str, str], list[str]] = {}
    for one in found:
        source = "" if one.copy.source is None else f" ({one.copy.source})"
        key = one.copy.snapshot.time, one.full_name, source
        places.setdefault(key, []).append(one.repository.shown)
    return [
        f"{shown_moment(time)} {name}{source}" + (f" in {', '.join(shown)}" if several else "")
        for (time, name, source), shown in sorted(places.items())
    ]


def objects(found: Sequence[Found]) -> list[dict[str, object]]:
    """Return what ``--json`` prints: sizes in bytes, null if unknown."""
    return [
        {
            "time": shown_moment(copy.snapshot.time),
            "host": copy.snapshot.host,
            "destination": copy.name,
            "source": copy.source,
            "snapshot": copy.snapshot.id,
            "size": copy.snapshot.size,
            "store": repository.shown,
        }
        for copy, repository in sorted(found, key=lambda one: one.copy.snapshot.time)
    ]
