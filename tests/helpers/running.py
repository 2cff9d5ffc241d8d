"""How tests run the program, and programs that wait until a test lets them go on."""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from .fork_server import ForkServer, can_run


class Result(NamedTuple):
    """How a run ended, and what it printed."""

    status: int
    out: str
    err: str


class Btw(Protocol):
    """Runs ``btw-backup`` to its end; ``env`` is added to the environment."""

    def __call__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        umask: int = -1,
        preexec_fn: Callable[[], object] | None = None,
    ) -> Result: ...


def break_bubblewrap(where: Path) -> None:
    """Put a bwrap that fails into a directory of the PATH.

    A program of a test's own there, which stands in for another one, can then write what it likes.
    """
    fake = where / "bwrap"
    fake.write_text("#!/bin/sh\necho bwrap: switched off >&2\nexit 1\n")
    fake.chmod(0o755)


def give_up_root_s_override() -> None:
    """In a child: make modes apply even to root, from the next exec on (capabilities(7))."""
    drop, override, search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    for capability in (override, search):
        ctypes.CDLL(None).prctl(drop, capability, 0, 0, 0)


def command(replaced: Mapping[str, str]) -> list[str]:
    """How the program is run, with names of it replaced as ``replacing`` says."""
    if not replaced:
        return [sys.executable, "-m", "btw_backup"]
    lines = ["import sys", "from importlib import import_module"]
    for name, value in replaced.items():
        module, _, attribute = name.rpartition(".")
        lines.append(f"module = import_module('btw_backup.{module}')")
        lines.append(f"module.{attribute}  # exists")
        lines.append(f"module.{attribute} = {value}")
    lines += ["from btw_backup import cli", "sys.exit(cli.main(prog='btw_backup'))"]
    return [sys.executable, "-c", "\n".join(lines)]


_server: list[ForkServer] = []


def run_to_end(
    arguments: Sequence[str | Path],
    *,
    replaced: Mapping[str, str] = MappingProxyType({}),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    umask: int = -1,
    preexec_fn: Callable[[], object] | None = None,
) -> Result:
    """Run the program to its end, by the fork server of this worker if that can."""
    env = env or {}
    # What is replaced must be so before other modules import it.
    if preexec_fn is None and not replaced and can_run(env):
        if not _server:
            _server.append(ForkServer())
        argv = [os.fspath(argument) for argument in arguments]
        return Result(*_server[0].run(argv, {**os.environ, **env}, os.fspath(cwd or os.getcwd()), umask))
    done = subprocess.run(
        [*command(replaced), *arguments],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
        cwd=cwd,
        umask=umask,
        preexec_fn=preexec_fn,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def end_server() -> None:
    """End the fork server of this worker."""
    while _server:
        _server.pop().stop()


def replacing(config_dir: Path, replaced: dict[str, str]) -> Callable[..., Result]:
    """Return a function like the fixture ``btw``, with names of the program replaced by expressions.

    They are ``module.name``, below btw_backup: ``{"destination.allowlist.check": "lambda chain:
    None"}``. One that doesn't exist is an error. A name that another module has imported is replaced
    there. The expression may use ``module``.
    """

    def run(*args: str | Path, env: dict[str, str] | None = None) -> Result:
        return run_to_end(["--config-dir", config_dir, *args], replaced=replaced, env=env)

    return run


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Gate:
    """A stand-in for a program that waits at its start until the gate is opened."""

    def __init__(self, top: Path, program: str, then: str = "", only: str = "") -> None:
        """``then`` is what it does after that, in the shell; ``only``: it does not wait without this word."""
        top.mkdir()
        self._go, self._started = top / "go", top / "started"
        script = top / program
        script.write_text(
            f'#!/bin/sh\ncase " $* " in *"{only}"*) ;; *) exec {shutil.which(program)} "$@";; esac\n'
            f'touch "{self._started}"\nwhile [ ! -e "{self._go}" ]; do sleep 0.02; done\n{then}\n'
            f'exec {shutil.which(program)} "$@"\n'
        )
        script.chmod(0o755)
        break_bubblewrap(top)
        self.env = {"PATH": f"{top}:{os.environ['PATH']}"}

    def open(self) -> None:
        self._go.touch()

    def reached(self) -> None:
        """Wait until the program has started."""
        wait_for(self._started.exists)


class Start(Protocol):
    """Starts ``btw-backup``, which goes on in the background; ``env`` is added to the environment."""

    def __call__(self, *args: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]: ...


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a run to end. Returns its exit status and what it wrote to stderr."""
    _, err = process.communicate(timeout=60)
    return process.returncode, err
