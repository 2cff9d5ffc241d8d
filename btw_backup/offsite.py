"""The off-site copies of a destination: what belongs to one, when it is sent, and how it is found again.

What is sent is a hard-linked copy of the destination, made under its lock. The lock is free again
while restic reads that copy, so backups go on meanwhile and the snapshot is of one moment.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from .config import Offsite, load_general
from .destination.reader import Destination
from .destination.retention import Policy
from .destination.view import NOTES, TREE, View, backup_names, viewing
from .destination.writer import LockedDestination
from .errors import NOT_SENT, Error, prefixing_errors
from .messages import Messages
from .programs import restic
from .programs.restic import Node, Repository, Snapshot
from .system.directories import Directory
from .system.files import write_all
from .system.trees import DEPTH
from .system.trust import read_trusted
from .times import format_moment, parse_moment

# What has been sent: the digests of a state, and of the repository's address.
_SENT = "sent"


class State(NamedTuple):
    """Every file and directory of a destination's backups, and its newest point.

    The log and other notes are not part of it.
    """

    nodes: tuple[Node, ...]
    newest_time: datetime

    def digest(self) -> str:
        """A digest that changes if any of them does."""
        return hashlib.sha256(repr(sorted(self.nodes)).encode(errors="surrogateescape")).hexdigest()

    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(node.size for node in self.nodes)


def examine(destination: Destination) -> State:
    """Examine a destination. Raises Error if it is empty: an empty one is never sent."""
    check_holds(destination)
    directory = destination.directory
    nodes = [node for name in backup_names(destination) for node in _nodes(name, directory, "")]
    return State(tuple(nodes), max(backup.newest_time for backup in destination.backups))


def check_holds(destination: Destination) -> None:
    """Raise Error if a destination holds no backups."""
    if not destination.backups:
        raise Error(f"{destination.path} holds no backups: nothing is sent (is its disk mounted?)")


def _nodes(name: str, within: Directory, above: str, depth: int = DEPTH) -> Iterator[Node]:
    found = within.status(name)
    path = f"{above}/{name}"
    is_directory = stat.S_ISDIR(found.st_mode)
    about = (stat.S_IMODE(found.st_mode) & 0o777, found.st_uid, found.st_gid)
    if not is_directory:
        yield Node(path, False, *about, found.st_size, found.st_mtime_ns // 1000)
        return
    if depth == 0:
        raise Error(f"{path[1:]} lies deeper than anything in a backup: refused")
    yield Node(path, True, *about, 0, 0)
    with within.open(name) as inner:
        for entry in inner.names():
            yield from _nodes(entry, inner, path, depth - 1)


class Copy(NamedTuple):
    """A snapshot of a destination.

    ``name`` is the path that this had, ``newest_time`` that of its newest point; ``source`` is what it was
    bound to, None if that is not known.
    """

    snapshot: Snapshot
    name: str
    newest_time: datetime
    source: str | None


# Tags identify a snapshot: restic returns paths unchanged only if they are UTF-8.
_NAME = "destination:"
_NEWEST = "newest:"
_SOURCE = "source:"


def _name_tag(name: str) -> str:
    return _NAME + quote(os.fsencode(name))


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


def differences(copy: Copy, nodes: Iterable[Node], state: State) -> list[str]:
    """Return lines that tell how a copy that holds these nodes differs from the destination."""
    sent = {path: node._replace(path=path) for node in nodes if (path := node.path.removeprefix(f"/{TREE}"))}
    for name in NOTES:
        sent.pop(f"/{name}", None)
    # restic prints names that are not UTF-8 like this.
    shown = {node: os.fsencode(node.path).decode(errors="replace") for node in state.nodes}
    here = {path: node._replace(path=path) for node, path in shown.items()}
    time = format_moment(copy.snapshot.time)
    lines = [f"{path[1:]} is not in the copy of {time}" for path in sorted(here.keys() - sent.keys())]
    lines += [f"{path[1:]} is only in the copy of {time}" for path in sorted(sent.keys() - here.keys())]
    common = sorted(here.keys() & sent.keys())
    return lines + [
        f"{path[1:]} differs from the copy of {time}" for path in common if sent[path] != here[path]
    ]


def configured(config_dir: str) -> tuple[Offsite, Repository]:
    """Load the settings of off-site copies. Raises Error if there are none."""
    settings = load_general(config_dir).offsite
    if settings is None:
        raise Error(
            f"OFFSITE is not set in {os.path.join(config_dir, 'config.py')}: there are no off-site copies"
        )
    return settings, repository(settings)


def repository(settings: Offsite) -> Repository:
    """Return the configured repository. Raises Error if its password file can't be trusted."""
    if not read_trusted(settings.password_file):
        raise Error(f"{settings.password_file}: OFFSITE_PASSWORD_FILE is missing or empty")
    return Repository(settings.address, settings.password_file, settings.env)


def copies(snapshots: Sequence[Snapshot]) -> list[Copy]:
    """Return the snapshots of destinations, oldest first."""
    return [copy for snapshot in snapshots if (copy := _copy(snapshot))]


def own_copies(snapshots: Sequence[Snapshot], name: str) -> list[Copy]:
    """Return the copies of a destination on this machine, oldest first. ``name`` is its real path."""
    return [
        copy for copy in copies(snapshots) if (copy.name, copy.snapshot.host) == (name, restic.this_host())
    ]


def _note_sent(view: View, state: State, address: str) -> None:
    """Remember that the repository has the state of a view."""
    with suppress(OSError):  # without it the repository is asked
        with view.directory.create(_SENT) as fd:
            write_all(fd, _sent_line(state, address))
        view.directory.rename(_SENT, view.private)


def _sent_line(state: State, address: str) -> bytes:
    return f"{state.digest()} {hashlib.sha256(os.fsencode(address)).hexdigest()}\n".encode()


def _is_noted(destination: LockedDestination, state: State, address: str) -> bool:
    try:
        with destination.private.file(_SENT) as fd:
            return os.read(fd, 4096) == _sent_line(state, address)
    except FileNotFoundError:
        return False


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
    own = own_copies(repository.snapshots(), view.name)
    if own and _follows(view.path, state, own[-1], list(repository.nodes(own[-1].snapshot.id)), replace):
        _note_sent(view, state, settings.address)
        return None
    parent = own[-1].snapshot.id if own else None
    tags = [_name_tag(view.name), _NEWEST + format_moment(state.newest_time)]
    tags += [] if view.source is None else [_SOURCE + quote(os.fsencode(view.source))]
    with messages.progress("sending", state.size()) as advance:
        added = repository.store(view.directory.fileno(), TREE, tags, parent, advance)
    _note_sent(view, state, settings.address)
    if own and settings.keep is not None:
        try:
            repository.forget(_name_tag(view.name), _options(settings.keep))
        except Error as error:
            messages.warning(f"OFFSITE_KEEP could not be applied: {error}")
    return added


def _follows(path: str, state: State, copy: Copy, nodes: Sequence[Node], replace: bool) -> bool:
    """Whether the newest copy, which holds these nodes, equals a view.

    This compares the copy itself, not a note about it: restic stores what it can read, and a kill may
    come before an incomplete copy is removed.
    Raises Error if the view must not be stored after that copy.
    """
    time = copy.snapshot.time
    if time > datetime.now(UTC):
        raise Error(
            f"the newest off-site copy of {path} ({format_moment(time)}) is dated in the future: set the"
            f" clock right, or remove it with restic forget {copy.snapshot.id[:8]}"
        )
    sent = {node.path.removeprefix(f"/{TREE}") for node in nodes}
    if sent.isdisjoint(node.path for node in state.nodes) and not replace:
        raise Error(
            f"{path} holds none of the backups of its newest off-site copy ({format_moment(time)}):"
            " mount its disk, or use sync --replace if they were meant to go"
        )
    return not differences(copy, nodes, state)


def _options(policy: Policy) -> list[str]:
    """Return the policy as restic's options; the newest copy always stays."""
    counts = {**policy._asdict(), "last": max(policy.last, 1)}
    within = counts.pop("within")
    options = [f"--keep-{word}={count}" for word, count in counts.items() if count]
    if within is not None:
        hours = -(-within // timedelta(hours=1))
        options.append(f"--keep-within={hours // 24}d{hours % 24}h")
    return options


class Sending:
    """Sends what a backup stored, and what earlier runs could not send. Made by ``sending``."""

    def __init__(self, settings: Offsite | None, messages: Messages, views: ExitStack) -> None:
        self._settings = settings if settings is not None and settings.auto else None
        self._messages = messages
        self._views = views
        self._taken: tuple[View, State] | None = None
        self._status = 0

    def take(self, destination: LockedDestination) -> None:
        """Take a copy of the locked destination if its state has not been sent."""
        if self._settings is not None:
            with self._failing(destination.path):
                state = examine(destination)
                if not _is_noted(destination, state, self._settings.address):
                    self._taken = self._views.enter_context(viewing(destination)), state

    def finish(self) -> int:
        """Send it. Returns an exit status; if that is not 0, the reason has been printed."""
        if self._settings is not None and self._taken is not None:
            view, state = self._taken
            with self._failing(view.path):
                send(view, state, repository(self._settings), self._settings, self._messages)
        return self._status

    @contextmanager
    def _failing(self, path: str) -> Iterator[None]:
        try:
            with prefixing_errors(path):
                yield
        except Error as error:
            self._messages.error(f"the backup was made, but not its off-site copy: {error}")
            self._status = NOT_SENT


@contextmanager
def sending(settings: Offsite | None, messages: Messages) -> Iterator[Sending]:
    """Send the destination that the block works on, if the configuration says so."""
    with ExitStack() as views:
        yield Sending(settings, messages, views)
