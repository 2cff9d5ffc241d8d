"""Sending a destination off-site: what is stored, and which older copies then go.

What is sent is a hard-linked copy of the destination, made under its lock. The lock is free again
while restic reads that copy, so backups go on meanwhile and the snapshot is of one moment.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from ..config import Offsite
from ..destination.retention import Policy
from ..destination.view import TREE, View
from ..destination.writer import LockedDestination
from ..errors import Error
from ..messages import Messages
from ..programs.restic import Repository
from ..system.directories import Directory
from ..times import shown_moment
from . import copies, notes
from .copies import Copy
from .state import State, differences

# The note in the private directory of a destination.
_SENT = "sent"


class Refused(Error):
    """A destination must not be stored after the newest copy of it."""


def send(
    view: View,
    state: State,
    repository: Repository,
    settings: Offsite,
    messages: Messages,
    *,
    replace: bool = False,
) -> int | None:
    """Store the state that a view holds. Returns None if the repository has it.

    Otherwise returns how many bytes the repository grew by. ``replace``: also do it if the destination
    holds nothing of what it held.
    """
    own = copies.own(copies.of_destinations(repository.snapshots()), view.name)
    added = None
    if not own or not _follows(view.path, state, own[-1], repository, replace):
        tags = copies.tags(view.name, state.newest_time, view.source)
        added = store(repository, view.directory, TREE, tags, state.size(), own, settings, messages)
    notes.note(view.private, _SENT, state.digest(), repository.address)
    return added


def is_sent(destination: LockedDestination, state: State, address: str) -> bool:
    """Whether it is known that the repository at this address has this state of a destination."""
    return notes.is_noted(destination.private, _SENT, state.digest(), address)


def store(
    repository: Repository,
    within: Directory,
    name: str,
    tags: Sequence[str],
    total: int,
    own: Sequence[Copy],
    settings: Offsite,
    messages: Messages,
) -> int:
    """Store the tree ``name``, of ``total`` bytes, after its ``own`` copies, of which some then go.

    All copies of it have the first of the tags. Returns how many bytes the repository grew by.
    """
    with messages.progress("sending", total) as advance:
        parent = own[-1].snapshot.id if own else None
        added = repository.store(within.fileno(), name, tags, parent, advance)
    if own and settings.keep is not None:
        try:
            repository.forget(tags[0], _options(settings.keep))
        except Error as error:
            messages.warning(f"OFFSITE_KEEP could not be applied: {error}")
    return added


def _follows(path: str, state: State, copy: Copy, repository: Repository, replace: bool) -> bool:
    """Whether the newest copy in a repository equals a view.

    This compares the copy itself, not a note about it: restic stores what it can read, and a kill may
    come before an incomplete copy is removed.
    Raises Refused if the view must not be stored after that copy.
    """
    shown = f"({shown_moment(copy.snapshot.time)} in {repository.shown})"
    if copy.snapshot.time > datetime.now(UTC):
        raise Refused(
            f"the newest off-site copy of {path} {shown} is dated in the future: set the clock right,"
            f" or remove it with restic forget {copy.snapshot.id[:8]}"
        )
    nodes = list(repository.nodes(copy.snapshot.id))
    sent = {node.path.removeprefix(f"/{TREE}") for node in nodes}
    if sent.isdisjoint(node.path for node in state.nodes) and not replace:
        raise Refused(
            f"{path} holds none of the backups of its newest off-site copy {shown}:"
            " mount its disk, or use sync --replace if they were meant to go"
        )
    return not differences(copy, nodes, state.nodes)


def _options(policy: Policy) -> list[str]:
    """Return the policy as restic's options; the newest copy always stays."""
    counts = {**policy._asdict(), "last": max(policy.last, 1)}
    within = counts.pop("within")
    options = [f"--keep-{word}={count}" for word, count in counts.items() if count]
    if within is not None:
        hours = -(-within // timedelta(hours=1))
        options.append(f"--keep-within={hours // 24}d{hours % 24}h")
    return options
