"""``btw-backup list --long`` and ``--json``: how large and how old each point is."""

import json
import os
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from btw_backup.destination.sizes import Measured
from btw_backup.list import objects, table

from .helpers.destinations import BASE, rdiff_backup
from .helpers.running import Btw

FULL = datetime(2026, 11, 22, 22, 16, 17, tzinfo=UTC)
KEYS = {
    "source": (str, type(None)),
    "backup": (str,),
    "time": (str,),
    "kind": (str,),
    "stored": (int,),
    "restored": (int, type(None)),
    "age": (int,),
}


def listed(btw: Btw, dst: Path) -> list[dict[str, Any]]:
    """Return the objects that ``--json`` prints, and check that each has the documented form."""
    result = btw("list", "--json", dst)
    assert (result.status, result.err) == (0, "")
    points: list[dict[str, Any]] = json.loads(result.out)
    for point in points:
        assert list(point) == list(KEYS)
        assert all(type(point[key]) in types for key, types in KEYS.items())
        assert datetime.strptime(point["time"], "%Y-%m-%dT%H:%M:%SZ")
        assert point["kind"] in ("tarball", "full", "incremental")
    return points


def configure(config_dir: Path, text: str) -> None:
    [file] = config_dir.glob("name.*/config.py")
    file.write_text(text)


@pytest.fixture
def chain(dst: Path, tmp_path: Path) -> Path:
    """A chain of three points, of 10 kB, 20 kB and 30 kB."""
    path = dst / "2026-11-22T22:16:17"
    for number, zone in enumerate(("UTC", "EST5", "UTC")):
        rdiff_backup(path, tmp_path / "s", BASE + number * 3600, zone, str(number) * (number + 1) * 10_000)
    return path


def test_table() -> None:
    points = [
        Measured("2026-11-22T22:16:17", FULL, "full", 1500, 262144),
        Measured("2026-11-22T22:16:17", FULL + timedelta(hours=1), "incremental", 263041, 262144),
        Measured("2026-11-23T22:16:17.tar.zst", FULL + timedelta(days=1), "tarball", 3 << 30, None),
    ]
    lines = table(points, FULL + timedelta(days=400, hours=5))
    assert lines == [
        "point                       kind           stored  restored       age",
        "2026-11-22T22:16:17Z        full           1.5 kB    262 kB   400d 5h",
        " 2026-11-22T23:16:17Z       incremental    263 kB    262 kB   400d 4h",
        "2026-11-23T22:16:17Z        tarball        3.2 GB         ?   399d 5h",
    ]
    assert max(map(len, lines)) < 80


def test_nothing_to_list(btw: Btw, dst: Path) -> None:
    assert table([], FULL) == []
    assert btw("list", "-l", dst) == (0, "", "")
    assert btw("list", "--json", dst) == (0, "[]\n", "")


def test_objects() -> None:
    point = Measured("2026-11-22T22:16:17", FULL, "full", 1500, None)
    assert objects([point], FULL + timedelta(minutes=2), "/etc") == [
        {
            "source": "/etc",
            "backup": "2026-11-22T22:16:17",
            "time": "2026-11-22T22:16:17Z",
            "kind": "full",
            "stored": 1500,
            "restored": None,
            "age": 120,
        }
    ]


def test_a_chain(btw: Btw, dst: Path, chain: Path) -> None:
    """The sizes of the points add up to that of the chain, but for what belongs to no point."""
    points = listed(btw, dst)
    assert [point["backup"] for point in points] == [chain.name] * 3
    assert [point["kind"] for point in points] == ["full", "incremental", "incremental"]
    assert [point["time"] for point in points] == [
        f"2026-11-2{time}:16:17Z" for time in ("2T22", "2T23", "3T00")
    ]
    assert [point["restored"] for point in points] == [10_000, 20_000, 30_000]
    assert all(point["stored"] > 0 for point in points) and points[-1]["stored"] > 30_000
    total = sum(path.stat().st_size for path in chain.rglob("*") if path.is_file())
    total -= (chain / "rdiff-backup-data" / "backup.log").stat().st_size
    assert sum(point["stored"] for point in points) == total


def test_the_times_are_those_of_the_plain_list(btw: Btw, dst: Path, chain: Path) -> None:
    (dst / "2026-11-23T22:16:18.tbz").touch()
    plain = [name.removesuffix(".tbz") for name in btw("list", dst).out.splitlines()]
    lines = btw("list", "--long", dst).out.splitlines()[1:]
    assert [line.split("Z ")[0] for line in lines] == plain
    assert len(plain) == 4 and len({len(line) for line in lines}) == 1


def test_local_times(btw: Btw, dst: Path, chain: Path) -> None:
    lines = btw("list", "--long", "--local", dst, env={"TZ": "Europe/Paris"}).out.splitlines()[1:]
    local = [f"2026-11-2{time}:16:17+01:00" for time in ("2T23", "3T00", "3T01")]
    assert [line.split("  ")[0].strip() for line in lines] == local
    assert btw("list", "--local", dst) == (2, "", "btw_backup: --local is for --long\n")


@pytest.mark.parametrize("compression", ["bzip2", "gzip", "none"])
def test_tarballs_made_here(btw: Btw, src: Path, dst: Path, config_dir: Path, compression: str) -> None:
    (src / "zeros").write_bytes(bytes(300_000))
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    configure(config_dir, f"TYPE = 'tar'\nCOMPRESSION = {compression!r}\n")
    assert btw("fs", src, dst).status == 0
    [point] = listed(btw, dst)
    stored = (dst / point["backup"]).stat().st_size
    restored = subprocess.run(["tar", "--force-local", "-cf", "-", "-C", src, "."], capture_output=True)
    assert point["kind"] == "tarball" and point["stored"] == stored
    assert point["restored"] == pytest.approx(len(restored.stdout), abs=20480)
    assert (point["restored"] == stored) == (compression == "none")
    assert 0 <= point["age"] < 60


def test_chains_made_here(btw: Btw, src: Path, dst: Path) -> None:
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    for number in range(2):
        (src / "file").write_text("more" * number * 90_000)
        assert btw("fs", src, dst).status == 0
    points = listed(btw, dst)
    assert [point["kind"] for point in points] == ["full", "incremental"]
    [chain] = dst.glob("2*")
    assert points[1]["restored"] == (chain / "backup.tar").stat().st_size > points[0]["restored"]


@pytest.mark.parametrize("noted", [None, b"", b"-5", b"1e3", b"9" * 19, b"\xff", "٣".encode(), b"12\n"])
def test_a_tarball_whose_size_is_not_known(btw: Btw, dst: Path, noted: bytes | None) -> None:
    path = dst / "2026-11-23T22:16:18.tbz"
    path.write_bytes(b"x" * 77)
    if noted is not None:
        os.setxattr(path, "user.btw-backup.size", noted)
    [point] = listed(btw, dst)
    assert (point["stored"], point["restored"]) == (77, None)
    assert " ? " in btw("list", "-l", dst).out


@pytest.mark.parametrize("damage", ["missing", "garbage", "fifo", "link", "huge"])
def test_metadata_that_cannot_be_read(btw: Btw, dst: Path, chain: Path, damage: str) -> None:
    """The rest is still listed."""
    [metadata] = (chain / "rdiff-backup-data").glob("mirror_metadata.*.snapshot.gz")
    metadata.unlink()
    if damage == "garbage":
        metadata.write_bytes(b"garbage")
    if damage == "fifo":
        os.mkfifo(metadata)
    if damage == "link":
        metadata.symlink_to("/etc/passwd")
    if damage == "huge":
        with open(metadata, "wb") as file:
            subprocess.run(["gzip", "-c"], input=bytes(3 << 20), stdout=file, check=True)
    points = listed(btw, dst)
    assert [point["restored"] for point in points] == [10_000, 20_000, None]


def test_metadata_made_to_be_slow(btw: Btw, dst: Path, chain: Path) -> None:
    [metadata] = (chain / "rdiff-backup-data").glob("mirror_metadata.*.snapshot.gz")
    with open(metadata, "wb") as file:
        subprocess.run(["gzip", "-c"], input=b"  Size 1\n" * 110_000, stdout=file, check=True)
    started = time.monotonic()
    assert listed(btw, dst)[2]["restored"] is None
    assert time.monotonic() - started < 10


def test_links_in_a_chain_are_not_followed(btw: Btw, dst: Path, chain: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(5_000_000))
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "large", tmp_path / "elsewhere" / "backup.tar.2026-11-22T22:16:17Z.diff")
    (chain / "backup.tar").unlink()
    (chain / "backup.tar").symlink_to(tmp_path / "large")
    shutil.rmtree(chain / "rdiff-backup-data" / "increments")
    (chain / "rdiff-backup-data" / "increments").symlink_to(tmp_path / "elsewhere")
    result = btw("list", "--json", dst)
    assert (result.status, result.out) == (1, "")
    assert result.err == f"btw_backup: {chain.name}: Not a directory\n"
    (chain / "rdiff-backup-data" / "increments").unlink()
    assert all(point["stored"] < 10_000 for point in listed(btw, dst))


def test_a_database_whose_name_is_a_stamp(btw: Btw, dst: Path, tmp_path: Path) -> None:
    source = tmp_path / "s"
    for number in range(2):
        rdiff_backup(dst / "2026-11-22T22:16:17", source, BASE + number * 3600, content=os.urandom(9).hex())
    increments = dst / "2026-11-22T22:16:17" / "rdiff-backup-data" / "increments"
    before = listed(btw, dst)[0]["stored"]
    (increments / "x2026-11-22T23:16:17Z.dump.2026-11-22T22:16:17Z.diff").write_bytes(bytes(1000))
    (increments.parent / "increments.2026-13-22T22:16:17Z.dir").touch()
    (increments.parent / "mirror_metadata.2026-13-22T22:16:17Z.diff").touch()
    (increments.parent / "current_mirror.9999-12-31T22:16:17-23:00.data").touch()
    (increments / "x.2026-13-22T22:16:17Z.diff").write_bytes(bytes(1000))  # no time at all
    assert listed(btw, dst)[0]["stored"] == before + 1000


def test_one_form_at_a_time(btw: Btw, dst: Path) -> None:
    assert btw("list", "--long", "--json", dst).status == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_read_only_disk(btw: Btw, dst: Path, chain: Path) -> None:
    subprocess.run(["mount", "--bind", "-o", "ro", dst, dst], check=True)
    try:
        assert len(listed(btw, dst)) == 3
    finally:
        subprocess.run(["umount", dst], check=True)
