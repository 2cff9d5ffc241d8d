"""A destination whose owner wants root to do what only root can."""

import os
import pwd
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .running import Btw, Result

USER = "nobody"
SECRET = b"only root may read this: 7c1d0f\n" * 4000  # so large that it is linked, not copied
FEW = b"a small secret: 7c1d0f\n"
MARK = b"7c1d0f"


def ids() -> tuple[int, int]:
    account = pwd.getpwnam(USER)
    return account.pw_uid, account.pw_gid


class Land:
    """A directory that the user can reach; ``dst`` belongs to the user, all in ``roots`` to root."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.dst = top / "dst"
        self.roots = top / "roots"
        self.src = top / "src"
        for path in (self.dst, self.roots, self.src, self.roots / "directory"):
            path.mkdir(mode=0o755)
        (self.roots / "large").write_bytes(SECRET)
        (self.roots / "small").write_bytes(FEW)
        (self.roots / "directory" / "inner").write_bytes(FEW)
        # What root would read or write if it were led into this directory.
        for name in ("log.txt", "source.txt", "backup.tar", "backup.log", "lock", "newest", "increments"):
            (self.roots / "directory" / name).write_bytes(FEW)
        for path in self.roots.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        (self.src / "file").write_text("content\n")
        (self.src / "large").write_bytes(os.urandom(150_000))
        os.chown(self.dst, *ids())

    def canaries(self) -> dict[str, object]:
        """Return the state of everything outside the destination that belongs to root."""
        found: dict[str, object] = {}
        for path in [self.top, self.roots, *sorted(self.roots.rglob("*"))]:
            inode = path.lstat()
            state: tuple[object, ...] = (inode.st_mode, inode.st_uid, inode.st_gid, inode.st_mtime_ns)
            found[str(path)] = (*state, path.read_bytes() if path.is_file() else None)
        return found

    def leaks(self) -> list[Path]:
        """Return the files of the destination that the user may read and that hold a secret of root."""
        found = []
        own = {(self.roots / name).stat().st_ino for name in ("large", "small")}
        for path in self.dst.rglob("*"):
            inode = path.lstat()
            if path.is_symlink() or not path.is_file() or inode.st_ino in own or inode.st_uid == 0:
                continue
            if MARK in path.read_bytes():
                found.append(path)
        return found


def change(land: Land, number: int) -> None:
    (land.src / "file").write_text(f"state {number}\n")
    (land.src / "large").write_bytes(os.urandom(150_000))


def fill(land: Land, btw: Btw, backup: Callable[[], Result], kind: str) -> str:
    """Make two points, and change the source. Returns the name of the newest backup."""
    assert btw("fs-init", "--type", kind, land.src, "name").status == 0
    for number in range(2):
        change(land, number)
        assert backup() == (0, "", "")
    change(land, 2)
    result = btw("list", land.dst)
    return [line for line in result.out.splitlines() if not line.startswith(" ")][-1]


def pick(land: Land, name: str, chain: str) -> Path:
    """Return the path in the destination that a pattern stands for."""
    if name in (
        "log.txt",
        "source.txt",
        "RESTORE.txt",
        ".btw-backup",
        ".btw-backup/lock",
        ".btw-backup/newest",
    ):
        return land.dst / name
    found = sorted((land.dst / chain).glob(name)) if name else [land.dst / chain]
    assert found, name
    return found[-1]


def put(how: str, path: Path, land: Land) -> None:
    """Put something else where ``path`` was."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    HOW[how](path, land)
    if "link" not in how:
        os.lchown(path, *ids())


def _socket(path: Path, land: Land) -> None:
    with socket.socket(socket.AF_UNIX) as listening, inside(path.parent):
        listening.bind(path.name)


def _directory(path: Path, land: Land) -> None:
    path.mkdir()
    (path / "something").write_text("theirs\n")


@contextmanager
def inside(path: Path) -> Iterator[None]:
    """Change the directory for a while: the paths of sockets must be short."""
    before = os.getcwd()
    os.chdir(path)
    yield
    os.chdir(before)


HOW: dict[str, Callable[[Path, Land], object]] = {
    "link to a file": lambda path, land: path.symlink_to(land.roots / "large"),
    "link to a directory": lambda path, land: path.symlink_to(land.roots / "directory"),
    "dangling link": lambda path, land: path.symlink_to(land.roots / "made by root"),
    "hard link, large": lambda path, land: os.link(land.roots / "large", path),
    "hard link, small": lambda path, land: os.link(land.roots / "small", path),
    "fifo": lambda path, land: os.mkfifo(path),
    "socket": _socket,
    "directory": _directory,
    "file": lambda path, land: path.write_text("theirs\n"),
}
