"""``btw-backup list`` prints exactly the backups and points that exist, and reads only names."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from .helpers.destinations import BASE, rdiff_backup
from .helpers.running import Btw, Result


def lines(btw: Btw, dst: Path) -> list[str]:
    """Return the lines that ``list`` prints."""
    result = btw("list", dst)
    assert result.status == 0
    if result.out:
        assert result.err == "" and result.out.endswith("\n")
    else:
        assert result.err in ("", f"btw_backup: warning: {dst} holds other things, and no backups\n")
    return result.out.splitlines()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


def test_nothing_in_an_empty_destination(btw: Btw, dst: Path) -> None:
    assert btw("list", dst) == Result(0, "", "")


def test_format(btw: Btw, dst: Path, source: Path) -> None:
    chain = dst / "2026-11-22T22:16:17"
    for at in (BASE, BASE + 3600, BASE + 7200):
        rdiff_backup(chain, source, at)
    rdiff_backup(dst / "2026-11-24T22:16:17", source, BASE + 2 * 86400)
    (dst / "2026-11-23T22:16:18.tbz").touch()
    assert btw("list", dst).out == (
        "2026-11-22T22:16:17\n"
        " 2026-11-22T23:16:17\n"
        " 2026-11-23T00:16:17\n"
        "2026-11-23T22:16:18.tbz\n"
        "2026-11-24T22:16:17\n"
    )


@pytest.mark.parametrize("ending", [".tbz", ".tar.zst", ".tar.gz", ".tar.xz", ".tar"])
def test_every_kind_of_tarball(btw: Btw, dst: Path, ending: str) -> None:
    (dst / f"2026-11-23T22:16:18{ending}").touch()
    assert lines(btw, dst) == [f"2026-11-23T22:16:18{ending}"]


def test_oldest_first(btw: Btw, dst: Path, source: Path) -> None:
    names = [
        "1999-12-31T23:59:59.tar",
        "2026-01-01T00:00:00.tar.xz",
        "2026-01-01T00:00:01.tar",
        "2026-12-01T00:00:00.tbz",
    ]
    for name in reversed(names):
        (dst / name).touch()
    rdiff_backup(dst / "2026-11-22T22:16:17", source, BASE)
    assert lines(btw, dst) == [*names[:3], "2026-11-22T22:16:17", names[3]]


@pytest.mark.parametrize("zones", [["EST5"] * 3, ["NPT-5:45"] * 3, ["EST5", "UTC", "JST-9"]])
def test_stamps_with_an_offset(btw: Btw, dst: Path, source: Path, zones: list[str]) -> None:
    """rdiff-backup writes times in the zone of TZ; the list is in UTC and in order of time."""
    for number, zone in enumerate(zones):
        rdiff_backup(dst / "2026-11-22T22:16:17", source, BASE + number * 3600, zone)
    data = os.listdir(dst / "2026-11-22T22:16:17" / "rdiff-backup-data")
    assert any(re.search(r"[+-]\d\d:\d\d\.", name) for name in data)
    assert lines(btw, dst) == ["2026-11-22T22:16:17", " 2026-11-22T23:16:17", " 2026-11-23T00:16:17"]


def test_the_zone_of_the_reader_does_not_matter(btw: Btw, dst: Path, source: Path) -> None:
    for at in (BASE, BASE + 3600):
        rdiff_backup(dst / "2026-11-22T22:16:17", source, at)
    here = btw("list", dst, env={"TZ": "JST-9", "LC_ALL": "C"})
    assert here.out == "2026-11-22T22:16:17\n 2026-11-22T23:16:17\n"


def test_foreign_entries_are_passed_over(btw: Btw, dst: Path, source: Path) -> None:
    for name in (
        "log.txt",
        "2026-11-23",
        "2026-11-23T22:16:18.tar.bz2",
        "2026-11-23T22:16:18.tbz.part",
        "2026-11-23T22:16:18.tar.sha256",
        "2026-11-23T22:16:18tbz",
        ".2026-11-23T22:16:18.tbz",
        "x2026-11-23T22:16:18.tbz",
        "2026-11-23T22:16:18.tbz\n",
        "2026-13-23T22:16:18.tbz",
        "2026-11-31T22:16:18.tbz",
        "2026-11-23T24:16:18.tbz",
        "2026-11-23T22:16:18",
        "2026-11-23 22:16:18.tbz",
        "٢026-11-23T22:16:18.tbz",
        os.fsdecode(b"2026-11-23T22:16:18.\xff"),
    ):
        (dst / name).touch()
    for name in ("lost+found", "2026-11-24T22:16:18", "2026-11-24T22:16:18.tbz", ".btw-backup"):
        (dst / name).mkdir()
    os.mkfifo(dst / "2026-11-25T22:16:18.tbz")
    rdiff_backup(dst / "not a time", source, BASE)
    rdiff_backup(dst / ".btw-backup" / "2026-11-22T22:16:17", source, BASE)
    assert lines(btw, dst) == []


def test_symbolic_links_are_passed_over(btw: Btw, dst: Path, source: Path, tmp_path: Path) -> None:
    rdiff_backup(tmp_path / "chain", source, BASE)
    (dst / "2026-11-22T22:16:17").symlink_to(tmp_path / "chain")
    (dst / "2026-11-24T22:16:17.tbz").symlink_to(source / "backup.tar")
    (dst / "2026-11-25T22:16:17.tbz").symlink_to("dangling")
    assert lines(btw, dst) == []


def test_a_link_within_a_chain_is_refused_by_name(btw: Btw, dst: Path, source: Path, tmp_path: Path) -> None:
    rdiff_backup(tmp_path / "chain", source, BASE)
    (dst / "2026-11-23T22:16:17").mkdir()
    (dst / "2026-11-23T22:16:17" / "rdiff-backup-data").symlink_to(tmp_path / "chain" / "rdiff-backup-data")
    said = "btw_backup: 2026-11-23T22:16:17/rdiff-backup-data is not a directory: refused\n"
    assert btw("list", dst) == (1, "", said)


def test_a_link_as_destination_is_followed(btw: Btw, dst: Path, tmp_path: Path) -> None:
    (dst / "2026-11-23T22:16:18.tbz").touch()
    (tmp_path / "link").symlink_to(dst)
    assert lines(btw, tmp_path / "link") == ["2026-11-23T22:16:18.tbz"]


def test_a_chain_without_marker_has_no_point(btw: Btw, dst: Path, source: Path) -> None:
    chain = dst / "2026-11-22T22:16:17"
    for at in (BASE, BASE + 3600):
        rdiff_backup(chain, source, at)
    [marker] = (chain / "rdiff-backup-data").glob("current_mirror.*")
    marker.unlink()
    assert lines(btw, dst) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("points", [0, 1, 2], ids=["first", "first incremental", "second incremental"])
@pytest.mark.parametrize("call", ["rename:1", "unlink:1", "unlink:2", "fsync:3"])
def test_killed_rdiff_backup(btw: Btw, dst: Path, source: Path, points: int, call: str) -> None:
    """Whenever it is killed, the older points are listed, and nothing that can't be restored."""
    chain = dst / "2026-11-22T22:16:17"
    times = [BASE + number * 3600 for number in range(points + 1)]
    expected = ["2026-11-22T22:16:17", " 2026-11-22T23:16:17", " 2026-11-23T00:16:17"]
    for at in times[:points]:
        rdiff_backup(chain, source, at, content=f"{at}" * 9000)
    name, number = call.split(":")
    traced = f"/^{name}(at2?)?$"
    kill = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={traced}"]
    kill += ["-e", f"inject={traced}:signal=KILL:when={number}"]
    source.mkdir(exist_ok=True)
    (source / "backup.tar").write_text("the last one" * 9000)
    argv: list[str | Path] = [
        "rdiff-backup",
        "-v2",
        "--current-time",
        str(times[-1]),
        "backup",
        source,
        chain,
    ]
    killed = subprocess.run([*kill, *argv], capture_output=True)
    found = lines(btw, dst)
    assert killed.returncode == -signal.SIGKILL
    assert found in (expected[:points], expected[: points + 1])
    markers = list((chain / "rdiff-backup-data").glob("current_mirror.*"))
    if len(markers) != 1:
        assert found == expected[:points]


def test_two_markers_are_an_interrupted_run(btw: Btw, dst: Path, source: Path) -> None:
    """The newer marker is that of the killed run, so the older one names the last point."""
    chain = dst / "2026-11-22T22:16:17"
    for at in (BASE, BASE + 3600):
        rdiff_backup(chain, source, at)
    data = chain / "rdiff-backup-data"
    shutil.copy(
        data / "current_mirror.2026-11-22T23:16:17Z.data", data / "current_mirror.2026-11-23T00:16:17Z.data"
    )
    assert lines(btw, dst) == ["2026-11-22T22:16:17", " 2026-11-22T23:16:17"]


def test_many_chains_at_once(btw: Btw, dst: Path, source: Path, tmp_path: Path) -> None:
    """``list`` runs no program for each chain: rdiff-backup need not even be installed."""
    rdiff_backup(tmp_path / "chain", source, BASE)
    for number in range(60):
        shutil.copytree(tmp_path / "chain", dst / f"2026-11-22T22:00:{number:02}")
    result = btw("list", dst, env={"PATH": str(tmp_path / "nowhere")})
    assert result.status == 0
    assert result.out.splitlines() == [f"2026-11-22T22:00:{number:02}" for number in range(60)]


def test_listing_writes_nothing(btw: Btw, dst: Path, source: Path) -> None:
    rdiff_backup(dst / "2026-11-22T22:16:17", source, BASE)
    before = {path: path.lstat().st_mtime_ns for path in [dst, *dst.rglob("*")]}
    lines(btw, dst)
    assert {path: path.lstat().st_mtime_ns for path in [dst, *dst.rglob("*")]} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_read_only_disk(btw: Btw, dst: Path, source: Path) -> None:
    rdiff_backup(dst / "2026-11-22T22:16:17", source, BASE)
    subprocess.run(["mount", "--bind", "-o", "ro", dst, dst], check=True)
    try:
        assert lines(btw, dst) == ["2026-11-22T22:16:17"]
    finally:
        subprocess.run(["umount", dst], check=True)


@pytest.mark.parametrize("kind", ["missing", "file", "fifo", "dangling"])
def test_no_destination(btw: Btw, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "no destination"
    if kind == "file":
        path.touch()
    if kind == "fifo":
        os.mkfifo(path)
    if kind == "dangling":
        path.symlink_to("nowhere")
    result = btw("list", path)
    assert (result.status, result.out) == (1, "")
    assert re.fullmatch(rf"btw_backup: .*{path}.*\n", result.err)
    assert path.is_symlink() or path.exists() is (kind != "missing")


def test_no_working_directory_is_needed(btw: Btw, config_dir: Path, dst: Path) -> None:
    (dst / "2026-11-23T22:16:18.tbz").touch()
    assert lines(btw, dst) == ["2026-11-23T22:16:18.tbz"]
    assert not config_dir.exists()
