"""``btw-backup fs --dry-run``: its numbers against find and tar, and that it changes nothing."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from btw_backup.messages import size

from .helpers import trees
from .helpers.destinations import mounted
from .helpers.running import Btw, Gate, Result, Start, ended, give_up_root_s_override

SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Configure = Callable[..., Path]


@pytest.fixture
def configure(btw: Btw, src: Path, config_dir: Path) -> Configure:
    """Set the options of the source. Returns the working directory."""
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    [work] = config_dir.glob("name.*")

    def go(**options: Any) -> Path:
        lines = [f"{name} = {value!r}\n" for name, value in options.items()]
        (work / "config.py").write_text("TYPE = 'tar'\nCOMPRESSION = 'none'\n" + "".join(lines))
        return work

    return go


def put(path: Path, length: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(length))


def preview(btw: Btw, src: Path, dst: Path) -> list[str]:
    """Return the lines that a dry run prints, with single spaces."""
    result = btw("fs", "-n", src, dst)
    assert (result.status, result.err) == (0, "")
    return [" ".join(line.split()) for line in result.out.splitlines()]


def find(top: Path, *tests: str) -> tuple[int, int]:
    """The number of paths that find(1) finds, and the bytes of the files among them."""
    lines = subprocess.check_output(["find", ".", *tests, "-printf", r"%y %s\0"], cwd=top, text=True)
    found = [line.split() for line in lines.split("\0")[:-1]]
    return len(found), sum(int(length) for kind, length in found if kind == "f")


def test_what_would_be_stored(btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
    configure()
    put(src / "large", 5000)
    (src / "link").symlink_to("large")
    os.mkfifo(src / "fifo")
    paths, count = find(src)
    assert preview(btw, src, dst)[0] == f"would store {paths} members, {size(count)}"


def test_it_is_what_is_stored_then(btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
    """Of files with several names the data count once; sparse ones count with their holes."""
    trees.build(src / "odd")
    configure(EXCLUDE=["*large", "./odd/[e-m]*"], EXCLUDE_LARGER_THAN="1M")
    told = preview(btw, src, dst)[0]
    assert btw("fs", src, dst).status == 0
    [archive] = dst.glob("2*.tar")
    argv = ["tar", "--force-local", "--numeric-owner", "--quoting-style=escape", "-tvf", archive]
    members = subprocess.check_output([str(word) for word in argv], text=True).splitlines()
    data = sum(int(line.split()[2]) for line in members if line.startswith("-"))
    assert told == f"would store {len(members)} members, {size(data)}"


def test_the_largest_directories(btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
    """Neither the source itself is listed, nor what is only on the way to one."""
    configure(EXCLUDE=["left out"])
    put(src / "way" / "to" / "most" / "one", 60_000)
    put(src / "way" / "to" / "most" / "two" / "file", 30_000)
    put(src / "way" / "to" / "left out" / "file", 200_000)
    put(src / "way" / "little", 500)
    for number in range(12):
        put(src / f"{number:02}" / "file", 1000 + 100 * number)
    (src / "empty").mkdir()
    lines = preview(btw, src, dst)
    start = lines.index("the largest directories:") + 1
    assert lines[start : start + 10] == [
        f"{size(90_000)} ./way/to/most",
        f"{size(30_000)} ./way/to/most/two",
        *(f"{size(1000 + 100 * number)} ./{number:02}" for number in range(11, 3, -1)),
    ]
    assert lines[start + 10] == "would leave out:"


def test_each_rule(btw: Btw, configure: Configure, src: Path, dst: Path, config_dir: Path) -> None:
    work = configure(
        EXCLUDE=["./tmp", "*.o", "nothing"],
        EXCLUDE_FROM="patterns",
        EXCLUDE_CACHES=True,
        EXCLUDE_IF_PRESENT=[".no", ".never"],
        EXCLUDE_LARGER_THAN="1K",
    )
    (work / "patterns").write_text("# more\nlogs/*.gz\n")
    for name, length in (
        *(("tmp/deep/a.o", 10), ("tmp/b", 20), ("a.o", 30), ("sub/b.o", 40)),
        *(("logs/1.gz", 50), ("logs/2", 60), ("huge", 2000), ("tagged/more/huge", 3000), ("tagged/a.o", 5)),
        *(("marked/x", 70), ("marked/y/z", 80), ("cache/x", 90), ("cache/linked", 100)),
    ):
        put(src / name, length)
    os.link(src / "cache" / "linked", src / "cache" / "again")
    put(src / "tagged" / "NOBACKUP-TAG", 0)
    put(src / "marked" / ".no", 0)
    (src / "cache" / "CACHEDIR.TAG").write_text(SIGNATURE)
    lines = preview(btw, src, dst)
    assert lines[lines.index("would leave out:") + 1 :] == [
        "30 B 4 paths EXCLUDE './tmp'",
        "70 B 2 paths EXCLUDE '*.o'",
        "0 B 0 paths EXCLUDE 'nothing'",
        "50 B 1 paths EXCLUDE_FROM 'logs/*.gz'",
        f"{size(3005)} 3 paths NOBACKUP-TAG",
        "150 B 3 paths EXCLUDE_IF_PRESENT '.no'",
        "0 B 0 paths EXCLUDE_IF_PRESENT '.never'",
        "190 B 3 paths EXCLUDE_CACHES",
        f"{size(2000)} 1 paths EXCLUDE_LARGER_THAN",
    ]


def test_a_tag_that_a_pattern_excludes_is_stored(
    btw: Btw, configure: Configure, src: Path, dst: Path
) -> None:
    configure(EXCLUDE=["*TAG"])
    put(src / "sub" / "NOBACKUP-TAG", 7)
    assert preview(btw, src, dst) == [
        "would store 4 members, 15 B",
        "the largest directories:",
        "7 B ./sub",
        "would leave out:",
        "0 B 0 paths EXCLUDE '*TAG'",
        "5 B 1 paths NOBACKUP-TAG",
    ]


def test_everything_is_excluded(btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
    configure(EXCLUDE=["*"])
    assert preview(btw, src, dst) == [
        "would store 0 members, 0 B",
        "would leave out:",
        "13 B 4 paths EXCLUDE '*'",
    ]


def test_a_single_file(btw: Btw, config_dir: Path, src: Path, dst: Path) -> None:
    assert btw("fs-init", "--type", "tar", src / "file", "name").status == 0
    assert preview(btw, src / "file", dst) == ["would store 1 members, 8 B"]


def test_the_destination_and_the_working_directory(btw: Btw, src: Path) -> None:
    dst, config = src / "backups", src / "config"
    put(dst / "2026" / "old", 50)
    before = ("--config-dir", config)
    assert btw(*before, "fs-init", "--type", "tar", src, "name").status == 0
    [work] = config.iterdir()
    paths, count = find(work)
    result = btw(*before, "fs", "--dry-run", src, dst)
    assert result.status == 0
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[lines.index("would leave out:") + 1 :] == [
        "50 B 3 paths the destination",
        f"{size(count)} {paths} paths the working directory",
    ]


@as_root
def test_other_file_systems_are_not_entered_to_count_them(
    btw: Btw, configure: Configure, src: Path, dst: Path
) -> None:
    (src / "mounted").mkdir()
    configure(ONE_FILE_SYSTEM=True, EXCLUDE=["./proc"])
    (src / "proc").mkdir()
    with mounted("-t", "tmpfs", "none", src / "mounted"), mounted("-t", "proc", "none", src / "proc"):
        put(src / "mounted" / "file", 1000)
        lines = preview(btw, src, dst)
    assert lines[0] == "would store 5 members, 13 B"
    assert "0 B 1 paths EXCLUDE './proc'" in lines
    assert lines[-1].startswith("0 B 1 paths ONE_FILE_SYSTEM")


@as_root
def test_what_cannot_be_read(btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
    configure(EXCLUDE=["./left"])
    for name in ("closed/file", "secret", "left/file"):
        put(src / name, 100)
    for name in ("closed", "secret", "left/file"):
        (src / name).chmod(0)
    result = btw("fs", "-n", src, dst, preexec_fn=give_up_root_s_override)
    assert result.status == 3
    assert result.err == "".join(
        f"btw_backup: {src / name}: Permission denied\n" for name in ("closed", "secret")
    )
    assert result.out.startswith("would store 5 members, 13 B\n")


def state(*tops: Path) -> list[bytes]:
    """All of some directories but for access times, which reading changes."""
    argv: list[str | Path] = [
        "find",
        *tops,
        "-printf",
        r"%p %i %m %U:%G %n %s %T@ %C@ %l\0",
        "(",
        "-type",
        "f",
        "-exec",
    ]
    return subprocess.check_output([*argv, "sha256sum", "{}", ";", "-o", "-true", ")"]).split(b"\0")


@pytest.mark.parametrize(
    "when", ["before the first backup", "after one", "after a change", "of an older version"]
)
def test_nothing_changes(
    btw: Btw, configure: Configure, src: Path, dst: Path, config_dir: Path, when: str
) -> None:
    marker = config_dir.parent / "ran"
    hook = ["touch", str(marker)]
    work = configure(BEFORE=hook, AFTER=hook, ON_FAILURE=hook)
    if when != "before the first backup":
        assert btw("fs", src, dst).status == 0 and marker.exists()
        marker.unlink()
    if when == "after a change":
        (src / "file").write_text("changed\n")
    if when == "of an older version":
        (work / "real").unlink()
        (work / "backup").rmdir()
    before = state(src, dst, config_dir)
    assert btw("fs", "--dry-run", "-u", "1234", src, dst).status == 0
    assert state(src, dst, config_dir) == before
    assert not marker.exists()


def test_while_another_run_works(
    btw: Btw, start: Start, configure: Configure, src: Path, dst: Path, tmp_path: Path
) -> None:
    configure()
    gate = Gate(tmp_path / "gate", "tar", only="--create")
    running = start("fs", src, dst, env=gate.env)
    gate.reached()
    assert preview(btw, src, dst)[0] == "would store 4 members, 13 B"
    gate.open()
    assert ended(running) == (0, "")


def test_errors(btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path) -> None:
    configure()
    for arguments, said in (
        ([src / "sub", dst], "no working directory for: "),
        ([src, tmp_path / "none"], "the destination does not exist: "),
        ([src, src], "is the destination or the working directory itself"),
    ):
        result = btw("fs", "-n", *arguments)
        assert (result.status, result.out) == (1, "")
        assert re.fullmatch(f"btw_backup: .*{re.escape(said)}.*\n", result.err)


def test_odd_names_are_printed_on_one_line(btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
    configure(EXCLUDE=["\x1b*"])
    put(src / "new\nline" / os.fsdecode(b"\xff") / "file", 10)
    put(src / "new\nline" / "file", 10)
    result = btw("fs", "-n", src, dst)
    assert result == Result(
        0,
        "would store 8 members, 33 B\nthe largest directories:\n"
        "     20 B  ./new\\x0aline\n     10 B  ./new\\x0aline/\\udcff\n      5 B  ./sub\n"
        "would leave out:\n      0 B          0 paths  EXCLUDE '\\x1b*'\n",
        "",
    )
