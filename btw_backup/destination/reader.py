"""A destination opened for reading: without a lock, even on a read-only disk."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Self

from ..errors import Error, Undecided
from ..system.directories import Directory
from ..times import latest_moment, shown_moment
from . import catalog
from .catalog import Backup, Chosen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .contents import Content

_TRIES = 5


class Removed(Error):
    """A point has been removed since it was chosen."""


class Destination:
    """An open destination: its path, its directory, and what it held at the last scan."""

    def __init__(self, path: str, directory: Directory) -> None:
        self.path = path
        self.directory = directory
        self.backups: tuple[Backup, ...] = ()
        self.broken: tuple[str, ...] = ()
        self.rescan()

    @classmethod
    @contextmanager
    def open(cls, path: str) -> Iterator[Self]:
        """Open it for reading. Raises Error if there is none."""
        with open_directory(path) as directory:
            try:
                yield cls(path, directory)
            except PermissionError as error:
                raise Error(f"{path}: {error.strerror}") from error

    def rescan(self) -> None:
        """Scan again what it holds."""
        self.backups, self.broken = catalog.scan(self.directory)

    def points(self) -> list[Chosen]:
        """Every point, oldest first."""
        return catalog.all_points(self.backups)

    def choose(self, at: str | None, now: datetime) -> Chosen:
        """The newest point, or the newest one not later than ``at``. Raises Error if there is none.

        ``at`` is what ``list`` prints, the day, hour or minute that it begins with, or a span before
        ``now``.
        """
        return catalog.choose(self.backups, at, None if at is None else latest_moment(at, now))

    @contextmanager
    def opened(self, chosen: Chosen) -> Iterator["Content"]:
        """Yield the content of a point, even if a backup has added a point to its chain meanwhile."""
        from . import points  # who only lists backups does not wait for what reads them

        with ExitStack() as stack:
            for _ in range(_TRIES):
                try:
                    content = stack.enter_context(points.opened(self.directory, chosen))
                    break
                except points.Gone:
                    self.rescan()
                    chosen = self._again(chosen)
            else:
                raise Undecided(f"{self.path} is changing too fast: try again")
            yield content

    def _again(self, chosen: Chosen) -> Chosen:
        for found in self.points():
            if (found.backup.name, found.point.time) == (chosen.backup.name, chosen.point.time):
                return found
        raise Removed(f"the point {shown_moment(chosen.point.time)} has been removed meanwhile")


def open_directory(path: str, *, follow: bool = True) -> Directory:
    """Open the directory of backups. Raises Error if there is none.

    ``follow``: the path may be a symbolic link to it.
    """
    try:
        return Directory.at(path, follow=follow)
    except FileNotFoundError:
        raise Error(f"the destination does not exist: {path}: create it, or mount its disk") from None
    except NotADirectoryError:
        raise Error(f"the destination is not a directory: {path}") from None
    except OSError as error:
        raise Error(f"cannot open the destination: {path}: {error.strerror}") from error
