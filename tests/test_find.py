"""``btw-backup find`` finds the versions that are in the restored trees."""

import json
import os
import random
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btw_backup.destination.versions import Found, Runs
from btw_backup.patterns import matcher

from .helpers.destinations import listed, mounted
from .helpers.running import Btw, Result, replacing
from .helpers.small_parts import REPLACED

Told = dict[bytes, tuple[str, str, str]]


def told_by_find(top: Path, *tests: str) -> Told:
    """What find says of the entries of a tree: type, size of a file, and modification time."""
    argv = ["find", ".", *tests, "-printf", r"%P|%y|%s|%T@\0"]
    entries = subprocess.check_output(argv, cwd=top).split(b"\0")[:-1]
    rows = [entry.rsplit(b"|", 3) for entry in entries]
    return {
        path or b".": (kind.decode(), size.decode() if kind == b"f" else "0", time.decode()[:-1])
        for path, kind, size, time in rows
    }


def expected(points: list[tuple[str, Told]]) -> set[tuple[Any, ...]]:
    """The versions, of points from the oldest to the newest.

    Each is its path, what find told, the first and last point, their number, and since when it is gone.
    """
    found = set()
    for path in {path for _, tree in points for path in tree}:
        place = 0
        for told, run in groupby(tree.get(path) for _, tree in points):
            length = len([*run])
            times = [time for time, _ in points[place : place + length]]
            place += length
            if told is not None:
                gone = None if place == len(points) or path in points[place][1] else points[place][0]
                found.add((path, told, times[0], times[-1], length, gone))
    return found


def versions(result: Result) -> set[tuple[Any, ...]]:
    """The same as ``find --json`` printed them."""
    assert (result.status, result.err) == (0, "")
    kinds = {"file": "f", "directory": "d", "symlink": "l"}
    found = set()
    for each in json.loads(result.out):
        date = datetime.fromisoformat(each["modified"][:19]).replace(tzinfo=UTC)
        modified = f"{date.timestamp():.0f}{each['modified'][19:-1]}"
        told = (kinds[each["type"]], str(each["size"]), modified)
        first, last = each["first"].removesuffix("Z"), each["last"].removesuffix("Z")
        gone = each["gone"] and each["gone"].removesuffix("Z")
        found.add((os.fsencode(each["path"]), told, first, last, each["points"], gone))
    return found


class History:
    """A destination with points in three chains and a tarball, and a copy of the tree at each of them."""

    def __init__(self, top: Path) -> None:
        self.src, self.dst, self.config, self.top = top / "src", top / "dst", top / "config", top
        self.btw = replacing(self.config, REPLACED)
        self.dst.mkdir()
        self._make()
        assert self.btw("fs-init", "--type", "rdiff", self.src, "it").status == 0
        [config] = self.config.glob("*/config.py")
        for number in range(8):
            kind = "tar" if number == 7 else "rdiff"
            config.write_text(f"TYPE = {kind!r}\nMAX_INCREMENTAL_COUNT = 2\n")
            self._change(number)
            assert self.btw("fs", self.src, self.dst) == Result(0, "", "")
            subprocess.run(["cp", "-a", self.src, self.top / f"at {number}"], check=True)
        self.points = [line.strip().removesuffix(".tbz") for line in listed(self.btw, self.dst)]

    def expected(self, *tests: str, first: int = 0) -> set[tuple[Any, ...]]:
        trees = [told_by_find(self.top / f"at {number}", *tests) for number in range(first, len(self.points))]
        return expected([*zip(self.points[first:], trees, strict=True)])

    def _make(self) -> None:
        for number in range(150):
            path = self.src / f"{number // 20}" / f"{number:03}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(random.Random(number).randbytes(900 + 300 * (number % 9)))
        (self.src / "3" / "large").write_bytes(random.Random(1).randbytes(100_000))
        (self.src / "3" / "link").symlink_to("large")
        for name in ("new\nline", os.fsdecode(b"latin-1 \xe9"), "\x1b[2Jcleared", "n" * 150 + ".TXT"):
            (self.src / "5" / name).write_text("odd\n")

    def _change(self, number: int) -> None:
        rng = random.Random(number)
        files = sorted(path for path in self.src.rglob("*.txt"))
        for path in rng.sample(files, 5):
            path.write_bytes(rng.randbytes(rng.randrange(4000)))
        for path in rng.sample(files, 2):
            path.unlink()
        (self.src / "4" / f"only {number}.txt").write_text("now\n")
        (self.src / "4" / f"only {number - 1}.txt").unlink(missing_ok=True)
        comes_and_goes = self.src / "comes and goes"
        if number % 2:
            comes_and_goes.touch()
        else:
            comes_and_goes.unlink(missing_ok=True)
        with (self.src / "3" / "large").open("r+b") as file:
            file.seek(rng.randrange(90_000))
            file.write(b"%d" % number)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(tmp_path_factory.mktemp("history"))


def test_every_version_of_every_file(history: History) -> None:
    assert len(history.points) == 8 and len([*history.dst.glob("2*")]) == 4
    assert versions(history.btw("find", "--json", history.dst, "*")) == history.expected()


@pytest.mark.parametrize(
    ("patterns", "tests"),
    [
        (["*.txt"], ["-name", "*.txt"]),
        (["-i", "*.TXT"], ["-iname", "*.txt"]),
        (["4/0*", "large"], ["-path", "./4/0*", "-o", "-name", "large"]),
        (["./**/1[0-2]?.txt"], ["-name", "1[0-2]?.txt"]),
        (["comes*", "[!0-9]*"], ["-name", "[!0-9]*"]),
        (["new*"], ["-name", "new*"]),
    ],
)
def test_patterns(history: History, patterns: list[str], tests: list[str]) -> None:
    # find takes "." as the name of the top; a pattern for it would have to be ".", as for us.
    wanted = {row for row in history.expected("(", *tests, ")") if row[0] != b"."}
    found = versions(history.btw("find", "--json", history.dst, *patterns))
    assert {row for row in found if row[0] != b"."} == wanted != set()


def test_only_some_points(history: History) -> None:
    since = history.points[3]
    assert versions(history.btw("find", "--json", "--since", since, history.dst, "*")) == history.expected(
        first=3
    )
    only = history.btw("find", "--json", "--since", since, "--until", since, history.dst, "comes*")
    assert [(each["points"], each["first"], each["gone"]) for each in json.loads(only.out)] == [
        (1, f"{since}Z", None)
    ]
    assert history.btw("find", "--until", "2000-01-01", history.dst, "*").status == 1
    assert history.btw("find", "--since", "0s", history.dst, "*") == Result(1, "", "")


def test_a_line_for_each_version(history: History) -> None:
    result = history.btw("find", history.dst, "only 3.txt", "*cleared", "new*")
    head, *lines = result.out.splitlines()
    assert head.split() == ["from", "to", "points", "size", "modified", "path"]
    time, after = history.points[3:5]
    assert [line for line in lines if line.endswith(f"4/only 3.txt (gone since {after}Z)")] == [lines[0]]
    assert lines[0].split()[:5] == [f"{time}Z", f"{time}Z", "1", "4", "B"]
    assert len(lines) == 3 and "\x1b" not in result.out
    assert history.btw("find", history.dst, "nothing") == Result(1, "", "")
    assert json.loads(history.btw("find", "--json", history.dst, "nothing").out) == []
    assert history.btw("find", history.dst, "").status == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_read_only_disk(history: History) -> None:
    with mounted("--bind", "-o", "ro", history.dst, history.dst):
        found = versions(history.btw("find", "--json", history.dst, "*.txt"))
    assert found == history.expected("-name", "*.txt")


def test_a_damaged_point_is_an_error(btw: Btw, two_points: Path) -> None:
    [increment] = two_points.glob("rdiff-backup-data/increments/*.gz")
    increment.write_bytes(b"damaged")
    result = btw("find", two_points.parent, "file")
    assert result.status == 1 and "is damaged" in result.err.splitlines()[-1]


TREES = st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2)), min_size=1, max_size=8)


@given(TREES, st.randoms(use_true_random=False))
def test_versions_and_their_points(trees: list[dict[str, int]], rng: random.Random) -> None:
    """However many unchanged files are named as perhaps changed."""
    times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in range(len(trees))]
    runs = Runs()
    ended = []
    newer: dict[str, int] = {}
    for time, tree in zip(reversed(times), reversed(trees), strict=True):
        moved = {path for path in newer if newer[path] == tree.get(path) and rng.random() < 0.5}
        lost = [path for path in newer if path in moved or newer[path] != tree.get(path)]
        came = [path for path in tree if path in moved or tree[path] != newer.get(path)]
        ended += runs.add(
            time, [_found(path, newer[path]) for path in lost], [_found(path, tree[path]) for path in came]
        )
        newer = tree
    ended += runs.finish()
    points = [
        (str(time), {path.encode(): ("f", str(kind), "") for path, kind in tree.items()})
        for time, tree in zip(times, trees, strict=True)
    ]
    found = {
        (
            each.found.path.encode(),
            ("f", str(each.found.size), ""),
            str(each.first),
            str(each.last),
            each.points,
            str(each.gone) if each.gone else None,
        )
        for each in ended
    }
    assert found == expected(points) and len(found) == len(ended)


def _found(path: str, version: int) -> Found:
    return Found(path, bytes([version]), b"0", 0, (0, 0), version, 0)


@pytest.mark.parametrize(
    ("pattern", "path", "does"),
    [
        ("a*", "b/abc", True),
        ("a*", "abc/b", False),
        ("b/a*", "b/abc", True),
        ("b/*", "b/a/c", False),
        ("b/**", "b/a/c", True),
        ("**/c", "c", True),
        ("/b/a", "b/a", True),
        ("b/a", "x/b/a", False),
        ("ü?", "x/üü", True),
    ],
)
def test_what_a_pattern_matches(pattern: str, path: str, does: bool) -> None:
    assert matcher([pattern])(path) is does
