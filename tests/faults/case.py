"""One copy of what was prepared, and the runs of the program on it."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from ..helpers.running import break_bubblewrap, command, run_to_end

if TYPE_CHECKING:
    from .scenes import Scene

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT = 60
TRACEBACK = "Traceback (most recent call last)"
LOST = "lost: "


class Ended(NamedTuple):
    """How a run ended; ``status`` is negative if a signal ended it."""

    status: int
    out: str
    err: str


class Broken(Exception):
    """A check failed."""


class Case:
    """A copy of an operation's prepared state; the program runs on it."""

    def __init__(self, scene: "Scene", top: Path) -> None:
        self.scene = scene
        self.top = top
        self.dst = top / "dst"
        self.config = top / "config"
        self.temporary = top / "tmp"
        self.fakes = top / "bin"
        self.trace = top / "trace"
        self.session = 0
        for path in (self.temporary, self.fakes):
            path.mkdir(parents=True)
        break_bubblewrap(self.fakes)

    @property
    def environment(self) -> dict[str, str]:
        python = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
        return {**self._variables, **python}

    @property
    def _variables(self) -> dict[str, str]:
        path = f"{self.fakes}:{self.scene.path}"
        return {"PATH": path, "HOME": str(self.top), "TMPDIR": str(self.temporary), "TZ": "UTC"}

    def command(self, *args: str | Path) -> list[str]:
        return [*command(self.scene.replaced), "--config-dir", *map(str, (self.config, *args))]

    @contextmanager
    def running(self, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
        """Start the operation in a session of its own, under the program that ``prefix`` names, if any."""
        with open(self.top / "out", "wb") as out, open(self.top / "err", "wb") as err:
            process = subprocess.Popen(
                [*prefix, *self.command(*self.scene.arguments(self))],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.environment,
                start_new_session=True,
                cwd=self.top,
            )
        self.session = process.pid
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run(self, *prefix: str) -> Ended:
        """Run the operation to its end."""
        with self.running(prefix) as process:
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                return self.ended("it did not end")
            left = self.orphans()
        return self.ended(f"processes left: {left}" if left else "", process.returncode)

    def ended(self, problem: str = "", status: int = 999) -> Ended:
        err = (self.top / "err").read_text(errors="replace")
        return Ended(999 if problem else status, (self.top / "out").read_text(), err + problem)

    def orphans(self) -> list[str]:
        """Return the processes that are still there one second after the run has ended."""
        deadline = time.monotonic() + 1
        while left := self._living():
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return left

    def _living(self) -> list[str]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                text = stat.read_text()
                state, _, _, session = text.rpartition(")")[2].split()[:4]
                if (
                    int(session) == self.session
                    and state not in "ZX"
                    and int(text.split()[0]) != self.session
                ):
                    found.append(text[: text.index(")") + 1])
        return found

    def list(self) -> tuple[str, ...]:
        """Return the lines that ``list`` prints. Raises Broken if it fails."""
        done = run_to_end(["--config-dir", self.config, "list", self.dst], env=self._variables)
        if done.status or done.err:
            raise Broken(f"{LOST}list exited with {done.status}: {done.err}")
        return tuple(done.out.splitlines())

    def fake(self, program: str, script: str) -> None:
        """Put a shell script first in PATH, under a program's name; ``$real`` is the real program."""
        path = self.fakes / program
        path.write_text(f"#!/bin/sh\nreal='{shutil.which(program, path=self.scene.path)}'\n{script}\n")
        path.chmod(0o755)

    def no_more_fakes(self) -> None:
        for path in self.fakes.iterdir():
            path.unlink()


def run(*argv: str | Path, stdin: IO[bytes] | None = None, env: Mapping[str, str] | None = None) -> bytes:
    """Run a program. Returns its output; raises Broken if it fails."""
    done = subprocess.run(argv, capture_output=True, timeout=TIMEOUT, stdin=stdin, env=env)
    if done.returncode:
        raise Broken(f"{' '.join(map(str, argv))} exited with {done.returncode}: {done.stderr!r}")
    return done.stdout


def one_line(text: str) -> str:
    """Return the text in one line, shortened if it is long."""
    shown = " | ".join(text.splitlines())
    return shown if len(shown) < 800 else f"{shown[:500]} ... {shown[-300:]}"
