"""The destinations that a command works on: those it was given, and those in a directory that holds them."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

from ..errors import Error, worst
from ..messages import Messages, show
from ..system.directories import Directory
from .catalog import holds_backups
from .lock import PRIVATE
from .reader import open_directory


class Destinations(NamedTuple):
    """The paths of destinations, each once.

    A directory that holds no backups itself, but directories that are destinations, stands for these, in
    the order of their names. ``named``: there may be several, so the output says which one it is about.
    ``status`` is an exit status: 0 unless there are more that could not be found out.
    """

    paths: tuple[str, ...]
    named: bool
    status: int = 0

    @classmethod
    def of(cls, given: Sequence[str]) -> Self:
        """The destinations that the paths on the command line stand for."""
        once = tuple(dict.fromkeys(given))
        paths = tuple(dict.fromkeys(path for one in once for path in _held(one)))
        return cls(paths, len(paths) > 1 or paths != once)

    @classmethod
    def configured(cls, paths: Sequence[str], status: int) -> Self:
        """Those that a configuration names, each itself."""
        once = tuple(dict.fromkeys(paths))
        return cls(once, len(once) > 1, status)

    def each(self, messages: Messages, act: Callable[[str, Messages], int], *, headings: bool = False) -> int:
        """Have ``act`` work on each, with messages that name it. Returns the worst exit status.

        An Error ends the work on one destination, not on the others. ``headings``: what ``act`` prints
        on standard output follows the path and a colon, as in ``ls``, if they are named.
        """
        statuses = [self.status]
        for number, path in enumerate(self.paths):
            if headings and self.named:
                print("\n" * (number > 0), end="")
                show(f"{path}:")
            own = messages.about(path) if self.named else messages
            try:
                statuses.append(act(path, own))
            except Error as error:
                own.report(error)
                statuses.append(error.status)
        return worst(statuses)


def _held(path: str) -> list[str]:
    """The destinations in a directory; the path itself if it is one, or can't be one of these."""
    try:
        with open_directory(path) as directory:
            if not holds_backups(directory):
                names = sorted(name for name in directory.names() if _is_destination(name, directory))
                return [os.path.join(path, name) for name in names] or [path]
    except (Error, OSError):  # whoever works on it says what is wrong
        pass
    return [path]


def _is_destination(name: str, within: Directory) -> bool:
    """Whether a directory holds backups, or a run has worked on it. One that can't be read counts as one."""
    try:
        if name == PRIVATE or not within.holds_directory(name):
            return False
        with within.open(name) as directory:
            return directory.holds(PRIVATE) or holds_backups(directory)
    except PermissionError:
        return name != "lost+found"  # which mke2fs makes, for root alone
    except OSError:  # it has been removed or replaced meanwhile
        return False
