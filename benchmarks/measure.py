"""Commands run in turn, and the seconds, memory and written bytes that they take."""

import mmap
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

BTW_BACKUP = str(Path(sys.executable).with_name("btw-backup"))

# More than any of the commands writes.
_CLAIMED = 2 * 1024**3

_FEW_SECONDS = 5

# The program, and at its end what the kernel has counted for this process: wait4(2) would count
# its children too.
_PROBED = """
import sys
from btw_backup.cli import main
try:
    status = main(sys.argv[2:])
finally:
    counted = open("/proc/self/status").read() + open("/proc/self/io").read()
    open(sys.argv[1], "w").write(counted)
sys.exit(status)
"""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Task:
    """A command to measure; ``prepare`` is called before it and not measured."""

    argv: Sequence[str | Path]
    prepare: Callable[[], None] = _nothing
    cwd: Path = Path("/")
    env: Mapping[str, str] = field(default_factory=dict)

    def run(self) -> float:
        """Run it from a quiet disk. Returns the seconds it took."""
        self.prepare()
        os.sync()
        _claim_memory()
        started = time.perf_counter()
        self._call(self.argv)
        return time.perf_counter() - started

    def probe(self) -> "Probe | None":
        """Run it once. Returns what our process took, or None if the program is not ours."""
        if self.argv[0] != BTW_BACKUP:
            self.run()
            return None
        self.prepare()
        with tempfile.NamedTemporaryFile("r") as report:
            self._call([sys.executable, "-c", _PROBED, report.name, *self.argv[1:]])
            return Probe.read(report.read())

    def _call(self, argv: Sequence[str | Path]) -> None:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.cwd,
            env={**os.environ, **self.env},
        )
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace")
            raise RuntimeError(f"{shlex.join(map(str, argv))} exited with {done.returncode}:\n{said}")


def _claim_memory() -> None:
    """Have the host of a virtual machine give back the memory that was free for some seconds.

    Where free pages are reported to the host (``page_reporting`` of Linux), a command that fills
    the page cache takes up to twice as long after a pause, and the pauses are not the same for all.
    """
    with mmap.mmap(-1, _CLAIMED, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


class Probe(NamedTuple):
    """What a run of ours took: its own peak memory, and the bytes that it caused to be written."""

    memory: int
    written: int

    @classmethod
    def read(cls, counted: str) -> "Probe":
        peak = re.search(r"^VmHWM:\s+(\d+) kB", counted, re.MULTILINE)
        written = re.search(r"^write_bytes: (\d+)", counted, re.MULTILINE)
        assert peak and written
        return cls(int(peak[1]) * 1024, int(written[1]))


@dataclass
class Measured:
    """The seconds of one task in each round, and what its first run took if the program is ours.

    ``runs``: how often it has run, all told.
    """

    seconds: list[float]
    probe: Probe | None
    runs: int = 1

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def in_turn(tasks: Sequence[Task], rounds: int) -> list[Measured]:
    """Run all of them once to warm up, and then in turn, round by round.

    What takes few seconds runs twice in its turn, and the second time counts: it finds one change, its own.
    The first time finds those of the other tasks' turns, too. And some systems page out what was not used
    for the seconds that these turns take (DAMON_RECLAIM of Linux).
    """
    measured = [Measured([], task.probe()) for task in tasks]
    for _ in range(rounds):
        for task, result in zip(tasks, measured, strict=True):
            seconds = task.run()
            result.runs += 1
            if seconds < _FEW_SECONDS:
                seconds = task.run()
                result.runs += 1
            result.seconds.append(seconds)
    return measured


def shell(*commands: str) -> list[str]:
    """The command that runs these, one after another, by the shell."""
    return ["bash", "-euo", "pipefail", "-c", "\n".join(commands)]


def plus(one: Measured, other: Measured) -> Measured:
    """Both of them, one after the other."""
    return Measured([sum(pair) for pair in zip(one.seconds, other.seconds, strict=True)], None)
