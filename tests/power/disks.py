"""File systems in images that can be copied at any moment, as a power cut would leave them."""

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from ..helpers.disks import MAKERS

_SIZE = 320 << 20
_IMAGES = 16 << 30
_FICLONE = 0x40049409
_BTRFS_IOC_START_SYNC, _BTRFS_IOC_WAIT_SYNC = 0x80089418, 0x40089416
# No kernel thread shall write what nobody has asked for.
_LATE = "commit=300"


class Kind(NamedTuple):
    """A kind of file system, and its mount options."""

    maker: str
    options: str


KINDS = {
    "ext4": Kind("ext4", _LATE),
    "ext4-writeback": Kind("ext4", f"{_LATE},data=writeback"),
    "xfs": Kind("xfs", "nouuid"),
    "btrfs": Kind("btrfs", _LATE),
}


@contextmanager
def reflinking(top: Path) -> Iterator[Path]:
    """The root of a file system that can copy images at once. They take the room of what is in them."""
    image, root = top / "images.img", top / "images"
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(_IMAGES)
    _call("mkfs.xfs", "-q", "-m", "reflink=1", image)
    _call("mount", "-o", "loop", image, root)
    try:
        yield root
    finally:
        _call("umount", root)
        image.unlink()


class Disk:
    """A new file system of a kind, in an image in the directory ``images``.

    ``root`` is where it is mounted; ``bystander`` is a file there that nobody else needs.
    """

    def __init__(self, kind: Kind, images: Path, root: Path) -> None:
        self.root = root
        self.bystander = root / "bystander"
        self._kind = kind
        self._image = images / f"{root.parent.name}.image"
        self._copied = ("", Path())
        self._count = 0
        root.mkdir()
        with self._image.open("wb") as file:
            file.truncate(_SIZE)
        _call(*MAKERS[kind.maker], self._image)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Mount it."""
        with self._mounting(self._image):
            yield

    @contextmanager
    def after(self, cut: Path) -> Iterator[None]:
        """Mount what a power cut left, and forget what is changed in it. Its own image must not be mounted.

        Two copies of a btrfs that are mounted at once would be one to the kernel.
        """
        copy = self._image.with_suffix(".after")
        _clone(cut, copy)
        try:
            with self._mounting(copy):
                yield
        finally:
            copy.unlink()

    @contextmanager
    def _mounting(self, image: Path) -> Iterator[None]:
        _call("mount", "-o", f"loop,{self._kind.options}", image, self.root)
        try:
            yield
        finally:
            _unmount(self.root)

    def remove(self) -> None:
        """Remove its image and all copies."""
        for path in self._image.parent.glob(f"{self._image.stem}.*"):
            path.unlink()

    def cut(self) -> Path:
        """Return a copy of its image as it is now, the last one if nothing has been written since."""
        state = self._state()
        if state != self._copied[0] or not state.endswith(" 0"):  # something is being written
            self._count += 1
            copy = self._image.with_suffix(f".{self._count}")
            _clone(self._image, copy)
            self._copied = state, copy
        return self._copied[1]

    def _state(self) -> str:
        """What the kernel counts of its device: writes, flushes, and at the end what is under way."""
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        device = next(line for line in mounts if line.split()[4] == str(self.root)).split(" - ")[1].split()[1]
        counted = Path("/sys/block", Path(device).name, "stat").read_text().split()
        return f"{counted[4]} {counted[15]} {counted[8]}"

    def sync_bystander(self) -> None:
        """Have one file written that nobody else needs, as any other program might."""
        with self._bystander_changed() as file:
            os.fsync(file.fileno())

    def commit_names(self) -> None:
        """Have the journal written, with all names and inodes, but not the contents."""
        if self._kind.maker != "btrfs":
            self.sync_bystander()
            return
        with self._bystander_changed() as file:
            transaction = fcntl.ioctl(file, _BTRFS_IOC_START_SYNC, bytes(8))
            fcntl.ioctl(file, _BTRFS_IOC_WAIT_SYNC, transaction)

    @contextmanager
    def _bystander_changed(self) -> Iterator[IO[bytes]]:
        with self.bystander.open("wb") as file:
            file.write(b"x")
            file.flush()
            yield file


def _clone(image: Path, copy: Path) -> None:
    """Copy an image at one moment, however much is being written to it."""
    with image.open("rb") as source, copy.open("xb") as target:
        fcntl.ioctl(target, _FICLONE, source.fileno())


def _unmount(root: Path) -> None:
    """Unmount, even if a program that another thread starts has yet to close the files that are open here."""
    for _ in range(100):
        if subprocess.run(["umount", root], stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.05)
    _call("umount", root)


def _call(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
