"""A sample of what ``python -m tests.power`` tries in full, and the orders that it rarely comes to test."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers.destinations import at_rest, listed
from .helpers.running import Btw

_NEEDED = ("strace", "unshare", "setpriv", "mkfs.xfs", "mkfs.ext4", "mkfs.btrfs")
_MISSING = [program for program in _NEEDED if shutil.which(program) is None]
_LOOP = Path("/dev/loop-control")

needs_disks = pytest.mark.skipif(
    os.geteuid() != 0 or not _LOOP.exists() or bool(_MISSING),
    reason=f"needs root, loop devices and {', '.join(_NEEDED)}",
)


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def power(*only: str, sample: int = 1, without_syncs: bool = False) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tests.power", "--most=8", f"--sample={sample}"]
    argv += ["--without-syncs"] * without_syncs
    argv += [f"--only={what}" for what in only]
    return subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parent.parent)


@needs_disks
def test_no_power_cut_costs_a_point() -> None:
    done = power("incremental", "ext4-writeback", "names-first")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9]\d+ moments tried .*, 0 points lost$", done.stdout, re.MULTILINE), done.stdout


@needs_disks
def test_power_cuts_cost_points_without_syncs() -> None:
    done = power("first-tarball", "xfs", "late", sample=0, without_syncs=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^\d+ moments tried .*, [1-9]\d* points lost", done.stdout, re.MULTILINE), done.stdout


def traced(tmp_path: Path, *args: str | Path) -> list[str]:
    """The calls that sync, make files and rename, of a run that succeeds."""
    trace = tmp_path / "trace"
    calls = "trace=fsync,openat,renameat2,renameat,rename"
    strace: list[str | Path] = ["strace", "-f", "-y", "-s", "200", "-o", trace, "-e", calls]
    subprocess.run([*strace, sys.executable, "-m", "btw_backup", *args], check=True)
    return trace.read_text(errors="replace").splitlines()


def first(calls: list[str], pattern: str) -> int:
    return next(number for number, call in enumerate(calls) if re.search(pattern, call))


@needs_strace
def test_a_restored_file_comes_after_the_mark_of_the_target(
    btw: Btw, config_dir: Path, two_points: Path, tmp_path: Path
) -> None:
    """On btrfs a sync of the file by another program left it on the disk, and not the mark."""
    target = tmp_path / "target"
    calls = traced(tmp_path, "--config-dir", config_dir, "fs-restore", two_points.parent, target)
    marked = first(calls, r"openat\(.*\.btw-backup-restore-incomplete.*O_CREAT")
    synced = first(calls, rf"fsync\(\d+<{re.escape(str(target))}>\) += 0")
    made = first(calls, r'openat\(.*"(\./)?file", .*O_CREAT')
    assert marked < synced < made


@needs_strace
def test_a_checksum_comes_after_the_mark_of_a_tarball_without_one(
    btw: Btw, config_dir: Path, src: Path, dst: Path, tmp_path: Path
) -> None:
    """On btrfs another program's sync left the checksum on the disk, and not the mark."""
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    (config,) = config_dir.glob("name.*/config.py")
    config.write_text(config.read_text() + 'COMPRESSION = "none"\n')
    calls = traced(tmp_path, "--config-dir", config_dir, "fs", src, dst)
    marked = first(calls, r"openat\(.*\.tar\.unpaired.*O_CREAT")
    synced = first(calls, rf"fsync\(\d+<{re.escape(str(dst))}/\.btw-backup>\) += 0")
    shown = first(calls, r'renameat2\(.*\.tar\.sha256"')
    assert marked < synced < shown


@pytest.mark.parametrize("content", [b"", bytes(300)], ids=["empty", "zeros"])
def test_what_a_power_cut_emptied_is_not_believed(
    btw: Btw, initialised: Path, dst: Path, content: bytes
) -> None:
    """A file that was not synced may be empty afterwards, or hold zeros."""
    assert btw("fs", initialised, dst).status == 0
    for name in ("lock", "newest", "success", "sent"):
        (dst / ".btw-backup" / name).write_bytes(content)
    (dst / "log.txt").write_bytes(content)
    assert btw("fs", initialised, dst) == (0, "", "")  # all is read again, and found to be the same
    assert len(listed(btw, dst)) == 1
    assert (dst / "log.txt").read_bytes().splitlines()[-1].endswith(b"new incremental backup")
    (initialised / "file").write_text("changed\n")
    assert btw("fs", initialised, dst) == (0, "", "")
    assert len(listed(btw, dst)) == 2
    assert btw("verify", dst).status == 0
    assert at_rest(dst)
