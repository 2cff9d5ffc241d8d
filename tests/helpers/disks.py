"""Real file systems of other kinds, in images on loop devices."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How each is made in an image; XFS is the one that takes no less room than this.
MAKERS = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}
_SIZE = 320 << 20


@contextmanager
def disk(kind: str, top: Path) -> Iterator[Path]:
    """The root of a new file system of this kind, mounted below ``top``."""
    image, root = top / f"{kind}.img", top / kind
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(_SIZE)
    subprocess.run([*MAKERS[kind], image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, root], check=True)
    try:
        root.chmod(0o755)
        yield root
    finally:
        subprocess.run(["umount", root], check=True)
        image.unlink()
