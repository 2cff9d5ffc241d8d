"""Fixtures of all tests: the real command, run as a process, out of reach of the user's own files."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from .helpers.destinations import listed
from .helpers.hostile import Land
from .helpers.running import Btw, Result, Start, end_server, run_to_end

pytest_plugins = ["tests.helpers.postgres_servers", "tests.helpers.repositories"]


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set a HOME of its own, and a fixed time zone and language."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("TZ", "UTC")
        patch.setenv("LANG", "C.UTF-8")
        for name in [name for name in os.environ if name.startswith(("PG", "LC_", "TAR_"))]:
            patch.delenv(name)
        yield
        end_server()


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

    def run(
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        umask: int = -1,
        preexec_fn: Callable[[], object] | None = None,
    ) -> Result:
        arguments = ["--config-dir", config_dir, *args]
        return run_to_end(arguments, env=env, cwd=cwd, umask=umask, preexec_fn=preexec_fn)

    return run


@pytest.fixture
def start(config_dir: Path) -> Iterator[Start]:
    """Start a run that goes on in the background."""
    running: list[subprocess.Popen[str]] = []

    def go(*args: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "btw_backup", "--config-dir", config_dir, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        running.append(process)
        return process

    yield go
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def land() -> Iterator[Land]:
    """A destination that belongs to another user, who can reach it."""
    top = Path(tempfile.mkdtemp(prefix="btw-hostile-"))
    top.chmod(0o755)
    yield Land(top)
    subprocess.run(["rm", "-rf", top], check=True)


@pytest.fixture
def user() -> Iterator[Path]:
    """A directory of nobody's."""
    top = Path(tempfile.mkdtemp(prefix="btw-user-"))
    os.chown(top, 65534, 65534)
    yield top
    subprocess.run(["rm", "-rf", top], check=True)


@pytest.fixture
def initialised(btw: Btw, src: Path) -> Path:
    """Initialise a working directory of type rdiff. Returns its source."""
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    return src


@pytest.fixture
def two_points(btw: Btw, initialised: Path, dst: Path) -> Path:
    """A chain with a full backup and an incremental; the source has changed since."""
    for number in range(2):
        (initialised / "file").write_text(f"state {number}\n")
        assert btw("fs", initialised, dst).status == 0
    (initialised / "file").write_text("state 2\n")
    return dst / listed(btw, dst)[0]


def populate(src: Path) -> None:
    (src / "sub").mkdir(parents=True)
    (src / "file").write_text("content\n")
    (src / "sub" / "other").write_text("more\n")
    (src / "link").symlink_to("file")
    (src / "cache").mkdir()


@pytest.fixture(scope="session")
def settled_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sources whose timestamps are all more than two seconds old; all tests share one wait."""
    sources = [tmp_path_factory.mktemp("settled") / "src" for _ in range(60)]
    for src in sources:
        populate(src)
    time.sleep(2.1)
    return iter(sources)
