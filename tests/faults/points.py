"""What the points hold, read by programs other than ours."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..helpers.destinations import joined
from .case import Broken, run


class Archivist:
    """Reads points with rdiff-backup, bzip2 and PostgreSQL, and each content only once."""

    def __init__(self, scratch: Path, plain: Callable[[Path], str]) -> None:
        self.scratch = scratch
        self._plain = plain
        self._known: dict[str, dict[str, str]] = {}

    def contents(self, dst: Path, listed: Sequence[str]) -> dict[str, str]:
        """Map each listed point to its digest, by ``CHAIN TIME`` or the tarball's name. Raises Broken."""
        found: dict[str, str] = {}
        for backup, times in chains_of(listed).items():
            key = f"{backup} {times} {digest_of(dst / backup)}"
            if key not in self._known:
                self._known[key] = self._read(dst / backup, times)
            found |= self._known[key]
        return found

    def _read(self, backup: Path, times: list[str]) -> dict[str, str]:
        if backup.is_file():
            return {backup.name: self._plain(backup)}
        with tempfile.TemporaryDirectory(dir=self.scratch) as scratch:
            # rdiff-backup writes a log into the chain that it reads.
            copy = Path(scratch, "chain")
            run("cp", "-a", backup, copy)
            found = {}
            for number, moment in enumerate([backup.name, *times]):
                at = ["--at", f"{moment}Z"]
                run("rdiff-backup", "-v0", "verify", *at, copy)
                restored = Path(scratch, str(number))
                run("rdiff-backup", "-v0", "restore", *at, copy, restored)
                if not restored.is_dir():
                    raise Broken(f"rdiff-backup restores nothing of {backup.name} at {moment}")
                files = [path for path in restored.iterdir() if path.is_file()]
                whole = files[0] if len(files) == 1 else joined(restored, Path(scratch, f"{number}.tar"))
                found[f"{backup.name} {moment}"] = self._plain(whole)
            return found


def chains_of(listed: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in listed:
        if line.startswith(" "):
            found[list(found)[-1]].append(line[1:])
        else:
            found[line] = []
    return found


def digest_of(path: Path, *without: str) -> str:
    """Return a digest of everything in a tree but times, and but entries of these names."""
    digest = hashlib.sha256()
    for entry in [path, *sorted(path.rglob("*"))]:
        if not {*without}.isdisjoint(entry.parts):
            continue
        found = entry.lstat()
        digest.update(f"{entry.relative_to(path)}\0{found.st_mode} {found.st_uid} {found.st_gid}\0".encode())
        if entry.is_symlink():
            digest.update(os.readlink(entry).encode())
        elif entry.is_file():
            digest.update(hashlib.sha256(entry.read_bytes()).digest())
    return digest.hexdigest()


# The endings of compressed tarballs, and what decompresses them.
_UNPACKING = {".tbz": "bzip2", ".zst": "zstd", ".gz": "gzip", ".xz": "xz"}


def plain_tar(path: Path) -> str:
    program = _UNPACKING.get(path.suffix)
    with open(path, "rb") as file:
        content = run(program, "-dc", stdin=file) if program else file.read()
    return hashlib.sha256(content).hexdigest()
