"""What appears on a real terminal, and only there."""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from .helpers.running import Btw, break_bubblewrap


@pytest.fixture
def large(src: Path, btw: Btw) -> Path:
    """A source that takes so long to compress that a bar appears."""
    (src / "large").write_bytes(os.urandom(48_000_000))
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    return src


def on_terminal(*argv: str | Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the program with a terminal of 24 × 80 as stderr. Returns the status and what it shows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "btw_backup", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", **(env or {})},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    os.close(master)
    return process.wait(), shown.decode()


CLOSING = r"btw_backup: tarball \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: 48 MB stored of 48 MB, \d+\.\d s\r\n"


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}], ids=["plain", "NO_COLOR"])
def test_a_bar_and_a_closing_line(large: Path, dst: Path, config_dir: Path, env: dict[str, str]) -> None:
    status, shown = on_terminal("--config-dir", config_dir, "fs", large, dst, env=env)
    *bar, closing = shown.split("\r", shown.count("\r") - 1)
    assert status == 0
    assert re.fullmatch(CLOSING, closing)
    running = re.compile(r"backing up: +\d+%\|.*\| \d+(\.\d+)?M/48\.\dM \[\d\d:\d\d<\d\d:\d\d, .*B/s\]")
    assert any(running.search(part) for part in bar)
    assert "\x1b[3" not in shown, "colours"
    assert all(len(part) <= 80 for part in bar)


def test_a_dumb_terminal_gets_only_the_closing_line(large: Path, dst: Path, config_dir: Path) -> None:
    status, shown = on_terminal("--config-dir", config_dir, "fs", large, dst, env={"TERM": "dumb"})
    assert status == 0
    assert re.fullmatch(CLOSING, shown)


def test_quiet_shows_nothing(large: Path, dst: Path, config_dir: Path) -> None:
    assert on_terminal("-q", "--config-dir", config_dir, "fs", large, dst) == (0, "")


def test_verify_and_restore_end_with_a_line(
    src: Path, dst: Path, config_dir: Path, btw: Btw, tmp_path: Path
) -> None:
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    assert btw("fs", src, dst).status == 0
    time = btw("list", dst).out.strip() + "Z"
    assert on_terminal("verify", dst) == (0, f"btw_backup: {time}: ok\r\n")
    target = tmp_path / "restored"
    assert on_terminal("fs-restore", dst, target) == (0, f"btw_backup: restored {time} into {target}\r\n")


def test_storing_has_a_bar_of_its_own(
    src: Path, dst: Path, config_dir: Path, btw: Btw, tmp_path: Path
) -> None:
    (src / "large").write_bytes(os.urandom(20_000_000))
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    slow = tmp_path / "bin" / "rdiff-backup"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nread -r nothing\nsleep 1\nexec {shutil.which("rdiff-backup")} "$@"\n')
    slow.chmod(0o755)
    break_bubblewrap(slow.parent)
    path = {"PATH": f"{slow.parent}:{os.environ['PATH']}"}
    status, shown = on_terminal("--config-dir", config_dir, "fs", src, dst, env=path)
    assert status == 0
    assert re.search(r"storing: +\d+%\|.*\| \d+(\.\d+)?[kM]/20\.\dM \[\d\d:\d\d<.*B/s\]", shown)
