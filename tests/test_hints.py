"""Where people stumble, the program says what to type instead."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers.destinations import add_tarball, listed
from .helpers.running import Btw, Result

SCRIPT = Path(sys.executable).with_name("btw-backup")


def last_line(result: Result) -> str:
    return result.err.splitlines()[-1]


def test_the_line_that_makes_a_working_directory(
    btw: Btw, config_dir: Path, tmp_path: Path, dst: Path
) -> None:
    src = tmp_path / "it's here"
    src.mkdir()
    fixed = f"btw_backup: no working directory for: {src}\n"
    assert btw("fs", src, dst) == Result(1, "", fixed)
    told = btw("-v", "fs", src, dst)
    assert told.status == 1 and told.err.startswith(fixed)
    program, *arguments = shlex.split(last_line(told).removeprefix("btw_backup: make it with: "))
    assert program == "btw-backup" and f"--config-dir {config_dir}" in told.err
    assert subprocess.run([SCRIPT, *arguments]).returncode == 0
    assert btw("fs", src, dst) == Result(0, "", "")


def test_the_usual_configuration_directory_need_not_be_named(tmp_path: Path, dst: Path) -> None:
    argv: list[str | Path] = [SCRIPT, "-v", "fs", "/", dst]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)})
    assert done.stderr.endswith("make it with: btw-backup fs-init --type rdiff / root\n")


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("backup", "no such command: backup: did you mean fs or db?"),
        ("restore", "no such command: restore: did you mean fs-restore or db-restore?"),
        ("check-confg", "no such command: check-confg: did you mean check-config?"),
        ("xyzzy", "no such command: xyzzy"),
        ("list --lnog", "unknown option --lnog: did you mean --long?"),
        ("list --lnog=3 /dst", "unknown option --lnog: did you mean --long?"),
        ("fs --frobnicate /etc", "unknown option --frobnicate"),
        ("prune -lx /dst", "unknown option -l"),
        ("--nonsense list /dst", "unrecognized arguments: --nonsense"),
        ("list -q -v /dst", "argument -v/--verbose: not allowed with argument -q/--quiet"),
        ("-q list -v /dst", "argument -v/--verbose: not allowed with argument -q/--quiet"),
    ],
)
def test_what_was_mistyped_is_blamed(btw: Btw, typed: str, answer: str) -> None:
    result = btw(*typed.split())
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("usage: ") and last_line(result).endswith(f": error: {answer}")


@pytest.mark.parametrize("typed", ["--verb list {}", "list --lon {}", "list -- {}", "find {} -- -x"])
def test_what_argparse_understands_is_no_mistake(btw: Btw, dst: Path, typed: str) -> None:
    assert btw(*typed.format(dst).split()).status in (0, 1)


def test_a_time_of_day_is_no_span(btw: Btw, initialised: Path, dst: Path) -> None:
    assert btw("fs", initialised, dst).status == 0
    result = btw("ls", "--at", "12:20", dst)
    assert result.status == 1 and "not a time: '12:20': say the day, too, such as 20" in result.err


def test_the_absolute_path_of_a_single_file(btw: Btw, src: Path, dst: Path, tmp_path: Path) -> None:
    single = src / "file"
    assert btw("fs-init", "--type", "rdiff", single, "name").status == 0
    assert btw("fs", single, dst).status == 0
    assert btw("ls", dst, single).out == "file\n"
    assert btw("fs-restore", "--to-stdout", dst, single).out == "content\n"
    assert btw("find", dst, single).out.splitlines()[1].endswith(" file")
    assert btw("fs-restore", dst, tmp_path / "target", single).status == 0
    assert (tmp_path / "target" / "file").read_text() == "content\n"


def test_v_and_q_after_the_command(btw: Btw, src: Path, dst: Path) -> None:
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    assert last_line(btw("fs", "-v", src, dst)).startswith("btw_backup: full ")
    (src / "vanished").symlink_to(src)
    assert last_line(btw("fs", src, dst, "--verbose")).startswith("btw_backup: incremental ")
    assert btw("verify", "-q", dst) == Result(0, "", "")


@pytest.mark.parametrize("wait", ["1", "0.5", "1s"])
def test_a_plain_number_is_seconds(btw: Btw, src: Path, dst: Path, wait: str) -> None:
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    assert btw("fs", "--wait", wait, src, dst) == Result(0, "", "")


def test_a_directory_that_is_not_empty(btw: Btw, src: Path, dst: Path) -> None:
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    assert btw("fs", src, dst).status == 0
    result = btw("fs-restore", dst, src)
    assert (result.status, last_line(result)) == (
        1,
        f"btw_backup: {src} is not empty: restore into a new or an empty directory, or use --in-place",
    )


@pytest.mark.parametrize("type_", ["rdiff", "tar"])
def test_an_absolute_path_below_the_source(
    btw: Btw, src: Path, dst: Path, tmp_path: Path, type_: str
) -> None:
    assert btw("fs-init", "--type", type_, src, "name").status == 0
    same = src / str(src).lstrip("/")
    same.mkdir(parents=True)
    (same / "inner").write_text("inner\n")
    assert btw("fs", src, dst).status == 0
    assert btw("ls", dst, src / "sub").out == "sub\nsub/other\n"
    assert btw("ls", dst, src).out == btw("ls", dst).out
    assert btw("ls", dst, f"{same.relative_to(src)}/inner").out == f"{same.relative_to(src)}/inner\n"
    assert btw("fs-restore", "--to-stdout", dst, src / "sub" / "other").out == "more\n"
    assert btw("fs-restore", dst, tmp_path / "target", f"{src}/sub/") == Result(0, "", "")
    assert (tmp_path / "target" / "sub" / "other").read_text() == "more\n"
    found = btw("find", dst, src / "sub" / "*").out.splitlines()
    assert [line.split()[-1] for line in found[1:]] == ["sub/other"]
    result = btw("ls", dst, f"{src}way")
    assert result.status == 1 and f"{src}way is not in the point" in result.err


def test_a_directory_of_other_things_has_no_backups(btw: Btw, dst: Path, src: Path) -> None:
    assert btw("list", dst) == Result(0, "", "")
    (dst / "lost+found").mkdir()
    assert btw("list", dst) == Result(0, "", "")
    warned = f"btw_backup: warning: {src} holds other things, and no backups\n"
    assert btw("list", src) == Result(0, "", warned)
    assert btw("list", "--json", src) == Result(0, "[]\n", warned)
    assert btw("list", "-q", src) == Result(0, "", "")
    add_tarball(src, "2026-11-22T22:16:17.tbz", {"file": "x"})
    assert btw("list", src).err == ""
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    assert btw("fs", src, dst).status == 0
    assert btw("prune", "--keep-last", "1", dst).status == 0
    assert len(listed(btw, dst)) == 1


def test_a_program_of_a_hook_that_does_not_exist(btw: Btw, src: Path, config_dir: Path) -> None:
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    [config] = config_dir.glob("name.*/config.py")
    config.write_text("TYPE = 'rdiff'\nBEFORE = ['no-such-program', '-x']\nAFTER = ['true']\n")
    (config_dir / "config.py").write_text("ON_FAILURE = ['/no/such/program']\n")
    result = btw("check-config")
    assert result.status == 1 and result.err.splitlines() == [
        f"btw_backup: {config_dir}/config.py: ON_FAILURE: there is no program /no/such/program",
        f"btw_backup: {config}: BEFORE: there is no program no-such-program",
    ]


def test_a_working_directory_whose_source_link_is_gone(btw: Btw, src: Path, config_dir: Path) -> None:
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    [link] = config_dir.glob("name.*/src")
    link.unlink()
    result = btw("check-config")
    assert result.status == 1 and f"{link.parent}: the link src to the source is gone" in result.err


def test_a_new_configuration_file_warns_of_daily_full_backups(btw: Btw, src: Path, config_dir: Path) -> None:
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    [config] = config_dir.glob("name.*/config.py")
    text = config.read_text()
    assert "nearly every daily run" in text and max(map(len, text.splitlines())) <= 88
