"""The configuration off-site, and everything of a lost server back."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from btw_backup.offsite.redaction import redacted

from .helpers import trees
from .helpers.repositories import PASSWORD, S3_KEYS, configure, restic, snapshots
from .helpers.running import Btw, Result

pytestmark = [
    pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed"),
    pytest.mark.usefixtures("own_cache"),
]

SILENCE = Result(0, "", "")
AUTO = "OFFSITE_AUTO = True\n"
SECRET = S3_KEYS["AWS_SECRET_ACCESS_KEY"]


@pytest.fixture
def full(btw: Btw, config_dir: Path, repository: Path, src: Path) -> Path:
    """A configuration directory with something of everything in it."""
    configure(config_dir, repository, S3_KEYS, "OFFSITE_KEEP = {'last': 2}\n")
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    (config_dir / "shop.py").write_text("CONNECTION = 'host=/run/postgresql'\n")
    (config_dir / "hooks").mkdir()
    (config_dir / "hooks" / "before.sh").write_text("#!/bin/sh\n")
    (config_dir / "hooks" / "before.sh").chmod(0o700)
    (config_dir / "hooks" / "dangling").symlink_to("/no/such/file")
    if os.geteuid() == 0:
        os.chown(config_dir / "shop.py", 12345, 54321)
    return config_dir


def configurations(repository: Path) -> list[str]:
    return [str(one["id"]) for one in snapshots(repository, of_configurations=True)]


def said(result: Result, status: int, *words: str | Path) -> None:
    """Fail unless a run ended with that status, and one line that holds all these words."""
    assert (result.status, len(result.err.splitlines())) == (status, 1), result
    assert [str(word) for word in words if str(word) not in result.err] == [], result


def test_the_configuration_comes_back(
    btw: Btw, full: Path, repository: Path, stored: Path, src: Path, tmp_path: Path
) -> None:
    [work] = full.glob("name.*")
    (work / "backup" / "run.left").mkdir()
    (full / ".fs-init.left").mkdir()
    assert btw("sync", stored) == SILENCE
    [sent] = configurations(repository)
    restic(repository, "restore", sent, f"--target={tmp_path / 'by hand'}")
    by_hand = tmp_path / "by hand" / "configuration"
    text = (by_hand / "config.py").read_text()
    assert SECRET not in text and "OFFSITE_ENV = {}" in text and "left out" in text
    assert not [one for one in by_hand.rglob("*") if one.name in ("password", "backup", ".fs-init.left")]

    before = tmp_path / "before"
    work_time = work.stat().st_mtime_ns
    full.rename(before)
    configure(full, repository, S3_KEYS)
    own = (full / "config.py").read_text()
    result = btw("fetch", "--config")
    assert (result.status, result.err) == (0, "")
    assert result.out == f"kept {full / 'config.py'}, which differs from the copy\n"
    assert (full / "config.py").read_text() == own
    assert (full / "password").read_text() == f"{PASSWORD}\n"
    for place in (before, full):
        for name in ("config.py", "password", ".offsite", ".fs-init.left"):
            shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink(missing_ok=True)
    shutil.rmtree(before / work.name / "backup")
    os.utime(before / work.name, ns=(work_time, work_time))
    shutil.copystat(before, full)
    trees.assert_same(before, full)
    configure(full, repository, S3_KEYS)
    assert btw("fs", src, stored).status == 0


def test_an_unchanged_configuration_is_not_sent_again(
    btw: Btw, full: Path, repository: Path, stored: Path
) -> None:
    shown = btw("sync", "-n", stored).out.splitlines()
    assert shown[1].startswith(f"send {full} (") and configurations(repository) == []
    said_of = btw("-v", "sync", stored).err.splitlines()[-1]
    assert said_of.endswith("without OFFSITE_PASSWORD_FILE and the values of OFFSITE_ENV")
    assert btw("sync", stored) == SILENCE
    assert btw("sync", "-n", stored).out.splitlines()[1].startswith(f"unchanged {full} (")
    assert len(configurations(repository)) == 1
    [work] = full.glob("name.*")
    for number in range(3):
        (work / "src").unlink()
        (work / "src").symlink_to(f"/elsewhere/{number}")
        assert btw("sync", stored) == SILENCE
    assert len(configurations(repository)) == 2  # OFFSITE_KEEP
    assert len(snapshots(repository)) == 1


def test_a_backup_sends_a_changed_configuration_too(
    btw: Btw, full: Path, repository: Path, src: Path, dst: Path, tmp_path: Path
) -> None:
    configure(full, repository, options=AUTO)
    assert btw("fs", src, dst) == SILENCE
    assert len(configurations(repository)) == 1
    no_restic = {"PATH": "/nonexistent"}
    (full / "shop.py").write_text("CONNECTION = 'host=/run/other'\n")
    away = repository.rename(tmp_path / "away")
    result = btw("fs", src, dst)
    said(result, 4, "but not the off-site copy of the configuration", repository)
    away.rename(repository)
    assert btw("fs", src, dst) == SILENCE
    assert len(configurations(repository)) == 2
    assert "restic" not in btw("fs", src, dst, env=no_restic).err


REMARK = "# The values of OFFSITE_ENV were left out of this copy.\n"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("OFFSITE_ENV = {'K': 's3cret'}\n", REMARK + "OFFSITE_ENV = {}\n"),
        (
            "X = 'ä'; OFFSITE_ENV = {\n  'K':\n 's3cret',\n}; Y = 2\n",
            REMARK + "X = 'ä'; OFFSITE_ENV = {}; Y = 2\n",
        ),
        ("A = 1\r\nOFFSITE_ENV = {'K': 's3cret'}\r\n", "A = 1\r\n" + REMARK + "OFFSITE_ENV = {}\r\n"),
        (
            "if True:\n    OFFSITE_ENV = {'K': 's3' 'cret'}\n",
            "if True:\n" + REMARK + "    OFFSITE_ENV = {}\n",
        ),
        ("KEY = 's3cret'\nOFFSITE_ENV = {'K': KEY}\n", None),
        ("OFFSITE_ENV = {}\nOFFSITE_ENV['K'] = 's3cret'\n", None),
        ("OFFSITE_ENV = {'K': 's3cret'}\nOFFSITE_ENV = dict(OFFSITE_ENV)\n", None),
        ("OFFSITE_ENV = dict(K='s3cret')\n", None),
        ("OTHER = OFFSITE_ENV = {'K': 's3cret'}\n", None),
        ("from elsewhere import OFFSITE_ENV\n", None),
        ("globals()['OFFSITE_ENV'] = {'K': 's3cret'}\n", None),
        ("OFFSITE_ENV = {'K': 'other'}\n", None),
        ("A = 1\rOFFSITE_ENV = {'K': 's3cret'}\r", None),
    ],
)
def test_what_is_left_of_the_general_file(text: str, expected: str | None) -> None:
    assert redacted(text.encode(), {"K": "s3cret"}) == (None if expected is None else expected.encode())
    assert redacted(text.encode(), {}) == text.encode()


def test_a_general_file_that_computes_credentials_is_not_sent(
    btw: Btw, full: Path, repository: Path, stored: Path
) -> None:
    with open(full / "config.py", "a") as file:
        file.write("OFFSITE_ENV['MORE'] = 'secret'.upper()\n")
    said(btw("sync", stored), 0, f"warning: {full}/config.py was not sent", "OFFSITE_ENV")
    [sent] = configurations(repository)
    names = restic(repository, "ls", sent)
    assert "/configuration/shop.py" in names and "/configuration/config.py" not in names
    assert btw("sync", stored) == SILENCE


def test_a_general_file_that_is_a_link_stays_one(
    btw: Btw, full: Path, repository: Path, stored: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    text = (full / "config.py").read_text().replace("'password'", repr(str(full / "password")))
    (full / "config.py").unlink()
    (elsewhere / "config.py").write_text(text)
    (full / "config.py").symlink_to(elsewhere / "config.py")
    assert btw("sync", stored) == SILENCE
    assert btw("fetch", "--config", tmp_path / "fetched") == SILENCE
    assert os.readlink(tmp_path / "fetched" / "config.py") == str(elsewhere / "config.py")


def test_a_destination_in_the_configuration_directory_is_no_configuration(
    btw: Btw, full: Path, repository: Path, src: Path
) -> None:
    inside = full / "backups"
    inside.mkdir()
    assert btw("fs", src, inside) == SILENCE
    assert btw("sync", inside) == SILENCE
    assert "/configuration/backups" not in restic(repository, "ls", configurations(repository)[0])


# All of a lost server


def test_everything_comes_back(
    btw: Btw, full: Path, repository: Path, src: Path, dst: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for destination in (dst, other):
        assert btw("fs", src, destination) == SILENCE
    assert btw("sync", dst, other) == SILENCE
    [work] = full.glob("name.*")
    for lost in (dst, other, full):
        lost.rename(f"{lost}.lost")
    configure(full, repository, S3_KEYS)
    other.mkdir()
    (other / "in the way").touch()
    result = btw("fetch", "--all")
    said(result, 1, f"{other} is not empty")
    assert result.out.startswith(f"kept {full / 'config.py'}")
    assert stat.S_IMODE(full.stat().st_mode) == 0o700
    assert os.readlink(full / work.name / "src") == str(src)
    assert btw("list", dst).out == btw("list", f"{dst}.lost").out
    assert os.listdir(other) == ["in the way"]
    (other / "in the way").unlink()
    result = btw("fetch", "--all")
    said(result, 1, f"{dst} is not empty")
    assert btw("verify", dst, other) == SILENCE
    (src / "file").write_text("changed\n")
    assert btw("fs", src, dst) == SILENCE


def test_of_several_servers_one_is_chosen(
    btw: Btw, full: Path, repository: Path, stored: Path, tmp_path: Path
) -> None:
    assert btw("sync", stored) == SILENCE
    assert btw("fetch", "--all", "--host", "nobody").status == 1
    foreign = tmp_path / "tree"
    (foreign / "configuration").mkdir(parents=True)
    (foreign / "configuration" / "theirs.py").touch()
    restic(repository, "backup", "--host=server2", f"--tag=config:{full}", str(foreign))
    for command in (["--all"], ["--config"]):
        said(btw("fetch", *command), 1, "several servers", "--host", "server2", os.uname().nodename)
    said(btw("fetch", "--all", "--host", "server3"), 1, "server3", "server2")
    assert not list(full.glob("theirs.py"))
    listed = btw("fetch", "--list", "--config", "--host", "server2").out.splitlines()
    assert len(listed) == 1 and listed[0].endswith(f"Z server2:{full}")
    [shown] = json.loads(btw("fetch", "--list", "--json", "--host", os.uname().nodename).out)
    assert shown["destination"] == str(stored)
    shutil.rmtree(stored)
    result = btw("fetch", "--all", "--host", os.uname().nodename)
    assert (result.status, result.err) == (0, "")
    assert os.listdir(stored) == ["2025-01-01T00:00:00.tbz"]


@pytest.mark.parametrize(
    "args",
    [
        ["--all", "name"],
        ["--all", "--config"],
        ["--all", "--list"],
        ["--config", "target", "more"],
        ["--list", "--config", "name"],
        ["--json"],
        ["--json", "name", "target"],
    ],
    ids=" ".join,
)
def test_usage(btw: Btw, full: Path, args: list[str]) -> None:
    result = btw("fetch", *args)
    assert (result.status, result.out) == (2, "") and "Traceback" not in result.err


def test_there_is_no_copy_of_the_configuration(btw: Btw, repository: Path, config_dir: Path) -> None:
    said(btw("fetch", "--config"), 1, "there is no off-site copy of the configuration")
    said(btw("fetch", "--all"), 1, "there are no off-site copies")
