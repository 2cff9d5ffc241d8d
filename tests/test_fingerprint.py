"""Fingerprints of trees: every change gives another one, and a tree that cannot be walked has none."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from btw_backup.archive.names import order_of
from btw_backup.destination.record import Stretch
from btw_backup.programs.tar import Source
from btw_backup.source import fingerprint


def take(
    src: Path, starts: list[bytes] | None = None, *, stays: bool = False
) -> fingerprint.Fingerprint | None:
    """Walk it, and once more in the stretches of that; or in those that ``starts`` gives."""
    source = Source(str(src), "", (), (), stays)
    if starts is None:
        first = fingerprint.take(source)
        starts = [walked.start for walked in first.walked] if first else []
    return fingerprint.take(source, starts)


def digest(found: fingerprint.Fingerprint) -> tuple[tuple[bytes, str], ...]:
    return tuple((walked.start, walked.digest) for walked in found.walked)


def settled(found: fingerprint.Fingerprint) -> bool:
    """Whether every later change will be seen; nothing is dirty."""
    return all(stretch.digest for stretch in found.settle(Source("/", "", (), (), False)))


def test_times_in_the_future_are_never_settled(settled_sources: Iterator[Path]) -> None:
    """A clock was set back, for example, or the file is from a machine whose clock is ahead."""
    src = next(settled_sources)
    found = take(src)
    assert found is not None and settled(found)
    ahead = time.time() + 3600
    os.utime(src / "file", (ahead, ahead))
    time.sleep(2.1)
    found = take(src)
    assert found is not None and not settled(found)


@pytest.fixture
def broad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with so many members that several processes walk it."""
    monkeypatch.setattr(fingerprint, "_MEMBERS", 20)
    src = tmp_path / "broad"
    for number in range(100):
        (src / f"{number:03}" / "sub").mkdir(parents=True)
        (src / f"{number:03}" / "sub" / "file").write_text("content\n")
    return src


def test_a_change_is_seen_in_every_part_of_a_broad_tree(broad: Path) -> None:
    first = take(broad)
    assert first is not None and len(first.walked) > 10
    starts = [walked.start for walked in first.walked]
    seen = [take(broad, starts)]
    for path in sorted(broad.glob("*/sub/file")):
        path.chmod(0o600)
        seen.append(take(broad, starts))
        before, now = seen[-2:]
        assert before is not None and now is not None
        known = [Stretch(*walked[:2]) for walked in before.walked]
        [(start, stop)] = now.changed(before.options, known)
        place = order_of(os.fsencode(path.relative_to(broad)))
        assert start <= place and (stop is None or place < stop)
    assert len({digest(found) for found in seen if found is not None}) == 101


def test_the_newest_timestamp_counts_in_every_part_of_a_broad_tree(
    broad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10 * 10**9)  # every ctime is long ago
    for path in sorted(broad.glob("*/sub/file")):
        before, ahead = path.stat(), time.time() + 3600
        os.utime(path, (ahead, ahead))
        found = take(broad)
        assert found is not None and not settled(found)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        found = take(broad)
        assert found is not None and settled(found)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_part_of_a_broad_tree_stays_on_one_file_system(broad: Path) -> None:
    mounted = broad / "050" / "sub"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mounted], check=True)
    try:
        (mounted / "there").touch()
        before = take(broad, stays=True), take(broad)
        (mounted / "there").chmod(0o600)
        after = take(broad, stays=True), take(broad)
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert None not in (*before, *after)
    digests = [digest(found) for found in (*before, *after) if found is not None]
    assert digests[0] == digests[2] and digests[1] != digests[3]


def test_a_part_of_a_broad_tree_that_cannot_be_walked_cannot_be_told(
    broad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take(broad)
    assert first is not None
    starts = [walked.start for walked in first.walked]
    real = os.listdir
    for number in range(100):  # whichever of the processes it is that fails

        def listdir(path: bytes, name: bytes = b"/%03d/sub" % number) -> list[bytes]:
            if name in path:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path)

        monkeypatch.setattr(os, "listdir", listdir)
        assert take(broad, starts) is None


def test_what_cannot_be_walked_cannot_be_told(src: Path) -> None:
    """A path longer than PATH_MAX."""
    descriptor = os.open(src, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=descriptor)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    assert take(src) is None
