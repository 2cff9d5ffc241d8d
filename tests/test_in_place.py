"""``fs-restore --in-place`` and ``--to-stdout``: getting back just what was lost."""

import fcntl
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .faults.tracing import CHANGING, parse_trace, tracing
from .helpers import trees
from .helpers.destinations import mounted, tree
from .helpers.running import Btw, Result

PROG = "btw_backup"
ASIDE = ".btw-backup-restoring"
KEPT = ".btw-backup-replaced-"
SILENCE = Result(0, "", "")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
with_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

BackUp = Callable[..., None]


@pytest.fixture
def back_up(btw: Btw, config_dir: Path, dst: Path) -> BackUp:
    """Backs up a source."""

    def run(source: Path, **options: object) -> None:
        work = config_dir / "test.0123"
        (work / "backup").mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (work / "src").is_symlink():
            (work / "src").symlink_to(source)
        lines = [f"{name} = {value!r}\n" for name, value in {"TYPE": "rdiff", **options}.items()]
        (work / "config.py").write_text("".join(lines))
        assert btw("fs", source, dst) == SILENCE

    return run


@pytest.fixture
def live(src: Path, tmp_path: Path, back_up: BackUp) -> Path:
    """What was backed up, and a copy of it to restore into."""
    (src / "docs").mkdir()
    (src / "docs" / "letter").write_text("Dear Sir or Madam\n")
    (src / "docs" / "notes").write_text("buy milk\n")
    back_up(src)
    return copied(src, tmp_path / "live")


def copied(source: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", source, to], check=True)
    return to


def kept(live: Path) -> dict[str, bytes]:
    """What was replaced, by its path."""
    [found] = [path for path in live.iterdir() if path.name.startswith(KEPT)]
    assert found.stat().st_mode & 0o777 == 0o700
    return tree(found)


def without_ours(live: Path) -> None:
    """Remove what was kept, so that the rest can be compared."""
    times = live.stat()
    for path in live.glob(f"{KEPT}*"):
        shutil.rmtree(path)
    os.utime(live, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("kind", [{"TYPE": "rdiff"}, {"TYPE": "tar", "COMPRESSION": "gzip"}])
def test_everything_comes_back(
    btw: Btw, back_up: BackUp, dst: Path, tmp_path: Path, kind: dict[str, str]
) -> None:
    source, live = tmp_path / "hostile", tmp_path / "live"
    trees.build(source)
    back_up(source, **kind)
    copied(source, live)
    (live / "plain").unlink()
    (live / "large").write_text("truncated\n")
    shutil.rmtree(live / trees.LONG.split("/")[0])
    (live / "link").unlink()
    (live / "link").mkdir()
    (live / "link" / "inside").write_text("kept with its directory\n")
    shutil.rmtree(live / "sticky")
    (live / "sticky").symlink_to("/etc")
    (live / "fifo").unlink()
    (live / "empty file").write_text("no more\n")
    (live / "empty directory").chmod(0o711)
    (live / "mode 4755").chmod(0o755)
    (live / "of today").write_text("stays\n")
    assert btw("fs-restore", "--in-place", dst, live) == SILENCE
    assert (live / "of today").read_text() == "stays\n"
    (live / "of today").unlink()
    assert kept(live) == {
        "empty file": b"no more\n",
        "hard link": b"in 'plain'\n",  # another name of it was lost
        "large": b"truncated\n",
        "link/inside": b"kept with its directory\n",
        "mode 4755": b"mode\n",
    }
    [replaced] = live.glob(f"{KEPT}*")
    assert os.readlink(replaced / "sticky") == "/etc"
    without_ours(live)
    os.utime(live, ns=(0, source.stat().st_mtime_ns))
    trees.assert_same(source, live)


def test_what_is_the_same_is_left_alone(btw: Btw, live: Path, dst: Path) -> None:
    found = {path: path.lstat() for path in [live, *live.rglob("*")]}
    assert btw("-v", "fs-restore", "--in-place", dst, live).err.endswith("0 created, 0 replaced\n")
    after = {path: path.lstat() for path in [live, *live.rglob("*")]}
    for path in found:
        assert (found[path].st_ino, found[path].st_mtime_ns) == (after[path].st_ino, after[path].st_mtime_ns)
        assert path == live or found[path].st_ctime_ns == after[path].st_ctime_ns or path.is_dir()
    assert after.keys() == found.keys()


def test_a_file_of_the_same_size_and_time_is_read(btw: Btw, live: Path, dst: Path) -> None:
    times = (live / "docs" / "notes").stat()
    (live / "docs" / "notes").write_text("buy wine\n")
    os.utime(live / "docs" / "notes", ns=(0, times.st_mtime_ns))
    assert btw("fs-restore", "--in-place", dst, live) == SILENCE
    assert (live / "docs" / "notes").read_text() == "buy milk\n"
    assert kept(live) == {"docs/notes": b"buy wine\n"}


def test_an_open_file_stays_what_it_was(btw: Btw, live: Path, dst: Path) -> None:
    with open(live / "docs" / "notes", "r+") as file:
        file.write("changed\n")
        file.flush()
        assert btw("fs-restore", "--in-place", dst, live) == SILENCE
        file.write("!")
        file.flush()
    assert (live / "docs" / "notes").read_text() == "buy milk\n"
    assert kept(live) == {"docs/notes": b"changed\n!"}


def test_only_the_paths_that_are_asked_for(btw: Btw, live: Path, dst: Path) -> None:
    (live / "docs" / "letter").unlink()
    (live / "docs" / "notes").write_text("of today\n")
    (live / "docs").chmod(0o700)
    os.utime(live / "docs", (1, 1))
    before = live.stat().st_mtime_ns
    assert btw("fs-restore", "--in-place", dst, live, "docs/letter") == SILENCE
    assert (live / "docs" / "letter").read_text() == "Dear Sir or Madam\n"
    assert (live / "docs" / "notes").read_text() == "of today\n"
    # A directory on the way is not what was asked for.
    assert (live / "docs").stat().st_mode & 0o777 == 0o700
    assert live.stat().st_mtime_ns == before and not [*live.glob(".btw*")]


def test_a_path_that_is_not_there(btw: Btw, live: Path, dst: Path) -> None:
    before = trees.facts(live)
    result = btw("fs-restore", "--in-place", dst, live, "docs/nothing")
    assert result.status == 1 and "docs/nothing is not in the point 2" in result.err
    assert trees.facts(live) == before


def test_dry_run(btw: Btw, live: Path, dst: Path) -> None:
    (live / "docs" / "letter").unlink()
    (live / "docs" / "notes").write_text("of today\n")
    (live / "docs").chmod(0o700)
    shutil.rmtree(live / "sub", ignore_errors=True)
    (live / "new").write_text("stays\n")
    before = trees.facts(live)
    result = btw("fs-restore", "--in-place", "--dry-run", dst, live)
    lines = result.out.splitlines()
    assert [x for x in lines if "docs" in x] == ["create docs/letter", "replace docs/notes", "change docs/"]
    assert not [line for line in lines if "new" in line]
    assert trees.facts(live) == before
    assert btw("fs-restore", "--in-place", dst, live) == SILENCE
    assert btw("fs-restore", "--in-place", "--dry-run", dst, live) == SILENCE


@pytest.mark.parametrize("paths", [[], ["docs/letter"], ["docs"]])
def test_a_link_on_the_way_is_not_followed(
    btw: Btw, live: Path, dst: Path, tmp_path: Path, paths: list[str]
) -> None:
    outside = copied(live / "docs", tmp_path / "outside")
    (outside / "letter").write_text("not ours\n")
    before = trees.facts(outside)
    shutil.rmtree(live / "docs")
    (live / "docs").symlink_to(outside)
    assert btw("fs-restore", "--in-place", dst, live, *paths) == SILENCE
    assert trees.facts(outside) == before
    assert (live / "docs" / "letter").read_text() == "Dear Sir or Madam\n"
    assert not (live / "docs").is_symlink()
    [replaced] = live.glob(f"{KEPT}*")
    assert os.readlink(replaced / "docs") == str(outside)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lost=st.sets(st.sampled_from("abcd")), changed=st.sets(st.sampled_from("abcd")), split=st.booleans())
def test_names_of_one_file_stay_names_of_one_file(
    linked: Path, btw: Btw, dst: Path, lost: set[str], changed: set[str], split: bool
) -> None:
    with tempfile.TemporaryDirectory() as top:
        live = copied(linked, Path(top) / "live")
        for name in sorted(lost | changed):
            (live / name).unlink()
        for name in sorted(changed - lost):
            (live / name).write_text(f"{name} is another file now\n")
        if split:
            for name in sorted({"b", "c"} - lost - changed):
                data = (live / name).read_bytes()
                found = (live / name).stat()
                (live / name).unlink()
                (live / name).write_bytes(data)
                os.utime(live / name, ns=(0, found.st_mtime_ns))
        dry = btw("fs-restore", "--in-place", "--dry-run", dst, live).out
        done = btw("-v", "fs-restore", "--in-place", dst, live).err
        counts = [sum(line.startswith(word) for line in dry.splitlines()) for word in ("create", "replace")]
        assert f"{counts[0]} created, {counts[1]} replaced" in done
        without_ours(live)
        os.utime(live, ns=(0, linked.stat().st_mtime_ns))
        trees.assert_same(linked, live)


@pytest.fixture
def linked(tmp_path: Path, back_up: BackUp) -> Path:
    """A source of a file with four names."""
    source = tmp_path / "linked"
    source.mkdir()
    (source / "a").write_text("one file\n")
    for name in "bcd":
        os.link(source / "a", source / name)
    back_up(source)
    return source


@with_strace
def test_killed_at_any_moment_each_file_is_the_old_or_the_new_one(
    btw: Btw, live: Path, src: Path, dst: Path, tmp_path: Path, config_dir: Path
) -> None:
    (live / "docs" / "letter").write_text("old letter\n")
    (live / "docs" / "notes").write_text("old notes\n")
    (live / "docs" / "new").write_text("stays\n")
    old, new = tree(live), tree(src)
    trial, trace = tmp_path / "trial", tmp_path / "trace"
    copied(live, trial)
    command = [sys.executable, "-m", PROG, "--config-dir", str(config_dir), "fs-restore", "--in-place"]
    command += [str(dst), str(trial)]
    subprocess.run([*tracing(trace, CHANGING), *command], check=True)
    calls = parse_trace(trace.read_text())
    assert sum("renameat2" in call.name for call in calls) == 2
    for call in calls:
        shutil.rmtree(trial)
        copied(live, trial)
        fault = f"{call.name}:signal=KILL:when={call.number}"
        killed = subprocess.run([*tracing(trace, CHANGING, fault), *command], capture_output=True)
        assert killed.returncode in (-9, 137), (call, killed)
        found = {name: data for name, data in tree(trial).items() if not name.startswith(".btw-backup")}
        assert found.keys() == old.keys()
        for name, data in found.items():
            assert data in (old[name], new.get(name)), (call, name)
        assert btw("fs-restore", "--in-place", dst, trial) == SILENCE
        assert not (trial / ASIDE).exists()
        everything = tree(trial).values()
        assert all(data in everything for data in old.values()), call
        for name, data in new.items():
            assert (trial / name).read_bytes() == data


@as_root
def test_a_full_disk_changes_nothing(
    btw: Btw, live: Path, src: Path, dst: Path, tmp_path: Path, back_up: BackUp
) -> None:
    (src / "large").write_bytes(random.randbytes(1_000_000))
    back_up(src)
    small = tmp_path / "small"
    small.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=500k", "none", small):
        (small / "docs").mkdir()
        (small / "docs" / "notes").write_text("of today\n")
        before = trees.facts(small)
        result = btw("fs-restore", "--in-place", dst, small)
        assert result.status == 1 and "No space left on device" in result.err
        assert trees.facts(small) == before


@as_root
def test_another_file_system_below(btw: Btw, live: Path, dst: Path) -> None:
    (live / "docs" / "letter").unlink()
    with mounted("-t", "tmpfs", "none", live / "docs"):
        result = btw("fs-restore", "--in-place", dst, live)
        assert result.status == 1
        assert f"{live}/docs/ is on another file system" in result.err
        assert os.listdir(live / "docs") == []


@as_root
def test_nothing_to_restore_on_another_file_system(
    btw: Btw, src: Path, dst: Path, tmp_path: Path, back_up: BackUp
) -> None:
    """As with ONE_FILE_SYSTEM, where the directory is all that is backed up of it."""
    (src / "proc").mkdir()
    back_up(src)
    live = copied(src, tmp_path / "live")
    (live / "proc").chmod(0o700)
    with mounted("-t", "tmpfs", "-o", "mode=711", "none", live / "proc"):
        (live / "proc" / "inside").touch()
        assert btw("fs-restore", "--in-place", dst, live) == SILENCE
        assert os.listdir(live / "proc") == ["inside"] and (live / "proc").stat().st_mode & 0o777 == 0o711


def test_a_single_file_as_the_source(btw: Btw, dst: Path, tmp_path: Path, back_up: BackUp) -> None:
    source, live = tmp_path / "file", tmp_path / "live"
    source.write_text("backed up\n")
    back_up(source)
    live.mkdir(mode=0o755)
    (live / "file").write_text("of today\n")
    before = live.stat()
    assert btw("fs-restore", "--in-place", dst, live) == SILENCE
    assert (live / "file").read_text() == "backed up\n" and kept(live) == {"file": b"of today\n"}
    assert (live.stat().st_mode, live.stat().st_uid) == (before.st_mode, before.st_uid)


@as_root
def test_what_cannot_be_replaced_is_not_kept(btw: Btw, live: Path, dst: Path, tmp_path: Path) -> None:
    """A mount point has its name until it is unmounted."""
    other = tmp_path / "other"
    other.write_text("mounted\n")
    with mounted("--bind", other, live / "docs" / "notes"):
        result = btw("fs-restore", "--in-place", dst, live)
        assert result.status == 1 and f"{live}/docs/notes: " in result.err
        assert kept(live) == {}
    assert (live / "docs" / "notes").read_text() == "buy milk\n" and not (live / ASIDE).exists()


def test_another_restore_at_work(btw: Btw, live: Path, dst: Path) -> None:
    (live / "docs" / "letter").unlink()
    (live / ASIDE).mkdir(mode=0o700)
    fd = os.open(live / ASIDE, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        result = btw("fs-restore", "--in-place", dst, live)
        assert (result.status, "another restore is working in" in result.err) == (75, True)
        assert not (live / "docs" / "letter").exists()
    finally:
        os.close(fd)
    assert btw("fs-restore", "--in-place", dst, live) == SILENCE
    assert (live / "docs" / "letter").exists() and not (live / ASIDE).exists()


@as_root
def test_what_others_put_in_the_way(btw: Btw, live: Path, dst: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (live / ASIDE).symlink_to(outside)
    result = btw("fs-restore", "--in-place", dst, live)
    assert result.status == 1 and "is not a private directory of ours: remove it" in result.err
    assert os.listdir(outside) == []


def test_damaged_content_changes_nothing(btw: Btw, live: Path, dst: Path) -> None:
    (live / "docs" / "letter").unlink()
    [archive] = dst.glob("*/backup.tar")
    data = bytearray(archive.read_bytes())
    data[data.index(b"Dear Sir")] ^= 1
    archive.write_bytes(data)
    before = trees.facts(live)
    for how, what in (("--in-place", live), ("--to-stdout", "docs/notes")):
        result = btw("fs-restore", how, dst, what)
        assert (result.status, result.out) == (1, "") and "damaged" in result.err
    assert trees.facts(live) == before


# To standard output


@pytest.mark.parametrize("name", ["plain", "hard link", "sparse", trees.NOT_UTF8, f"{trees.LONG}/file"])
def test_to_stdout(btw: Btw, back_up: BackUp, dst: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / "hostile"
    trees.build(source)
    back_up(source)
    out = tmp_path / "out"
    out.write_bytes(b"before ")
    command = [sys.executable, "-m", PROG, "fs-restore", "--to-stdout", str(dst), name]
    with out.open("ab") as file:
        subprocess.run(command, stdout=file, check=True)
    assert out.read_bytes() == b"before " + (source / name).read_bytes()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("docs", "docs is not a regular file"),
        ("docs/no", "docs/no is not in the point 2"),
        ("..", "not a path"),
    ],
)
def test_to_stdout_what_is_no_file(btw: Btw, live: Path, dst: Path, path: str, text: str) -> None:
    result = btw("fs-restore", "--to-stdout", dst, path)
    assert (result.status, result.out) == (1, "") and text in result.err


def test_a_dry_run_into_a_closed_pipe(btw: Btw, live: Path, dst: Path) -> None:
    (live / "docs" / "letter").unlink()
    command = [sys.executable, "-m", PROG, "fs-restore", "--in-place", "--dry-run", str(dst), str(live)]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


# What makes no sense


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--dry-run", "DST", "LIVE"], 2, "--dry-run needs --in-place"),
        (["--in-place", "--to-stdout", "DST", "LIVE"], 2, "not allowed with"),
        (["--to-stdout", "DST", "a", "b"], 2, "--to-stdout writes one file"),
        (["--in-place", "DST", "LIVE/none"], 1, "No such file or directory"),
        (["--in-place", "DST", "LIVE/docs/letter"], 1, "Not a directory"),
        (["DST", "LIVE"], 1, "is not empty: restore into a new or an empty directory, or use --in-place"),
    ],
)
def test_usage(btw: Btw, live: Path, dst: Path, arguments: list[str], status: int, text: str) -> None:
    before = trees.facts(live)
    given = [word.replace("DST", str(dst)).replace("LIVE", str(live)) for word in arguments]
    result = btw("fs-restore", *given)
    assert result.status == status and text in result.err
    assert trees.facts(live) == before
