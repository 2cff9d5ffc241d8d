"""Restoring a point for real, into a scratch place, to show that it can be restored."""

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import NamedTuple

from .archive.differences import NEW, Difference
from .config import load_db
from .destination.contents import Content
from .errors import Error, Undecided, prefixing_errors, uninterrupted
from .messages import Messages, size
from .programs import postgres
from .programs.server import Server
from .programs.tar import Aspect, Source, unpacking
from .source.live import against
from .source.walk import Tree, walk
from .system.directories import Directory
from .system.room import NoRoom, room_on

_TREE = "tree"
# How many differences are named.
_SHOWN = 3


class Files(NamedTuple):
    """What was restored of a filesystem: all but directories, and the content of regular files."""

    files: int
    bytes: int
    owners_compared: bool

    def __str__(self) -> str:
        text = f"{_counted(self.files, 'file')}, {size(self.bytes)}"
        return text if self.owners_compared else f"{text}, owners not compared"


class Rows(NamedTuple):
    """What was restored of a database."""

    tables: int
    rows: int

    def __str__(self) -> str:
        return f"{_counted(self.tables, 'table')}, {_counted(self.rows, 'row')}"


Restored = Files | Rows


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def restore(content: Content, config_dir: str, messages: Messages) -> Restored:
    """Restore a point into a scratch place, which is then removed, and return what was restored.

    Raises Error if that is not what the point holds, and Undecided if it can't be restored here.
    """
    if content.is_archive():
        return _restore_files(content, messages)
    database = content.database()
    if database is None:
        raise Undecided("--restore-test cannot be used with the globals: all databases have them in common")
    with _undecided():
        server = load_db(config_dir, database).server
    return _restore_database(content, server)


@contextmanager
def _undecided() -> Iterator[None]:
    """Turn an Error inside the block, which is no fault of the backup, into Undecided."""
    try:
        yield
    except Undecided:
        raise
    except Error as error:
        raise Undecided(*error.lines, stderr=error.stderr) from error


def _restore_files(content: Content, messages: Messages) -> Files:
    as_root = os.geteuid() == 0
    ignored = () if as_root else (Aspect.OWNER,)
    with _scratch() as tree:
        _check_room(content.size(), tree)
        # Only root can restore everything, such as devices.
        with nullcontext() if as_root else _undecided():
            with messages.progress("restoring", content.size()) as advance, unpacking(tree, []) as unpacked:
                content.write_to(unpacked.write, advance)
            differences = [*against(content, tree.path(), messages.progress, ignored)]
        _check_same(differences)
        return _count(tree)


def _check_room(needed: int | None, tree: Directory) -> None:
    """Raise NoRoom if it is known that the disk is too small: others may need what is left of it."""
    disk = os.statvfs(tree.fileno())
    free = disk.f_bavail * disk.f_frsize
    if needed is not None and needed > free:
        raise NoRoom(
            f"{tempfile.gettempdir()}: a restore test needs {size(needed)} on this disk, and {size(free)} are"
            " free: set TMPDIR to a directory on another one"
        )


@contextmanager
def _scratch() -> Iterator[Directory]:
    """Yield a directory below TMPDIR that may get any mode and owner, inside one that is for us alone."""
    temporary = tempfile.gettempdir()
    with (
        prefixing_errors(temporary),
        Directory.at(temporary) as top,
        top.temporary(f"btw-backup-{os.urandom(8).hex()}") as scratch,
        room_on(temporary, scratch),
    ):
        scratch.make(_TREE)
        with scratch.open(_TREE) as tree:
            try:
                yield tree
            finally:
                if os.geteuid() != 0:
                    with uninterrupted():
                        _make_removable(tree)


def _make_removable(tree: Directory) -> None:
    """Let a user who is not root remove what is in directories that the archive has as read-only."""
    os.fchmod(tree.fileno(), 0o700)
    with suppress(RecursionError):
        for _, names, _, fd in os.fwalk(".", dir_fd=tree.fileno()):
            for name in names:
                if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                    os.chmod(name, 0o700, dir_fd=fd)


def _check_same(differences: Iterable[Difference]) -> None:
    """Raise Error if what was unpacked is not what the archive holds."""
    paths = sorted({difference.path or "." for difference in differences if difference.change != NEW})
    if paths:
        more = [f"{len(paths) - _SHOWN} more"] if len(paths) > _SHOWN else []
        raise Error(f"restored, these differ from the archive: {', '.join([*paths[:_SHOWN], *more])}")


def _count(tree: Directory) -> Files:
    source = Source(tree.path(), "", (), (), one_file_system=False)
    seen: set[int] = set()
    files = total = 0
    for _, inode, _ in walk(Tree.of(source)):
        if stat.S_ISDIR(inode.st_mode):
            continue
        files += 1
        if stat.S_ISREG(inode.st_mode) and inode.st_ino not in seen:
            total += inode.st_size
            if inode.st_nlink > 1:
                seen.add(inode.st_ino)
    return Files(files, total, os.geteuid() == 0)


def _restore_database(content: Content, server: Server) -> Rows:
    scratch = f"btw_backup_test_{os.urandom(4).hex()}"
    with content.file() as dumped:
        with _undecided():
            postgres.create_database(scratch, dumped, server)
        try:
            postgres.restore(scratch, dumped, server)
            return Rows(*postgres.count_rows(scratch, server))
        finally:
            postgres.drop_database(scratch, server)
