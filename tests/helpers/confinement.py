"""Switches off one of the two walls between a hostile destination and root, to test the other alone.

The program itself has no such switch: a bwrap that does not work comes first in PATH, and checks are
replaced in a script that then runs the command.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from btw_backup.programs import process

from .running import Result, break_bubblewrap

confined = pytest.mark.skipif(
    os.geteuid() != 0 or process.unconfined() is not None, reason="programs cannot be confined here"
)


def without_confinement(where: Path) -> dict[str, str]:
    """An environment in which bwrap fails, so that programs run unconfined. ``where``: a new directory."""
    where.mkdir()
    break_bubblewrap(where)
    return {"PATH": f"{where}:{os.environ['PATH']}"}


def without_checks(config_dir: Path, replaced: dict[str, str]) -> Callable[..., Result]:
    """Return a function like the fixture ``btw``, with functions of the program replaced by expressions.

    Their names are ``module.function``, below btw_backup: ``{"destination.chain.check_metadata":
    "lambda *args: None"}``. One that doesn't exist is an error. A name that another module has imported is
    replaced there.
    """
    lines = ["import sys", "from importlib import import_module", "from btw_backup import cli"]
    for name, value in replaced.items():
        module, _, function = name.rpartition(".")
        lines.append(f"module = import_module('btw_backup.{module}')")
        lines.append(f"module.{function}  # exists")
        lines.append(f"module.{function} = {value}")
    script = "\n".join([*lines, "sys.exit(cli.main())"])

    def run(*args: str | Path, env: dict[str, str] | None = None) -> Result:
        done = subprocess.run(
            [sys.executable, "-c", script, "--config-dir", config_dir, *args],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=120,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
