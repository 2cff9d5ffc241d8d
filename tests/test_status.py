"""``btw-backup status``: what monitors read, and how it treats destinations of other users."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from btw_backup import monitoring, status
from btw_backup.monitoring import Report, State

from .helpers.destinations import rdiff_backup
from .helpers.monitors import LINE
from .helpers.running import Btw

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
LONG_AGO = "2001-02-03T04:05:06.tbz"
UNCHANGED = "no change in the data to be backed up:"

KEYS = {
    "destination": (str,),
    "source": (str, type(None)),
    "status": (str,),
    "problem": (str, type(None)),
    "newest": (str, type(None)),
    "last_success": (str, type(None)),
    "age": (int, type(None)),
    "points": (int, type(None)),
    "stored": (int, type(None)),
    "offsite_newest": (str, type(None)),
    "offsite_age": (int, type(None)),
    "unsent_since": (str, type(None)),
    "verified": (str, type(None)),
    "verified_age": (int, type(None)),
    "verify_seconds": (int, type(None)),
    "verify_result": (str, type(None)),
    "verify_scope": (str, type(None)),
    "restore_tested": (str, type(None)),
    "offsite_verified": (str, type(None)),
}
SAMPLE = re.compile(r'(btw_backup_[a-z_]+)\{destination="((?:[^"\\\n]|\\[\\"n])*)"\} (\d+)')
METRICS = [
    "newest_point_timestamp_seconds",
    "last_success_timestamp_seconds",
    "points",
    "stored_bytes",
    "offsite_newest_timestamp_seconds",
    "last_verify_timestamp_seconds",
    "last_verify_duration_seconds",
    "last_verify_ok",
    "last_restore_test_timestamp_seconds",
    "offsite_last_verify_timestamp_seconds",
]


def reported(btw: Btw, *args: str | Path) -> tuple[int, list[str]]:
    """Return the exit status and the lines, and check that each has the form that monitors read."""
    result = btw("status", *args)
    assert result.err == ""
    lines = result.out.splitlines()
    assert all(LINE.fullmatch(text) for text in lines), lines
    return result.status, lines


def as_objects(btw: Btw, *args: str | Path) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit status and the objects that ``--json`` prints, each in the documented form."""
    result = btw("status", "--json", *args)
    assert result.err == ""
    found: list[dict[str, Any]] = json.loads(result.out)
    for each in found:
        assert list(each) == list(KEYS)
        assert all(type(each[key]) in types for key, types in KEYS.items())
    return result.status, found


def samples(text: str) -> dict[tuple[str, str], int]:
    """Return the values of an exposition by metric and label, and check what a collector insists on."""
    assert text.endswith("\n")
    found: dict[tuple[str, str], int] = {}
    described: dict[str, list[str]] = {}
    for each in text.splitlines():
        if comment := re.fullmatch(r"# (HELP|TYPE) (\S+) (.+)", each):
            described.setdefault(comment[2], []).append(comment[1])
            assert comment[1] == "HELP" or comment[3] == "gauge"
            continue
        sample = SAMPLE.fullmatch(each)
        assert sample, each
        assert sample[1] == list(described)[-1] and (sample[1], sample[2]) not in found
        found[sample[1], sample[2]] = int(sample[3])
    assert described == {f"btw_backup_{name}": ["HELP", "TYPE"] for name in METRICS}
    return found


@pytest.fixture
def backed_up(btw: Btw, src: Path, dst: Path) -> Path:
    """A destination with one tarball, made now."""
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    assert btw("fs", src, dst).status == 0
    return dst


def test_quietly_only_what_is_wrong(btw: Btw, backed_up: Path, tmp_path: Path) -> None:
    assert btw("-q", "status", backed_up) == (0, "", "")
    (tmp_path / "empty").mkdir()
    result = btw("status", "-q", backed_up, tmp_path / "empty")
    assert result.status == 1 and result.out.startswith(f"BTW-BACKUP WARNING - {tmp_path}/empty: ")
    assert len(result.out.splitlines()) == 1


def test_a_good_backup(btw: Btw, backed_up: Path) -> None:
    exit_status, [text] = reported(btw, "--max-age", "1h", backed_up)
    assert exit_status == 0
    assert text.startswith(f"BTW-BACKUP OK - {backed_up}: newest point 2")
    assert ", 1 point, " in text and ";;3600;0 points=1 size=" in text


def test_a_run_that_found_nothing_changed_is_a_success(btw: Btw, src: Path, backed_up: Path) -> None:
    [made] = backed_up.glob("*.tbz")
    made.rename(backed_up / LONG_AGO)
    (backed_up / ".btw-backup" / "success").unlink()
    exit_status, [text] = reported(btw, "--max-age", "1h", backed_up)
    assert exit_status == 2 and "CRITICAL" in text and "no success within 1h 0m" in text
    assert reported(btw, backed_up)[0] == 0
    assert btw("fs", src, backed_up).status == 0
    assert "dropping backup" in (backed_up / "log.txt").read_text()
    exit_status, [found] = as_objects(btw, "--max-age", "1h", backed_up)
    assert (exit_status, found["status"], found["newest"]) == (0, "OK", "2001-02-03T04:05:06Z")
    assert found["last_success"] > "2001" and 0 <= found["age"] < 600


def test_no_backups(btw: Btw, dst: Path) -> None:
    assert reported(btw, dst) == (
        1,
        [f"BTW-BACKUP WARNING - {dst}: no backups yet, 0 points, 0 B | points=0 size=0B"],
    )
    (dst / "log.txt").write_text(f"2026-11-22T22:16:17.tbz: {UNCHANGED} dropping backup\n")
    assert reported(btw, "--max-age", "24h", dst)[0] == 2


def test_an_interrupted_chain(btw: Btw, dst: Path, tmp_path: Path) -> None:
    chain = dst / "2001-02-03T04:05:06"
    rdiff_backup(chain, tmp_path / "s", 981_173_106)
    assert reported(btw, dst)[0] == 0
    data = chain / "rdiff-backup-data"
    [marker] = data.glob("current_mirror.*")
    shutil.copy(marker, data / "current_mirror.2001-02-03T05:05:06Z.data")
    exit_status, [text] = reported(btw, dst)
    assert exit_status == 1 and "WARNING" in text and "interrupted" in text
    (dst / "2001-02-04T04:05:06.tbz").touch()
    assert reported(btw, dst)[0] == 0


def test_a_point_in_the_future(btw: Btw, dst: Path) -> None:
    (dst / "2999-01-01T00:00:00.tbz").touch()
    exit_status, [text] = reported(btw, "--max-age", "1h", dst)
    assert exit_status == 1 and "in the future" in text and "age=-" in text


def test_the_worst_of_several(btw: Btw, backed_up: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / LONG_AGO).touch()
    paths = [tmp_path / "missing", backed_up, tmp_path / "empty", backed_up]
    exit_status, lines = reported(btw, *paths)
    assert exit_status == 3
    assert [text.split()[1] for text in lines] == ["UNKNOWN", "OK", "WARNING"]
    assert "does not exist" in lines[0] and "|" not in lines[0]
    exit_status, found = as_objects(btw, "--max-age", "1h", *paths, tmp_path / "old")
    assert exit_status == 2
    assert [each["status"] for each in found] == ["UNKNOWN", "OK", "CRITICAL", "CRITICAL"]
    assert (found[0]["points"], found[0]["stored"], found[0]["newest"]) == (None, None, None)


def test_space(btw: Btw, dst: Path) -> None:
    """It is what du counts for the files, hard links once, with the private directory."""
    (dst / ".btw-backup").mkdir()
    (dst / ".btw-backup" / "some").write_bytes(os.urandom(50_000))
    os.link(dst / ".btw-backup" / "some", dst / LONG_AGO)
    with open(dst / "sparse", "wb") as file:
        file.truncate(1 << 30)
    (dst / "link").symlink_to("/usr")
    inodes = {path.lstat().st_ino: path.lstat().st_blocks * 512 for path in dst.rglob("*")}
    assert as_objects(btw, dst)[1][0]["stored"] == sum(inodes.values())


def test_the_last_success_has_a_file_of_its_own(btw: Btw, src: Path, backed_up: Path) -> None:
    """What stands in log.txt, and when somebody last wrote to it, does not count."""
    with open(backed_up / "log.txt", "a") as log:
        log.write(f"2020-11-22T22:16:17.tbz: {UNCHANGED} dropping backup\n")
    success = backed_up / ".btw-backup" / "success"
    assert as_objects(btw, backed_up)[1][0]["last_success"] == f"{success.read_text().strip()}Z"
    success.write_text("2020-11-22T22:16:17\n")
    [made] = backed_up.glob("*.tbz")
    made.rename(backed_up / LONG_AGO)
    assert as_objects(btw, backed_up)[1][0]["last_success"] == "2020-11-22T22:16:17Z"
    assert btw("fs", src, backed_up).status == 0
    assert as_objects(btw, backed_up)[1][0]["last_success"] > "2026"


@pytest.mark.parametrize("content", ["", "\0" * 20, "2020-13-22T22:16:17\n", "x" * 1000])
def test_a_success_that_is_none(btw: Btw, dst: Path, content: str) -> None:
    """A power cut can leave a file empty, or full of zeros."""
    (dst / LONG_AGO).touch()
    (dst / ".btw-backup").mkdir(0o700)
    (dst / ".btw-backup" / "success").write_text(content)
    assert as_objects(btw, dst)[1][0]["last_success"] == "2001-02-03T04:05:06Z"


@pytest.mark.parametrize(("mode", "known"), [(0o700, True), (0o770, False), (0o702, False)])
def test_a_success_that_others_can_write(btw: Btw, dst: Path, mode: int, known: bool) -> None:
    """A run refuses such a private directory; what it holds does not count."""
    (dst / LONG_AGO).touch()
    (dst / ".btw-backup").mkdir()
    (dst / ".btw-backup").chmod(mode)
    (dst / ".btw-backup" / "success").write_text("2020-11-22T22:16:17\n")
    found = as_objects(btw, dst)[1][0]["last_success"]
    assert found == ("2020-11-22T22:16:17Z" if known else "2001-02-03T04:05:06Z")


def write_log(path: Path) -> None:
    """Write a log whose last line was added in 2020."""
    path.write_text(f"2020-11-22T22:16:17.tbz: {UNCHANGED} dropping backup\n")
    then = datetime(2020, 11, 22, 22, 16, 17, tzinfo=UTC).timestamp()
    os.utime(path, (then, then))


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "dangling"])
def test_a_log_that_is_none(btw: Btw, dst: Path, tmp_path: Path, kind: str) -> None:
    """Where there is no file of the last success, log.txt is as old as the last run that wrote to it."""
    (dst / LONG_AGO).touch()
    write_log(dst / "log.txt")
    write_log(tmp_path / "log")
    assert as_objects(btw, dst)[1][0]["last_success"] == "2020-11-22T22:16:17Z"
    (dst / "log.txt").unlink()
    if kind == "fifo":
        os.mkfifo(dst / "log.txt")
    elif kind == "directory":
        (dst / "log.txt").mkdir()
    else:
        (dst / "log.txt").symlink_to(tmp_path / "log" if kind == "link" else "nowhere")
    exit_status, [found] = as_objects(btw, dst)
    assert (exit_status, found["last_success"]) == (0, "2001-02-03T04:05:06Z")


def test_deep_directories_of_somebody_else(btw: Btw, dst: Path) -> None:
    (dst / LONG_AGO).touch()
    deep = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"
    subprocess.run(["python3", "-c", deep], cwd=dst, check=True)
    exit_status, [found] = as_objects(btw, dst)
    subprocess.run(["rm", "-rf", dst / "d"], check=True)
    assert (exit_status, found["points"]) == (0, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize("hidden", [".", "2001-02-03T04:05:06"])
def test_what_may_not_be_read_is_unknown(tmp_path: Path, hidden: str) -> None:
    """Except for the private directory, which belongs to root alone."""
    dst = Path(tempfile.mkdtemp(prefix="btw-status-"))
    try:
        rdiff_backup(dst / "2001-02-03T04:05:06", tmp_path / "s", 981_173_106)
        (dst / "log.txt").touch()
        (dst / ".btw-backup").mkdir(mode=0o700)
        for path in (dst, *dst.rglob("*")):
            path.chmod(0o700 if path.name == ".btw-backup" else 0o755)
        assert (as_nobody(dst).state, as_nobody(dst).problem) == (State.OK, "")
        (dst / hidden).chmod(0o600)
        report = as_nobody(dst)
    finally:
        shutil.rmtree(dst)
    assert report.state == State.UNKNOWN
    assert report.problem.endswith("Permission denied")


def as_nobody(dst: Path) -> Report:
    """Return what an ordinary user sees."""
    os.seteuid(65534)
    try:
        return status._report(str(dst), NOW, monitoring.Limits(), [])
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_read_only_disk(btw: Btw, backed_up: Path) -> None:
    subprocess.run(["mount", "--bind", "-o", "ro", backed_up, backed_up], check=True)
    try:
        assert reported(btw, "--max-age", "1h", backed_up)[0] == 0
    finally:
        subprocess.run(["umount", backed_up], check=True)


def test_nothing_is_written_to_the_destination(btw: Btw, backed_up: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in [backed_up, *backed_up.rglob("*")]}
    reported(btw, backed_up)
    assert {path: path.lstat().st_mtime_ns for path in [backed_up, *backed_up.rglob("*")]} == before


def test_prometheus(btw: Btw, backed_up: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'a "quoted" \\ name\nof two lines'
    odd.mkdir()
    target = tmp_path / "collector" / "btw.prom"
    target.parent.mkdir()
    plain = btw("status", backed_up, odd, tmp_path / "missing")
    assert btw("status", "--prometheus", target, backed_up, odd, tmp_path / "missing").status == plain.status
    values = samples(target.read_text())
    made = datetime.strptime(next(backed_up.glob("2*")).name[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    assert values["btw_backup_newest_point_timestamp_seconds", str(backed_up)] == made.timestamp()
    assert values["btw_backup_last_success_timestamp_seconds", str(backed_up)] == made.timestamp()
    assert values["btw_backup_points", str(backed_up)] == 1
    assert values["btw_backup_stored_bytes", str(backed_up)] > 0
    escaped = str(odd).replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    assert {name for name, label in values if label == escaped} == {
        "btw_backup_points",
        "btw_backup_stored_bytes",
    }
    assert len(values) == 6
    assert target.stat().st_mode & 0o7777 == 0o644
    assert os.listdir(target.parent) == ["btw.prom"]


def test_a_name_that_is_no_text(btw: Btw, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"latin \xe9")
    odd.mkdir()
    (odd / LONG_AGO).touch()
    for env in ({}, {"PYTHONIOENCODING": "ascii"}):
        result = btw("status", "--prometheus", tmp_path / "prom", odd, env=env)
        assert (result.status, result.err) == (0, "") and "latin \\udce9: newest" in result.out
    assert len(samples((tmp_path / "prom").read_text(encoding="utf-8"))) == 4
    assert as_objects(btw, odd)[1][0]["destination"] == str(odd)


def test_the_old_file_stays_when_the_new_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "collector" / "btw.prom"
    target.parent.mkdir()
    target.write_text("old\n")

    def fail(fd: int) -> None:
        [prepared] = set(os.listdir(target.parent)) - {"btw.prom"}
        assert not prepared.endswith(".prom") and target.read_text() == "old\n"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        monitoring.replace(str(target), b"new\n")
    assert os.listdir(target.parent) == ["btw.prom"] and target.read_text() == "old\n"


@pytest.mark.parametrize("obstacle", ["no directory", "a directory"])
def test_a_file_that_cannot_be_written(btw: Btw, backed_up: Path, tmp_path: Path, obstacle: str) -> None:
    target = tmp_path / "collector" / "btw.prom"
    if obstacle == "a directory":
        target.mkdir(parents=True)
    result = btw("status", "--prometheus", target, backed_up)
    assert result.status == 3 and result.out.startswith("BTW-BACKUP OK")
    assert re.fullmatch(rf"btw_backup: {target}: .+\n", result.err)
    assert not target.parent.exists() or os.listdir(target.parent) == ["btw.prom"]


@pytest.mark.parametrize("arguments", ["", "--max-age x .", "--max-age .", "--prometheus ."])
def test_usage_errors(btw: Btw, arguments: str) -> None:
    assert btw("status", *arguments.split()).status == 2
