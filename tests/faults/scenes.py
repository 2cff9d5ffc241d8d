"""The operations that faults are tried on, and what is prepared and checked for each."""

import hashlib
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..helpers import postgres_servers
from ..helpers.destinations import joined
from ..helpers.small_parts import REPLACED
from .case import LOST, TRACEBACK, Broken, Case, run
from .points import Archivist, chains_of, digest_of, plain_tar
from .tracing import CHANGING, CHILDREN, Call, parse_trace, tracing

AS_ROOT = os.geteuid() == 0
OWNER = 65534 if AS_ROOT else os.geteuid()


@dataclass
class Scene:
    """An operation and what was prepared for it.

    ``programs``: those that it runs. ``adds``: whether it makes a new point.
    """

    name: str
    programs: tuple[str, ...]
    adds: bool = True
    rounds: int = 2
    replaced: dict[str, str] = field(default_factory=dict)
    top: Path = field(default=Path())
    path: str = os.environ["PATH"]
    before: tuple[str, ...] = ()
    held: dict[str, str] = field(default_factory=dict)
    current: str = ""
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arguments(self, case: Case) -> list[str]:
        """Return the command line after the general options."""
        raise NotImplementedError

    def change(self, number: int) -> None:
        """Bring the source into its state number ``number``."""
        raise NotImplementedError

    def plain(self, path: Path) -> str:
        """Return a digest of what a restored file holds. Raises Broken if it is damaged."""
        return plain_tar(path)

    def check_source(self, case: Case) -> None:
        """Raise Broken unless the newest point of the clean run gives back the source."""

    def settle(self, case: Case) -> None:
        """Do with a copy what must be done before the operation."""

    def first_config(self, case: Case) -> None:
        """Fill the configuration directory."""
        raise NotImplementedError

    def prepare(self, top: Path) -> None:
        """Make the state that every case copies, and learn from a clean run what the new point holds."""
        self.top = top
        top.mkdir()
        self.archivist = Archivist(top, self.plain)
        base = self.base = Case(self, top / "base")
        base.dst.mkdir()
        self.change(0)
        self.first_config(base)
        for number in range(self.rounds):
            self.change(number)
            ended = base.run()
            assert (ended.status, ended.err) == (0, ""), ended
        if self.adds:
            self.change(self.rounds)
        self.before = base.list()
        self.held = self.archivist.contents(base.dst, self.before)
        assert len(self.before) == self.rounds, self.before
        time.sleep(2.5)  # timestamps must be old enough to be trusted
        with self.case() as case:
            ended = case.run()
            assert (ended.status, ended.err) == (0, ""), ended
            listed = case.list()
            self.current = list(self.archivist.contents(case.dst, listed).values())[-1]
            self.check_source(case)
            self.check_after(case)

    @contextmanager
    def case(self) -> Iterator[Case]:
        """Make a fresh copy, and remove it at the end."""
        with self._lock:
            self._count += 1
            number = self._count
        case = Case(self, self.top / f"case-{number}")
        self.copy_to(case.top)
        try:
            self.settle(case)
            yield case
        finally:
            shutil.rmtree(case.top)

    def copy_to(self, top: Path) -> None:
        """Copy what was prepared into a directory, under the same names."""
        for path in (self.base.dst, self.base.config):
            if path.exists():
                run("cp", "-a", path, top)

    def traced(self) -> list[Call]:
        """Return the calls of a clean run that a fault can hit."""
        with self.case() as case:
            ended = case.run(*tracing(case.trace, CHANGING | CHILDREN))
            assert ended.status == 0, ended
            return parse_trace(case.trace.read_text(errors="replace"))

    def traced_child(self, program: str) -> list[Call]:
        """Return the calls of a program that the operation runs, of its first run."""
        with self.case() as case:
            case.fake(program, f'exec {" ".join(tracing(case.trace, CHANGING))} "$real" "$@"')
            ended = case.run()
            assert ended.status == 0, ended
            return parse_trace(case.trace.read_text(errors="replace"))

    def check_points(self, case: Case) -> bool:
        """Raise Broken unless the points are those of before, or those and the complete new point.

        Returns whether the new point is there.
        """
        listed = case.list()
        if listed != self.before and not (self.adds and listed[:-1] == self.before):
            raise Broken(f"{LOST}listed is {listed} and was {self.before}")
        try:
            contents = self.archivist.contents(case.dst, listed)
        except Broken as error:
            raise Broken(f"{LOST}{error}") from error
        for name, content in self.held.items():
            if contents.get(name) != content:
                raise Broken(f"{LOST}{name} is not what it was")
        added = [contents[name] for name in contents if name not in self.held]
        if added not in ([], [self.current]):
            raise Broken(f"{LOST}the new point is not what the source holds")
        return bool(added)

    def check_retry(self, case: Case, *, there: bool) -> None:
        """Run again, undisturbed. Raises Broken if that fails; ``there``: whether the new point exists."""
        ended = case.run()
        if ended.status != 0 or TRACEBACK in ended.err:
            raise Broken(f"the next run exits with {ended.status}: {ended.err}")
        self.check_left_over(case, "the next run")
        if self.check_points(case) != self.adds:
            raise Broken(f"{LOST}the next run exits with 0 but the new point is missing")
        self.check_after(case)

    def check_after(self, case: Case) -> None:
        """Raise Broken unless everything in the destination has the right owner, and the log is whole."""
        for path in case.dst.rglob("*"):
            if ".btw-backup" not in path.parts and path.lstat().st_uid != OWNER:
                raise Broken(f"{path.relative_to(case.top)} belongs to {path.lstat().st_uid}")
        log = case.dst / "log.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        if any(not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S*: .", line) for line in lines):
            raise Broken(f"log.txt has torn lines: {lines}")
        if not self.adds and "no change" not in " ".join(lines):
            raise Broken("log.txt says nothing of the run")

    def check_left_over(self, case: Case, who: str) -> None:
        """Raise Broken if a run left anything behind but what it made."""
        backups = [line for line in case.list() if not line.startswith(" ")]
        sums = [f"{name}.sha256" for name in backups if name.endswith(".tar")]
        expected = {"log.txt", "source.txt", "RESTORE.txt", ".btw-backup", *backups, *sums}
        left = [path for path in case.dst.iterdir() if path.name not in expected]
        private = case.dst / ".btw-backup"
        if private.exists():
            left += [path for path in private.iterdir() if path.name not in ("lock", "newest", "success")]
        left += list(case.config.glob("*/backup/*"))
        left += list(case.config.glob(".*"))
        left += [path for path in case.temporary.iterdir() if not _is_trial(path)]
        if left:
            raise Broken(f"{who} leaves {[str(path.relative_to(case.top)) for path in left]}")


def _is_trial(path: Path) -> bool:
    """Whether this is from Python's tempfile, which tries if a directory is usable: a kill leaves it."""
    is_named_so = re.fullmatch("[a-z0-9_]{8}", path.name) is not None
    return is_named_so and path.is_file() and path.read_bytes() in (b"", b"blat")


@dataclass
class FsScene(Scene):
    """``fs``."""

    type: str = "rdiff"
    options: str = ""
    recorded: bool = False

    @property
    def source(self) -> Path:
        return self.top / "source"

    def arguments(self, case: Case) -> list[str]:
        return ["fs", "-u", str(OWNER), str(self.source), str(case.dst)]

    def change(self, number: int) -> None:
        (self.source / "sub").mkdir(parents=True, exist_ok=True)
        (self.source / "large").write_bytes(random.Random(number).randbytes(150_000))
        (self.source / "sub" / "small").write_text(f"state {number}\n")
        with suppress(FileExistsError):
            (self.source / "link").symlink_to("large")

    def first_config(self, case: Case) -> None:
        run(*case.command("fs-init", "--type", self.type, self.source, "it"), env=case.environment)
        if self.options:
            (config,) = case.config.glob("*/config.py")
            config.write_text(config.read_text() + self.options)

    def settle(self, case: Case) -> None:
        if self.recorded:  # the copy has other inodes, and so another fingerprint
            assert case.run().status == 0

    def check_source(self, case: Case) -> None:
        newest = list(chains_of(case.list()))[-1]
        archive = case.dst / newest
        if archive.is_dir():
            archive = joined(archive, case.top / "whole.tar")
        run("tar", "--force-local", "--compare", "-C", self.source, "-f", archive)


@dataclass
class PartsScene(FsScene):
    """``fs`` with an archive in many parts: some come, go, grow, and change places."""

    def change(self, number: int) -> None:
        rng = random.Random(number)
        many = self.source / "many"
        many.mkdir(parents=True, exist_ok=True)
        if number == 0:
            for name in range(40):
                (many / f"{name:02}").write_bytes(random.Random(name).randbytes(3000))
        (self.source / "large").write_bytes(random.Random("large").randbytes(30_000) + rng.randbytes(9000))
        (many / f"{number + 5:02}").write_bytes(rng.randbytes(5000))
        (many / f"{number + 10:02}x").write_bytes(rng.randbytes(30_000))
        for gone in range(number * 4 + 20, number * 4 + 23):
            (many / f"{gone}").unlink(missing_ok=True)
        (many / f"{number + 35}").rename(self.source / f"a{number}")


@dataclass
class DbScene(Scene):
    """``db`` of a database, or of the globals."""

    globals: bool = False
    server: postgres_servers.Server = field(init=False, repr=False)
    options: str = ""

    @property
    def database(self) -> str:
        return re.sub(r"\W", "_", self.name)

    def arguments(self, case: Case) -> list[str]:
        return ["db", "-u", str(OWNER), *(["-g"] if self.globals else [self.database]), str(case.dst)]

    def change(self, number: int) -> None:
        self.path = f"{self.server.bin}:{os.environ['PATH']}"
        if self.globals:
            with suppress(BaseException):
                self.server.psql(f"CREATE ROLE round_{number}")
            return
        name = postgres_servers.quoted(self.database)
        if name.strip('"') not in self.server.psql("SELECT datname FROM pg_database").splitlines():
            self.server.psql(f"CREATE DATABASE {name}")
        rows = "SELECT n, md5(n::text) FROM generate_series(1, 5000) n"
        self.server.psql(f"CREATE TABLE IF NOT EXISTS round_{number} AS {rows}", self.database)

    def first_config(self, case: Case) -> None:
        case.config.mkdir(mode=0o700)
        connection = f"host={self.server.socket} user={self.server.superuser}"
        file = case.config / ("global.py" if self.globals else f"{self.database}.py")
        file.write_text(f'CONNECTION = "{connection}"\n{self.options}')
        file.chmod(0o600)

    def plain(self, path: Path) -> str:
        if self.globals:
            sql = run("bzip2", "-dc", path)
        else:
            sql = run(self.server.bin / "pg_restore", "-f", "-", path)
        return hashlib.sha256(b"\n".join(postgres_servers.without_keys(sql))).hexdigest()


@dataclass
class InitScene(Scene):
    """``fs-init`` makes the whole working directory, or none."""

    def arguments(self, case: Case) -> list[str]:
        return ["fs-init", "--type", "rdiff", str(self.top / "source"), "it"]

    def prepare(self, top: Path) -> None:
        self.top = top
        for path in (top, top / "source", top / "other"):
            path.mkdir()
        self.base = Case(self, top / "base")
        self.base.dst.mkdir()
        run(*self.base.command("fs-init", "--type", "tar", top / "other", "other"), env=self.base.environment)
        with self.case() as case:
            assert case.run().status == 0
            self.made = self._made(case)
            assert len(self.made) == 2

    def _made(self, case: Case) -> dict[str, str]:
        found = [path for path in case.config.iterdir() if not path.name.startswith(".")]
        return {path.name: digest_of(path) + os.readlink(path / "src") for path in found}

    def check_points(self, case: Case) -> bool:
        try:
            made = self._made(case)
        except OSError as error:
            raise Broken(f"half a working directory: {error}") from error
        if made == self.made:
            return True
        if {name: made.get(name) for name in self.made if name.startswith("other.")} != made:
            raise Broken(f"half a working directory: {made}")
        return False

    def check_retry(self, case: Case, *, there: bool) -> None:
        ended = case.run()
        exists = "there is already a directory for this path" in ended.err
        if not ((ended.status == 1 and exists) if there else ended.status == 0):
            raise Broken(f"the next fs-init exits with {ended.status}: {ended.err}")
        if not self.check_points(case):
            raise Broken("the next fs-init made nothing")
        self.check_left_over(case, "the next fs-init")


@dataclass
class PruneScene(FsScene):
    """``prune`` keeps what it shall keep, and what is listed stays whole."""

    def arguments(self, case: Case) -> list[str]:
        if case is self.base:
            return super().arguments(case)
        return ["prune", "--keep-last", "1", str(case.dst)]

    def check_points(self, case: Case) -> bool:
        listed = case.list()
        if listed != tuple(line for line in self.before if line in listed) or self.before[-1] not in listed:
            raise Broken(f"{LOST}listed is {listed} and was {self.before}")
        try:
            contents = self.archivist.contents(case.dst, listed)
        except Broken as error:
            raise Broken(f"{LOST}{error}") from error
        if contents.items() - self.held.items():
            raise Broken(f"{LOST}a point is not what it was")
        return False

    def check_after(self, case: Case) -> None:
        if case.list() != self.before[-1:]:
            raise Broken(f"prune leaves {case.list()}")


_TAR = ("tar",)
_RDIFF = ("tar", "rdiff-backup")
_TBZ = ("tar", "lbzip2")
_ALWAYS_FULL = "MAX_INCREMENTAL_COUNT = 0\n"
_LATER_FULL = "MAX_INCREMENTAL_COUNT = 1\n"
_PLAIN = 'COMPRESSION = "none"\n'
_READ_ALL = "QUICK_CHECK = False\n"

# Add a line here for each command that writes.
SCENES: dict[str, Callable[[], Scene]] = {
    "fs-init": lambda: InitScene("fs-init", ()),
    "first-full": lambda: FsScene("first-full", _RDIFF, rounds=0),
    "later-full": lambda: FsScene("later-full", _RDIFF, options=_LATER_FULL),
    "incremental": lambda: FsScene("incremental", _RDIFF),
    "parts": lambda: PartsScene("parts", _RDIFF, replaced=REPLACED),
    "parts-shared": lambda: PartsScene("parts-shared", _RDIFF, replaced=REPLACED, options=_LATER_FULL),
    "prune": lambda: PruneScene("prune", (), options=_ALWAYS_FULL, adds=False, rounds=3),
    "prune-tarballs": lambda: PruneScene(
        "prune-tarballs", (), options=_PLAIN, type="tar", adds=False, rounds=3
    ),
    "first-tarball": lambda: FsScene("first-tarball", _TBZ, rounds=0, type="tar"),
    "later-tarball": lambda: FsScene("later-tarball", _TBZ, type="tar"),
    "plain-tarball": lambda: FsScene("plain-tarball", _TAR, options=_PLAIN, type="tar"),
    "unchanged-chain": lambda: FsScene("unchanged-chain", _TAR, adds=False, options=_READ_ALL),
    "unchanged-tarball": lambda: FsScene(
        "unchanged-tarball", _TAR, adds=False, options=_READ_ALL, type="tar"
    ),
    "unchanged-at-a-glance": lambda: FsScene("unchanged-at-a-glance", (), adds=False, recorded=True),
    "database": lambda: DbScene("database", ("pg_dump", "rdiff-backup")),
    "first-database": lambda: DbScene("first-database", ("pg_dump", "rdiff-backup"), rounds=0),
    "globals": lambda: DbScene("globals", ("pg_dumpall", "rdiff-backup"), globals=True),
}
