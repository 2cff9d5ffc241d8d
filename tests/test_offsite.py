"""Off-site copies in real repositories: what is sent, what is kept, and what comes back."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import chdir
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from .helpers import trees
from .helpers.destinations import at_rest, rdiff_backup
from .helpers.postgres_servers import MakeDatabase, Server
from .helpers.repositories import PASSWORD, S3, configure, restic, snapshots
from .helpers.running import Btw, Gate, Result, Start, break_bubblewrap, ended

pytestmark = [
    pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed"),
    pytest.mark.usefixtures("own_cache"),
]

PROG = "btw_backup"
SILENCE = Result(0, "", "")
AUTO = "OFFSITE_AUTO = True\n"
# With this PATH neither tar nor restic can run.
NO_PROGRAMS = {"PATH": "/nonexistent"}
OWNER = "12345:54321" if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"
VIEW = ".btw-backup/view/destination"
LONG_AGO = "2025-01-01T00:00:00"


def add_tarball(dst: Path, time: str, content: str = "content\n") -> Path:
    """Make what a run at that time leaves in a destination, with plain tar."""
    path = dst / f"{time}.tar.gz"
    (dst.parent / "packed").write_text(content)
    subprocess.run(["tar", "--force-local", "-C", dst.parent, "-czf", path, "packed"], check=True)
    return path


@pytest.fixture
def stored(dst: Path) -> Path:
    """A destination with a tarball in it."""
    add_tarball(dst, LONG_AGO)
    return dst


class Source:
    """A source, its backups, and its state at each point."""

    def __init__(self, btw: Btw, src: Path, dst: Path, states: Path, type_: str, options: str = "") -> None:
        self._run, self._src, self._dst, self._states = btw, src, dst, states
        states.mkdir()
        created = btw("fs-init", "--type", type_, src, "name").out.split()[-1]
        with open(f"{created}/config.py", "a") as file:
            file.write(f"\n{options}")

    def change(self) -> None:
        (self._src / "file").write_text(f"changed at {time.monotonic_ns()}\n")

    def back_up(self, *options: str, env: Mapping[str, str] | None = None) -> Result:
        state = self._states / str(len(os.listdir(self._states)))
        subprocess.run(["cp", "-a", self._src, state], check=True)
        return self._run("fs", *options, self._src, self._dst, env=env)

    def assert_restored(self, dst: Path, scratch: Path) -> None:
        """Fail unless every point of a copy of the destination gives back the source's state of that time."""
        scratch.mkdir()
        points = self._run("list", dst).out.split()
        assert len(points) == len(os.listdir(self._states))
        for number, point in enumerate(points):
            target = scratch / str(number)
            assert self._run("fs-restore", "--at", point, dst, target) == SILENCE
            trees.assert_same(self._states / str(number), target)


MakeSource = Callable[..., Source]


@pytest.fixture
def make_source(btw: Btw, src: Path, dst: Path, tmp_path: Path) -> MakeSource:
    """Make a working directory for the source, with a type and further options."""
    return lambda *options: Source(btw, src, dst, tmp_path / "states", *options)


class SlowRestic(Gate):
    """A restic that waits before one of its commands until the gate is opened."""

    def __init__(self, top: Path, command: str) -> None:
        super().__init__(top, "restic")
        script = top / "restic"
        others = f'#!/bin/sh\n[ "$1" = {command} ] || exec {shutil.which("restic")} "$@"\n'
        script.write_text(script.read_text().replace("#!/bin/sh\n", others))


def other_restic(top: Path, script: str) -> dict[str, str]:
    """Return an environment in which a shell script takes the place of restic."""
    top.mkdir()
    (top / "restic").write_text(f"#!/bin/sh\n{script}\n")
    (top / "restic").chmod(0o755)
    return {"PATH": f"{top}:{os.environ['PATH']}"}


def sent_names(repository: Path) -> list[str]:
    """Return the path of everything in the newest copy of a destination, as restic lists it."""
    _, *lines = restic(repository, "ls", snapshots(repository)[-1]["id"]).splitlines()
    return sorted(line.removeprefix("/destination/") for line in lines if line != "/destination")


def visible_names(dst: Path) -> list[str]:
    """Return the path of everything in a destination outside the private directory."""
    found = (str(path.relative_to(dst)) for path in dst.rglob("*"))
    return sorted(name for name in found if not name.startswith(".btw-backup"))


def set_aside(dst: Path, to: Path) -> Path:
    """Copy a destination without the private directory, with all attributes. Returns ``to``."""
    subprocess.run(["cp", "-a", dst, to], check=True)
    shutil.rmtree(to / ".btw-backup")
    keep_mtime(dst, to)
    return to


def keep_mtime(of: Path, on: Path) -> None:
    """Give a path the mtime of another."""
    found = of.stat()
    os.utime(on, ns=(found.st_atime_ns, found.st_mtime_ns))


def as_copy(dst: Path) -> list[str]:
    """Return the options that make a snapshot a copy of that destination."""
    return ["--tag", f"destination:{dst},newest:{LONG_AGO}"]


def foreign(repository: Path, path: Path, *options: str, other: str = "") -> str:
    """Make a path and store it with plain restic, as a stranger would. Returns the snapshot's name."""
    path.mkdir(parents=True)
    (path / "file").write_text(f"{path}\n")
    with chdir(path.parent):
        said = restic(repository, "backup", "--json", *options, path.name, *other.split())
    shutil.rmtree(path)
    return str(json.loads(said.splitlines()[-1])["snapshot_id"])[:8]  # from 0.17 on it is printed in full


def failed(result: Result, *words: str, status: int = 1) -> bool:
    """Return whether the run failed with that exit status, and one line that holds all these words."""
    assert (result.status, result.out) == (status, ""), result
    assert len(result.err.splitlines()) == 1 and result.err.startswith(f"{PROG}: "), result
    assert all(word in result.err for word in words), result
    return True


# The command lines, and the repository's beginning


@pytest.mark.parametrize(
    "args",
    [
        ["sync"],
        ["sync", "--init", "--dry-run"],
        ["sync", "--init", "--dry-run", "dst"],
        ["sync", "--wait", "soon", "dst"],
        ["fetch"],
        ["fetch", "name"],
        ["fetch", "--list", "name", "target"],
        ["verify", "--subset", "5%", "dst"],
        ["verify", "--offsite", "--subset", "some", "dst"],
        ["verify", "--offsite", "--latest", "dst"],
        ["verify", "--offsite", "--restore-test", "dst"],
        ["verify", "--offsite", "--subset", "0%", "dst"],
        ["verify", "--offsite", "--subset", "200%", "dst"],
        ["verify", "--offsite", "--subset", "5/3", "dst"],
    ],
    ids=" ".join,
)
def test_usage(btw: Btw, config_dir: Path, tmp_path: Path, args: list[str]) -> None:
    configure(config_dir, tmp_path / "none")
    result = btw(*args)
    assert (result.status, result.out) == (2, "") and "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith(PROG)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "args", [["sync", "dst"], ["fetch", "name", "target"], ["verify", "--offsite", "dst"]]
)
def test_nothing_is_configured(btw: Btw, config_dir: Path, dst: Path, args: list[str]) -> None:
    assert failed(btw(*args, cwd=dst.parent), "OFFSITE is not set", str(config_dir / "config.py"))


def test_a_repository_is_made_only_where_that_is_asked_for(
    btw: Btw, config_dir: Path, stored: Path, tmp_path: Path
) -> None:
    address = tmp_path / "new"
    configure(config_dir, address)
    for args in (["sync"], ["sync", "-n"], ["verify", "--offsite"]):
        assert failed(btw(*args, stored), str(address), "--init")
    assert not address.exists()
    done = btw("sync", "--init", stored)
    assert (done.status, done.err) == (0, "")
    [first] = snapshots(address)
    assert failed(btw("sync", "--init", stored), str(address), "already")
    assert snapshots(address) == [first]


def test_the_password_file_is_trusted_like_the_configuration(
    btw: Btw, config_dir: Path, repository: Path, stored: Path
) -> None:
    password = config_dir / "password"
    password.chmod(0o620)
    assert failed(btw("sync", stored), str(password), "others can write it")
    password.chmod(0o600)
    config_dir.chmod(0o770)
    assert failed(btw("sync", stored), str(config_dir), "others can write it")
    config_dir.chmod(0o700)
    password.unlink()
    assert failed(btw("sync", stored), str(password), "missing")
    assert snapshots(repository) == []


def test_a_relative_folder_is_one_place(btw: Btw, config_dir: Path, repository: Path, stored: Path) -> None:
    """Every command finds it from any directory, or every command refuses it."""
    configure(config_dir, os.path.relpath(repository, "/"))
    found = btw("fetch", "--list").status
    assert btw("sync", stored).status == found


def test_a_password_in_the_address_is_not_shown(btw: Btw, config_dir: Path, stored: Path) -> None:
    configure(config_dir, "rest:http://user:top@secret@127.0.0.1:9/")
    for args in (["check-config"], ["sync", str(stored)], ["sync", "--init"]):
        result = btw(*args)
        assert result.status == 1
        assert "top" not in result.err and "secret" not in result.err


# What is sent


@pytest.mark.parametrize(
    "options", [("rdiff",), ("tar",), ("tar", "COMPRESSION = 'none'\n")], ids=["rdiff", "tar", "none"]
)
def test_what_comes_back_is_what_was_there(
    btw: Btw, repository: Path, config_dir: Path, make_source: MakeSource, dst: Path, tmp_path: Path,
    options: tuple[str, ...],
) -> None:  # fmt: skip
    source = make_source(*options)
    assert source.back_up("-u", OWNER) == SILENCE
    source.change()
    assert source.back_up("-u", OWNER) == SILENCE
    with open(dst / "log.txt", "a") as log:
        log.write("a line\n")
    (dst / "foreign").touch()
    os.chown(dst, *map(int, OWNER.split(":")))
    dst.chmod(0o2750)
    assert btw("sync", dst) == SILENCE
    (dst / "foreign").unlink()
    assert sent_names(repository) == visible_names(dst)
    assert any(name.endswith(".tar.sha256") for name in visible_names(dst)) == (len(options) == 2)
    assert at_rest(dst)
    before = set_aside(dst, tmp_path / "before")
    before_list = btw("list", dst).out

    shutil.rmtree(dst)
    shutil.rmtree(config_dir)
    configure(config_dir, repository)
    target = tmp_path / "deep" / "target"
    assert btw("fetch", dst, target) == SILENCE
    keep_mtime(before, target)  # which is that of the foreign file's removal
    trees.assert_same(before, target)
    assert btw("list", target).out == before_list
    assert btw("verify", target) == SILENCE
    source.assert_restored(target, tmp_path / "restored")


@pytest.mark.parametrize("type_", ["rdiff", "tar"])
def test_backups_go_on_where_a_destination_was_fetched_to(
    btw: Btw, repository: Path, make_source: MakeSource, dst: Path, tmp_path: Path, type_: str
) -> None:
    source = make_source(type_)
    assert source.back_up() == SILENCE
    assert btw("sync", dst) == SILENCE
    shutil.rmtree(dst)
    assert btw("fetch", dst, dst) == SILENCE
    source.change()
    assert source.back_up() == SILENCE
    assert btw("sync", dst) == SILENCE
    first, second = snapshots(repository)
    assert first["paths"] == second["paths"] == [str(dst / VIEW)]
    source.assert_restored(dst, tmp_path / "restored")


def test_what_is_unchanged_is_not_sent_again(btw: Btw, repository: Path, stored: Path) -> None:
    (stored / "log.txt").write_text("a line\n")
    assert btw("sync", "-n", stored).out.startswith(f"send {stored} (")
    assert snapshots(repository) == [] and not (stored / ".btw-backup").exists()
    assert btw("sync", stored) == SILENCE
    assert "log.txt" in sent_names(repository)
    (stored / "log.txt").write_text("another line\n")
    assert btw("sync", "-n", stored).out.startswith(f"unchanged {stored} (")
    assert "nothing has changed" in btw("-v", "sync", stored).err
    assert len(snapshots(repository)) == 1
    add_tarball(stored, "2025-01-02T00:00:00")
    assert btw("sync", stored) == SILENCE
    assert len(snapshots(repository)) == 2
    assert sent_names(repository) == visible_names(stored)


@pytest.mark.parametrize("type_", ["rdiff", "tar"])
def test_a_backup_while_a_copy_is_sent(
    btw: Btw, start: Start, repository: Path, make_source: MakeSource, dst: Path, tmp_path: Path, type_: str
) -> None:
    source = make_source(type_)
    assert source.back_up() == SILENCE
    before = set_aside(dst, tmp_path / "before")
    slow = SlowRestic(tmp_path / "bin", "backup")
    sync = start("sync", dst, env=slow.env)
    slow.reached()
    source.change()
    assert source.back_up() == SILENCE
    assert failed(btw("sync", dst), str(dst), "another process", status=75)
    slow.open()
    assert ended(sync) == (0, "")
    assert at_rest(dst)
    restic(repository, "restore", snapshots(repository)[-1]["id"], f"--target={tmp_path / 'sent'}")
    trees.assert_same(before, tmp_path / "sent" / "destination")
    assert btw("sync", dst) == SILENCE
    assert sent_names(repository) == visible_names(dst)
    source.assert_restored(dst, tmp_path / "restored")


def test_a_point_that_was_made_while_a_copy_is_sent_is_unsent(
    btw: Btw, start: Start, repository: Path, make_source: MakeSource, dst: Path, tmp_path: Path
) -> None:
    source = make_source("tar")
    assert source.back_up() == SILENCE
    slow = SlowRestic(tmp_path / "bin", "backup")
    sync = start("sync", dst, env=slow.env)
    slow.reached()
    source.change()
    assert source.back_up() == SILENCE
    slow.open()
    assert ended(sync) == (0, "")
    _, newest = btw("list", dst).out.split()
    [report] = json.loads(btw("status", "--json", dst).out)
    assert report["unsent_since"] == f"{newest.removesuffix('.tbz')}Z"


def test_a_sync_waits_for_another(start: Start, repository: Path, stored: Path, tmp_path: Path) -> None:
    slow = SlowRestic(tmp_path / "bin", "backup")
    first = start("sync", stored, env=slow.env)
    slow.reached()
    second = start("sync", "--wait", "1m", stored)
    time.sleep(1)
    slow.open()
    assert ended(first) == (0, "")
    assert ended(second) == (0, "")
    assert len(snapshots(repository)) == 1


def test_a_destination_has_one_name(btw: Btw, repository: Path, tmp_path: Path) -> None:
    """However odd the name is, and however the path is spelled."""
    name = "--init a, b=c\nd é"
    dst = tmp_path / name
    dst.mkdir()
    add_tarball(dst, LONG_AGO)
    (tmp_path / "link").symlink_to(dst)
    assert btw("sync", "--", name, cwd=tmp_path) == SILENCE
    for path in (dst, tmp_path / "link", f"{tmp_path}/link/../{name}/"):
        assert "nothing has changed" in btw("-v", "sync", path).err
    assert [snapshot["paths"] for snapshot in snapshots(repository)] == [[str(dst / VIEW)]]
    assert btw("verify", "--offsite", tmp_path / "link") == SILENCE
    assert btw("fetch", f"{dst}/", tmp_path / "target") == SILENCE
    trees.assert_same(set_aside(dst, tmp_path / "before"), tmp_path / "target")


def test_a_destination_whose_name_is_not_utf8(btw: Btw, repository: Path, tmp_path: Path) -> None:
    dst = tmp_path / trees.NOT_UTF8
    dst.mkdir()
    add_tarball(dst, LONG_AGO)
    assert btw("sync", dst) == SILENCE
    assert btw("sync", dst) == SILENCE
    assert len(snapshots(repository)) == 1
    assert btw("verify", "--offsite", dst) == SILENCE
    assert btw("fetch", dst, tmp_path / "target") == SILENCE


def test_a_database_whose_name_is_not_utf8(btw: Btw, repository: Path, dst: Path, tmp_path: Path) -> None:
    chain = dst / LONG_AGO
    rdiff_backup(chain, tmp_path / "staged", int(datetime.fromisoformat(f"{LONG_AGO}Z").timestamp()))
    (chain / "backup.tar").rename(chain / f"{trees.NOT_UTF8}.dump")
    assert btw("sync", dst) == SILENCE
    assert btw("sync", dst) == SILENCE
    assert len(snapshots(repository)) == 1
    assert btw("verify", "--offsite", dst) == SILENCE


@pytest.mark.parametrize("name", [trees.NOT_UTF8, trees.NEWLINE], ids=["not-utf8", "newline"])
def test_a_dry_run_is_one_line_each(btw: Btw, repository: Path, tmp_path: Path, name: str) -> None:
    dst = tmp_path / name
    dst.mkdir()
    add_tarball(dst, LONG_AGO)
    result = btw("sync", "-n", dst, env={"PYTHONIOENCODING": "utf-8:strict"})
    assert (result.status, len(result.out.splitlines()), result.err) == (0, 2, "")


def test_an_emptied_destination_is_no_new_state(
    btw: Btw, repository: Path, stored: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    add_tarball(other, LONG_AGO)
    assert btw("sync", stored) == SILENCE
    shutil.rmtree(stored)
    stored.mkdir()
    assert failed(btw("sync", stored, other), f"{stored} holds no backups")
    assert os.listdir(stored) == []
    stored.rmdir()
    assert failed(btw("sync", stored), str(stored))
    result = btw("sync", "-n", stored)
    assert result.status == 1 and str(stored) in result.err
    assert not stored.exists()
    assert [snapshot["paths"] for snapshot in snapshots(repository)] == [
        [str(stored / VIEW)],
        [str(other / VIEW)],
    ]


# OFFSITE_AUTO


@pytest.mark.parametrize("type_", ["rdiff", "tar"])
def test_each_backup_is_sent(
    btw: Btw, repository: Path, config_dir: Path, make_source: MakeSource, dst: Path, tmp_path: Path,
    type_: str,
) -> None:  # fmt: skip
    """An unchanged run stays fast: it runs neither tar nor restic."""
    configure(config_dir, repository, options=AUTO)
    source = make_source(type_)
    time.sleep(2.1)  # after that the source's timestamps tell whether it has changed
    assert source.back_up() == SILENCE
    assert len(snapshots(repository)) == 1
    assert btw("fs", tmp_path / "src", dst, env=NO_PROGRAMS) == SILENCE
    assert btw("sync", dst) == SILENCE
    assert btw("fs", tmp_path / "src", dst, env=NO_PROGRAMS) == SILENCE
    assert len(snapshots(repository)) == 1
    assert set(visible_names(dst)) - set(sent_names(repository)) == {"log.txt"}
    source.change()
    assert source.back_up() == SILENCE
    assert len(snapshots(repository)) == 2
    assert sent_names(repository) == visible_names(dst)
    assert at_rest(dst)


def test_what_could_not_be_sent_is_sent_by_the_next_run(
    btw: Btw, repository: Path, config_dir: Path, make_source: MakeSource, dst: Path, tmp_path: Path
) -> None:
    """Even by a run that finds nothing changed."""
    configure(config_dir, repository, options=AUTO)
    source = make_source("rdiff")
    away = repository.rename(tmp_path / "away")
    for _ in range(2):
        source.change()
        assert failed(source.back_up(), "the backup was made, but not", str(repository), status=4)
    (config_dir / "password").chmod(0o602)
    source.change()
    assert failed(source.back_up(), "the backup was made, but not", "password", status=4)
    (config_dir / "password").chmod(0o600)
    source.assert_restored(dst, tmp_path / "restored")
    assert at_rest(dst)
    away.rename(repository)
    assert btw("fs", tmp_path / "src", dst) == SILENCE
    assert len(snapshots(repository)) == 1
    assert btw("verify", "--offsite", dst) == SILENCE


def test_a_backup_while_a_copy_is_sent_says_that_it_was_not_sent(
    start: Start, repository: Path, config_dir: Path, make_source: MakeSource, dst: Path, tmp_path: Path
) -> None:
    configure(config_dir, repository, options=AUTO)
    source = make_source("tar")
    slow = SlowRestic(tmp_path / "bin", "backup")
    first = start("fs", tmp_path / "src", dst, env=slow.env)
    slow.reached()
    source.change()
    assert failed(source.back_up(), "the backup was made, but not", "another process", status=4)
    slow.open()
    assert ended(first) == (0, "")
    source.change()
    assert source.back_up() == SILENCE
    assert sent_names(repository) == visible_names(dst)


def test_a_database_comes_back(
    btw: Btw, repository: Path, config_dir: Path, dst: Path, tmp_path: Path, one_server: Server,
    make_database: MakeDatabase,
) -> None:  # fmt: skip
    configure(config_dir, repository, options=AUTO)
    env = one_server.as_superuser
    name = make_database(one_server, "shop", "CREATE TABLE t AS SELECT generate_series(1, 5000) n")
    first = one_server.plain_dump(name)
    assert btw("db", "-u", OWNER, name, dst, env=env) == SILENCE
    one_server.psql("DELETE FROM t WHERE n % 7 = 0", name)
    away = repository.rename(tmp_path / "away")
    assert failed(btw("db", "-u", OWNER, name, dst, env=env), "the backup was made, but not", status=4)
    away.rename(repository)
    assert btw("db", name, dst, env=env) == SILENCE  # finds nothing changed
    assert len(snapshots(repository)) == 2
    before = set_aside(dst, tmp_path / "before")
    shutil.rmtree(dst)
    assert btw("fetch", dst, dst) == SILENCE
    trees.assert_same(before, dst)
    assert btw("verify", "--restore-test", dst, env=env) == SILENCE
    older, _ = btw("list", dst).out.split()
    assert btw("db-restore", dst, make_database(one_server, "new"), env=env) == SILENCE
    assert one_server.plain_dump("new") == one_server.plain_dump(name) != first
    assert btw("db-restore", "--at", older, dst, make_database(one_server, "old"), env=env) == SILENCE
    assert one_server.plain_dump("old") == first


# OFFSITE_KEEP


def test_only_older_copies_of_the_same_destination_go(
    btw: Btw, repository: Path, config_dir: Path, stored: Path, tmp_path: Path
) -> None:
    own, copy = stored / VIEW, as_copy(stored)
    dates = [f"2025-01-0{day} 0{hour}:00:00" for day in (1, 2, 3) for hour in (1, 2)]
    ours = [foreign(repository, own, "--time", date, *copy) for date in dates]
    theirs = [
        foreign(repository, own, "--time", dates[0], *as_copy(tmp_path / "other")),
        foreign(repository, own, "--time", dates[0], "--host", "elsewhere", *copy),
        foreign(repository, own, "--time", dates[0]),
    ]
    (stored / ".btw-backup" / "view").rmdir()
    (stored / ".btw-backup").chmod(0o700)
    configure(config_dir, repository, options="OFFSITE_KEEP = {'daily': 3, 'hourly': 1}\n")
    assert btw("sync", "--replace", stored) == SILENCE
    *old, newest = (snapshot["short_id"] for snapshot in snapshots(repository))
    assert set(old) == {*theirs, ours[3], ours[5]}
    assert btw("verify", "--offsite", stored) == SILENCE
    configure(config_dir, repository, options="OFFSITE_KEEP = {'within': '1h'}\n")
    add_tarball(stored, "2025-01-02T00:00:00")
    assert btw("sync", stored) == SILENCE
    *old, kept, _ = (snapshot["short_id"] for snapshot in snapshots(repository))
    assert (set(old), kept) == (set(theirs), newest)


def test_a_foreign_snapshot_of_several_paths_stays(
    btw: Btw, repository: Path, config_dir: Path, stored: Path, src: Path
) -> None:
    configure(config_dir, repository, options="OFFSITE_KEEP = {'last': 1}\n")
    assert btw("sync", stored) == SILENCE
    theirs = foreign(repository, stored / VIEW, "--time", "2025-01-01 00:00:00", other=str(src))
    (stored / ".btw-backup" / "view").rmdir()
    add_tarball(stored, "2025-01-02T00:00:00")
    assert btw("sync", stored) == SILENCE
    assert [snapshot["short_id"] for snapshot in snapshots(repository)][0] == theirs


def test_nothing_is_sent_after_a_copy_that_is_dated_in_the_future(
    btw: Btw, repository: Path, config_dir: Path, stored: Path
) -> None:
    configure(config_dir, repository, options="OFFSITE_KEEP = {'last': 1}\n")
    theirs = foreign(
        repository, stored / VIEW, "--time", f"{datetime.now(UTC).year + 1}-01-01 00:00:00", *as_copy(stored)
    )
    (stored / ".btw-backup" / "view").rmdir()
    (stored / ".btw-backup").chmod(0o700)
    assert failed(btw("sync", stored), "dated in the future", f"restic forget {theirs}")
    assert [snapshot["short_id"] for snapshot in snapshots(repository)] == [theirs]


def test_a_destination_that_lost_all_its_points(
    btw: Btw, repository: Path, config_dir: Path, stored: Path
) -> None:
    """Such as a mount point whose disk is missing, after a backup into the directory below it."""
    configure(config_dir, repository, options="OFFSITE_KEEP = {'last': 1}\n")
    assert btw("sync", stored) == SILENCE
    [before] = snapshots(repository)
    for name in visible_names(stored):
        shutil.rmtree(stored / name) if (stored / name).is_dir() else (stored / name).unlink()
    add_tarball(stored, "2025-02-01T00:00:00")
    assert failed(btw("sync", stored), "holds none of the backups", "sync --replace")
    assert snapshots(repository) == [before]
    assert btw("sync", "--replace", stored) == SILENCE
    assert [snapshot["id"] for snapshot in snapshots(repository)] != [before["id"]]


def test_a_copy_counts_although_older_ones_could_not_be_removed(
    btw: Btw, repository: Path, config_dir: Path, stored: Path, tmp_path: Path
) -> None:
    configure(config_dir, repository, options="OFFSITE_KEEP = {'last': 1}\n")
    assert btw("sync", stored) == SILENCE
    add_tarball(stored, "2025-01-02T00:00:00")
    env = other_restic(tmp_path / "bin", f'[ "$1" = forget ] || exec {shutil.which("restic")} "$@"\nexit 1')
    result = btw("sync", stored, env=env)
    assert failed(result, "warning: OFFSITE_KEEP could not be applied", status=0)
    assert len(snapshots(repository)) == 2


def test_a_snapshot_is_damaged(
    btw: Btw, repository: Path, config_dir: Path, stored: Path, tmp_path: Path
) -> None:
    configure(config_dir, repository, options="OFFSITE_KEEP = {'last': 1}\n")
    assert btw("sync", stored) == SILENCE
    snapshot = repository / "snapshots" / snapshots(repository)[0]["id"]
    snapshot.chmod(0o600)
    snapshot.write_text("damaged")
    shutil.rmtree(tmp_path / "cache")
    add_tarball(stored, "2025-01-01T00:00:01")
    assert btw("sync", stored) == SILENCE
    add_tarball(stored, "2025-01-01T00:00:02")
    result = btw("sync", stored)
    assert failed(result, "warning: OFFSITE_KEEP could not be applied", "invalid data returned", status=0)
    result = btw("verify", "--offsite", stored)
    assert result.status == 1 and "invalid data returned" in result.err and ".go:" not in result.err


def test_the_index_is_gone(btw: Btw, repository: Path, stored: Path, tmp_path: Path) -> None:
    assert btw("sync", stored) == SILENCE
    shutil.rmtree(tmp_path / "cache")
    for path in (repository / "index").iterdir():
        path.unlink()
    add_tarball(stored, "2025-01-01T00:00:01")
    # restic itself also prints where in its source that was found.
    assert failed(btw("sync", stored), f"{repository}: ", "not found in repository")


# fetch


def test_which_copy_is_fetched(btw: Btw, repository: Path, stored: Path, tmp_path: Path) -> None:
    old = visible_names(stored)
    assert btw("sync", stored) == SILENCE
    add_tarball(stored, "2025-01-02T00:00:00")
    time.sleep(1)  # copies of one second have one name
    assert btw("sync", stored) == SILENCE
    foreign(
        repository, stored / VIEW, "--host", "elsewhere", "--time", "2025-01-01 12:00:00", *as_copy(stored)
    )
    foreign(repository, stored / "dir")
    full_name = f"{os.uname().nodename}:{stored}"
    times = [str(snapshot["time"])[:19] for snapshot in snapshots(repository)[:3]]
    lines = [f"{times[0]}Z elsewhere:{stored}", *(f"{time}Z {full_name}" for time in times[1:])]
    assert btw("fetch", "--list").out.splitlines() == lines
    assert btw("fetch", "--list", full_name).out.splitlines() == lines[1:]
    assert btw("fetch", "--list", "--at", "2025-01-01T12", stored).out.splitlines() == lines[:1]

    targets = [tmp_path / f"target{number}" for number in range(3)]
    assert failed(btw("fetch", stored, targets[0]), full_name, f"elsewhere:{stored}")
    assert failed(btw("fetch", "/no/such", targets[0]), "/no/such", full_name)
    assert failed(btw("fetch", "--at", "2024", full_name, targets[0]), "2024")
    assert failed(btw("fetch", "--at", "2024-12-31", full_name, targets[0]), "2024-12-31")
    assert not targets[0].exists()
    assert btw("fetch", "--at", times[1], full_name, targets[0]) == SILENCE
    assert visible_names(targets[0]) == old
    targets[1].mkdir()
    assert btw("fetch", full_name, targets[1]) == SILENCE
    assert visible_names(targets[1]) == visible_names(stored)
    assert btw("fetch", f"elsewhere:{stored}", targets[2]) == SILENCE
    assert visible_names(targets[2]) == ["file"]


def test_nothing_is_fetched_onto_something(btw: Btw, repository: Path, stored: Path) -> None:
    assert btw("sync", stored) == SILENCE
    before = trees.facts(stored)
    assert failed(btw("fetch", stored, stored), str(stored), "not empty")
    assert trees.facts(stored) == before


def test_a_killed_fetch_leaves_its_marker(
    btw: Btw, start: Start, repository: Path, stored: Path, tmp_path: Path
) -> None:
    assert btw("sync", stored) == SILENCE
    slow = SlowRestic(tmp_path / "bin", "restore")
    target = tmp_path / "target"
    fetch = start("fetch", stored, target, env=slow.env)
    slow.reached()
    fetch.send_signal(signal.SIGKILL)
    fetch.wait()
    assert os.listdir(target) == [".btw-backup-restore-incomplete"]
    assert failed(btw("fetch", stored, target), "not empty")


# verify --offsite


def test_a_copy_that_is_not_what_is_there(btw: Btw, repository: Path, stored: Path) -> None:
    assert failed(btw("verify", "--offsite", stored), str(stored), "no off-site copy")
    assert btw("sync", stored) == SILENCE
    (stored / "log.txt").write_text("a line\n")
    assert btw("verify", "--offsite", stored) == SILENCE
    assert "is ok" in btw("-v", "verify", "--offsite", "--subset", "1/2", stored).err
    newer = add_tarball(stored, "2025-01-02T00:00:00")
    (stored / f"{LONG_AGO}.tar.gz").chmod(0o640)
    result = btw("verify", "--offsite", stored)
    assert result.status == 1 and all(line.startswith(f"{PROG}: ") for line in result.err.splitlines())
    assert f"{newer.name} is not in the copy" in result.err
    assert f"{LONG_AGO}.tar.gz differs from the copy" in result.err
    newer.rename(stored / f"{LONG_AGO}.tar.gz")
    assert f"{LONG_AGO}.tar.gz differs from the copy" in btw("verify", "--offsite", stored).err


def test_a_file_without_any_permission(btw: Btw, repository: Path, stored: Path) -> None:
    (stored / f"{LONG_AGO}.tar.gz").chmod(0)
    assert btw("sync", stored) == SILENCE
    assert btw("verify", "--offsite", stored) == SILENCE


def test_a_damaged_repository(btw: Btw, repository: Path, stored: Path, tmp_path: Path) -> None:
    """A copy that cannot be restored in full is marked."""
    (stored / f"{LONG_AGO}.tar.gz").write_bytes(os.urandom(200_000))
    assert btw("sync", stored) == SILENCE
    pack = max((path for path in repository.glob("data/*/*")), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    result = btw("verify", "--offsite", stored)
    assert result.status == 1 and result.err.splitlines()[-1].startswith(f"{PROG}: off-site repository ")
    result = btw("fetch", stored, tmp_path / "target")
    assert result.status == 1 and f"{tmp_path / 'target'} is incomplete" in result.err
    assert ".btw-backup-restore-incomplete" in os.listdir(tmp_path / "target")


# What is said of the repository


def test_check_config_asks_the_repository(btw: Btw, repository: Path, config_dir: Path) -> None:
    assert btw("check-config") == SILENCE
    password = config_dir / "password"
    password.chmod(0o640)
    assert failed(btw("check-config"), str(password), "others can read")
    password.chmod(0o600)
    password.write_text("wrong secret\n")
    result = btw("check-config")
    assert failed(result, str(repository), "password")
    assert "wrong secret" not in result.err and PASSWORD not in result.err
    configure(config_dir, repository.parent / "none")
    assert failed(btw("check-config"), str(repository.parent / "none"), "there is none here")


def test_the_program_is_missing_or_old(
    btw: Btw, repository: Path, config_dir: Path, stored: Path, tmp_path: Path
) -> None:
    assert failed(btw("sync", stored, env=NO_PROGRAMS), "restic not found: install the package restic")
    old = other_restic(tmp_path / "bin", "echo restic 0.12.1 compiled with go1.17")
    assert failed(btw("check-config", env=old), "restic 0.12.1 is too old: 0.14 is needed")


LOUD = """#!/bin/sh
echo 'WARNING: this program is about to change' >&2
{path} "$@"
status=$?
echo '{{"message_type":"warning","message":"this program has changed"}}' >&2
exit $status
"""


def test_no_warning_of_a_program_reaches_anybody(
    btw: Btw, repository: Path, config_dir: Path, make_source: MakeSource, dst: Path, tmp_path: Path
) -> None:
    where = tmp_path / "bin"
    where.mkdir()
    for program in ("rdiff-backup", "restic"):
        (where / program).write_text(LOUD.format(path=shutil.which(program)))
        (where / program).chmod(0o755)
    break_bubblewrap(where)
    # Here restic has something to warn of.
    cache = tmp_path / "no directory"
    cache.touch()
    env = {"PATH": f"{where}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(cache)}
    asked = subprocess.run(
        ["restic", "snapshots", f"--repo={repository}", f"--password-file={config_dir / 'password'}"],
        capture_output=True,
        env={**os.environ, **env},
    )
    assert b"unable to open cache" in asked.stderr and b"about to change" in asked.stderr

    configure(config_dir, repository, options=AUTO + "OFFSITE_KEEP = {'last': 1}\n")
    source = make_source("rdiff", "")
    for _ in range(4):
        source.change()
        assert source.back_up(env=env) == SILENCE
    add_tarball(dst, LONG_AGO)
    first = btw("list", dst, env=env).out.splitlines()[1].strip()
    target = tmp_path / "target"
    for args in [
        ("sync", dst),
        ("sync", dst),
        ("fs-restore", "--at", first, dst, target / "first"),
        ("fs-restore", dst, target / "newest", "file"),
        ("verify", dst),
        ("verify", "--offsite", dst),
        ("fetch", dst, target / "fetched"),
        ("prune", "--keep-last", "1", dst),
    ]:
        target.mkdir(exist_ok=True)
        assert btw(*args, env=env) == SILENCE, args
    printing: list[tuple[str | Path, ...]] = [("list", dst), ("fetch", "--list"), ("sync", "--dry-run", dst)]
    for args in printing:
        quiet = btw(*args)
        assert (quiet.status, quiet.err) == (0, "")
        assert btw(*args, env=env) == quiet
    result = btw("status", dst, env=env)
    assert (result.err, "change" in result.out) == ("", False)


def test_status_says_how_old_the_newest_copy_is(
    btw: Btw, repository: Path, config_dir: Path, stored: Path, tmp_path: Path
) -> None:
    lately = datetime.now(UTC) - timedelta(minutes=1)
    unchanged = "no change in the data to be backed up: skipping creation of new full backup"
    (stored / "log.txt").write_text(f"{lately:%Y-%m-%dT%H:%M:%S}: {unchanged}\n")
    os.utime(stored / "log.txt", (lately.timestamp(), lately.timestamp()))
    result = btw("status", stored)
    assert (result.status, result.err) == (1, "") and "WARNING - " in result.out
    assert "no off-site copy yet" in result.out
    late = btw("status", "--max-age", "1h", "--json", stored)
    [report] = json.loads(late.out)
    assert (late.status, report["status"], report["unsent_since"]) == (2, "CRITICAL", f"{LONG_AGO}Z")
    assert LONG_AGO in report["problem"]
    assert (report["offsite_newest"], report["offsite_age"]) == (None, None)

    assert btw("sync", stored) == SILENCE
    metrics = tmp_path / "metrics.prom"
    sent = btw("status", "--max-age", "1h", "--json", "--prometheus", metrics, stored)
    [report] = json.loads(sent.out)
    assert (sent.status, report["status"], report["unsent_since"]) == (0, "OK", None)
    made = datetime.fromisoformat(report["offsite_newest"])
    assert datetime.now(UTC) - made < timedelta(minutes=1) and 0 <= report["offsite_age"] < 60
    sample = f'btw_backup_offsite_newest_timestamp_seconds{{destination="{stored}"}} {made.timestamp():.0f}'
    assert sample in metrics.read_text().splitlines()

    repository.rename(tmp_path / "away")
    result = btw("status", stored)
    assert (result.status, len(result.err.splitlines())) == (1, 1) and str(repository) in result.err
    assert "WARNING - " in result.out
    assert f"the off-site repository {repository} cannot be reached" in result.out
    assert "CRITICAL - " in btw("status", "--max-age", "30s", stored).out


# Over the network


def test_a_bucket_without_a_repository(btw: Btw, config_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    with S3(tmp_path / "store") as store:
        configure(config_dir, store.address, store.env)
        assert failed(btw("check-config"), store.address, "there is none here", "--init")


def test_from_a_lost_server_to_a_new_one_by_s3(
    btw: Btw, config_dir: Path, make_source: MakeSource, src: Path, dst: Path, tmp_path: Path
) -> None:
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    with S3(tmp_path / "store") as store:
        configure(config_dir, store.address, store.env, AUTO)
        assert failed(btw("check-config"), store.address)
        assert btw("sync", "--init").status == 0
        source = make_source("rdiff")
        assert source.back_up("-u", OWNER) == SILENCE
        [first] = snapshots(store.address, store.env)
        store.stop()
        source.change()
        result = source.back_up("-u", OWNER)
        assert failed(result, "the backup was made, but not", store.address, status=4)
        assert failed(btw("check-config"), store.address)
        store.start()
        assert btw("sync", dst) == SILENCE
        _, second = snapshots(store.address, store.env)
        assert second["parent"] == first["id"]
        assert btw("verify", "--offsite", dst) == SILENCE
        assert btw("status", dst).status == 0
        before = set_aside(dst, tmp_path / "before")
        for lost in (dst, config_dir):
            shutil.rmtree(lost)
        configure(config_dir, store.address, store.env)
        assert btw("fetch", "--list").out.splitlines()[-1].endswith(f":{dst} ({src})")
        assert btw("fetch", dst, dst) == SILENCE
    trees.assert_same(before, dst)
    assert btw("verify", dst) == SILENCE
    source.assert_restored(dst, tmp_path / "restored")
