"""``btw-backup fs-restore`` gives back what was there, or reports that it cannot."""

import fcntl
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from btw_backup.destination.reader import Destination

from .faults.tracing import CHANGING, parse_trace, tracing
from .helpers import trees
from .helpers.destinations import add_tarball, mounted
from .helpers.running import Btw, Result, break_bubblewrap, replacing, wait_for
from .helpers.small_parts import REPLACED

PROG = "btw_backup"
MARKER = ".btw-backup-restore-incomplete"
SILENCE = Result(0, "", "")
KINDS = ["rdiff", "bzip2", "zstd", "gzip", "xz", "none"]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
with_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

Backup = Callable[..., list[str]]


@pytest.fixture
def backup(btw: Btw, config_dir: Path, dst: Path) -> Backup:
    """Back up a source as one of ``KINDS``. Returns the points' names."""

    def run(source: Path, kind: str = "rdiff", **options: Any) -> list[str]:
        work = config_dir / "test.0123"
        (work / "backup").mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (work / "src").is_symlink():
            (work / "src").symlink_to(source)
        kinds = {"TYPE": "rdiff"} if kind == "rdiff" else {"TYPE": "tar", "COMPRESSION": kind}
        lines = [f"{name} = {value!r}\n" for name, value in {**kinds, **options}.items()]
        (work / "config.py").write_text("".join(lines))
        assert btw("fs", source, dst) == SILENCE
        return points(btw, dst)

    return run


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A target that does not exist."""
    return tmp_path / "target"


def points(btw: Btw, dst: Path) -> list[str]:
    return [line.strip() for line in btw("list", dst).out.splitlines()]


def copied(source: Path, to: Path) -> Path:
    """Copy a source with all its attributes. Returns ``to``."""
    subprocess.run(["cp", "-a", source, to], check=True)
    return to


def texts(top: Path) -> dict[str, str]:
    """Map the path of every file to its content."""
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}


def flip(path: Path, where: float = 0.5) -> None:
    """Change a bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 4
    path.write_bytes(data)


def rdiff_backup(archive: Path, chain: Path, at: datetime, *prefix: str, zone: str = "UTC") -> None:
    """Add a point to a chain with rdiff-backup's old command line, as the original tool did."""
    os.utime(archive, (at.timestamp(), at.timestamp()))
    argv = ["rdiff-backup", "--current-time", str(int(at.timestamp())), archive.parent, chain]
    environment = {**os.environ, "TZ": zone}
    subprocess.run([*prefix, *map(str, argv)], check=not prefix, env=environment, capture_output=True)


def archived(source: Path, into: Path) -> Path:
    """Make an archive as the original tool did."""
    into.mkdir(exist_ok=True)
    flags = ["--acls", "--xattrs", "--xattrs-include=*", "--sparse", "--format=posix"]
    subprocess.run(["tar", *flags, "-C", source, "-cf", into / "backup.tar", "."], check=True)
    return into / "backup.tar"


# Round trips


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_of_every_kind_comes_back(
    btw: Btw, backup: Backup, tmp_path: Path, dst: Path, target: Path, kind: str
) -> None:
    source = tmp_path / "hostile"
    trees.build(source)
    states = []
    for number in range(3 if kind == "rdiff" else 2):
        if number:
            (source / "plain").write_text(f"state {number}\n")
            (source / trees.NOT_UTF8).rename(source / f"{number} \udce9")
            (source / trees.NOT_UTF8).write_text("new\n")
        backup(source, kind)
        states.append(copied(source, tmp_path / f"state {number}"))
    names = points(btw, dst)
    assert btw("fs-restore", dst, target) == SILENCE
    trees.assert_same(source, target)
    assert (target / "sparse").stat().st_blocks * 512 < 4 << 20
    for number, (name, state) in enumerate(zip(names, states, strict=True)):
        restored = tmp_path / f"restored {number}"
        assert btw("fs-restore", "--at", name, dst, restored) == SILENCE
        trees.assert_same(state, restored)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_chains_that_the_original_made(btw: Btw, src: Path, dst: Path, tmp_path: Path, zone: str) -> None:
    start = datetime(2020, 2, 29, 23, 30, tzinfo=UTC)
    # The original tool chose the name before rdiff-backup chose the time of the point.
    chain = dst / f"{start - timedelta(seconds=2):%Y-%m-%dT%H:%M:%S}"
    for number in range(4):
        (src / "file").write_text(f"state {number}\n")
        (src / f"added {number}").touch()
        rdiff_backup(archived(src, tmp_path / "stage"), chain, start + timedelta(hours=number), zone=zone)
        copied(src, tmp_path / f"state {number}")
    names = points(btw, dst)
    assert names == [chain.name, "2020-03-01T00:30:00", "2020-03-01T01:30:00", "2020-03-01T02:30:00"]
    for number, name in enumerate(names):
        restored = tmp_path / f"restored {number}"
        assert btw("fs-restore", "--at", name, dst, restored, env={"TZ": "Asia/Tokyo"}) == SILENCE
        trees.assert_same(tmp_path / f"state {number}", restored)


def test_tarballs_that_the_original_made(btw: Btw, src: Path, dst: Path, target: Path) -> None:
    argv = ["tar", "--create", "--bzip2", "--force-local", "--exclude-tag=NOBACKUP-TAG"]
    subprocess.run([*argv, "--file", dst / "2015-06-01T00:00:00.tbz", "--directory", src, "."], check=True)
    assert btw("fs-restore", dst, target) == SILENCE
    trees_of = [texts(src), texts(target)]
    assert trees_of[0] == trees_of[1]


@pytest.mark.parametrize("kind", ["rdiff", "bzip2"])
def test_a_single_file_as_the_source(
    btw: Btw, backup: Backup, src: Path, dst: Path, target: Path, kind: str
) -> None:
    backup(src / "file", kind)
    assert btw("fs-restore", dst, target) == SILENCE
    assert os.listdir(target) == ["file"]
    assert (target / "file").stat().st_mtime_ns == (src / "file").stat().st_mtime_ns
    assert (target / "file").read_text() == "content\n"


@as_root
def test_what_was_left_out_does_not_come_back(
    btw: Btw, backup: Backup, src: Path, dst: Path, target: Path
) -> None:
    for name in ("tmp/x", "sub/tmp/x", "a.o", "sub/b.o", "tagged/NOBACKUP-TAG", "tagged/in/x", "mounted/x"):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_text("x")
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", src / "mounted"):
        (src / "mounted" / "inner").write_text("on another file system\n")
        backup(src, "zstd", EXCLUDE=["./tmp", "*.o"], ONE_FILE_SYSTEM=True)
        backup(src, "zstd")
    assert btw("fs-restore", "--at", points(btw, dst)[0], dst, target) == SILENCE
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*"))
    mine = ["file", "mounted", "sub", "sub/other", "sub/tmp", "sub/tmp/x", "tagged", "tagged/NOBACKUP-TAG"]
    assert found == mine
    assert btw("fs-restore", dst, f"{target}2").status == 0
    found = sorted(str(path.relative_to(f"{target}2")) for path in Path(f"{target}2").rglob("*"))
    assert found == sorted([*mine, "tmp", "tmp/x", "a.o", "sub/b.o", "mounted/inner"])


# --at

TIMES = ["2024-12-31T23:59:59", "2025-01-01T00:00:00", "2025-01-01T10:20:30", "2025-01-01T10:20:31"]


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A destination with points at known times: tarballs, and a chain with two."""
    dst = tmp_path_factory.mktemp("moments")
    stage = tmp_path_factory.mktemp("stage")
    for name in (*TIMES[:2], "2025-01-03T00:00:00"):
        add_tarball(dst, f"{name}.tbz", {"file": name})
    for name in TIMES[2:]:
        archive = archived_text(stage, name)
        rdiff_backup(archive, dst / TIMES[2], datetime.fromisoformat(f"{name}+00:00"))
    return dst


def archived_text(stage: Path, text: str) -> Path:
    (stage / "in").mkdir(parents=True, exist_ok=True)
    (stage / "in" / "file").write_text(text)
    return archived(stage / "in", stage / "out")


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        *[(time, time) for time in TIMES],
        *[(f"{time}.tbz", time) for time in TIMES[:2]],
        ("2024-12-31", TIMES[0]),
        ("2024-12-31T23:59", TIMES[0]),
        ("2025-01-01", TIMES[3]),
        ("2025-01-01T00", TIMES[1]),
        ("2025-01-01T09:59:59", TIMES[1]),
        ("2025-01-01T10:19", TIMES[1]),
        ("2025-01-01T10:20", TIMES[3]),
        ("2025-01-02", TIMES[3]),
        ("2025-01-03", "2025-01-03T00:00:00"),
        ("2025-01-01T09:59:59Z", TIMES[1]),
        ("2025-01-01T10:20Z", TIMES[3]),
        ("2025-01-01T11:19+01:00", TIMES[1]),
        ("2025-01-01T05:20-05:00", TIMES[3]),
        ("1s", "2025-01-03T00:00:00"),
    ],
)
def test_at(btw: Btw, moments: Path, target: Path, at: str, expected: str) -> None:
    assert btw("fs-restore", "--at", at, moments, target) == SILENCE
    assert texts(target) == {"file": expected}


def test_at_a_span_before_now(btw: Btw, dst: Path, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    for days in (10, 5, 1):
        add_tarball(dst, f"{now - timedelta(days=days):%Y-%m-%dT%H:%M:%S}.tbz", {"file": str(days)})
    for span, expected in (("30m", "1"), ("3d", "5"), ("1w", "10"), ("6 days, 2 hours", "10")):
        assert btw("fs-restore", "--at", span, dst, tmp_path / span) == SILENCE
        assert texts(tmp_path / span) == {"file": expected}


@pytest.mark.parametrize("at", ["2024-12-30", "2024-12-31T23:59:58", "2024-12-31T22", "100000d"])
def test_at_a_time_before_the_oldest_point(btw: Btw, moments: Path, target: Path, at: str) -> None:
    result = btw("fs-restore", "--at", at, moments, target)
    assert result.status == 1
    assert at in result.err and TIMES[0] in result.err and len(result.err.splitlines()) == 1
    assert not target.exists()


@pytest.mark.parametrize(
    "at", ["yesterday", "2025-13-01", "2025-02-30", "2025-01", "2025-01-01 10:20", "", "x.tbz"]
)
def test_at_something_that_is_no_time(btw: Btw, moments: Path, target: Path, at: str) -> None:
    result = btw("fs-restore", "--at", at, moments, target)
    assert result.status == 1 and repr(at) in result.err
    assert not target.exists()


@pytest.mark.parametrize("at", ["2999-01-01", "2999-01-01T00:00Z"])
def test_at_a_time_in_the_future(btw: Btw, moments: Path, target: Path, at: str) -> None:
    result = btw("fs-restore", "--at", at, moments, target)
    assert (result.status, result.err) == (1, f"{PROG}: {at} is in the future\n")
    assert not target.exists()


# Paths

ODD = [
    "new\nline",
    trees.NOT_UTF8,
    "-rf",
    "--exclude=x",
    "*",
    "?",
    "[a]",
    "back\\nslash",
    "back\\",
    " ",
    "é",
    "::",
]


def add_plain(source: Path, dst: Path) -> None:
    """Make an uncompressed tarball with plain tar."""
    archived(source, dst).rename(dst / f"{TIMES[0]}.tar")


@pytest.fixture
def odd(src: Path) -> Path:
    """A source with names that look like patterns, options or escapes, and files that they would match."""
    for name in [*ODD, "a", "x", "back\nslash"]:
        (src / name).write_text(f"in {name!r}\n")
    (src / "*d").mkdir()
    (src / "*d" / "in").write_text("in\n")
    (src / "sub" / "file").write_text("not the one above\n")
    return src


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_literal(btw: Btw, odd: Path, dst: Path, target: Path, name: str) -> None:
    add_plain(odd, dst)
    assert btw("fs-restore", dst, target, "--", name) == SILENCE
    assert texts(target) == {name: f"in {name!r}\n"}
    assert (target / name).stat().st_mtime_ns == (odd / name).stat().st_mtime_ns


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["file"], ["file"]),
        (["/file"], ["file"]),
        (["./file", "//file"], ["file"]),
        (["sub"], ["sub/file", "sub/other"]),
        (["sub/", "sub/other"], ["sub/file", "sub/other"]),
        (["sub/other", "a"], ["a", "sub/other"]),
        (["/sub//./other"], ["sub/other"]),
        (["*d"], ["*d/in"]),
    ],
)
def test_paths(btw: Btw, odd: Path, dst: Path, target: Path, paths: list[str], expected: list[str]) -> None:
    add_plain(odd, dst)
    assert btw("fs-restore", dst, target, *paths) == SILENCE
    assert texts(target) == {name: (odd / name).read_text() for name in expected}


@as_root
@pytest.mark.parametrize("kind", ["rdiff", "parts", "gzip"])
def test_the_directories_above_a_path(
    btw: Btw, backup: Backup, config_dir: Path, tmp_path: Path, dst: Path, target: Path, kind: str
) -> None:
    """They are what they were, and without anything else."""
    source = tmp_path / "source"
    for number in range(40):
        path = source / f"{number:02}" / "inner" / "deep" / "file"
        path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(2000))
    for path in (source / "20", source / "20" / "inner", source / "20" / "inner" / "deep"):
        path.chmod(0o751)
        os.chown(path, 12345, 54321)
        os.utime(path, (1, 10**9))
    (source / "20" / "beside").write_text("not asked for\n")
    os.utime(source / "20", (1, 10**9))
    if kind == "parts":
        run = replacing(config_dir, REPLACED)
        (config_dir / "test.0123" / "backup").mkdir(parents=True)
        (config_dir / "test.0123" / "src").symlink_to(source)
        (config_dir / "test.0123" / "config.py").write_text("TYPE = 'rdiff'\n")
        assert run("fs", source, dst) == SILENCE
        assert len([*dst.glob("*/backup.tar*")]) > 5
    else:
        run = btw
        backup(source, kind)
    assert run("fs-restore", dst, target, "20/inner/deep/file") == SILENCE
    found = {str(path.relative_to(target)): path.lstat() for path in target.rglob("*")}
    assert found.keys() == {"20", "20/inner", "20/inner/deep", "20/inner/deep/file"}
    for name, inode in found.items():
        was = (source / name).lstat()
        assert (inode.st_mode, inode.st_uid, inode.st_gid) == (was.st_mode, was.st_uid, was.st_gid), name
        assert int(inode.st_mtime) == int(was.st_mtime), name
    assert run("fs-restore", dst, tmp_path / "other", "20/inner/none").status == 1
    assert not [*(tmp_path / "other").glob("2*")]


def test_the_source_itself_as_a_path(btw: Btw, backup: Backup, odd: Path, dst: Path, target: Path) -> None:
    backup(odd)
    assert btw("fs-restore", dst, target, "/") == SILENCE
    trees.assert_same(odd, target)


def test_a_path_of_an_older_point(btw: Btw, backup: Backup, src: Path, dst: Path, target: Path) -> None:
    backup(src)
    (src / "file").unlink()
    first, _ = backup(src)
    assert btw("fs-restore", "--at", first, dst, target, "file") == SILENCE
    assert texts(target) == {"file": "content\n"}


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("kind", ["rdiff", "bzip2"])
def test_one_name_of_a_file_that_has_two(
    btw: Btw, backup: Backup, src: Path, dst: Path, target: Path, kind: str, name: str
) -> None:
    """An archive holds the content under only one of the names."""
    (src / "one").write_text("linked\n")
    os.link(src / "one", src / "two")
    backup(src, kind)
    result = btw("fs-restore", dst, target, name)
    assert texts(target) == {name: "linked\n"}, result
    assert result == SILENCE


@pytest.mark.parametrize(
    "lost", ["lost", "sub/lost", "file/lost", "fil", "*", "new\nline", "-v", trees.NOT_UTF8]
)
def test_a_path_that_is_not_there_is_named_and_the_rest_restored(
    btw: Btw, src: Path, dst: Path, target: Path, lost: str
) -> None:
    add_plain(src, dst)
    result = btw("fs-restore", dst, target, "--", "file", lost, "sub/other")
    assert (result.status, result.out) == (1, "")
    shown = lost.replace("\n", "\\x0a").encode(errors="backslashreplace").decode()
    assert shown in result.err and len(result.err.splitlines()) == 1, result.err
    assert texts(target) == {"file": "content\n", "sub/other": "more\n"}


@pytest.mark.parametrize("path", ["..", "../file", "sub/../file", "/..", "sub/..", ""])
def test_a_path_that_leads_out_is_refused(btw: Btw, src: Path, dst: Path, target: Path, path: str) -> None:
    add_plain(src, dst)
    result = btw("fs-restore", dst, target, "file", path)
    assert result.status == 1 and repr(path) in result.err
    assert not target.exists()


# The target


def test_an_empty_directory(btw: Btw, backup: Backup, src: Path, dst: Path, target: Path) -> None:
    backup(src)
    target.mkdir()
    assert btw("fs-restore", dst, target) == SILENCE
    trees.assert_same(src, target)


def test_a_link_to_an_empty_directory(
    btw: Btw, backup: Backup, src: Path, dst: Path, target: Path, tmp_path: Path
) -> None:
    backup(src)
    (tmp_path / "real").mkdir()
    target.symlink_to("real")
    assert btw("fs-restore", dst, target) == SILENCE
    assert target.is_symlink()
    trees.assert_same(src, tmp_path / "real")


def test_a_relative_target(btw: Btw, backup: Backup, src: Path, dst: Path, tmp_path: Path) -> None:
    backup(src)
    assert btw("fs-restore", "dst", "-target", cwd=tmp_path).status == 2
    assert btw("fs-restore", "dst", "target", "file", cwd=tmp_path) == SILENCE
    assert texts(tmp_path / "target") == {"file": "content\n"}


@pytest.mark.parametrize("kind", ["file", "dangling", "not empty", "hidden", "no parent", "itself"])
def test_a_target_that_will_not_do_is_left_as_it_is(
    btw: Btw, backup: Backup, src: Path, dst: Path, target: Path, tmp_path: Path, kind: str
) -> None:
    backup(src)
    if kind == "file":
        target.write_text("mine\n")
    elif kind == "dangling":
        target.symlink_to("nowhere/at/all")
    elif kind in ("not empty", "hidden"):
        target.mkdir()
        (target / (".x" if kind == "hidden" else "x")).write_text("mine\n")
    elif kind == "no parent":
        (tmp_path / "in the way").write_text("mine\n")
        target = tmp_path / "in the way" / "target"
    else:
        target = dst
    before = trees.facts(tmp_path)
    result = btw("fs-restore", dst, target)
    assert (result.status, result.out) == (1, "")
    assert str(target) in result.err and len(result.err.splitlines()) == 1
    assert trees.facts(tmp_path) == before


def test_closing_line(btw: Btw, backup: Backup, src: Path, dst: Path, target: Path) -> None:
    (name,) = backup(src, "bzip2")
    result = btw("-v", "fs-restore", dst, target)
    assert result == Result(0, "", f"{PROG}: restored {name[:19]}Z into {target}\n")


def test_an_empty_destination(btw: Btw, dst: Path, target: Path) -> None:
    result = btw("fs-restore", dst, target)
    assert result.status == 1 and len(result.err.splitlines()) == 1
    assert not target.exists()


def test_backups_of_a_database_are_refused(btw: Btw, dst: Path, tmp_path: Path, target: Path) -> None:
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "shop.dump").write_text("a dump\n")
    rdiff_backup(tmp_path / "stage" / "shop.dump", dst / TIMES[0], datetime(2025, 1, 1, tzinfo=UTC))
    result = btw("fs-restore", dst, target)
    assert result.status == 1 and "db-restore" in result.err
    assert not target.exists()


# Reading alone


@as_root
@pytest.mark.parametrize("kind", ["rdiff", "bzip2", "none"])
def test_from_a_read_only_disk(
    btw: Btw, backup: Backup, src: Path, dst: Path, tmp_path: Path, kind: str
) -> None:
    backup(src, kind)
    copied(src, tmp_path / "state")
    (src / "file").write_text("new\n")
    names = backup(src, kind)
    before = trees.facts(dst)
    with mounted("--bind", "-o", "ro", dst, dst):
        for name, expected in zip(names, (tmp_path / "state", src), strict=True):
            assert btw("fs-restore", "--at", name, dst, tmp_path / name) == SILENCE
            trees.assert_same(expected, tmp_path / name)
    assert trees.facts(dst) == before


def test_while_a_backup_is_running(
    btw: Btw, backup: Backup, src: Path, dst: Path, tmp_path: Path, config_dir: Path
) -> None:
    """The backup is stopped while it makes the new point in the copy of the chain."""
    states = []
    for number in range(2):
        (src / "file").write_text(f"state {number}\n")
        names = backup(src)
        states.append(copied(src, tmp_path / f"state {number}"))
    (src / "file").write_text("state 2\n")
    with waiting_program(tmp_path, "rdiff-backup") as (path, started, go):
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "btw_backup",
            "--config-dir",
            config_dir,
            "fs",
            src,
            dst,
        ]
        with subprocess.Popen(command, env={**os.environ, "PATH": path}) as running:
            wait_for(started.exists, 60)
            with open(dst / ".btw-backup" / "lock") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name, state in zip(names, states, strict=True):
                assert btw("fs-restore", "--at", name, dst, tmp_path / name) == SILENCE
                trees.assert_same(state, tmp_path / name)
            assert running.poll() is None
            go.touch()
    assert running.returncode == 0
    assert len(points(btw, dst)) == 3


@contextmanager
def waiting_program(top: Path, program: str) -> Iterator[tuple[str, Path, Path]]:
    """Yield a PATH in which a program waits, the file that it makes first, and the file that it waits for."""
    (top / "bin").mkdir()
    started, go = top / "started", top / "go"
    script = top / "bin" / program
    script.write_text(
        f'#!/bin/sh\nls -A "$TMPDIR" > "{started}.new" 2>&1; mv "{started}.new" "{started}"\n'
        f'while [ ! -e "{go}" ]; do sleep 0.02; done\nexec {shutil.which(program)} "$@"\n'
    )
    script.chmod(0o755)
    break_bubblewrap(top / "bin")
    yield f"{top / 'bin'}:{os.environ['PATH']}", started, go


# Damage


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_content_is_never_handed_over_as_good(
    btw: Btw, backup: Backup, src: Path, dst: Path, tmp_path: Path, kind: str
) -> None:
    (src / "noise").write_bytes(os.urandom(200_000))
    (name,) = backup(src, kind)
    stored = dst / name / "backup.tar" if kind == "rdiff" else dst / name
    for number, path in enumerate(([], ["file"], [])):
        if number < 2:
            flip(stored, 0.5 + number / 10)
        else:
            os.truncate(stored, 100_000)
        target = tmp_path / f"target {number}"
        result = btw("fs-restore", dst, target, *path)
        assert (result.status, result.out) == (1, "")
        assert (target / MARKER).is_file()
        assert result.err.splitlines()[-1] == f"{PROG}: {target} is incomplete: do not use what is in it"
        if number < 2:
            assert stored.name in result.err


PAIR = "2025-01-01T00:00:00"
COMMON = random.Random(0).randbytes(100_000)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A destination with a chain of two points that share a part of their content."""
    return _pair(tmp_path_factory.mktemp("pair"), 300_000, 200_000)


def _pair(top: Path, *sizes: int) -> Path:
    """A destination with a chain of two points, whose other content has these sizes."""
    source = top / "source"
    for path in (source, top / "dst"):
        path.mkdir()
    (source / "common").write_bytes(COMMON)
    for hour, size in enumerate(sizes):
        (source / "noise").write_bytes(os.urandom(size))
        archive = archived(source, top / "stage")
        rdiff_backup(archive, top / "dst" / PAIR, datetime(2025, 1, 1, hour, tzinfo=UTC))
    return top / "dst"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "mirror"])
def test_a_damaged_older_point(
    btw: Btw, pair: Path, target: Path, tmp_path: Path, temporary: Path, damage: str
) -> None:
    dst = copied(pair, tmp_path / "copy")
    (increment,) = (dst / PAIR).glob("rdiff-backup-data/increments/backup.tar.*")
    if damage == "flipped":
        flip(increment)
    elif damage == "truncated":
        os.truncate(increment, 1000)
    elif damage == "missing":
        increment.unlink()
    else:
        mirror = dst / PAIR / "backup.tar"
        content = mirror.read_bytes()
        assert COMMON in content
        mirror.write_bytes(content.replace(COMMON[500:600], bytes(100)))
    result = btw("fs-restore", "--at", PAIR, dst, target, env={"TMPDIR": str(temporary)})
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith(f"{PROG}: ")
    assert not target.exists() or (target / MARKER).is_file()
    assert os.listdir(temporary) == []


@as_root
def test_a_target_that_fails_half_way_says_so(
    btw: Btw, backup: Backup, src: Path, dst: Path, target: Path
) -> None:
    (src / "noise").write_bytes(os.urandom(200_000))
    backup(src)
    target.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=64k", "none", target):
        result = btw("fs-restore", dst, target)
        assert result.status == 1
        assert "No space left on device" in result.err
        assert result.err.splitlines()[-1] == f"{PROG}: {target} is incomplete: do not use what is in it"
        assert (target / MARKER).is_file()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_restore_that_is_interrupted_looks_incomplete(
    backup: Backup, src: Path, dst: Path, tmp_path: Path, target: Path, signum: signal.Signals
) -> None:
    backup(src)
    with waiting_program(tmp_path, "tar") as (path, started, _):
        command: list[str | Path] = [sys.executable, "-m", "btw_backup", "fs-restore", dst, target]
        with subprocess.Popen(command, env={**os.environ, "PATH": path}) as running:
            wait_for(started.exists, 60)
            running.send_signal(signum)
            assert running.wait(60) == 128 + signum
    assert os.listdir(target) == [MARKER]


@pytest.mark.parametrize("kind", ["rdiff", "none"])
def test_a_source_that_holds_a_file_called_like_the_marker(
    btw: Btw, backup: Backup, src: Path, dst: Path, target: Path, kind: str
) -> None:
    (src / MARKER).write_text("of the source\n")
    backup(src, kind)
    assert btw("fs-restore", dst, target) == SILENCE
    trees.assert_same(src, target)


@with_strace
def test_all_is_on_the_disk_before_the_marker_goes(
    btw: Btw, backup: Backup, src: Path, dst: Path, tmp_path: Path, target: Path
) -> None:
    backup(src)
    trace = tmp_path / "trace"
    command = [sys.executable, "-m", "btw_backup", "fs-restore", str(dst), str(target)]
    subprocess.run([*tracing(trace, {"syncfs", "unlinkat", "unlink", "fsync"}), *command], check=True)
    calls = [line for line in trace.read_text().splitlines() if "syncfs" in line or MARKER in line]
    assert calls[0].startswith("syncfs(") and str(target) in calls[0]
    assert "unlink" in calls[-1] and len(calls) == 2


def test_a_point_that_was_chosen_before_a_backup_exchanged_its_chain(
    backup: Backup, src: Path, dst: Path
) -> None:
    """The chosen point is no longer the newest, and what holds it has been exchanged and removed."""
    backup(src)
    with Destination.open(str(dst)) as destination:
        chosen = destination.choose(None, datetime.now(UTC))
        (src / "file").write_text("later\n")
        assert len(backup(src)) == 2
        with destination.opened(chosen) as content:
            content.write_to(lambda block: None)
            assert content.is_older


def test_a_chain_that_is_exchanged_while_it_is_read(backup: Backup, src: Path, dst: Path) -> None:
    names = [backup(src)[0]]
    (src / "file").write_text("later\n")
    backup(src)
    with Destination.open(str(dst)) as destination:
        chosen = destination.choose(names[0], datetime.now(UTC))
        with destination.opened(chosen) as content:
            (src / "file").write_text("later still\n")
            assert len(backup(src)) == 3
            content.write_to(lambda block: None)


# Archives that somebody made to harm

Member = tuple[str, bytes, str]
OUTSIDE = "OUTSIDE"


@pytest.mark.parametrize(
    "members",
    [
        [("/OUTSIDE/new", tarfile.REGTYPE, "bad")],
        [("./../outside/new", tarfile.REGTYPE, "bad")],
        [("../outside/secret", tarfile.REGTYPE, "bad")],
        [("./a", tarfile.SYMTYPE, "/OUTSIDE"), ("./a/new", tarfile.REGTYPE, "bad")],
        [("./a", tarfile.SYMTYPE, "../outside"), ("./a/new", tarfile.REGTYPE, "bad")],
        [
            ("./a", tarfile.SYMTYPE, "."),
            ("./a/b", tarfile.SYMTYPE, "../outside"),
            ("b/new", tarfile.REGTYPE, "bad"),
        ],
        [("./a", tarfile.SYMTYPE, "/OUTSIDE/secret"), ("./a", tarfile.REGTYPE, "bad")],
        [("./a", tarfile.SYMTYPE, "/OUTSIDE"), ("./a/", tarfile.DIRTYPE, "")],
        [("./a", tarfile.LNKTYPE, "/OUTSIDE/secret"), ("./a", tarfile.REGTYPE, "bad")],
        [("./a", tarfile.LNKTYPE, "../outside/secret")],
        [("./l", tarfile.SYMTYPE, "/OUTSIDE"), ("./a", tarfile.LNKTYPE, "./l/secret")],
        [(f"./{MARKER}", tarfile.SYMTYPE, "/OUTSIDE/secret"), (f"./{MARKER}", tarfile.REGTYPE, "bad")],
        [(".", tarfile.SYMTYPE, "/OUTSIDE"), ("./new", tarfile.REGTYPE, "bad")],
    ],
    ids=lambda members: " ".join(f"{name}>{text}" for name, _, text in members),
)
@pytest.mark.parametrize("by_path", [False, True], ids=["all", "by path"])
def test_nothing_is_written_outside(
    btw: Btw, dst: Path, tmp_path: Path, target: Path, members: Sequence[Member], by_path: bool
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret\n")
    os.utime(outside, (0, 0))
    before = trees.facts(outside)
    with tarfile.open(dst / f"{TIMES[0]}.tbz", "w:bz2") as archive:
        for name, kind, text in members:
            member = tarfile.TarInfo(name.replace("/OUTSIDE", str(outside)))
            member.type, member.mode, member.mtime = kind, 0o777, 1
            data = text.encode() if kind == tarfile.REGTYPE else b""
            member.linkname = "" if data else text.replace("/OUTSIDE", str(outside))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    if by_path:
        last = os.path.normpath(members[-1][0].replace("/OUTSIDE", str(outside))).lstrip("./") or "."
        result = btw("fs-restore", dst, target, last)
    else:
        result = btw("fs-restore", dst, target)
    assert result.status in (0, 1)
    assert "Traceback" not in result.err
    assert trees.facts(outside) == before
    assert (outside / "secret").read_text() == "secret\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"outside", "dst", "target"}
    # A member of that name is the archive's own, and stays.
    unmarked = target.is_dir() and (MARKER not in os.listdir(target) or f"./{MARKER}" == members[0][0])
    assert (result.status == 0) == unmarked or by_path


# The temporary directory


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    path = tmp_path / "temporary"
    path.mkdir()
    return path


@as_root
def test_only_an_older_point_takes_room_in_the_temporary_directory(
    btw: Btw, pair: Path, tmp_path: Path, temporary: Path
) -> None:
    """It takes room for the difference, 300 kB of the archive's 800, and not for the archive."""
    environment = {"TMPDIR": str(temporary)}
    with mounted("-t", "tmpfs", "-o", "size=4k", "none", temporary):
        assert btw("fs-restore", pair, tmp_path / "newest", env=environment) == SILENCE
        assert btw("fs-restore", "--at", PAIR, pair, tmp_path / "no room", env=environment).status == 1
    with mounted("-t", "tmpfs", "-o", "size=400k", "none", temporary):
        assert btw("fs-restore", "--at", PAIR, pair, tmp_path / "older", env=environment) == SILENCE
        assert os.listdir(temporary) == []


def test_no_program_runs_on_a_chain_that_is_restored(
    btw: Btw, pair: Path, tmp_path: Path, temporary: Path
) -> None:
    with waiting_program(tmp_path, "rdiff-backup") as (path, started, _):
        environment = {"PATH": path, "TMPDIR": str(temporary)}
        assert btw("fs-restore", "--at", PAIR, pair, tmp_path / "older", env=environment) == SILENCE
        assert btw("verify", pair, env=environment) == SILENCE
        assert not started.exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_temporary_directory_is_freed_at_a_signal(
    tmp_path: Path,
    target: Path,
    temporary: Path,
    signum: signal.Signals,
) -> None:
    (tmp_path / "pair").mkdir()
    pair = _pair(tmp_path / "pair", 4_000_000, 200_000)  # more than the pipe to tar can hold
    with waiting_program(tmp_path, "tar") as (path, started, _):
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "btw_backup",
            "fs-restore",
            "--at",
            PAIR,
            pair,
            target,
        ]
        environment = {**os.environ, "PATH": path, "TMPDIR": str(temporary)}
        with subprocess.Popen(command, env=environment) as running:
            wait_for(started.exists, 60)
            wait_for(lambda: any(name.startswith(f"{temporary}/") for name in _open_files(running.pid)), 60)
            running.send_signal(signum)
            assert running.wait(60) == 128 + signum
    assert os.listdir(temporary) == []
    assert not target.exists() or os.listdir(target) == [MARKER]


def _open_files(pid: int) -> list[str]:
    return [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]


@as_root
@pytest.mark.parametrize("room", ["16k", "200k"])
def test_a_full_temporary_directory(btw: Btw, pair: Path, target: Path, temporary: Path, room: str) -> None:
    with mounted("-t", "tmpfs", "-o", f"size={room}", "none", temporary):
        result = btw("fs-restore", "--at", PAIR, pair, target, env={"TMPDIR": str(temporary)})
        assert os.listdir(temporary) == []
    assert result.status == 1
    assert not target.exists() or (target / MARKER).is_file()
    ours = [line for line in result.err.splitlines() if line.startswith(f"{PROG}: ")]
    assert "Traceback" not in result.err
    assert "no space left" in ours[0].lower() and str(temporary) in ours[0], result.err
    assert all(line.endswith("is incomplete: do not use what is in it") for line in ours[1:])


# Chains that a killed rdiff-backup left


@with_strace
@pytest.mark.parametrize("good", [1, 2])
def test_every_listed_point_of_an_interrupted_chain(
    btw: Btw, src: Path, dst: Path, tmp_path: Path, temporary: Path, good: int
) -> None:
    """rdiff-backup is killed at several places while it adds a point."""
    start = datetime(2025, 1, 1, tzinfo=UTC)
    chain = tmp_path / "good" / f"{start:%Y-%m-%dT%H:%M:%S}"
    chain.parent.mkdir()
    (src / "noise").write_bytes(os.urandom(100_000))
    for number in range(good + 1):
        (src / "file").write_text(f"state {number}\n")
        archive = archived(src, tmp_path / "stage")
        if number < good:
            copied(src, tmp_path / f"state {number}")
            rdiff_backup(archive, chain, start + timedelta(hours=number))
    late = start + timedelta(hours=good)
    trace = tmp_path / "trace"
    traced = copied(chain, tmp_path / chain.name)
    rdiff_backup(archive, traced, late, *tracing(trace, CHANGING))
    text = trace.read_text(errors="replace")
    calls = [call for call in parse_trace(text) if chain.name in call.text]
    markers = [number for number, call in enumerate(calls) if "current_mirror" in call.text]
    between = calls[markers[0] + 1 : markers[-1]]
    assert len(between) > 5
    tried = 0
    for call in [*between[:: len(between) // 3], between[-1]]:
        killed = copied(chain, dst / chain.name)
        fault = f"{call.name}:signal=SIGKILL:when={call.number}"
        rdiff_backup(archive, killed, late, *tracing(trace, {call.name}, fault))
        tried += len(list(killed.glob("rdiff-backup-data/current_mirror.*"))) == 2
        before = trees.facts(dst)
        names = points(btw, dst)
        assert len(names) >= good
        for number, name in enumerate(names[:good]):
            restored = tmp_path / f"restored {number}"
            result = btw("fs-restore", "--at", name, dst, restored, env={"TMPDIR": str(temporary)})
            assert result == SILENCE, (call, os.listdir(killed), result)
            trees.assert_same(tmp_path / f"state {number}", restored)
            shutil.rmtree(restored)
        assert os.listdir(temporary) == []
        assert trees.facts(dst) == before, call
        shutil.rmtree(killed)
    assert tried >= 3
