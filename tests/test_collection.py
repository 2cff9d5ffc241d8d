"""Commands that work on several destinations, or on all in a directory that holds them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from .helpers.destinations import add_tarball
from .helpers.repositories import snapshots
from .helpers.running import Btw, Result

PROG = "btw_backup"
TIMES = ("2025-03-01T12:00:00", "2025-03-02T12:00:00")


def make(dst: Path, *times: str) -> Path:
    """Make a destination with a tarball of each time."""
    dst.mkdir()
    for time in times:
        add_tarball(dst, f"{time}.tbz", {"file": f"as of {time}\n"})
    return dst


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A directory with two destinations, and with other things."""
    top = tmp_path / "top"
    top.mkdir()
    for name, times in (("shop", TIMES), ("a wiki", TIMES[:1])):
        make(top / name, *times)
    (top / "notes").mkdir()
    (top / "notes" / "file").touch()
    make(top / ".btw-backup", *TIMES).chmod(0o700)
    (top / "README").touch()
    return top


def found(top: Path) -> list[str]:
    """Every tarball below, as find(1) sees it."""
    argv = ["find", ".", "-name", "*.tbz", "-not", "-path", "*/.btw-backup/*"]
    return sorted(subprocess.check_output(argv, cwd=top, text=True).splitlines())


def test_list(btw: Btw, top: Path) -> None:
    first, second = (f"{time}.tbz\n" for time in TIMES)
    listed = f"{top}/a wiki:\n{first}\n{top}/shop:\n{first}{second}"
    assert btw("list", top) == Result(0, listed, "")
    assert btw("list", top / "a wiki", top / "shop", top) == Result(0, listed, "")
    long = btw("list", "--long", top).out.splitlines()
    assert [line for line in long if line.endswith(":")] == [f"{top}/a wiki:", f"{top}/shop:"]
    assert sum("tarball" in line for line in long) == 3
    assert btw("list", top / "shop") == Result(0, first + second, "")
    assert btw("list", top / "shop", top / "shop") == Result(0, first + second, "")


def test_list_json(btw: Btw, top: Path) -> None:
    points = json.loads(btw("list", "--json", top).out)
    assert [(os.path.basename(point["destination"]), point["backup"]) for point in points] == [
        ("a wiki", f"{TIMES[0]}.tbz"),
        ("shop", f"{TIMES[0]}.tbz"),
        ("shop", f"{TIMES[1]}.tbz"),
    ]
    alone = json.loads(btw("list", "--json", top / "shop").out)
    assert [sorted({**point, "destination": ""}) for point in alone] == [sorted(each) for each in points[1:]]
    assert btw("list", "--json", top / "none").out == ""


def test_status(btw: Btw, top: Path) -> None:
    (top / "new").mkdir()
    (top / "new" / ".btw-backup").mkdir()  # a run has worked on it, and failed
    result = btw("status", "--max-age", "26h", top)
    assert (result.status, result.err) == (2, "")
    assert [line.split(":")[0] for line in result.out.splitlines()] == [
        f"BTW-BACKUP CRITICAL - {top}/{name}" for name in ("a wiki", "new", "shop")
    ]
    assert "new: no backups yet" in result.out


def test_prune(btw: Btw, top: Path) -> None:
    before = found(top)
    dry = btw("prune", "--dry-run", "--keep-last", "1", top)
    assert (dry.status, dry.err, found(top)) == (0, "", before)
    blocks = dry.out.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [f"{top}/a wiki:", f"{top}/shop:"]
    assert f"remove {TIMES[0]}.tbz" in blocks[1] and "remove" not in blocks[0]
    done = btw("-v", "prune", "--keep-last", "1", top)
    assert done.out == dry.out
    assert done.err == (
        f"{PROG}: {top}/a wiki: removed 0 of 1 backups\n{PROG}: {top}/shop: removed 1 of 2 backups\n"
    )
    assert found(top) == [f"./a wiki/{TIMES[0]}.tbz", f"./shop/{TIMES[1]}.tbz"]


def test_verify(btw: Btw, top: Path) -> None:
    assert btw("verify", top) == Result(0, "", "")
    os.truncate(top / "a wiki" / f"{TIMES[0]}.tbz", 50)
    result = btw("-v", "verify", top)
    assert result.status == 1
    assert any(line.startswith(f"{PROG}: {top}/a wiki: {TIMES[0]}Z: ") for line in result.err.splitlines())
    assert result.err.splitlines()[-2:] == [f"{PROG}: {top}/shop: {time}Z: ok" for time in TIMES]


def test_one_that_fails_does_not_keep_the_others(btw: Btw, top: Path) -> None:
    for command in (["list"], ["list", "--json"], ["verify"], ["prune", "--keep-last", "1"]):
        result = btw(*command, top / "gone", top / "shop")
        assert result.status == 1
        assert f"the destination does not exist: {top}/gone" in result.err
        assert len(result.err.splitlines()) == 1
        assert TIMES[1] in result.out or command[0] in ("verify", "prune")
    assert found(top / "shop") == [f"./{TIMES[1]}.tbz"]


def test_one_that_is_busy(btw: Btw, top: Path) -> None:
    private = top / "shop" / ".btw-backup"
    private.mkdir(mode=0o700)
    argv: list[str | Path] = ["flock", private / "lock", "sh", "-c", "echo held; cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout and holder.stdout.readline() == b"held\n"
        result = btw("prune", "--keep-last", "1", top)
        holder.stdin.close()
    assert result.status == 75 and f"is working on {top}/shop" in result.err


def test_what_holds_backups_itself_is_one_destination(btw: Btw, top: Path) -> None:
    add_tarball(top, f"{TIMES[0]}.tbz", {})
    assert btw("list", top) == Result(0, f"{TIMES[0]}.tbz\n", "")
    assert btw("prune", "--keep-last", "1", top) == Result(0, "", "")
    assert len(found(top)) == 4


def test_links_are_not_followed(btw: Btw, top: Path, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", *TIMES)
    (top / "linked").symlink_to(tmp_path / "elsewhere")
    assert "linked" not in btw("list", top).out
    assert btw("prune", "--keep-last", "1", top) == Result(0, "", "")
    assert len(found(tmp_path / "elsewhere")) == 2


def test_names_do_not_forge_lines(btw: Btw, top: Path) -> None:
    make(top / "x:\n2030-01-01T00:00:00.tbz", TIMES[0])
    assert "2030-01-01T00:00:00.tbz" not in btw("list", top).out.splitlines()


def test_off_site_copies(btw: Btw, config_dir: Path, top: Path, repository: Path) -> None:
    result = btw("sync", "--dry-run", top)
    assert [line.split(" (")[0] for line in result.out.splitlines()] == [
        f"send {top}/a wiki",
        f"send {top}/shop",
        f"send {config_dir}",
    ]
    assert btw("sync", top) == Result(0, "", "")
    tags = sorted(tag for snapshot in snapshots(repository) for tag in snapshot["tags"])
    assert [tag for tag in tags if tag.startswith("destination:")] == [
        f"destination:{top}/a%20wiki",
        f"destination:{top}/shop",
    ]
    verified = btw("-v", "verify", "--offsite", top)
    assert verified.status == 0 and len(verified.err.splitlines()) == 2
    (top / "shop" / f"{TIMES[0]}.tbz").unlink()
    result = btw("verify", "--offsite", top)
    assert result.status == 1 and f"differs from {top}/shop" in result.err and "a wiki" not in result.err
