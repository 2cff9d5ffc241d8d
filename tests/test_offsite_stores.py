"""Off-site copies in several repositories, and in those that only accept additions."""

import json
import os
import shutil
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from .helpers.destinations import add_tarball, at_rest
from .helpers.repositories import S3_KEYS, Rest, configure, restic, snapshots
from .helpers.running import Btw, Result

pytestmark = [
    pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed"),
    pytest.mark.usefixtures("own_cache"),
]

SILENCE = Result(0, "", "")
AUTO = "OFFSITE_AUTO = True\n"


@pytest.fixture
def two(blank: Path, tmp_path: Path, config_dir: Path) -> list[Path]:
    """Two repositories; the configuration names both."""
    paths = [tmp_path / "near", tmp_path / "far"]
    for path in paths:
        shutil.copytree(blank, path)
    configure(config_dir, [str(path) for path in paths])
    return paths


def said(result: Result, status: int, *words: str | Path) -> None:
    """Fail unless a run ended with that status, and one line that holds all these words."""
    assert (result.status, len(result.err.splitlines())) == (status, 1), result
    assert [str(word) for word in words if str(word) not in result.err] == [], result


def test_each_repository_gets_its_copy(btw: Btw, two: list[Path], stored: Path, tmp_path: Path) -> None:
    shown = btw("sync", "-n", stored).out.splitlines()
    assert [line.split(" to ")[1] for line in shown] == [str(path) for path in two] * 2
    assert btw("sync", stored) == SILENCE
    for path in two:
        assert [len(snapshots(path)), len(snapshots(path, of_configurations=True))] == [1, 1]
    assert btw("sync", stored) == SILENCE
    assert [len(snapshots(path)) for path in two] == [1, 1]
    assert btw("verify", "--offsite", stored) == SILENCE
    assert btw("fetch", stored, tmp_path / "target") == SILENCE
    assert os.listdir(tmp_path / "target") == ["2025-01-01T00:00:00.tbz"]


def test_one_that_is_down_keeps_nothing_from_the_others(
    btw: Btw, two: list[Path], stored: Path, tmp_path: Path
) -> None:
    near, far = two
    near.rename(tmp_path / "away")
    said(btw("sync", stored), 1, near, "there is none here")
    assert len(snapshots(far)) == 1 and at_rest(stored)
    said(btw("sync", stored), 1, near)
    said(btw("verify", "--offsite", stored), 1, near)
    said(btw("check-config"), 1, near)
    result = btw("status", stored)
    said(result, 1, near)
    assert f"WARNING - {stored}: the off-site repository {near} cannot be reached" in result.out
    listed = btw("fetch", "--list")
    said(listed, 1, near)
    assert listed.out.endswith(f":{stored} in {far}\n")
    said(btw("fetch", stored, tmp_path / "target"), 0, near)
    assert os.listdir(tmp_path / "target") == ["2025-01-01T00:00:00.tbz"]
    (tmp_path / "away").rename(near)
    assert btw("sync", stored) == SILENCE
    assert [len(snapshots(path)) for path in two] == [1, 1]


def test_a_backup_remembers_where_it_was_sent(
    btw: Btw, two: list[Path], config_dir: Path, initialised: Path, dst: Path, tmp_path: Path
) -> None:
    near, far = two
    configure(config_dir, [str(path) for path in two], options=AUTO)
    near.rename(tmp_path / "away")
    said(btw("fs", initialised, dst), 4, "the backup was made, but not its off-site copy", near)
    said(btw("fs", initialised, dst), 4, near)
    assert len(snapshots(far)) == 1
    far.rename(tmp_path / "far away")  # it is not asked again
    (tmp_path / "away").rename(near)
    assert btw("fs", initialised, dst) == SILENCE
    assert len(snapshots(near)) == 1
    no_restic = {"PATH": "/nonexistent"}
    btw("fs", initialised, dst)
    assert "restic" not in btw("fs", initialised, dst, env=no_restic).err


def test_off_site_is_as_good_as_the_repository_that_is_furthest_behind(
    btw: Btw, two: list[Path], config_dir: Path, stored: Path
) -> None:
    near, far = two
    assert btw("sync", stored) == SILENCE
    configure(config_dir, near)
    add_tarball(stored, "2025-01-02T00:00:00.tbz", {"file": "more"})
    assert btw("sync", stored) == SILENCE
    assert json.loads(btw("status", "--json", stored).out)[0]["unsent_since"] is None
    for order in ([near, far], [far, near]):
        configure(config_dir, [str(path) for path in order])
        [report] = json.loads(btw("status", "--json", stored).out)
        assert report["unsent_since"] == "2025-01-02T00:00:00Z"
        assert report["offsite_newest"] == snapshots(far)[-1]["time"][:19] + "Z"
    restic(far, "forget", str(snapshots(far)[-1]["id"]))
    [report] = json.loads(btw("status", "--json", stored).out)
    assert (report["offsite_newest"], report["problem"]) == (None, "no off-site copy yet")


def test_the_copy_with_the_newest_point_is_fetched(
    btw: Btw, two: list[Path], config_dir: Path, stored: Path, tmp_path: Path
) -> None:
    near, far = two
    assert btw("sync", stored) == SILENCE
    configure(config_dir, far)
    newer = "2025-01-02T00:00:00.tbz"
    add_tarball(stored, newer, {"file": "more"})
    assert btw("sync", stored) == SILENCE
    configure(config_dir, [str(path) for path in two])
    assert btw("fetch", stored, tmp_path / "target") == SILENCE
    assert newer in os.listdir(tmp_path / "target")


def test_what_is_listed_names_its_repositories(
    btw: Btw, two: list[Path], config_dir: Path, stored: Path
) -> None:
    assert btw("sync", stored) == SILENCE
    found = [(path, snapshots(path)[0]) for path in two]
    host = os.uname().nodename
    assert sorted(btw("fetch", "--list").out.splitlines()) == sorted(
        f"{one['time'][:19]}Z {host}:{stored} in {path}" for path, one in found
    )
    objects = json.loads(btw("fetch", "--list", "--json").out)
    known = [{key: value for key, value in one.items() if key != "size"} for one in objects]
    assert known == [
        {
            "time": f"{one['time'][:19]}Z",
            "host": host,
            "destination": str(stored),
            "source": None,
            "snapshot": one["id"],
            "store": str(path),
        }
        for path, one in found
    ]
    assert all("size" in one for one in objects)


def test_those_that_are_missing_are_made(btw: Btw, two: list[Path], config_dir: Path, tmp_path: Path) -> None:
    near, far = two
    result = btw("sync", "--init")
    assert (result.status, len(result.err.splitlines()), result.out) == (1, 2, "")
    assert str(near) in result.err and str(far) in result.err and "already" in result.err
    shutil.rmtree(far)
    result = btw("sync", "--init")
    assert (result.status, result.err) == (0, "") and str(near) in result.out and str(far) in result.out
    assert len(snapshots(far, of_configurations=True)) == 1
    shutil.rmtree(far)
    configure(config_dir, [str(near), str(far), "rest:http://user:secret@127.0.0.1:9/"])
    result = btw("sync", "--init")
    said(result, 1, "rest:http://…@127.0.0.1:9/", "refused")
    assert "secret" not in result.err + result.out
    assert len(snapshots(far, of_configurations=True)) == 1


@pytest.mark.parametrize(
    "value, words",
    [("3", "a restic repository, or a list"), ("['/a', 3]", "a list"), ("['']", "a list"), ("''", "a list")],
)
def test_what_is_no_repository(btw: Btw, config_dir: Path, stored: Path, value: str, words: str) -> None:
    config_dir.mkdir(mode=0o700)
    (config_dir / "config.py").write_text(f"OFFSITE = {value}\n")
    said(btw("sync", stored), 1, "config.py:1: OFFSITE must be", words)


def test_the_safe_holds_what_a_new_machine_needs(btw: Btw, config_dir: Path, tmp_path: Path) -> None:
    configure(config_dir, tmp_path / "new", S3_KEYS)
    result = btw("sync", "--init")
    assert (result.status, result.err) == (0, "")
    for words in (
        str(tmp_path / "new"),
        str(config_dir / "password"),
        *S3_KEYS,
        "btw-backup fetch --all --host",
    ):
        assert words in result.out
    assert not [secret for secret in (*S3_KEYS.values(), "correct horse") if secret in result.out]


def test_the_upload_is_limited(
    btw: Btw, repository: Path, config_dir: Path, dst: Path, tmp_path: Path
) -> None:
    """restic would need less than a tenth of the time."""
    (dst / "2025-01-01T00:00:00.tar").write_bytes(os.urandom(1 << 20))
    log = tmp_path / "log"
    (tmp_path / "bin").mkdir()
    script = f'#!/bin/sh\necho "$@" >>{log}\nexec {shutil.which("restic")} "$@"\n'
    (tmp_path / "bin" / "restic").write_text(script)
    (tmp_path / "bin" / "restic").chmod(0o755)
    configure(config_dir, repository, options="OFFSITE_LIMIT_UPLOAD = 512\n")
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    assert btw("sync", dst, env=env) == SILENCE
    commands = [line for line in log.read_text().splitlines() if line != "version"]
    assert commands and all("--limit-upload=512" in line for line in commands)
    configure(config_dir, repository, options="OFFSITE_LIMIT_UPLOAD = '2M'\n")
    said(btw("sync", dst), 1, "config.py:4: OFFSITE_LIMIT_UPLOAD must be a whole number")


def test_a_store_that_only_accepts_additions(
    btw: Btw, blank: Path, config_dir: Path, initialised: Path, dst: Path, tmp_path: Path
) -> None:
    """The server only adds; another machine, with other credentials, removes what is not kept."""
    folder = tmp_path / "store"
    shutil.copytree(blank, folder)
    with Rest(folder, "--append-only") as store:
        configure(config_dir, store.address, options=AUTO)
        for number in range(3):
            (initialised / "file").write_text(f"state {number}\n")
            (config_dir / "shop.py").write_text(f"MAX_INCREMENTAL_COUNT = {number}\n")
            assert btw("fs", initialised, dst) == SILENCE
        assert len(snapshots(folder)) == 3
        assert btw("verify", "--offsite", dst) == SILENCE
        assert list((folder / "locks").iterdir()) == []
        removal = Request(
            f"http://127.0.0.1:{store.port}/snapshots/{snapshots(folder)[0]['id']}", method="DELETE"
        )
        with pytest.raises(HTTPError):
            urlopen(removal)
    restic(folder, "forget", "--prune", "--group-by", "host,paths", "--keep-last", "1")
    [kept] = snapshots(folder)
    assert len(snapshots(folder, of_configurations=True)) == 1
    with Rest(folder, "--append-only") as store:
        (initialised / "file").write_text("state 3\n")
        configure(config_dir, store.address, options=AUTO)
        assert btw("fs", initialised, dst) == SILENCE
        assert [one["id"] for one in snapshots(folder)][0] == kept["id"]
        assert btw("fetch", dst, tmp_path / "target") == SILENCE
    assert btw("list", tmp_path / "target").out == btw("list", dst).out
    assert btw("verify", tmp_path / "target") == SILENCE
