"""Chains that something else left broken: the next backup starts a new one, and the old one stays."""

import gzip
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from .faults.tracing import CHANGING, parse_trace, tracing
from .helpers.destinations import backups, extracted, listed, restored, tree
from .helpers.running import Btw

NO_MORE = "cannot add to the chain"


def started_anew(btw: Btw, source: Path, dst: Path, tmp_path: Path) -> None:
    """Check that the next backup starts a chain and warns once, and the old chain stays as it is."""
    before, old = listed(btw, dst), backups(dst)
    assert not any("1969" in line or "1970" in line for line in before)
    result = btw("fs", source, dst)
    assert result.status == 0, result
    assert NO_MORE in result.err
    assert result.err.count("warning") == 1
    log = (dst / "log.txt").read_text()
    assert log.count(NO_MORE) == 1
    after = listed(btw, dst)
    assert after[:-1] == before
    assert {name: data for name, data in backups(dst).items() if name in old} == old
    assert extracted(dst, after[-1], tmp_path / "new") == tree(source)
    (source / "file").write_text("state 3\n")
    assert btw("fs", source, dst) == (0, "", "")
    assert (dst / "log.txt").read_text() == log
    assert len(listed(btw, dst)) == len(after) + 1


def test_two_markers(btw: Btw, two_points: Path, src: Path, dst: Path, tmp_path: Path) -> None:
    (marker,) = two_points.glob("rdiff-backup-data/current_mirror.*")
    shutil.copy(marker, marker.with_name("current_mirror.2001-01-01T00:00:00Z.data"))
    result = btw("list", dst)
    assert (result.status, result.err) == (0, "")
    assert two_points.name in result.out
    started_anew(btw, src, dst, tmp_path)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("first", [True, False])
def test_rdiff_backup_was_killed_in_the_chain(
    btw: Btw, initialised: Path, dst: Path, tmp_path: Path, first: bool
) -> None:
    for number in range(1 if first else 2):
        (initialised / "file").write_text(f"state {number}\n")
        assert btw("fs", initialised, dst).status == 0
    before = listed(btw, dst)
    (initialised / "file").write_text("state 2\n")
    stage = tmp_path / "stage"
    stage.mkdir()
    subprocess.run(["tar", "-C", initialised, "-cf", stage / "backup.tar", "."], check=True)
    time.sleep(1)
    argv = ["rdiff-backup", "-v2", "backup", str(stage)]
    subprocess.run(["cp", "-a", dst, tmp_path / "traced"], check=True)
    trace = tmp_path / "trace"
    subprocess.run(
        [*tracing(trace, CHANGING), *argv, tmp_path / "traced" / before[0]], capture_output=True, check=True
    )
    calls = [call for call in parse_trace(trace.read_text(errors="replace")) if "traced" in call.text]
    interrupted = 0
    # The rename that publishes the second marker, and some calls before and after it.
    for call in calls[:: max(1, len(calls) // 8)] + calls[-3:]:
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", dst, copy], check=True)
        fault = f"{call.name}:signal=SIGKILL:when={call.number}"
        subprocess.run([*tracing(trace, {call.name}, fault), *argv, copy / before[0]], capture_output=True)
        now = listed(btw, copy)
        assert now[: len(before)] == before, call
        assert not any("1969" in line for line in now)
        points = [before[0], *(line[1:] for line in before[1:])]
        markers = len(list(copy.glob("*/rdiff-backup-data/current_mirror.*")))
        old = backups(copy)
        result = btw("fs", initialised, copy)
        assert result.status == 0, (call, result)
        after = listed(btw, copy)
        assert len(after) == len(now) + 1, call
        if markers > 1:
            interrupted += 1
            assert NO_MORE in result.err
            assert NO_MORE in (copy / "log.txt").read_text()
            assert {name: data for name, data in backups(copy).items() if name in old} == old
        else:
            for number, at in enumerate(points):
                found = restored(copy / before[0], at, tmp_path / f"{call.number}-{call.name}-{number}")
                assert found["file"] == f"state {number}\n".encode(), call
        newest = [line for line in after if not line.startswith(" ")][-1]
        assert extracted(copy, newest, tmp_path / "out") == tree(initialised), call
        shutil.rmtree(tmp_path / "out")
        shutil.rmtree(copy)
    assert interrupted > 0


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing"])
def test_damaged_metadata(
    btw: Btw, two_points: Path, src: Path, dst: Path, tmp_path: Path, damage: str
) -> None:
    (metadata,) = two_points.glob("rdiff-backup-data/mirror_metadata.*.snapshot.gz")
    data = metadata.read_bytes()
    if damage == "missing":
        metadata.unlink()
    else:
        metadata.write_bytes({"truncated": data[:60], "empty": b"", "garbage": b"not gzip\n"}[damage])
    started_anew(btw, src, dst, tmp_path)


def test_metadata_that_says_nothing(btw: Btw, two_points: Path, src: Path, dst: Path, tmp_path: Path) -> None:
    (metadata,) = two_points.glob("rdiff-backup-data/mirror_metadata.*.snapshot.gz")
    metadata.write_bytes(gzip.compress(b""))
    before = listed(btw, dst)
    result = btw("fs", src, dst)
    assert result.status == 0, result
    after = listed(btw, dst)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1
    newest = [line for line in after if not line.startswith(" ")][-1]
    assert extracted(dst, newest, tmp_path / "new") == tree(src)
