"""What all tests share: the real command, run as a process, out of reach of the user's own files."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Result(NamedTuple):
    """How a run ended, and what it printed."""

    status: int
    out: str
    err: str


Btw = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A HOME of its own, and fixed time zone and language."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("TZ", "UTC")
        patch.setenv("LANG", "C.UTF-8")
        for name in [name for name in os.environ if name.startswith(("PG", "LC_", "TAR_"))]:
            patch.delenv(name)
        yield


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    """A configuration directory that does not exist yet."""
    return tmp_path / "config"


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """A source with a little in it."""
    path = tmp_path / "src"
    (path / "sub").mkdir(parents=True)
    (path / "file").write_text("content\n")
    (path / "sub" / "other").write_text("more\n")
    return path


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    """An empty destination."""
    path = tmp_path / "dst"
    path.mkdir()
    return path


@pytest.fixture
def btw(config_dir: Path) -> Btw:
    """Run ``btw-backup`` with the configuration directory; ``env`` is added to the environment."""

    def run(*args: str | Path, env: dict[str, str] | None = None, **settings: object) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "btw_backup", "--config-dir", config_dir, *args],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=120,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            **settings,  # type: ignore[call-overload]
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
