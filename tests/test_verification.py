"""The last verification is remembered, shown, and never a way for others to have us write elsewhere."""

import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from btw_backup.destination.verification import ALL, NEWEST, PART, POINT, Verification

from .helpers import trees
from .helpers.destinations import mounted
from .helpers.hostile import Land, ids
from .helpers.repositories import configure
from .helpers.running import Btw, Result

SILENCE = Result(0, "", "")
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def noted(two_points: Path, dst: Path) -> Path:
    """Where the last verification of a chain of two points is noted."""
    return dst / ".btw-backup" / "verified"


def reported(btw: Btw, dst: Path, *args: str) -> dict[str, Any]:
    [found] = json.loads(btw("status", "--json", *args, dst).out)
    assert isinstance(found, dict)
    return found


def damage(dst: Path) -> None:
    """Damage the older of two points."""
    [increment] = dst.glob("*/rdiff-backup-data/increments/backup.tar.*")
    data = bytearray(increment.read_bytes())
    data[len(data) // 2] ^= 8
    increment.write_bytes(data)


def test_status_shows_the_last_verification(btw: Btw, noted: Path, dst: Path, tmp_path: Path) -> None:
    assert reported(btw, dst)["verified"] is None
    never = btw("status", "--max-verify-age", "35d", dst)
    assert never.status == 1 and f"WARNING - {dst}: no verification within 35d 0h, " in never.out
    begun = datetime.now(UTC).replace(microsecond=0)
    assert btw("verify", "--restore-test", dst) == SILENCE
    found = reported(btw, dst, "--max-verify-age", "35d")
    ended = datetime.strptime(found["verified"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert begun <= ended <= datetime.now(UTC)
    assert 0 <= found["verified_age"] < 100 and 0 <= found["verify_seconds"] < 100
    assert (found["status"], found["verify_result"], found["verify_scope"]) == ("OK", "ok", "all")
    assert (found["restore_tested"], found["offsite_verified"]) == (found["verified"], None)
    assert re.search(r", verified \d+s ago, restored on trial \d+s ago, 2 points", btw("status", dst).out)
    target = tmp_path / "btw.prom"
    assert btw("status", "--prometheus", target, dst).status == 0
    label = f'{{destination="{dst}"}}'
    values = dict(line.rsplit(" ", 1) for line in target.read_text().splitlines() if line[0] != "#")
    prefix = "btw_backup_last_verify_"
    assert values[f"{prefix}timestamp_seconds{label}"] == str(int(ended.timestamp()))
    assert values[f"{prefix}ok{label}"] == "1"
    assert f"btw_backup_last_restore_test_timestamp_seconds{label}" in values
    assert values[f"{prefix}duration_seconds{label}"] == str(found["verify_seconds"])


def test_a_restore_test_is_remembered_longer(btw: Btw, noted: Path, dst: Path) -> None:
    assert btw("verify", "--restore-test", dst) == SILENCE
    tested = reported(btw, dst)["restore_tested"]
    noted.unlink()
    assert btw("verify", dst) == SILENCE
    found = reported(btw, dst)
    assert found["restore_tested"] == tested and found["verified"] >= tested


def test_a_verification_becomes_old(btw: Btw, noted: Path, dst: Path) -> None:
    noted.write_text(f"{datetime.now(UTC) - timedelta(days=3):%Y-%m-%dT%H:%M:%S} 600 ok newest\n")
    assert btw("status", "--max-verify-age", "4d", dst).status == 0
    old = btw("status", "--max-verify-age", "2d", dst)
    assert old.status == 1
    assert "no verification within 2d 0h" in old.out
    assert "verified 3d 0h ago (the newest point only)" in old.out


def test_damage_is_critical_until_all_is_well(btw: Btw, noted: Path, dst: Path) -> None:
    """A verification of what is not damaged, be it newer, does not hide it."""
    [increment] = dst.glob("*/rdiff-backup-data/increments/backup.tar.*")
    sound = increment.read_bytes()
    damage(dst)
    assert btw("verify", "--latest", dst) == SILENCE
    assert reported(btw, dst)["verify_scope"] == "newest"
    assert btw("verify", dst).status == 1
    assert btw("verify", "--latest", dst) == SILENCE
    found = reported(btw, dst)
    assert (found["status"], found["problem"]) == ("CRITICAL", "the last verification found damage")
    assert (found["verify_result"], found["verify_scope"]) == ("damaged", "all")
    assert btw("status", dst).status == 2
    increment.write_bytes(sound)
    assert btw("verify", dst) == SILENCE
    assert reported(btw, dst)["status"] == "OK"


@pytest.mark.parametrize(
    ("new", "old", "outdates"),
    [
        ((True, ALL), (False, ALL), True),
        ((True, ALL), (True, NEWEST), True),
        ((True, NEWEST), None, True),
        ((True, NEWEST), (True, POINT), True),
        ((True, NEWEST), (True, ALL), False),
        ((True, NEWEST), (False, NEWEST), False),
        ((True, PART), (True, ALL), False),
        ((False, POINT), (True, ALL), True),
        ((False, POINT), (False, ALL), True),
    ],
)
def test_what_is_remembered(new: tuple[bool, str], old: tuple[bool, str] | None, outdates: bool) -> None:
    before = None if old is None else Verification(NOW, 1, *old)
    assert Verification(NOW, 1, *new).outdates(before) == outdates


@pytest.mark.parametrize("scope", [ALL, NEWEST, POINT, PART])
@pytest.mark.parametrize("is_ok", [True, False])
def test_what_is_noted_is_read_again(scope: str, is_ok: bool) -> None:
    made = Verification(NOW, 600, is_ok, scope)
    assert Verification.of(made.line()) == made
    assert Verification.of(made.line()[:-1]) is None


@pytest.mark.parametrize("content", ["", "\0" * 40, "2026-13-22T22:16:17 1 ok all\n", "x" * 1000])
def test_a_note_that_is_none(btw: Btw, noted: Path, dst: Path, content: str) -> None:
    """A power cut can leave a file empty, or full of zeros; the next verification writes it again."""
    noted.write_text(content)
    assert reported(btw, dst)["verified"] is None
    assert btw("verify", dst) == SILENCE
    assert reported(btw, dst)["verified"] is not None


def test_what_a_killed_run_left_is_replaced(btw: Btw, noted: Path, dst: Path) -> None:
    noted.with_name("verified.new").write_text("2026-")
    assert btw("verify", dst) == SILENCE
    assert noted.read_text().endswith(" ok all\n")
    assert sorted(os.listdir(noted.parent)) == ["lock", "newest", "success", "verified"]
    assert noted.stat().st_mode & 0o7777 == 0o600


def test_nothing_is_made_where_no_run_has_been(btw: Btw, noted: Path, dst: Path) -> None:
    shutil.rmtree(noted.parent)
    before = trees.facts(dst)
    assert btw("verify", dst) == SILENCE
    assert trees.facts(dst) == before


@as_root
def test_a_read_only_disk_is_no_failure(btw: Btw, noted: Path, dst: Path) -> None:
    with mounted("--bind", "-o", "ro", dst, dst):
        assert btw("verify", dst) == SILENCE
    assert not noted.exists()


@as_root
def test_a_full_disk_is_no_failure(btw: Btw, noted: Path, dst: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", disk):
        subprocess.run(["cp", "-a", *dst.iterdir(), disk], check=True)
        with (disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)) == 4096 and os.statvfs(disk).f_bavail:
                pass
        assert btw("verify", disk) == SILENCE
        assert not (disk / ".btw-backup" / "verified").exists()


@as_root
@pytest.mark.parametrize("private", ["theirs", "open to others", "a link", "a link to a directory of root's"])
def test_a_private_directory_that_is_not_ours(
    btw: Btw, noted: Path, land: Land, dst: Path, private: str
) -> None:
    shutil.copytree(next(dst.glob("2*")), land.dst / next(dst.glob("2*")).name)
    ours = land.roots / "directory"
    (ours / "verified").write_text("2026-11-22T22:16:17 1 ok all\n")
    place = land.dst / ".btw-backup"
    if private == "a link":
        place.symlink_to(land.dst)
    elif private == "a link to a directory of root's":
        place.symlink_to(ours)
    else:
        place.mkdir()
        place.chmod(0o770 if private == "open to others" else 0o700)
        os.chown(place, *(ids() if private == "theirs" else (0, 0)))
    before = land.canaries()
    assert btw("verify", land.dst) == SILENCE
    assert land.canaries() == before
    assert not (land.dst / "verified").exists()
    assert not place.is_dir() or private.startswith("a link") or os.listdir(place) == []
    assert reported(btw, land.dst)["verified"] is None


@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")
def test_an_offsite_copy(btw: Btw, noted: Path, dst: Path, config_dir: Path, tmp_path: Path) -> None:
    """It has a note of its own: it says nothing about the destination."""
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    configure(config_dir, tmp_path / "repository")
    assert btw("sync", "--init", dst, env=env).status == 0
    assert btw("verify", "--offsite", "--subset", "1/2", dst, env=env) == SILENCE
    assert "off-site copy verified " in btw("status", dst, env=env).out
    assert "(a part only)" in btw("status", dst, env=env).out
    result = btw("verify", "--offsite", "--json", dst, env=env)
    [found] = json.loads(result.out)
    assert (result.status, result.err, found["status"], found["backup"]) == (0, "", "ok", None)
    assert found["destination"] == str(dst) and found["time"].endswith("Z")
    shown = json.loads(btw("status", "--json", dst, env=env).out)[0]
    assert shown["verified"] is None and shown["offsite_verified"].endswith("Z")
    before = noted.with_name("verified-offsite").read_text()
    assert before.endswith(" ok all\n")
    damage(dst)
    result = btw("verify", "--offsite", "--json", dst, env=env)
    [found] = json.loads(result.out)
    assert (result.status, found["status"]) == (1, "undecided")
    assert "differs from" in found["problem"]
    assert noted.with_name("verified-offsite").read_text() == before
