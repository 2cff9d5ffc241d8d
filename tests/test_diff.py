"""``btw-backup diff`` says what ``diff -r`` and ``find`` say of the trees."""

import json
import os
import random
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from .helpers.destinations import listed, mounted
from .helpers.running import Btw, Result, replacing
from .helpers.small_parts import REPLACED

Told = dict[str, tuple[str, str, str, str]]


def told_by_find(top: Path) -> Told:
    """What find says of the entries of a tree: type; mode and owner; time; where a link leads."""
    argv = ["find", ".", "-printf", r"%P|%y|%m %U:%G|%T@|%l\0"]
    rows = [entry.split("|") for entry in subprocess.check_output(argv, cwd=top, text=True).split("\0")[:-1]]
    return {path or ".": (kind, owner, time, link) for path, kind, owner, time, link in rows}


def attributes(path: Path) -> str:
    """The extended attributes, as getfattr prints them."""
    argv: list[str | Path] = ["getfattr", "-h", "-d", "-m", "user", "--absolute-names", path]
    return subprocess.check_output(argv, text=True).partition("\n")[2]


def other_content(one: Path, other: Path) -> set[str]:
    """The files that differ, according to diff; that of diffutils 3.12 quotes names with spaces."""
    argv: list[str | Path] = ["diff", "-rq", "--no-dereference", one, other]
    lines = subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()
    found = [re.fullmatch(rf"Files {re.escape(str(one))}/(.*) and .* differ", line) for line in lines]
    return {match[1] for match in found if match}


def expected(one: Path, other: Path, *, with_attributes: bool = True) -> dict[str, str]:
    old, new = told_by_find(one), told_by_find(other)
    differing = other_content(one, other)
    found = dict.fromkeys(old.keys() - new.keys(), "-") | dict.fromkeys(new.keys() - old.keys(), "+")
    for path in old.keys() & new.keys():
        before, after = old[path], new[path]
        if before[0] != after[0]:
            found[path] = "T"
            continue
        letters = "M" if path in differing or before[3] != after[3] else ""
        own = [attributes(top / path) if with_attributes and before[0] != "l" else "" for top in (one, other)]
        if before[1] != after[1] or own[0] != own[1]:
            letters += "U"
        elif not letters and before[2] != after[2] and before[0] != "d":
            letters = "U"
        if letters:
            found[path] = letters
    return found


def changes(result: Result) -> dict[str, str]:
    assert (result.status, result.err) == (0, "")
    return {each["path"]: each["change"] for each in json.loads(result.out)}


class History:
    """A destination with points of three chains and a tarball, and a copy of the tree at each of them."""

    def __init__(self, top: Path) -> None:
        self.src, self.dst = top / "src", top / "dst"
        self.btw = replacing(top / "config", REPLACED)
        self.dst.mkdir()
        self._make()
        assert self.btw("fs-init", "--type", "rdiff", self.src, "it").status == 0
        [config] = (top / "config").glob("*/config.py")
        self.trees = []
        for number, change in enumerate((lambda: None, self._first, self._second, self._third, self._fourth)):
            kind = "tar" if number == 4 else "rdiff"
            config.write_text(f"TYPE = {kind!r}\nMAX_INCREMENTAL_COUNT = 1\n")
            change()
            assert self.btw("fs", self.src, self.dst) == Result(0, "", "")
            self.trees.append(top / f"at-{number}")
            subprocess.run(["cp", "-a", self.src, self.trees[-1]], check=True)
        self.points = [line.strip() for line in listed(self.btw, self.dst)]

    def _write(self, path: str, size: int, seed: int) -> None:
        (self.src / path).parent.mkdir(parents=True, exist_ok=True)
        (self.src / path).write_bytes(random.Random(seed).randbytes(size))

    def _make(self) -> None:
        for number in range(100):
            self._write(f"{number // 20}/{number:03}", 900 + 300 * (number % 9), number)
        self._write("2/large", 100_000, 0)
        self._write("linked", 5000, 1)
        for name in ("1/hard", "3/hard"):
            os.link(self.src / "linked", self.src / name)
        (self.src / "link").symlink_to("linked")
        with (self.src / "4" / "sparse").open("wb") as file:
            file.seek(1 << 20)
            file.write(b"data")

    def _first(self) -> None:
        """Changes whose size and time are what they were, and of the data that continues in another part."""
        for path, place in (("1/025", 10), ("2/large", 70_000)):
            before = (self.src / path).stat()
            with (self.src / path).open("r+b") as file:
                file.seek(place)
                file.write(b"other")
            os.utime(self.src / path, ns=(before.st_atime_ns, before.st_mtime_ns))
        (self.src / "3" / "070").unlink()
        self._write("3/0705", 3000, 2)
        (self.src / "link").unlink()
        (self.src / "link").symlink_to("elsewhere")

    def _second(self) -> None:
        """Changes of attributes alone."""
        (self.src / "0" / "000").chmod(0o600)
        os.utime(self.src / "0" / "001", (1, 1))
        subprocess.run(["setfattr", "-n", "user.x", "-v", "y", self.src / "0" / "002"], check=True)
        (self.src / "4").chmod(0o700)
        if os.geteuid() == 0:
            os.chown(self.src / "0" / "003", 12345, 54321)

    def _third(self) -> None:
        """Changes of types, and of a file with several names, one of which comes before it was stored."""
        (self.src / "1" / "021").unlink()
        (self.src / "1" / "021").mkdir()
        self._write("1/021/inner", 100, 3)
        (self.src / "1" / "hard").unlink()
        os.link(self.src / "linked", self.src / "0" / "another")
        with (self.src / "linked").open("r+b") as file:
            file.write(b"shared")
        with (self.src / "4" / "sparse").open("r+b") as file:
            file.seek(1 << 19)
            file.write(b"less sparse")

    def _fourth(self) -> None:
        subprocess.run(["rm", "-r", self.src / "3"], check=True)
        self._write("2/large", 90_000, 4)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(tmp_path_factory.mktemp("history"))


@pytest.mark.parametrize(("old", "new"), [*combinations(range(5), 2), (3, 1), (2, 2)])
def test_two_points(history: History, old: int, new: int) -> None:
    result = history.btw("diff", "--json", history.dst, history.points[old], history.points[new])
    assert changes(result) == expected(history.trees[old], history.trees[new])


@pytest.mark.parametrize("point", range(5))
def test_against_a_tree(history: History, point: int) -> None:
    """tar does not compare extended attributes."""
    tree = history.trees[3]
    result = history.btw("diff", "--json", "--against", tree, history.dst, history.points[point])
    assert changes(result) == expected(history.trees[point], tree, with_attributes=False)


def test_against_a_tree_in_which_a_directory_is_a_file_now(history: History, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-a", history.trees[3], tree], check=True)
    directory = next(path for path in sorted(tree.iterdir()) if path.is_dir() and any(path.iterdir()))
    inside = {str(path.relative_to(tree)) for path in directory.rglob("*")}
    shutil.rmtree(directory)
    directory.write_text("a file now\n")
    found = changes(history.btw("diff", "--json", "--against", tree, history.dst, history.points[3]))
    assert found[directory.name] == "T"
    assert {path for path, change in found.items() if change == "-"} == inside


def test_against_a_tree_in_which_files_come_and_go(history: History, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-a", history.trees[3], tree], check=True)
    busy = subprocess.Popen(
        ["sh", "-c", "mkdir many; cd many; while :; do touch 1 2 3 4; rm 1 2 3 4; done"], cwd=tree
    )
    try:
        for _ in range(3):
            result = history.btw("diff", "--against", tree, history.dst, history.points[3])
            assert (result.status, result.err) == (0, "")
    finally:
        busy.kill()
        busy.wait()


def test_lines_and_the_summary(history: History) -> None:
    result = history.btw("-v", "diff", history.dst, history.points[3])
    lines = [f"{change:<3}{path}" for path, change in expected(*history.trees[3:]).items()]
    assert sorted(result.out.splitlines()) == sorted(lines)
    gone = sum(1 for line in lines if line.startswith("-"))
    changed = len(lines) - gone
    assert re.fullmatch(
        rf"btw_backup: 0 new \(0 B\), {gone} gone \(.* kB\), {changed} changed \(.* kB\)\n", result.err
    )
    newest = history.points[4]
    assert history.btw("diff", history.dst, newest) == Result(0, "", "")
    assert history.btw("diff", history.dst, newest, newest) == Result(0, "", "")


def test_the_names_of_hostile_files(btw: Btw, initialised: Path, dst: Path) -> None:
    assert btw("fs", initialised, dst).status == 0
    for name in (b"new\nline: Mode differs", b"latin-1 \xe9", b"back\\slash", b"\x1b[2J"):
        Path(os.fsdecode(os.fsencode(initialised) + b"/" + name)).write_text("odd\n")
    against = btw("diff", "--against", initialised, dst)
    assert "\x1b" not in against.out and len(against.out.splitlines()) == 4
    assert btw("fs", initialised, dst).status == 0
    assert btw("diff", dst, listed(btw, dst)[0]).out == against.out
    for path in initialised.iterdir():
        path.chmod(0o600 if path.is_file() else 0o700)
    told = {
        os.fsencode(path): change
        for path, change in changes(btw("diff", "--json", "--against", initialised, dst)).items()
    }
    found = subprocess.check_output(
        ["find", ".", "-mindepth", "1", "-maxdepth", "1", "-printf", r"%P\0"], cwd=initialised
    )
    assert told == dict.fromkeys(found.split(b"\x00")[:-1], "U")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_read_only_disk(history: History) -> None:
    with mounted("--bind", "-o", "ro", history.dst, history.dst):
        assert history.btw("diff", history.dst, history.points[1]).out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "give the time of the older point"),
        (["1d", "1d", "1d"], 2, "give the time of the older point"),
        (["--against", "/", "1d", "1d"], 2, "compares one point"),
        (["--against", "/no/such"], 1, "/no/such: No such file or directory"),
        (["1999-01-01"], 1, "no point as old"),
    ],
)
def test_errors(history: History, arguments: list[str], status: int, said: str) -> None:
    options, times = (arguments[:2], arguments[2:]) if "--against" in arguments else ([], arguments)
    result = history.btw("diff", *options, history.dst, *times)
    assert (result.status, result.out) == (status, "") and said in result.err


def test_a_missing_part_is_an_error(btw: Btw, two_points: Path) -> None:
    (two_points / "backup.tar").write_bytes(bytes(512))
    result: Any = btw("diff", two_points.parent, listed(btw, two_points.parent)[0])
    assert result.status == 1 and result.err
