"""Destinations, written and read by programs other than ours."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .running import Btw

BASE = 1_795_385_777  # 2026-11-22T22:16:17Z
# What may be in a destination's private directory while nothing runs.
AT_REST = {"lock", "newest", "sent", "success", "verified", "restored", "verified-offsite"}
# What is beside the backups.
NOTES = {"log.txt", "source.txt", "RESTORE.txt"}


def rdiff_backup(chain: Path, source: Path, at: int, zone: str = "UTC", content: str | None = None) -> None:
    """Add a point to a chain with plain rdiff-backup."""
    source.mkdir(exist_ok=True)
    (source / "backup.tar").write_text(content or f"content at {at}\n")
    os.utime(source / "backup.tar", (at, at))
    argv: list[str | Path] = [
        "rdiff-backup",
        "-v2",
        "--current-time",
        str(at),
        "backup",
        source,
        chain,
    ]
    subprocess.run(argv, check=True, env={**os.environ, "TZ": zone})


def add_tarball(dst: Path, name: str, files: dict[str, str]) -> Path:
    """Make a tarball of those files with tarfile."""
    with tarfile.open(dst / name, "w:bz2", format=tarfile.PAX_FORMAT) as archive:
        for path, text in files.items():
            member = tarfile.TarInfo(f"./{path}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return dst / name


def tree(top: Path) -> dict[str, bytes]:
    """Map the path of every file below to its content."""
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def visible(dst: Path) -> dict[str, bytes]:
    """Map every file of a destination outside the private directory to its content."""
    return {name: data for name, data in tree(dst).items() if not name.startswith(".btw-backup")}


def backups(dst: Path) -> dict[str, bytes]:
    """Map every file of the backups themselves to its content: what is noted beside them may change."""
    return {name: data for name, data in visible(dst).items() if name not in NOTES}


def listed(btw: Btw, dst: Path) -> list[str]:
    """Return the lines that ``list`` prints."""
    result = btw("list", dst)
    assert (result.status, result.err) == (0, "")
    return result.out.splitlines()


def extracted(dst: Path, name: str, to: Path) -> dict[str, bytes]:
    """Return what the newest point of a backup holds, with plain tar."""
    to.mkdir()
    path = dst / name
    archive = path if path.is_file() else path / "backup.tar"
    subprocess.run(["tar", "--force-local", "-C", to, "-xpf", archive], check=True)
    return tree(to)


def joined(chain: Path, to: Path) -> Path:
    """Write the archive that a chain, or a directory restored from it, holds in parts into a new file."""
    with to.open("xb") as file:
        for part in sorted(chain.glob("backup.tar*")):
            file.write(part.read_bytes())
    return to


def restored(chain: Path, at: str, to: Path) -> dict[str, bytes]:
    """Return what a point of a chain holds, with plain rdiff-backup and tar, from a copy of the chain."""
    to.mkdir()
    subprocess.run(["cp", "-a", chain, to / "chain"], check=True)
    argv: list[str | Path] = [
        "rdiff-backup",
        "-v0",
        "restore",
        "--at",
        f"{at}Z",
        to / "chain",
        to / "out",
    ]
    subprocess.run(argv, check=True, cwd=to)
    (to / "tree").mkdir()
    subprocess.run(["tar", "-C", to / "tree", "-xpf", to / "out" / "backup.tar"], check=True)
    return tree(to / "tree")


def at_rest(dst: Path) -> bool:
    """Return whether the private directory holds only what belongs there."""
    private = dst / ".btw-backup"
    return not private.exists() or {path.name for path in private.iterdir()} <= AT_REST


@contextmanager
def mounted(*args: str | Path) -> Iterator[None]:
    """Mount a file system with these arguments of mount(8), and unmount it at the end."""
    subprocess.run(["mount", *args], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", args[-1]], check=True)
