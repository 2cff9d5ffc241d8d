"""Everything that is wrong with the configuration, in one run."""

import json
from pathlib import Path
from typing import Any

import pytest

from .helpers.running import Btw


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.mkdir(mode=0o700)
    return path


def test_all_is_well(btw: Btw, src: Path) -> None:
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    assert btw("check-config") == (0, "", "")
    assert btw("check-config", "--json") == (0, "[]\n", "")
    assert btw("-v", "check-config").err == "btw_backup: 7 checks, 0 faults\n"


def test_every_fault_is_said_at_once(btw: Btw, config_dir: Path, src: Path) -> None:
    (config_dir / "config.py").write_text("BEFORE = 3\n")
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    [workdir] = config_dir.glob("name.*")
    (workdir / "config.py").write_text("TYPE = 'tar'\nCOMPRESION = 'zstd'\n")
    (workdir / "src").unlink()
    (workdir / "src").symlink_to("/no/such/source")
    (config_dir / "shop.py").write_text("CONNECTION = 'host=/no/such/socket'\n")
    (config_dir / "global.py").write_text("RUN_AS = 'no-such-user'\n")
    (config_dir / "db").mkdir()
    (config_dir / "db" / "old.py").write_text("x = 1\n")
    (config_dir / "db" / "old.py").chmod(0o666)
    result = btw("check-config")
    said = result.err.splitlines()
    assert (result.status, result.out) == (1, "")
    for words in (
        ("config.py:1: BEFORE must be",),
        ("name.", "config.py:2: unknown option COMPRESION: did you mean COMPRESSION?"),
        ("the source does not exist: /no/such/source",),
        ("the database shop cannot be reached: ", "/no/such/socket"),
        ("global.py:1: RUN_AS there is no user 'no-such-user'",),
        ("db/old.py: refused, because others can write it",),
    ):
        assert [line for line in said if all(word in line for word in words)], (words, said)
    assert len(said) == 6
    found = json.loads(btw("check-config", "--json").out)
    assert all(list(each) == ["severity", "file", "line", "message"] for each in found)
    assert {each["severity"] for each in found} == {"error"}
    assert [shown(each) for each in found] == [line.removeprefix("btw_backup: ") for line in said]
    assert {(each["file"], each["line"]) for each in found} == {
        (str(config_dir / "config.py"), 1),
        (str(workdir / "config.py"), 2),
        (str(workdir), None),
        (str(config_dir / "global.py"), 1),
        (str(config_dir / "db" / "old.py"), None),
        (None, None),
    }


def shown(finding: dict[str, Any]) -> str:
    """The line that is printed for people."""
    place = [str(finding[key]) for key in ("file", "line") if finding[key] is not None]
    return ": ".join([":".join(place)] * bool(place) + [finding["message"]])


def test_missing_programs_are_named_with_their_packages(
    btw: Btw, config_dir: Path, src: Path, tmp_path: Path
) -> None:
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    (config_dir / "shop.py").touch()
    (tmp_path / "empty").mkdir()
    result = btw("check-config", env={"PATH": str(tmp_path / "empty")})
    assert result.status == 1
    for program, package in (
        ("tar", "tar"),
        ("rdiff-backup", "rdiff-backup"),
        ("bzip2", "bzip2"),
        ("pg_restore", "postgresql-client"),
    ):
        assert f"btw_backup: {program} not found: install the package {package}\n" in result.err


@pytest.mark.parametrize(
    ("program", "version", "status", "said"),
    [
        ("rdiff-backup", "1.2.8", 1, "rdiff-backup 1.2.8 is too old: 2.2 is needed"),
        ("rdiff-backup", "of today", 1, "rdiff-backup of unknown version is too old: 2.2 is needed"),
        ("rdiff-backup", "3.0", 0, "warning: rdiff-backup 3.0 is untested: 2.2.2 to 2.2.7 have been tested"),
        ("tar", "1.30", 0, "warning: tar 1.30 is untested: 1.34 to 1.35 have been tested"),
    ],
)
def test_a_version_that_is_too_old_or_untested(
    btw: Btw, tmp_path: Path, program: str, version: str, status: int, said: str
) -> None:
    other = tmp_path / "bin" / program
    other.parent.mkdir()
    other.write_text(f"#!/bin/sh\necho {program} {version}\n")
    other.chmod(0o755)
    result = btw("check-config", env={"PATH": f"{other.parent}:/usr/bin:/bin"})
    assert result == (status, "", f"btw_backup: {said}\n")
    again = btw("check-config", "--json", env={"PATH": f"{other.parent}:/usr/bin:/bin"})
    [found] = json.loads(again.out)
    assert (again.status, again.err) == (status, result.err)
    assert (found["severity"], found["file"], found["line"]) == ("error" if status else "warning", None, None)
    assert found["message"] == said.removeprefix("warning: ")


def test_no_configuration_directory(btw: Btw, config_dir: Path) -> None:
    config_dir.rmdir()
    said = f"btw_backup: the configuration directory does not exist: {config_dir}\n"
    assert btw("check-config") == (1, "", said)
    [found] = json.loads(btw("check-config", "--json").out)
    assert (found["severity"], found["file"]) == ("error", None) and str(config_dir) in found["message"]
