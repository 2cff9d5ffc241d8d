"""A restore into a directory that holds things: unpacked aside, and put into place entry by entry.

Every name is the old entry or the new one at any moment, and what is replaced is kept. After a kill, the next
restore finds what is in place already, and does the rest.
"""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import NamedTuple, Self

from ..errors import Busy, Error, prefixing_errors, uninterrupted
from ..system import calls
from ..system.directories import Directory
from ..system.limits import allow_open_files
from ..system.trees import imitate, same_attributes, same_entry
from ..times import format_moment
from .lock import private_directory

# In the target: where everything is unpacked, and the beginning of the name below which things are kept.
ASIDE = ".btw-backup-restoring"
KEPT = ".btw-backup-replaced-"
_TREE = "tree"


class Change(NamedTuple):
    """What happens to a path below the target: ``action`` is create, replace, or change for attributes."""

    action: str
    path: str


class _Level(NamedTuple):
    """A directory that both trees have: its path and a slash, what it was like, the names still to come."""

    staged: Directory
    target: Directory
    path: str
    found: os.stat_result
    names: Iterator[str]

    @classmethod
    def of(cls, staged: Directory, target: Directory, path: str) -> Self:
        names = (name for name in sorted(staged.names()) if path or name != ASIDE)
        return cls(staged, target, path, staged.status(), names)

    def close(self) -> None:
        self.staged.close()
        self.target.close()


class InPlace:
    """A target of such a restore: what is unpacked in ``staged`` is put into ``target``.

    ``kept``: the name of the directory that keeps what is replaced; it is there if something was.
    """

    def __init__(self, path: str, staged: Directory, target: Directory, kept: str) -> None:
        self._path = path
        self.staged = staged
        self.target = target
        self.kept = kept
        self._is_wanted: Callable[[str], bool] = bool
        self._acts = False
        self._same_links: set[int] = set()

    def put(self, is_wanted: Callable[[str], bool], *, acts: bool) -> Iterator[Change]:
        """Put what differs into place, and yield what that changes; with ``acts`` unset, do nothing else.

        ``is_wanted`` tells whether a path below the target, empty for itself, was asked for: of other
        directories nothing but their entries is changed. Raises Error; what was put by then stays.
        """
        self._is_wanted, self._acts = is_wanted, acts
        self._same_links = _same_links(self.staged, self.target)
        if acts:
            calls.syncfs(self.staged.fileno())  # contents before names
        levels = [_Level.of(self.staged.duplicate(), self.target.duplicate(), "")]
        try:
            while levels:
                level = levels[-1]
                for name in level.names:
                    with prefixing_errors(f"{self._path}/{level.path}{name}"):
                        if self._is_entered(level, name):
                            levels.append(self._enter(level, name))
                            allow_open_files(2 * len(levels))
                            break
                        yield from self._put(level, name)
                else:
                    with prefixing_errors(f"{self._path}/{level.path}"):
                        yield from self._finish(level)
                    levels.pop().close()
        finally:
            for level in levels:
                level.close()
        if acts:
            calls.syncfs(self.target.fileno())

    def _is_entered(self, level: _Level, name: str) -> bool:
        """Whether the name is a directory in both trees."""
        is_there = level.target.holds(name)
        return is_there and level.staged.holds_directory(name) and level.target.holds_directory(name)

    def _enter(self, level: _Level, name: str) -> _Level:
        path = f"{level.path}{name}/"
        entered = _Level.of(level.staged.open(name), level.target.open(name), path)
        if self._is_elsewhere(entered) and entered.staged.names():
            entered.close()
            raise Error(f"{self._path}/{path} is on another file system: restore elsewhere, and copy that")
        return entered

    def _is_elsewhere(self, level: _Level) -> bool:
        """Whether a directory is on another file system than the target, where nothing can be renamed to."""
        return level.target.status().st_dev != self.target.status().st_dev

    def _put(self, level: _Level, name: str) -> Iterator[Change]:
        """Put an entry that is not a directory in both trees."""
        is_there = level.target.holds(name)
        if is_there and self._is_same(level, name):
            return
        slash = "/" if level.staged.holds_directory(name) else ""
        yield Change("replace" if is_there else "create", f"{level.path}{name}{slash}")
        if self._acts and is_there:
            self._exchange(level, name)
        elif self._acts:
            level.staged.publish(name, level.target)

    def _is_same(self, level: _Level, name: str) -> bool:
        found = level.staged.status(name)
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            return found.st_ino in self._same_links
        return same_entry(level.staged, level.target, name)

    def _finish(self, level: _Level) -> Iterator[Change]:
        """Give a directory its attributes, once all is in it."""
        path = level.path.rstrip("/")
        if not self._is_wanted(path) or self._is_elsewhere(level):
            return
        if not same_attributes(level.staged, level.target):
            yield Change("change", path + "/")
            if self._acts:
                imitate(level.staged, level.target)
        if self._acts:
            level.target.set_times(level.found)

    def _exchange(self, level: _Level, name: str) -> None:
        """Put an entry in the place of another, which is kept."""
        with (
            self.target.below([self.kept, *level.path.split("/")[:-1]], make=True) as kept,
            uninterrupted(),
        ):
            level.staged.rename(name, kept)
            try:
                if kept.exchange(name, level.target):
                    return
            except OSError:
                kept.rename(name, level.staged)
                raise
            kept.rename(name, level.staged)
            level.target.rename(name, kept)  # for a moment nothing has the name
            level.staged.publish(name, level.target)


def _same_links(staged: Directory, target: Directory) -> set[int]:
    """The inodes of staged files with several names that are names of one file in the target, the same.

    Of other files all names are put, so that they are names of one file again.
    """
    inodes: dict[int, int | None] = {}
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        above = waiting.pop()
        with staged.below(above) as directory:
            for name in directory.names():
                found = directory.status(name)
                if stat.S_ISDIR(found.st_mode):
                    waiting.append((*above, name))
                elif found.st_nlink > 1:
                    inode = _inode_if_same(directory, target, above, name)
                    if inodes.setdefault(found.st_ino, inode) != inode:
                        inodes[found.st_ino] = None
    return {staged_inode for staged_inode, inode in inodes.items() if inode is not None}


def _inode_if_same(staged: Directory, target: Directory, above: Sequence[str], name: str) -> int | None:
    """The inode of the same file in the target, None if there is none."""
    with suppress(OSError), target.below(above) as directory:
        if same_entry(staged, directory, name):
            return directory.status(name).st_ino
    return None


@contextmanager
def restoring_in_place(path: str, now: datetime) -> Iterator[InPlace]:
    """Open a target that holds things; what is unpacked in it aside is removed at the end.

    Raises Error if there is no such directory, and Busy if another restore works in it.
    """
    with prefixing_errors(path), Directory.at(os.path.realpath(path), follow=False) as top:
        before = top.status()
        with private_directory(path, top, ASIDE) as aside, _locked(path, top, aside):
            unchanged = top.status().st_mtime_ns
            try:
                aside.remove(_TREE)
                aside.make(_TREE)
                with aside.open(_TREE) as staged:
                    yield InPlace(path, staged, top, _unused(top, now))
            finally:
                with uninterrupted():
                    after = top.status()
                    top.remove(ASIDE)
                    # What we made and removed is no change.
                    top.set_times(before if after.st_mtime_ns == unchanged else after)


@contextmanager
def _locked(path: str, top: Directory, aside: Directory) -> Iterator[None]:
    busy = Busy(f"another restore is working in {path}: try again later")
    try:
        fcntl.flock(aside.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have ended, and removed this, since we opened it.
        if not os.path.samestat(top.status(ASIDE), aside.status()):
            raise busy
    except (BlockingIOError, FileNotFoundError):
        raise busy from None
    yield


def _unused(top: Directory, now: datetime) -> str:
    """A name for what is kept that is not taken."""
    while top.holds(name := KEPT + format_moment(now)):
        now += timedelta(seconds=1)
    return name
