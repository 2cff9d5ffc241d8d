"""BEFORE, AFTER and ON_FAILURE, in the general file and in those of a backup."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .helpers.running import Btw, wait_for


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Where the hooks write what they see."""
    return tmp_path / "trace"


@pytest.fixture
def config(btw: Btw, src: Path, config_dir: Path) -> Path:
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    [path] = config_dir.glob("name.*/config.py")
    return path


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write("\n" + text)


def writes(trace: Path, word: str) -> str:
    return f'["sh", "-c", "echo {word} >>{trace}"]'


def test_the_general_hooks_enclose_those_of_the_backup(
    btw: Btw, config: Path, config_dir: Path, trace: Path, src: Path, dst: Path
) -> None:
    for path, word in ((config_dir / "config.py", "general"), (config, "own")):
        add(path, f"BEFORE = {writes(trace, word + '-before')}\nAFTER = {writes(trace, word + '-after')}\n")
    assert btw("fs", src, dst).status == 0
    assert trace.read_text().split() == ["general-before", "own-before", "own-after", "general-after"]


def test_a_command_line_is_told_of_the_run(btw: Btw, config: Path, trace: Path, src: Path, dst: Path) -> None:
    line = f"echo $BTW_BACKUP_COMMAND,$BTW_BACKUP_SOURCE,$BTW_BACKUP_DESTINATION,$BTW_BACKUP_ERROR >{trace}"
    add(config, f"BEFORE = ['sh', '-c', {line!r}]\n")
    assert btw("fs", src, dst) == (0, "", "")
    assert trace.read_text() == f"fs,{src},{dst},\n"


def test_a_function_is_told_of_the_run(btw: Btw, config: Path, trace: Path, src: Path, dst: Path) -> None:
    add(config, f"def AFTER(run):\n    open({str(trace)!r}, 'w').write(repr(run[:]))\n")
    assert btw("fs", src, dst) == (0, "", "")
    assert trace.read_text() == repr(("fs", str(src), str(dst), ""))


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("['sh', '-c', 'echo why >&2; exit 3']", "why\nbtw_backup: BEFORE: sh exited with code: 3\n"),
        ("lambda run: 1 / 0", "btw_backup: BEFORE: ZeroDivisionError: division by zero\n"),
        (
            "['no-such-program']",
            "btw_backup: no-such-program not found: install the package no-such-program\n",
        ),
    ],
)
def test_a_failing_before_stops_the_backup(
    btw: Btw, config: Path, trace: Path, src: Path, dst: Path, hook: str, said: str
) -> None:
    after, failure = writes(trace, "after"), f"lambda run: open({str(trace)!r}, 'a').write(run.error)"
    add(config, f"BEFORE = {hook}\nAFTER = {after}\nON_FAILURE = {failure}\n")
    assert btw("fs", src, dst) == (1, "", said)
    assert trace.read_text() == "after\n" + said.splitlines()[-1].removeprefix("btw_backup: ")
    assert not list(dst.glob("2*"))


def test_on_failure_gets_the_text_of_the_error(
    btw: Btw, config: Path, trace: Path, src: Path, tmp_path: Path
) -> None:
    add(config, f"def ON_FAILURE(run):\n    open({str(trace)!r}, 'w').write(run.error)\n")
    missing = tmp_path / "missing"
    result = btw("fs", src, missing)
    assert result.status == 1
    assert f"btw_backup: {trace.read_text()}\n" == result.err
    assert str(missing) in result.err


def test_a_failing_after_is_said_and_the_backup_counts(btw: Btw, config: Path, src: Path, dst: Path) -> None:
    add(config, "AFTER = ['sh', '-c', 'echo why >&2; exit 3']\n")
    assert btw("fs", src, dst) == (0, "", "btw_backup: warning: AFTER: sh exited with code: 3 (why)\n")
    assert len(list(dst.glob("2*"))) == 1


def test_no_hook_runs_while_another_works_on_the_destination(
    btw: Btw, config: Path, trace: Path, src: Path, dst: Path
) -> None:
    """A service must not stop for a backup that cannot run."""
    add(config, f"BEFORE = {writes(trace, 'before')}\n")
    assert btw("fs", src, dst).status == 0
    held = subprocess.Popen(
        ["flock", dst / ".btw-backup" / "lock", "sh", "-c", "echo; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert held.stdout is not None and held.stdout.readline()
        assert btw("fs", src, dst).status == 75
    finally:
        held.communicate(b"\n")
    assert trace.read_text() == "before\n"


def test_after_runs_when_a_signal_ends_the_backup(
    config: Path, config_dir: Path, trace: Path, src: Path, dst: Path
) -> None:
    started = trace.with_name("started")
    add(
        config, f"BEFORE = ['sh', '-c', 'touch {started}; exec sleep 60']\nAFTER = {writes(trace, 'after')}\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-m", "btw_backup", "--config-dir", config_dir, "fs", src, dst], env=os.environ
    )
    while not started.exists():
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    assert running.wait(10) == 128 + signal.SIGTERM
    assert trace.read_text() == "after\n"


TELLING = """
def told(word):
    return lambda run: open({trace!r}, "a").write(word + ": " + run.error + "\\n")
AFTER, ON_FAILURE = told("after"), told("failure")
"""


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("sys.exit(0)", "BEFORE: SystemExit: 0"),
        ("sys.exit()", "BEFORE: SystemExit"),
        ("sys.exit('no')", "BEFORE: SystemExit: no"),
        ("(_ for _ in ()).throw(KeyboardInterrupt)", "BEFORE: KeyboardInterrupt"),
        ("open('/nowhere')", "BEFORE: /nowhere: No such file or directory"),
    ],
)
def test_a_before_that_raises_is_a_failure(
    btw: Btw, config: Path, trace: Path, src: Path, dst: Path, before: str, said: str
) -> None:
    add(config, TELLING.format(trace=str(trace)) + f"import sys\nBEFORE = lambda run: {before}\n")
    assert btw("fs", src, dst) == (1, "", f"btw_backup: {said}\n")
    assert trace.read_text() == f"after: {said}\nfailure: {said}\n"
    assert not list(dst.glob("2*"))


def test_after_that_exits_is_a_warning(btw: Btw, config: Path, trace: Path, src: Path, dst: Path) -> None:
    add(config, "import sys\nAFTER = lambda run: sys.exit(5)\n")
    assert btw("fs", src, dst) == (0, "", "btw_backup: warning: AFTER: SystemExit: 5\n")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("OSError(28, 'No space left on device', '/x')", "/x: No space left on device"),
        ("OSError(5, 'Input/output error')", "Input/output error"),
        ("RuntimeError('a mistake')", "RuntimeError: a mistake"),
        ("SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_hooks_are_told_of_every_error(
    config: Path, trace: Path, src: Path, dst: Path, raised: str, said: str
) -> None:
    """Whatever is raised after BEFORE: a monitor must not be told of a success."""
    add(config, TELLING.format(trace=str(trace)))
    program = f"""
from unittest.mock import patch
from btw_backup.cli import main
with patch("btw_backup.fs.store_source", side_effect={raised}):
    raise SystemExit(main(["--config-dir", {str(config.parent.parent)!r}, "fs", {str(src)!r}, {str(dst)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    after, failure = trace.read_text().splitlines()
    assert after == f"after: {said}"
    assert failure.startswith("failure: ") and failure.endswith(said.removeprefix("/x"))
    assert said.removeprefix("/x") in done.stderr or "SystemExit" in said


@pytest.fixture
def ending(config: Path, config_dir: Path, src: Path, dst: Path) -> Iterator[Callable[..., int]]:
    """Run a backup, and send it signals once a file appears, one after another. Returns its status."""
    processes = []

    def run(started: Path, *signals: int, finish: Path | None = None) -> int:
        running = subprocess.Popen(
            [sys.executable, "-m", "btw_backup", "--config-dir", config_dir, "fs", src, dst],
            stderr=subprocess.DEVNULL,
        )
        processes.append(running)
        wait_for(started.exists)
        for signum in signals:
            running.send_signal(signum)
            time.sleep(0.2)
        if finish is not None:
            finish.touch()
        return running.wait(30)

    yield run
    for running in processes:
        running.kill()


def test_hooks_are_told_of_a_signal(
    ending: Callable[..., int], config: Path, trace: Path, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    add(config, TELLING.format(trace=str(trace)))
    add(config, f"BEFORE = ['sh', '-c', 'touch {started}; exec sleep 60']\n")
    assert ending(started, signal.SIGTERM) == 128 + signal.SIGTERM
    assert trace.read_text() == "after: ended by SIGTERM\nfailure: ended by SIGTERM\n"


@pytest.mark.parametrize("kind", ["command", "function"])
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM]], ids=len)
def test_after_is_not_cut_off(
    ending: Callable[..., int], config: Path, trace: Path, tmp_path: Path, kind: str, signals: list[int]
) -> None:
    started, finish = tmp_path / "started", tmp_path / "finish"
    line = f"touch {started}; until test -e {finish}; do sleep 0.05; done; echo after: >>{trace}"
    add(
        config,
        f"import os, subprocess\n"
        f"line = ['sh', '-c', {line!r}]\n"
        f"AFTER = {'line' if kind == 'command' else 'lambda run: subprocess.run(line)'}\n"
        f"ON_FAILURE = lambda run: open({str(trace)!r}, 'a').write(run.error)\n",
    )
    assert ending(started, *signals, finish=finish) == 128 + signals[0]
    assert trace.read_text() == f"after:\nended by {signal.Signals(signals[0]).name}"


def test_on_failure_is_not_cut_off(
    ending: Callable[..., int], config: Path, trace: Path, tmp_path: Path
) -> None:
    started, finish = tmp_path / "started", tmp_path / "finish"
    line = f"touch {started}; until test -e {finish}; do sleep 0.05; done; echo $BTW_BACKUP_ERROR >>{trace}"
    add(config, f"BEFORE = ['false']\nON_FAILURE = ['sh', '-c', {line!r}]\n")
    assert ending(started, signal.SIGTERM, signal.SIGINT, finish=finish) == 1
    assert trace.read_text() == "BEFORE: false exited with code: 1\n"


def test_what_after_starts_can_be_ended(
    ending: Callable[..., int], config: Path, trace: Path, tmp_path: Path
) -> None:
    """A service that AFTER starts must not ignore the signals that have ended the backup."""
    started = tmp_path / "started"
    add(config, f"BEFORE = ['sh', '-c', 'touch {started}; exec sleep 60']\n")
    add(config, f"AFTER = ['sh', '-c', 'grep Sig.*: /proc/self/status >{trace}']\n")
    assert ending(started, signal.SIGTERM) == 128 + signal.SIGTERM
    masks = dict(line.split(":\t") for line in trace.read_text().splitlines())
    for name in ("SigBlk", "SigIgn"):
        assert int(masks[name], 16) & 1 << (signal.SIGTERM - 1) == 0, name


@pytest.mark.parametrize("value", ["3", "'a string'", "[1]"])
def test_what_cannot_be_run_is_a_fault(btw: Btw, config: Path, src: Path, dst: Path, value: str) -> None:
    add(config, f"BEFORE = {value}\n")
    result = btw("fs", src, dst)
    assert result.status == 1
    assert "BEFORE must be a command line, a list of strings, or a function" in result.err
