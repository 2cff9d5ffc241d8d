"""Sources and destinations on ext4, XFS and btrfs.

On btrfs a directory that was opened before an entry was made does not list that entry.
"""

import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .helpers import trees
from .helpers.destinations import listed
from .helpers.disks import MAKERS, disk
from .helpers.postgres_servers import MakeDatabase, Server
from .helpers.running import Btw

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")

SILENCE = (0, "", "")
OWNER = 12345
# With this PATH tar cannot run, so a run that succeeds has read no file.
NO_TAR = {"PATH": "/nonexistent"}


@pytest.fixture(params=MAKERS)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of each kind, with a source and a destination."""
    with disk(request.param, tmp_path) as path:
        (path / "dst").mkdir()
        yield path


@pytest.mark.parametrize("kind", ["rdiff", "tar"])
def test_points_are_made_and_restored(root: Path, btw: Btw, config_dir: Path, kind: str) -> None:
    src, dst = root / "src", root / "dst"
    trees.build(src)
    config_dir.mkdir(mode=0o700)
    (config_dir / "config.py").touch()
    assert btw("fs-init", "--type", kind, src, "name").status == 0
    states = []
    for number in range(3):
        (src / "large").write_bytes(os.urandom(200_000))
        (src / f"new {number}").mkdir()
        subprocess.run(["cp", "-a", src, root / f"state {number}"], check=True)
        assert btw("fs", "-u", f"{OWNER}:{OWNER}", src, dst) == SILENCE
        states.append(root / f"state {number}")
    points = [line.strip() for line in listed(btw, dst)]
    assert len(points) == 3
    for number, (point, state) in enumerate(zip(points, states, strict=True)):
        target = root / f"restored {number}"
        assert btw("fs-restore", "--at", point.partition(".")[0], dst, target) == SILENCE
        trees.assert_same(state, target)
    assert btw("verify", dst) == SILENCE
    for path in dst.rglob("*"):
        if ".btw-backup" not in path.parts:
            assert path.lstat().st_uid == OWNER, path
    assert sorted(os.listdir(dst / ".btw-backup")) == ["lock", "newest", "success", "verified"]


@pytest.mark.parametrize("kind", ["rdiff", "tar"])
def test_an_unchanged_source_is_not_read(root: Path, btw: Btw, src: Path, kind: str) -> None:
    own, dst = root / "own", root / "dst"
    subprocess.run(["cp", "-a", src, own], check=True)
    assert btw("fs-init", "--type", kind, own, "name").status == 0
    time.sleep(2.1)
    assert btw("fs", own, dst) == SILENCE
    assert btw("fs", own, dst, env=NO_TAR) == SILENCE
    assert "no change" in (dst / "log.txt").read_text()


def test_a_store_through_a_mapping_is_backed_up(root: Path, btw: Btw) -> None:
    """A store into a page that is dirty already changes no timestamp, until the page has been written."""
    src, dst = root / "src", root / "dst"
    src.mkdir()
    (src / "file").write_bytes(bytes(8192))
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    with open(src / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0] = 1
        time.sleep(2.5)
        assert btw("fs", src, dst) == SILENCE
        mapping[0] = 2
        assert btw("fs", src, dst) == SILENCE
    assert len(listed(btw, dst)) == 2
    with open(next(dst.glob("20*/backup.tar")), "rb") as archive:
        assert b"\2\0\0\0" in archive.read()


def test_a_stage_of_another_kind_than_the_destination(root: Path, btw: Btw, src: Path, dst: Path) -> None:
    """The working directory is on this file system, the destination is not."""
    config = root / "config"
    for number in range(2):
        (src / "file").write_text(f"state {number}\n")
        if not number:
            assert btw("--config-dir", config, "fs-init", "--type", "rdiff", src, "name").status == 0
        assert btw("--config-dir", config, "fs", src, dst) == SILENCE
    assert len(listed(btw, dst)) == 2


def test_dumps_are_staged_on_the_destination(
    root: Path, btw: Btw, one_server: Server, make_database: MakeDatabase
) -> None:
    """A dump is staged in the private directory of the destination."""
    database = make_database(one_server, "on_a_disk", "CREATE TABLE t AS SELECT 1 AS n")
    for number in range(2):
        one_server.psql(f"INSERT INTO t VALUES ({number})", database)
        assert btw("db", database, root / "dst", env=one_server.as_superuser) == SILENCE
    assert len(listed(btw, root / "dst")) == 2
    assert btw("verify", root / "dst", env=one_server.as_superuser) == SILENCE
