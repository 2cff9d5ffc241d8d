"""The configuration directory off-site: all of it but the keys to the copies, and what belongs to a run."""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from .. import workdir
from ..config import Offsite
from ..destination.lock import PRIVATE
from ..errors import prefixing_errors
from ..messages import Messages
from ..programs.restic import Repository
from ..programs.snapshots import Node
from ..system import calls
from ..system.directories import Directory
from ..system.files import write_all
from ..system.trees import copy_file, imitate, same_entry
from . import copies, notes, sending
from .copies import Copy
from .redaction import redacted
from .state import differences, digest, nodes

# The name of the tree in a snapshot.
TREE = "configuration"
_GENERAL = "config.py"
# A directory of ours in the configuration directory, for the note and for what is being sent: restic tells
# by its path what a snapshot is of.
_PRIVATE, _SENT = ".offsite", "sent"
# A copy that is being fetched.
_FETCHED = ".offsite-fetched"


class Staged(NamedTuple):
    """A copy of the configuration directory, ``TREE`` in its private directory ``within``.

    ``name`` is its real path, ``digest`` the one that is noted once it is sent; ``has_general``: the general
    configuration file is there.
    """

    name: str
    within: Directory
    nodes: tuple[Node, ...]
    digest: str
    has_general: bool

    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(node.size for node in self.nodes)


def is_sent(settings: Offsite, address: str) -> bool:
    """Whether it is known that the repository at this address has what the directory holds."""
    with _opened(settings) as (top, private):
        return notes.is_noted(private, _SENT, _digest(top, settings), address)


@contextmanager
def _opened(settings: Offsite) -> Iterator[tuple[Directory, Directory]]:
    """Yield the configuration directory, and the private one in it."""
    with prefixing_errors(settings.config_dir), Directory.at(settings.config_dir) as top:
        with suppress(FileExistsError):
            top.make(_PRIVATE)
        with top.open(_PRIVATE) as private:
            yield top, private


def _digest(top: Directory, settings: Offsite) -> str:
    names = _names(settings)
    return digest(node for name in names(top) for node in nodes(name, top, names=names))


def _names(settings: Offsite) -> Callable[[Directory], list[str]]:
    """Return what finds the names in the configuration directory, or below, that go off-site."""
    password = os.path.realpath(settings.password_file)
    return lambda directory: [name for name in directory.names() if _goes(name, directory, password)]


def _goes(name: str, within: Directory, password: str) -> bool:
    if name in (_PRIVATE, _FETCHED) or workdir.is_passing(name, within):
        return False
    if os.path.basename(password) == name and os.path.join(within.path(), name) == password:
        return False
    with suppress(FileNotFoundError):
        mode = within.status(name).st_mode
        if stat.S_ISDIR(mode):
            with within.open(name) as directory:
                return not directory.holds(PRIVATE)  # which a destination does
        return stat.S_ISREG(mode) or stat.S_ISLNK(mode)
    return False


@contextmanager
def staging(settings: Offsite) -> Iterator[Staged]:
    """Yield a copy of the configuration directory as it is sent, once no other run sends it."""
    with _opened(settings) as (top, private):
        fcntl.flock(private.fileno(), fcntl.LOCK_EX)
        private.remove(TREE)  # left by a run that was killed
        noted = _digest(top, settings)  # before it is copied: what changes meanwhile is sent next time
        with private.temporary(TREE) as tree:
            _copy(top, tree, _names(settings))
            has_general = _redact(tree, settings)
            found = tuple(node for name in tree.names() for node in nodes(name, tree))
            yield Staged(top.path(), private, found, noted, has_general)


def _copy(source: Directory, target: Directory, names: Callable[[Directory], list[str]]) -> None:
    for name in names(source):
        found = source.status(name)
        if stat.S_ISDIR(found.st_mode):
            target.make(name)
            with source.open(name) as inner, target.open(name) as copied:
                _copy(inner, copied, names)
            continue
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source.fileno()), name, dir_fd=target.fileno())
        else:
            with source.file(name) as fd:
                copy_file(fd, found, name, target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target.fileno(), follow_symlinks=False)
        times = found.st_atime_ns, found.st_mtime_ns
        os.utime(name, ns=times, dir_fd=target.fileno(), follow_symlinks=False)
    imitate(source, target)


def _redact(tree: Directory, settings: Offsite) -> bool:
    """Take the credentials out of the general configuration file. Returns False if all of it had to go."""
    if not stat.S_ISREG(tree.status(_GENERAL).st_mode):  # a link
        return True
    with tree.file(_GENERAL, os.O_RDWR) as fd:
        found = os.fstat(fd)
        text = redacted(os.read(fd, found.st_size), settings.env)
        if text is not None:
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            write_all(fd, text)
            os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
            return True
    tree.unlink(_GENERAL)
    return False


def send(staged: Staged, repository: Repository, settings: Offsite, messages: Messages) -> int | None:
    """Send it unless the repository has it. Returns None then, otherwise how many bytes that grew by."""
    own = copies.own(copies.of_configurations(repository.snapshots()), staged.name)
    added = None
    if not own or not _is_same(staged, own[-1], repository):
        tags = copies.configuration_tags(staged.name)
        added = sending.store(repository, staged.within, TREE, tags, staged.size(), own, settings, messages)
        if not staged.has_general:
            messages.warning(
                f"{staged.name}/{_GENERAL} was not sent: the values of OFFSITE_ENV could not be left out,"
                " as it does not spell them out"
            )
    notes.note(staged.within, _SENT, staged.digest, repository.address)
    return added


def is_same(staged: Staged, repository: Repository) -> bool:
    """Whether the newest copy in a repository is what would be sent."""
    own = copies.own(copies.of_configurations(repository.snapshots()), staged.name)
    return bool(own) and _is_same(staged, own[-1], repository)


def _is_same(staged: Staged, copy: Copy, repository: Repository) -> bool:
    return not differences(copy, repository.nodes(copy.snapshot.id), staged.nodes, TREE, ())


def bring_back(copy: Copy, repository: Repository, target: str) -> list[str]:
    """Restore a copy into a directory. Returns the paths that were there already with something else."""
    with prefixing_errors(target):
        os.makedirs(target, mode=0o700, exist_ok=True)
        with Directory.at(target) as top:
            top.remove(_FETCHED)  # left by a run that was killed
            with top.temporary(_FETCHED) as fetched:
                repository.restore(copy.snapshot.id, fetched.fileno())
                calls.syncfs(top.fileno())  # before a name leads to it
                with fetched.open(TREE) as tree:
                    kept = _merge(tree, top)
            calls.syncfs(top.fileno())
    return [os.path.join(target, path) for path in kept]


def _merge(fetched: Directory, top: Directory, above: str = "") -> list[str]:
    """Move everything to its place, but what is in the way of it. Returns the names of that."""
    kept = []
    for name in sorted(fetched.names()):
        if not top.holds(name):
            fetched.rename(name, top)
        elif fetched.holds_directory(name) and top.holds_directory(name):
            with fetched.open(name) as inner, top.open(name) as there:
                kept += _merge(inner, there, f"{above}{name}/")
        elif fetched.holds_directory(name) or not same_entry(fetched, top, name):
            kept.append(above + name)
    return kept
