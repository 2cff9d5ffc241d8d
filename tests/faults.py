"""Kills, full disks and failing programs, at every place: no point that was listed may be lost by any.

    python -m tests.faults [--quick] [--seed N] [--jobs N] [--only WHAT]... [--verbose]

Each operation is prepared once. For each fault what was prepared is copied, the program is run on the
copy and hit by the fault, and then:

- ``list`` prints what it printed before, or that and the new point;
- every listed point gives back the bytes it held, which rdiff-backup, bzip2 and tar tell;
- the next run succeeds, leaves nothing behind, and then the newest point is what the source holds.

Where a fault hits is told by system calls that strace counts, so it is the same in every run.
"""

import argparse
import dataclasses
import errno
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from . import postgres_servers

ROOT = Path(__file__).resolve().parent.parent
AS_ROOT = os.geteuid() == 0
OWNER = 65534 if AS_ROOT else os.geteuid()
TIMEOUT = 60
TRACEBACK = "Traceback (most recent call last)"

# What changes a file system. open(2) belongs to it with some flags only.
_OPENING = {"open", "openat"}
_WRITING = {"write", "pwrite64", "sendfile", "copy_file_range"}
_NAMING = {"rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat"}
_REMOVING = {"unlink", "unlinkat", "rmdir"}
_INODES = {"chown", "fchown", "fchownat", "lchown", "chmod", "fchmod", "fchmodat", "utimensat"}
_SYNCING = {"ftruncate", "truncate", "fsync", "fdatasync"}
CHANGING = _OPENING | _WRITING | _NAMING | _REMOVING | _INODES | _SYNCING
# Where children start and end.
_CHILDREN = {"clone", "clone3", "vfork", "wait4"}
_FAILING = _OPENING | _WRITING | _NAMING | _SYNCING
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

LOST = "lost: "


class Ended(NamedTuple):
    """How a run ended; ``status`` is negative where a signal ended it."""

    status: int
    out: str
    err: str


class Call(NamedTuple):
    """A system call of a traced run: the ``number``-th of its name, counted from 1."""

    name: str
    number: int
    text: str


# ---- One copy of what was prepared


class Case:
    """A copy of an operation's prepared state, on which the program is run."""

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

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.fakes}:{self.scene.path}"
        ours = {"PATH": path, "HOME": self.top, "TMPDIR": self.temporary, "TZ": "UTC", "LANG": "C.UTF-8"}
        python = {"PYTHONPATH": ROOT, "PYTHONDONTWRITEBYTECODE": "1"}
        return {name: str(value) for name, value in {**ours, **python}.items()}

    def command(self, *args: str | Path) -> list[str]:
        return [sys.executable, "-m", "btw_backup", "--config-dir", *map(str, (self.config, *args))]

    @contextmanager
    def running(self, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
        """The operation, running in a session of its own, perhaps under another program."""
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
        """The processes of the run that are left although it ended, given a second to go."""
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
        """What ``list`` prints, checked with nothing. Raises Broken."""
        done = subprocess.run(
            self.command("list", self.dst),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=self.environment,
        )
        if done.returncode or done.stderr:
            raise Broken(f"{LOST}list exited with {done.returncode}: {done.stderr}")
        return tuple(done.stdout.splitlines())

    def fake(self, program: str, script: str) -> None:
        """Put a shell script first in PATH, under a program's name; $real is the real one."""
        path = self.fakes / program
        path.write_text(f"#!/bin/sh\nreal='{shutil.which(program, path=self.scene.path)}'\n{script}\n")
        path.chmod(0o755)

    def no_more_fakes(self) -> None:
        for path in self.fakes.iterdir():
            path.unlink()


class Broken(Exception):
    """A check failed."""


# ---- What the points hold, told by other programs than ours


class Archivist:
    """Reads points with rdiff-backup, bzip2 and PostgreSQL, each content once."""

    def __init__(self, scratch: Path, plain: Callable[[Path], str]) -> None:
        self.scratch = scratch
        self._plain = plain
        self._known: dict[str, dict[str, str]] = {}

    def contents(self, dst: Path, listed: Sequence[str]) -> dict[str, str]:
        """Each listed point's digest, by its name: ``CHAIN TIME`` or the tarball's. Raises Broken."""
        found: dict[str, str] = {}
        for backup, times in _chains(listed).items():
            key = f"{backup} {times} {_digest_of(dst / backup)}"
            if key not in self._known:
                self._known[key] = self._read(dst / backup, times)
            found |= self._known[key]
        return found

    def _read(self, backup: Path, times: list[str]) -> dict[str, str]:
        if backup.is_file():
            return {backup.name: self._plain(backup)}
        with tempfile.TemporaryDirectory(dir=self.scratch) as scratch:
            # It writes a log where it reads.
            copy = Path(scratch, "chain")
            _run("cp", "-a", backup, copy)
            found = {}
            for number, moment in enumerate([backup.name, *times]):
                at = ["--at", f"{moment}Z"]
                _run("rdiff-backup", "-v0", "verify", *at, copy)
                restored = Path(scratch, str(number))
                _run("rdiff-backup", "-v0", "restore", *at, copy, restored)
                (content,) = restored.iterdir()
                found[f"{backup.name} {moment}"] = self._plain(content)
            return found


def _chains(listed: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in listed:
        if line.startswith(" "):
            found[list(found)[-1]].append(line[1:])
        else:
            found[line] = []
    return found


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    for entry in [path, *sorted(path.rglob("*"))]:
        digest.update(f"{entry.relative_to(path)}\0{entry.lstat().st_mode}\0".encode())
        if entry.is_file() and not entry.is_symlink():
            digest.update(hashlib.sha256(entry.read_bytes()).digest())
    return digest.hexdigest()


def _run(*argv: str | Path, **settings: object) -> bytes:
    """Run a program that must succeed; raises Broken where it does not."""
    done = subprocess.run(argv, capture_output=True, timeout=TIMEOUT, **settings)  # type: ignore[call-overload]
    if done.returncode:
        raise Broken(f"{' '.join(map(str, argv))} exited with {done.returncode}: {done.stderr!r}")
    return done.stdout  # type: ignore[no-any-return]


def _plain_tar(path: Path) -> str:
    with open(path, "rb") as file:
        content = _run("bzip2", "-dc", stdin=file) if path.suffix == ".tbz" else file.read()
    return hashlib.sha256(content).hexdigest()


# ---- Operations


@dataclass
class Scene:
    """An operation and what was prepared for it.

    ``programs`` are those that it runs. ``adds``: it makes a new point.
    """

    name: str
    programs: tuple[str, ...]
    adds: bool = True
    rounds: int = 2
    top: Path = field(default=Path())
    path: str = os.environ["PATH"]
    before: tuple[str, ...] = ()
    held: dict[str, str] = field(default_factory=dict)
    current: str = ""
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arguments(self, case: Case) -> list[str]:
        """The command line after the general options."""
        raise NotImplementedError

    def change(self, number: int) -> None:
        """Bring what is backed up into its state number ``number``."""
        raise NotImplementedError

    def plain(self, path: Path) -> str:
        """A digest of what a restored file holds. Raises Broken where it is damaged."""
        return _plain_tar(path)

    def check_source(self, case: Case) -> None:
        """Raise Broken unless the newest point, as it is in the clean run, gives back the source."""

    def settle(self, case: Case) -> None:
        """What must be done with a copy before the operation."""

    def first_config(self, case: Case) -> None:
        """Fill the configuration directory."""
        raise NotImplementedError

    def prepare(self, top: Path) -> None:
        """Make the state that is copied, and learn from one clean run what the new point holds."""
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
        time.sleep(2.5)  # so that the source's timestamps are old enough to be believed
        with self.case() as case:
            ended = case.run()
            assert (ended.status, ended.err) == (0, ""), ended
            listed = case.list()
            self.current = list(self.archivist.contents(case.dst, listed).values())[-1]
            self.check_source(case)
            self.check_after(case)

    @contextmanager
    def case(self) -> Iterator[Case]:
        """A fresh copy."""
        with self._lock:
            self._count += 1
            number = self._count
        case = Case(self, self.top / f"case-{number}")
        for name in ("dst", "config"):
            _run("cp", "-a", self.base.top / name, case.top / name)
        try:
            self.settle(case)
            yield case
        finally:
            shutil.rmtree(case.top)

    def traced(self) -> list[Call]:
        """The calls of a clean run that a fault can hit."""
        with self.case() as case:
            ended = case.run(*tracing(case.trace, CHANGING | _CHILDREN))
            assert ended.status == 0, ended
            return parse_trace(case.trace.read_text(errors="replace"))

    def traced_child(self, program: str) -> list[Call]:
        """The calls of a program that the operation runs, the first time that it does."""
        with self.case() as case:
            case.fake(program, f'exec {" ".join(tracing(case.trace, CHANGING))} "$real" "$@"')
            ended = case.run()
            assert ended.status == 0, ended
            return parse_trace(case.trace.read_text(errors="replace"))

    def check_points(self, case: Case) -> bool:
        """Raise Broken unless what is listed is what was before, or that and the complete new point.

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
        """Run again, undisturbed. Raises Broken unless all is well then; ``there``: the new point is."""
        ended = case.run()
        if ended.status != 0 or TRACEBACK in ended.err:
            raise Broken(f"the next run exits with {ended.status}: {ended.err}")
        self.check_left_over(case, "the next run")
        if self.check_points(case) != self.adds:
            raise Broken(f"{LOST}the next run exits with 0 but the new point is missing")
        self.check_after(case)

    def check_after(self, case: Case) -> None:
        """Raise Broken unless everything in the destination has the owner that was asked for."""
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
        """Raise Broken where a run left anything but what it made."""
        backups = [line for line in case.list() if not line.startswith(" ")]
        sums = [f"{name}.sha256" for name in backups if name.endswith(".tar")]
        expected = {"log.txt", ".btw-backup", *backups, *sums}
        left = [path for path in case.dst.iterdir() if path.name not in expected]
        private = case.dst / ".btw-backup"
        if private.exists():
            left += [path for path in private.iterdir() if path.name not in ("lock", "newest")]
        left += list(case.config.glob("*/backup/*"))
        left += list(case.config.glob(".*"))
        left += list(case.temporary.iterdir())
        if left:
            raise Broken(f"{who} leaves {[str(path.relative_to(case.top)) for path in left]}")


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
        # More than 64 KiB that can't be compressed: rdiff-backup's increments are linked then.
        (self.source / "sub").mkdir(parents=True, exist_ok=True)
        (self.source / "large").write_bytes(random.Random(number).randbytes(150_000))
        (self.source / "sub" / "small").write_text(f"state {number}\n")
        with suppress(FileExistsError):
            (self.source / "link").symlink_to("large")

    def first_config(self, case: Case) -> None:
        _run(*case.command("fs-init", "--type", self.type, self.source, "it"), env=case.environment)
        if self.options:
            (config,) = case.config.glob("*/config.py")
            config.write_text(config.read_text() + self.options)

    def settle(self, case: Case) -> None:
        if self.recorded:  # the copy's inodes are others, so that the fingerprint has to be taken again
            assert case.run().status == 0

    def check_source(self, case: Case) -> None:
        newest = list(_chains(case.list()))[-1]
        archive = case.dst / newest
        if archive.is_dir():
            archive /= "backup.tar"
        unpack = ["--bzip2"] if archive.suffix == ".tbz" else []
        _run("tar", "--force-local", "--compare", "-C", self.source, *unpack, "-f", archive)


@dataclass
class DbScene(Scene):
    """``db`` of a database, or of the globals."""

    globals: bool = False
    server: postgres_servers.Server = field(default=None)  # type: ignore[assignment]
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
            sql = _run("bzip2", "-dc", path)
        else:
            sql = _run(self.server.bin / "pg_restore", "-f", "-", path)
        return hashlib.sha256(b"\n".join(postgres_servers.without_keys(sql))).hexdigest()


@dataclass
class InitScene(Scene):
    """``fs-init``: the whole working directory is made, or none."""

    def arguments(self, case: Case) -> list[str]:
        return ["fs-init", "--type", "rdiff", str(self.top / "source"), "it"]

    def prepare(self, top: Path) -> None:
        self.top = top
        for path in (top, top / "source", top / "other"):
            path.mkdir()
        self.base = Case(self, top / "base")
        self.base.dst.mkdir()
        _run(
            *self.base.command("fs-init", "--type", "tar", top / "other", "other"), env=self.base.environment
        )
        with self.case() as case:
            assert case.run().status == 0
            self.made = self._made(case)
            assert len(self.made) == 2

    def _made(self, case: Case) -> dict[str, str]:
        found = [path for path in case.config.iterdir() if not path.name.startswith(".")]
        return {path.name: _digest_of(path) + os.readlink(path / "src") for path in found}

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
    """``prune``: what it is to keep stays, and what is listed is whole."""

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

# Another command that writes gets a line here.
SCENES: dict[str, Callable[[], Scene]] = {
    "fs-init": lambda: InitScene("fs-init", ()),
    "first-full": lambda: FsScene("first-full", _RDIFF, rounds=0),
    "later-full": lambda: FsScene("later-full", _RDIFF, options=_LATER_FULL),
    "incremental": lambda: FsScene("incremental", _RDIFF),
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


# ---- Tracing


def tracing(output: Path, calls: set[str], fault: str = "") -> list[str]:
    """The strace that writes those calls of one process, without its children, to a file."""
    # "?": not every machine has them all.
    names = ",".join(f"?{name}" for name in sorted(calls))
    inject = ["-e", f"inject={fault}"] if fault else []
    return ["strace", "-qq", "-y", "-s", "16", "-o", str(output), "-e", f"trace={names}", *inject]


def parse_trace(text: str) -> list[Call]:
    """Those calls that change a file system, or start or await a child; numbered as strace counts."""
    counts: Counter[str] = Counter()
    found = []
    for line in text.splitlines():
        match = re.match(r"(\w+)\(", line)
        if match is None:
            continue
        name = match[1]
        counts[name] += 1
        reads = name in _OPENING and not re.search(r"O_CREAT|O_TRUNC", line)
        says = re.match(r"write\([12]<", line)
        if not reads and not says and "= ?" not in line:
            found.append(Call(name, counts[name], re.sub(r'/[^ "<]*/case-\d+/', "", line)))
    return found


# ---- Faults


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong in a run. ``kind`` is what they are counted by."""

    kind = "fault"

    def __str__(self) -> str:
        values = (getattr(self, each.name) for each in dataclasses.fields(self))
        shown = (f"{v.name}#{v.number} {v.text[:110]}" if isinstance(v, Call) else str(v) for v in values)
        return f"{self.kind} {' '.join(shown)}"

    def strike(self, case: Case) -> Ended | None:
        """Run the operation and hit it. None where the fault did not come to pass."""
        raise NotImplementedError

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        """Raise Broken where the run did not end as it should; ``there``: the new point is."""

    def mend(self, case: Case) -> None:
        """Take the cause away before the next run."""


def inject(case: Case, call: Call, what: str) -> Ended | None:
    ended = case.run(*tracing(case.trace, {call.name}, f"{call.name}:{what}:when={call.number}"))
    return ended if _was_hit(case) else None


def _was_hit(case: Case) -> bool:
    if not case.trace.exists():
        return False
    text = case.trace.read_text(errors="replace")
    return "(INJECTED)" in text or "--- SIG" in text or "+++ killed" in text or text.endswith("= ?\n")


@dataclass(frozen=True)
class Kill(Fault):
    """SIGKILL for the program alone, in place of the call."""

    kind = "kill"
    call: Call

    def strike(self, case: Case) -> Ended | None:
        ended = inject(case, self.call, "signal=SIGKILL")
        return ended if ended is None or ended.status in (-9, 999) else None

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        if ended.status != -9:
            raise Broken(f"killed, and then: {ended.err}")


@dataclass(frozen=True)
class KillAll(Fault):
    """SIGKILL for the program and its children at once, just after the call."""

    kind = "kill all"
    call: Call

    def strike(self, case: Case) -> Ended | None:
        fault = f"{self.call.name}:signal=SIGSTOP:when={self.call.number}"
        with case.running(tracing(case.trace, {self.call.name}, fault)) as process:
            stopped = _stopped(case, process)
        return case.ended(status=-9) if stopped else None


def _stopped(case: Case, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the traced process is stopped. False where it ended instead."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if case.trace.exists() and "--- stopped by SIGSTOP" in case.trace.read_text(errors="replace"):
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    raise Broken("it did not end")


@dataclass(frozen=True)
class KillChild(Fault):
    """SIGKILL for a program that ours runs: always, or only the first time."""

    kind = "kill a child"
    program: str
    call: Call
    always: bool

    def strike(self, case: Case) -> Ended | None:
        fault = f"{self.call.name}:signal=SIGKILL:when={self.call.number}"
        once = "" if self.always else f'mkdir {case.top}/once 2>/dev/null || exec "$real" "$@"; '
        strace = " ".join(tracing(case.trace, {self.call.name}, fault))
        case.fake(self.program, f'{once}exec {strace} "$real" "$@"')
        ended = case.run()
        return ended if _was_hit(case) else None

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        said(case, ended, there)

    def mend(self, case: Case) -> None:
        case.no_more_fakes()


@dataclass(frozen=True)
class KillWithChild(Fault):
    """SIGKILL for everything, just after a call of a program that ours runs: a power cut."""

    kind = "kill all in a child"
    program: str
    call: Call

    def strike(self, case: Case) -> Ended | None:
        fault = f"{self.call.name}:signal=SIGSTOP:when={self.call.number}"
        case.fake(self.program, f'exec {" ".join(tracing(case.trace, {self.call.name}, fault))} "$real" "$@"')
        with case.running() as process:
            stopped = _stopped(case, process)
        return case.ended(status=-9) if stopped else None

    def mend(self, case: Case) -> None:
        case.no_more_fakes()


@dataclass(frozen=True)
class Signalled(Fault):
    """A signal that asks the program to end."""

    kind = "signal"
    signal: signal.Signals
    call: Call

    def strike(self, case: Case) -> Ended | None:
        return inject(case, self.call, f"signal={self.signal.name}")

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        if ended.status != 128 + self.signal:
            raise Broken(f"exits with {ended.status}: {ended.err}")
        if TRACEBACK in ended.err:
            raise Broken(ended.err)
        case.scene.check_left_over(case, "the run that was ended")


@dataclass(frozen=True)
class Failing(Fault):
    """A system call of the program fails."""

    kind = "error"
    error: str
    call: Call

    def strike(self, case: Case) -> Ended | None:
        return inject(case, self.call, f"error={self.error}")

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        said(case, ended, there, os.strerror(getattr(errno, self.error)))


@dataclass(frozen=True)
class FailingChild(Fault):
    """A system call of a program that ours runs fails, every time that it runs; it may not even say so."""

    kind = "error in a child"
    program: str
    error: str
    call: Call

    def strike(self, case: Case) -> Ended | None:
        fault = f"{self.call.name}:error={self.error}:when={self.call.number}"
        case.fake(self.program, f'exec {" ".join(tracing(case.trace, {self.call.name}, fault))} "$real" "$@"')
        ended = case.run()
        return ended if _was_hit(case) else None

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        # tar may go on without a part of the source, which has a status of its own; and rdiff-backup
        # ends with tracebacks of its own.
        if self.program != "tar" or ended.status != 3:
            theirs = f"{ROOT}/btw_backup" not in ended.err
            said(case, ended._replace(err=ended.err.replace(TRACEBACK, "")) if theirs else ended, there)

    def mend(self, case: Case) -> None:
        case.no_more_fakes()


def said(case: Case, ended: Ended, there: bool, reason: str = "") -> None:
    """Raise Broken unless a run succeeded, or failed and said so.

    A file or a disk must be named where a ``reason`` is given.
    """
    if TRACEBACK in ended.err:
        raise Broken(f"a traceback: {ended.err}")
    if ended.status == 0:
        if case.scene.adds and not there:
            raise Broken(f"{LOST}exits with 0, and the new point is missing")
        return
    if ended.status != 1:
        raise Broken(f"exits with {ended.status}: {ended.err}")
    ours = [line for line in ended.err.splitlines() if line.startswith("btw_backup: ")]
    if not ours:
        raise Broken(f"says nothing: {ended.err!r}")
    if reason and not any(re.search(r"/|\.txt|\.tar|\.dump|\.btw|\d{4}-", line) for line in ours):
        raise Broken(f"names neither file nor disk: {ended.err!r}")


@dataclass(frozen=True)
class SmallDisk(Fault):
    """The destination or the configuration directory is on a disk with little room: KiB, or inodes."""

    kind = "full disk"
    where: str
    what: str
    room: int

    def strike(self, case: Case) -> Ended | None:
        path = case.top / self.where
        aside = case.top / "aside"
        path.rename(aside)
        path.mkdir()
        _run("mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=4000,mode=700", "tmpfs", path)
        try:
            _run("cp", "-a", f"{aside}/.", path)
            room = os.statvfs(path)
            if self.what == "KiB":
                used = (room.f_blocks - room.f_bfree) * room.f_frsize // 1024
                small = f"size={max(4, used + self.room)}k"
            elif self.what == "inodes":
                small = f"nr_inodes={room.f_files - room.f_ffree + self.room}"
            else:
                small = "ro"
            _run("mount", "-o", f"remount,{small}", path)
            return case.run()
        except BaseException:
            self.give_back(case)
            raise

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        said(case, ended, there, "no room")

    def mend(self, case: Case) -> None:
        _run("mount", "-o", "remount,rw,size=16m,nr_inodes=4000", case.top / self.where)

    def give_back(self, case: Case) -> None:
        """Unmount it."""
        _run("umount", "--lazy", case.top / self.where)


@dataclass(frozen=True)
class BadProgram(Fault):
    """A program that ours runs fails in its own way. ``may_succeed``: ours may manage without."""

    kind = "failing program"
    program: str
    way: str
    script: str
    may_succeed: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.program}: {self.way}"

    def strike(self, case: Case) -> Ended | None:
        case.fake(self.program, f"{self.script}")
        return case.run()

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        said(case, ended, there)
        if ended.status == 0 and not self.may_succeed:
            raise Broken(f"exits with 0 (new point: {there})")
        if ended.status == 1 and there:
            raise Broken("exits with 1, and the new point is there")

    def mend(self, case: Case) -> None:
        case.no_more_fakes()


_HALF = '"$real" "$@" | head -c {half}'
_WRITERS = {
    "fails at once": "echo no >&2; exit 64",
    "exits with 1 at once": "exit 1",
    "exits with 2 at once": "exit 2",
    "fails when all is done": '"$real" "$@"; exit 64',
    "fails halfway": f"{_HALF}; exit 64",
    "exits with 2 halfway": f"{_HALF}; exit 2",
    "is killed at once": "kill -9 $$",
    "is killed halfway": f"{_HALF}; kill -9 $$",
    "stores nothing, status 0": "exit 0",
    "stores half, status 0": f"{_HALF}; exit 0",
}
_COMPRESSING = 'case " $* " in *" -d "*) exec "$real" "$@";; esac; '
_DECOMPRESSING = 'case " $* " in *" -d "*) ;; *) exec "$real" "$@";; esac; '
_CHAIN = '"$real" "$@"; for chain; do :; done; '
_CHANGED_LATE = (
    'for f in "$chain"/*.*; do [ -f "$f" ] || continue; ln "$f" "$chain/rdiff-backup.tmp.1"; sleep 0.2; '
    'printf x | dd of="$f" conv=notrunc status=none; rm "$chain/rdiff-backup.tmp.1"; done'
)
_KEEPERS = {
    "fails at once": "echo no >&2; exit 1",
    "fails when all is done": '"$real" "$@"; exit 1',
    "exits with 2 at once": "exit 2",
    "is killed at once": "kill -9 $$",
    "is killed when all is done": '"$real" "$@"; kill -9 $$',
    "stores nothing, status 0": "exit 0",
    "empties the mirror, status 0": f'{_CHAIN}for f in "$chain"/*.*; do [ -f "$f" ] && : >"$f"; done; exit 0',
    "truncates the mirror, status 0": f'{_CHAIN}truncate -s -1 "$chain"/*.*; exit 0',
    "changes the mirror when that was looked at, status 0": f"{_CHAIN}{_CHANGED_LATE}; exit 0",
    "loses the mirror, status 0": f'{_CHAIN}rm -f "$chain"/*.*; exit 0',
    "loses the metadata, status 0": f'{_CHAIN}rm -f "$chain"/rdiff-backup-data/mirror_metadata*; exit 0',
    "loses the marker, status 0": f'{_CHAIN}rm -f "$chain"/rdiff-backup-data/current_mirror*; exit 0',
}
# Not those that are hard links: it replaces files, and never writes into one that was there before.
_INCREMENTS = '$(find "$chain"/rdiff-backup-data/increments -type f -links 1)'
_EXTENDERS = {
    "loses the increments, status 0": f"{_CHAIN}rm -f {_INCREMENTS}; exit 0",
    "empties the increments, status 0": f"{_CHAIN}truncate -s 0 {_INCREMENTS}; exit 0",
    "truncates the increments, status 0": f"{_CHAIN}truncate -s -9 {_INCREMENTS}; exit 0",
}


def bad_programs(scene: Scene) -> Iterator[BadProgram]:
    """Every way in which the programs of an operation may fail."""
    for program in scene.programs:
        if program == "rdiff-backup":
            for way, script in _KEEPERS.items():
                yield BadProgram(program, way, script)
            if scene.name in ("incremental", "database", "globals"):
                for way, script in _EXTENDERS.items():
                    # It shows in the copy that is added to only, and a new chain can be started.
                    yield BadProgram(program, way, script, may_succeed=True)
            continue
        half = {"tar": 90_000, "lbzip2": 70_000}.get(program, 300)
        only = _COMPRESSING if program == "lbzip2" else ""
        for way, script in _WRITERS.items():
            yield BadProgram(program, way, only + script.format(half=half))
        if program == "lbzip2" and scene.rounds:
            for way, script in _WRITERS.items():
                text = _DECOMPRESSING + script.format(half=half)
                yield BadProgram(program, f"decompressing, {way}", text, may_succeed=True)


# ---- Trying


def attempt(scene: Scene, fault: Fault) -> list[str] | None:
    """Try a fault. Returns what is wrong then, None where the fault did not come to pass."""
    with scene.case() as case:
        wrong = []
        try:
            ended = fault.strike(case)
            if ended is None:
                return None
            there = False
            try:
                there = scene.check_points(case)
            except Broken as error:
                wrong.append(str(error))
            try:
                fault.judge(case, ended, there)
            except Broken as error:
                wrong.append(str(error))
            fault.mend(case)
            scene.check_retry(case, there=there)
        except Broken as error:
            wrong.append(str(error))
        finally:
            if isinstance(fault, SmallDisk):
                fault.give_back(case)
        return wrong


def _can_mount(top: Path) -> bool:
    """Whether small disks can be tried: root may not mount either, in a container."""
    point = top / "disk"
    point.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], capture_output=True).returncode:
        return False
    _run("umount", point)
    return True


def faults_of(scene: Scene, rng: random.Random, *, quick: bool) -> list[Fault]:
    """What is tried on an operation: everything, or a sample."""
    calls = scene.traced()
    failing = [call for call in calls if call.name in _FAILING and "<pipe:" not in call.text]
    every: list[list[Fault]] = [
        [Kill(call) for call in calls],
        [KillAll(call) for call in calls if call.name != "wait4"],
        [Signalled(SIGNALS[i % 3], call) for i, call in enumerate(calls)],
        [Failing(ERRORS[(i + rng.randrange(4)) % 4], call) for i, call in enumerate(failing)],
        list(bad_programs(scene)),
    ]
    for program in scene.programs:
        inner = scene.traced_child(program)
        every.append([KillChild(program, call, i % 2 == 0) for i, call in enumerate(inner)])
        every.append([KillWithChild(program, call) for call in inner])
        failing = [call for call in inner if call.name in _FAILING]
        every.append([FailingChild(program, ERRORS[i % 4], call) for i, call in enumerate(failing)])
    if AS_ROOT:
        every.append(
            [SmallDisk("dst", "KiB", kib) for kib in (0, 4, 8, 24, 64, 128, 160, 192, 256, 320, 400)]
        )
        every.append([SmallDisk("dst", "inodes", count) for count in (0, 1, 2, 3, 5, 8, 12, 16, 20, 24, 30)])
        every.append([SmallDisk("config", "KiB", kib) for kib in (0, 4, 8, 64, 140)])
        every.append([SmallDisk("config", "inodes", count) for count in (0, 1, 2)])
        every.append([SmallDisk("dst", "read-only", 0), SmallDisk("config", "read-only", 0)])
    if quick:
        renames = [call for call in calls if call.name in ("rename", "renameat2")]
        publishing = [Kill(renames[-1]), KillAll(renames[-1])] if renames else []
        picked = [rng.choice(group) for group in every if group]
        kills = [fault for fault in picked if isinstance(fault, (Kill, KillAll, KillWithChild))]
        others = [fault for fault in picked if fault not in kills]
        return [*publishing, *kills[: 3 - len(publishing)], *rng.sample(others, min(3, len(others)))]
    # Every call of ours meets a kill and an error; of the rest a sample is enough.
    return [fault for group in every if group for fault in _thinned(group)]


def _thinned(group: list[Fault]) -> list[Fault]:
    limit = {KillAll: 80, Signalled: 24, KillChild: 16, KillWithChild: 16, FailingChild: 32}.get(
        type(group[0]), 1000
    )
    return group[:: -(-len(group) // limit)]


@contextmanager
def prepared(name: str, top: Path, server: postgres_servers.Server | None) -> Iterator[Scene]:
    """An operation that faults can be tried on."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is signal.SIG_IGN:  # under nohup(1), for one; children inherit it
            signal.signal(signum, signal.SIG_DFL)
    scene = SCENES[name]()
    if isinstance(scene, DbScene):
        assert server is not None
        scene.server = server
    scene.prepare(top / name)
    try:
        yield scene
    finally:
        shutil.rmtree(top / name)


def one_line(text: str) -> str:
    """The text without line ends, and not too much of it."""
    shown = " | ".join(text.splitlines())
    return shown if len(shown) < 800 else f"{shown[:500]} ... {shown[-300:]}"


def _try_all(
    scene: Scene, faults: Sequence[Fault], jobs: int, verbose: bool
) -> tuple[Counter[str], list[str]]:
    """Returns how many of each kind came to pass, and what was wrong."""
    tried: Counter[str] = Counter()
    failures = []

    def one(fault: Fault) -> tuple[Fault, list[str] | None]:
        try:
            return fault, attempt(scene, fault)
        except Exception as error:  # noqa: BLE001, RUF100 - the harness itself: say it and go on
            return fault, [f"the harness failed: {error!r}"]

    with ThreadPoolExecutor(jobs) as pool:
        for fault, wrong in pool.map(one, faults):
            if wrong is None:
                tried["without effect"] += 1
                continue
            tried[fault.kind] += 1
            failures += [f"{scene.name}: {fault}: {'; '.join(wrong)}"] if wrong else []
            if verbose:
                print(f"  {fault}: {one_line('; '.join(wrong)) or 'good'}", flush=True)
    return tried, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Tries faults on btw-backup.")
    parser.add_argument("--quick", action="store_true", help="try a sample only")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    parser.add_argument("--verbose", action="store_true", help="a line for each fault")
    kinds = sorted(cls.kind for cls in Fault.__subclasses__())
    about = f"only this operation ({', '.join(SCENES)}), or this kind of fault ({', '.join(kinds)})"
    parser.add_argument("--only", action="append", default=[], metavar="KIND", help=about)
    args = parser.parse_args()
    if unknown := set(args.only) - set(SCENES) - set(kinds):
        parser.error(f"no such kind: {', '.join(unknown)}")
    names = [name for name in SCENES if name in args.only] or list(SCENES)
    only = [kind for kind in kinds if kind in args.only] or kinds
    total, failures = 0, []
    server = None
    with tempfile.TemporaryDirectory(prefix="btw-faults-") as top:
        os.chmod(top, 0o755)
        try:
            for name in names:
                if SCENES[name]().programs[:1] in (("pg_dump",), ("pg_dumpall",)) and server is None:
                    server = postgres_servers.Server(postgres_servers.INSTALLATIONS[0])
                with prepared(name, Path(top), server) as scene:
                    faults = faults_of(scene, random.Random(f"{args.seed} {name}"), quick=args.quick)
                    faults = [fault for fault in faults if fault.kind in only]
                    tried, wrong = _try_all(scene, faults, args.jobs, args.verbose)
                without = tried.pop("without effect", 0)
                counts = ", ".join(f"{count} {kind}" for kind, count in sorted(tried.items()))
                note = f" ({without} more had no effect)" if without else ""
                print(f"{name}: {tried.total()} faults: {counts}{note}; {len(wrong)} wrong", flush=True)
                total += tried.total()
                failures += wrong
        finally:
            if server is not None:
                server.stop()
    for failure in failures:
        print(one_line(failure))
    lost = sum(LOST in failure for failure in failures)
    print(f"{total} faults tried, {lost} points lost" + (f", {len(failures)} failures" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
