"""A sample of what ``python -m tests.power`` tries in full, and what it leaves empty."""

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
