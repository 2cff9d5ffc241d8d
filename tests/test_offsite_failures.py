"""Off-site copies when something goes wrong: kills, signals, dead stores, full disks, foreign locks."""

import hashlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from btw_backup.programs import versions

from .faults.case import LOST, Broken, Case, Ended
from .faults.faults import ERRORS, Failing, Fault, Kill, KillAll, Signalled, SmallDisk
from .faults.points import Archivist
from .faults.scenes import OWNER, FsScene
from .faults.tracing import Call
from .faults.trying import attempt
from .helpers import hostile, trees
from .helpers.destinations import add_tarball, at_rest, mounted
from .helpers.repositories import PASSWORD, S3, S3_KEYS, configure, restic, snapshots
from .helpers.running import Btw, Gate, Result, Start, ended, wait_for

pytestmark = [
    pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the owners of a destination come back for root only"),
]
traced = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

SILENCE = Result(0, "", "")
# It has --retry-lock.
WAITS = shutil.which("restic") is not None and versions.version("restic") >= (0, 16)
SCRIPT = Path(__file__).with_name("fresh_machine.sh")


AUTO = "OFFSITE_AUTO = True\n"
NOT_SENT = "btw_backup: the backup was made, but not its off-site copy: "


def check_same(one: Path, other: Path, *but: str) -> None:
    """Raise Broken if diff(1) or rsync(1) finds a difference between two trees, except for those names."""
    rsync = ["rsync", "-n8aHAX", "--checksum", "--delete", "--itemize-changes"]
    rsync += ["--omit-dir-times"] * ("log.txt" in but)  # where it was new
    for argv in (
        ["diff", "-r", "--no-dereference", *(f"--exclude={name}" for name in but), f"{one}", f"{other}"],
        [*rsync, *(f"--exclude=/{name}" for name in but), f"{one}/", f"{other}/"],
    ):
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode or done.stdout:
            raise Broken(f"{argv[0]} finds a difference: {done.stdout}{done.stderr}")


def bury(session: int) -> None:
    """Wait until init has reaped what was killed in a session: only then are restic's locks stale."""
    while subprocess.run(["pgrep", "-s", str(session)], stdout=subprocess.DEVNULL).returncode == 0:
        time.sleep(0.01)


# Kills


@dataclass
class SyncScene(FsScene):
    """``sync`` of a destination that has a new point since it was last sent.

    The destination has the same path in every case: its copies are found by that.
    """

    blank: Path = Path()
    # Copies are removed too: what a killed `restic forget --prune` leaves must do no harm.
    general: str = "OFFSITE_KEEP = {'last': 2}\n"

    def arguments(self, case: Case) -> list[str]:
        return ["sync", str(case.dst)]

    def backup(self, case: Case) -> list[str]:
        return super().arguments(case)

    def first_config(self, case: Case) -> None:
        super().first_config(case)
        shutil.copytree(self.blank, case.top / "repository")
        configure(case.config, case.top / "repository", options=self.general)

    def prepare(self, top: Path) -> None:
        self.top = top
        self.archivist = Archivist(top, self.plain)
        made = Case(self, top / "case-1")
        made.dst.mkdir()
        os.chown(made.dst, OWNER, OWNER)
        self.change(0)
        self.first_config(made)
        for number in range(self.rounds):
            self.change(number)
            self._must(made, self.backup(made))
            if number < self.rounds - 1:
                self._must(made, ["sync", str(made.dst)])
        self.before = made.list()
        self.held = self.archivist.contents(made.dst, self.before)
        self.ready(made)
        made.top.rename(top / "base")

    def ready(self, made: Case) -> None:
        """Do what else must be done before the operation."""
        log = made.dst / "log.txt"  # sync copies it, and needs room for that
        log.write_text("2025-01-01T00:00:00: a line of an earlier run\n" * 200)
        os.chown(log, OWNER, OWNER)

    def _must(self, case: Case, arguments: Sequence[str]) -> None:
        done = subprocess.run(case.command(*arguments), env=case.environment, capture_output=True, text=True)
        if done.returncode or done.stderr:
            raise Broken(f"{arguments} exited with {done.returncode}: {done.stderr}")

    @contextmanager
    def case(self) -> Iterator[Case]:
        case = Case(self, self.top / "case-1")
        subprocess.run(["cp", "-a", f"{self.top / 'base'}/.", case.top], check=True)
        try:
            yield case
        finally:
            subprocess.run(["rm", "-rf", case.top], check=True)

    def check_points(self, case: Case) -> bool:
        bury(case.session)
        return super().check_points(case)

    def check_after(self, case: Case) -> None:
        """Raise Broken unless the repository is intact and gives back what the destination holds."""
        repository = case.top / "repository"
        try:
            restic(repository, "check", "--no-lock", "--read-data")
            found = snapshots(repository)
        except subprocess.CalledProcessError as error:
            raise Broken(f"{LOST}the repository: {error.output}") from error
        if not 2 <= len(found) <= 3:
            raise Broken(f"{len(found)} snapshots, where 2 are kept")
        target = case.top / "fetched"
        self._must(case, ["fetch", str(case.dst), str(target)])
        # New lines in the log are no reason to send anything.
        check_same(case.dst, target, ".btw-backup", *(["log.txt"] if self.adds else []))

    def check_left_over(self, case: Case, who: str) -> None:
        if not at_rest(case.dst):
            raise Broken(f"{who} leaves {os.listdir(case.dst / '.btw-backup')}")
        (case.dst / ".btw-backup" / "sent").unlink(missing_ok=True)
        own = case.config / ".offsite"
        if own.exists() and {path.name for path in own.iterdir()} <= {"sent"}:
            shutil.rmtree(own)
        super().check_left_over(case, who)

    def check_source(self, case: Case) -> None:
        """Raise Broken unless the program restores the source from the fetched copy."""
        self._must(case, ["fs-restore", str(case.top / "fetched"), str(case.top / "restored")])
        trees.assert_same(self.source, case.top / "restored")


@dataclass
class AutoScene(SyncScene):
    """``fs`` that sends what it stored."""

    adds: bool = True

    def arguments(self, case: Case) -> list[str]:
        return self.backup(case)

    def ready(self, made: Case) -> None:
        self._must(made, ["sync", str(made.dst)])
        configure(made.config, made.top / "repository", options=self.general + AUTO)
        self.change(self.rounds)
        with self._copied(made) as copy:
            self._must(copy, self.arguments(copy))
            self.current = list(self.archivist.contents(copy.dst, copy.list()).values())[-1]

    @contextmanager
    def _copied(self, made: Case) -> Iterator[Case]:
        """Lend the finished case, and restore it as it was afterwards."""
        aside = self.top / "aside"
        subprocess.run(["cp", "-a", made.top, aside], check=True)
        try:
            yield made
        finally:
            shutil.rmtree(made.top)
            aside.rename(made.top)


def _scene(made: SyncScene, top: Path, blank: Path) -> SyncScene:
    made.blank = blank
    top.chmod(0o755)
    made.prepare(top)
    return made


@pytest.fixture(scope="session")
def sync_scene(tmp_path_factory: pytest.TempPathFactory, blank: Path) -> SyncScene:
    made = SyncScene("sync", ("restic",), adds=False, rounds=3)
    return _scene(made, tmp_path_factory.mktemp("sync"), blank)


@pytest.fixture(scope="session")
def auto_scene(tmp_path_factory: pytest.TempPathFactory, blank: Path) -> SyncScene:
    made = AutoScene("auto", ("restic",), rounds=2)
    return _scene(made, tmp_path_factory.mktemp("auto"), blank)


@pytest.fixture(scope="session")
def sync_calls(sync_scene: SyncScene) -> list[Call]:
    """The calls of a sync that change the file system, start restic or await its end."""
    return sync_scene.traced()


@pytest.fixture(scope="session")
def auto_calls(auto_scene: SyncScene) -> list[Call]:
    """The calls of a backup from the moment when the new point is published and the view is begun."""
    calls = auto_scene.traced()
    first = next(
        number for number, call in enumerate(calls) if call.name == "mkdirat" and "view" in call.text
    )
    return calls[first:]


def spread(found: Sequence[Call], count: int) -> list[Call]:
    """Return ``count`` of the calls, evenly spread, with the first and the last among them."""
    last = len(found) - 1
    return [found[round(number * last / (count - 1))] for number in range(count)]


def try_all(scene: SyncScene, tried: Sequence[Fault]) -> None:
    """Fail unless each fault took effect and cost nothing."""
    wrong = []
    for fault in tried:
        found = attempt(scene, fault)
        wrong += [f"{fault}: {text}" for text in (["it had no effect"] if found is None else found)]
    assert not wrong, "\n".join(wrong)


@traced
@pytest.mark.parametrize("part", range(4))
def test_a_killed_sync_costs_nothing(sync_scene: SyncScene, sync_calls: list[Call], part: int) -> None:
    alone = [Kill(call) for call in spread(sync_calls, 12)]
    together = [KillAll(call) for call in spread(sync_calls[1:], 12) if call.name != "wait4"]
    try_all(sync_scene, [*alone[part::4], *together[part::4]])


@dataclass(frozen=True)
class KillWhen(Fault):
    """SIGKILL hits everything as soon as restic adds (``+``) or removes a file of some kind."""

    kind = "kill when"
    change: str
    what: str

    def strike(self, case: Case) -> Ended | None:
        with case.running() as process:
            before = self._names(case)
            while process.poll() is None:
                now = self._names(case)
                if now - before if self.change == "+" else before - now:
                    return case.ended(status=-9)
        return None

    def _names(self, case: Case) -> set[str]:
        top = case.top / "repository" / self.what
        return {name for _, _, names in os.walk(top) for name in names}


@pytest.mark.parametrize(
    "moments", [[("+", "data"), ("+", "index"), ("+", "snapshots")], [("-", "snapshots"), ("-", "index")]]
)
def test_a_sync_killed_while_restic_writes_costs_nothing(
    sync_scene: SyncScene, moments: list[tuple[str, str]]
) -> None:
    try_all(sync_scene, [KillWhen(*moment) for moment in moments])


@traced
@pytest.mark.parametrize("part", range(2))
def test_what_a_killed_backup_did_not_send_is_sent_by_the_next(
    auto_scene: SyncScene, auto_calls: list[Call], part: int
) -> None:
    alone = [Kill(call) for call in spread(auto_calls, 4)]
    together = [KillAll(call) for call in spread(auto_calls[4:], 4) if call.name != "wait4"]
    try_all(auto_scene, [*alone[part::2], *together[part::2]])


@traced
def test_signals_at_any_moment(sync_scene: SyncScene, sync_calls: list[Call]) -> None:
    signals = itertools.cycle([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    some = [call for call in spread(sync_calls, 3) if call.name != "wait4"]
    try_all(sync_scene, [Signalled(signum, call) for signum, call in zip(signals, some, strict=False)])


@traced
def test_system_calls_that_fail(sync_scene: SyncScene, sync_calls: list[Call]) -> None:
    failing = [call for call in sync_calls if re.match("open|link|rename|mkdir|write|sendfile", call.name)]
    some = zip(itertools.cycle(ERRORS), spread(failing, 3), strict=False)
    try_all(sync_scene, [Failing(error, call) for error, call in some])


@dataclass(frozen=True)
class FullDestination(SmallDisk):
    """The destination's disk has little room: it is enough, or one line reports that it is not."""

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        super().judge(case, ended, there)
        lines = ended.err.splitlines()
        if ended.status and (len(lines) != 1 or f"{case.dst}" not in ended.err):
            raise Broken(f"does not say it in one line: {ended.err}")
        if ended.status == 0 and self.room == 0:
            raise Broken("it succeeded")


@pytest.mark.parametrize("what", ["KiB", "inodes", "read-only"])
def test_the_destinations_disk_is_full(sync_scene: SyncScene, what: str) -> None:
    rooms = {"KiB": [0], "inodes": [0, 2, 12], "read-only": [0]}[what]
    try_all(sync_scene, [FullDestination("dst", what, room) for room in rooms])


@pytest.mark.parametrize("moment", [("+", "data"), ("-", "snapshots")])
def test_the_fetched_copy_of_what_was_killed_gives_back_the_source(
    sync_scene: SyncScene, moment: tuple[str, str]
) -> None:
    with sync_scene.case() as case:
        assert KillWhen(*moment).strike(case)
        bury(case.session)
        sync_scene.check_retry(case, there=False)
        sync_scene.check_source(case)


# One destination


def add_point(dst: Path, number: int = 0, size: int = 1000) -> None:
    """Make a backup that cannot be compressed."""
    content = hashlib.shake_128(bytes([number])).hexdigest(size // 2)
    add_tarball(dst, f"2025-01-01T{number:02}:00:00.tbz", {"file": content})


@pytest.fixture
def filled(dst: Path) -> Path:
    """A destination with one backup."""
    add_point(dst)
    return dst


Backup = Callable[[str], Result]


@pytest.fixture
def backup(btw: Btw, src: Path, dst: Path) -> Backup:
    """Back up the source with this text in it."""
    assert btw("fs-init", "--type", "tar", src, "name").status == 0

    def run(text: str) -> Result:
        (src / "file").write_text(text)
        return btw("fs", src, dst)

    return run


def said(result: Result, status: int, *words: str | Path) -> None:
    """Fail unless a run ended with that status, and one line that holds all these words."""
    assert (result.status, len(result.err.splitlines())) == (status, 1), result
    assert result.err.startswith(NOT_SENT if status == 4 else "btw_backup: "), result
    assert [str(word) for word in words if str(word) not in result.err] == [], result
    assert PASSWORD not in result.err


def check_fetched(btw: Btw, dst: Path) -> None:
    """Fail unless the newest copy equals the destination, and nothing is left behind in that."""
    target = dst.with_name("fetched")
    shutil.rmtree(target, ignore_errors=True)
    assert btw("fetch", dst, target) == SILENCE
    check_same(dst, target, ".btw-backup", "log.txt")
    assert at_rest(dst)


# Signals while restic runs


def gate_before(top: Path, command: str) -> Gate:
    """Return a restic that waits at one of its commands, and writes down its process ID."""
    gate = Gate(top / "gate", "restic")
    script = top / "gate" / "restic"
    others = f'#!/bin/sh\n[ "$1" = {command} ] || exec {shutil.which("restic")} "$@"\necho $$ >{top}/pid\n'
    script.write_text(others + script.read_text())
    return gate


@pytest.mark.parametrize(
    "command, signum",
    [
        ("snapshots", signal.SIGINT),
        ("backup", signal.SIGTERM),
        ("backup", signal.SIGINT),
        ("forget", signal.SIGTERM),
    ],
)
def test_a_signal_ends_restic_too(
    btw: Btw,
    start: Start,
    repository: Path,
    config_dir: Path,
    filled: Path,
    tmp_path: Path,
    command: str,
    signum: signal.Signals,
) -> None:
    configure(config_dir, repository, options="OFFSITE_KEEP = {'last': 1}\n")
    assert btw("sync", filled) == SILENCE
    add_point(filled, 1)
    gate = gate_before(tmp_path, command)
    sync = start("sync", filled, env=gate.env)
    gate.reached()
    sync.send_signal(signum)
    assert ended(sync) == (128 + signum, "")
    restic = Path("/proc", (tmp_path / "pid").read_text().strip())
    wait_for(lambda: not restic.exists(), 10)  # it has been killed, but a busy system takes its time
    assert at_rest(filled)
    assert btw("sync", filled) == SILENCE
    check_fetched(btw, filled)


def test_a_store_that_never_answers_can_be_interrupted(
    start: Start, config_dir: Path, filled: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        configure(config_dir, f"rest:http://127.0.0.1:{silent.getsockname()[1]}/")
        sync = start("sync", filled)
        with silent.accept()[0]:
            sync.terminate()
            assert ended(sync) == (128 + signal.SIGTERM, "")
    assert at_rest(filled)


@pytest.mark.parametrize("address", ["rest:http://127.0.0.1:{port}/", "s3:http://127.0.0.1:{port}/bucket"])
def test_a_store_that_never_answers(
    btw: Btw, config_dir: Path, backup: Backup, dst: Path, address: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = address.format(port=silent.getsockname()[1])
        configure(config_dir, address, S3_KEYS, AUTO)
        begun = time.monotonic()
        said(backup("first"), 4, address, "no answer within 14 seconds")
        assert time.monotonic() - begun < 20
    assert len(btw("list", dst).out.splitlines()) == 1
    assert at_rest(dst)


def test_a_store_that_answers_may_take_long(
    start: Start, repository: Path, filled: Path, tmp_path: Path
) -> None:
    gate = gate_before(tmp_path, "snapshots")  # nothing but the list of them takes its time
    sync = start("sync", filled, env=gate.env)
    gate.reached()
    time.sleep(18)
    gate.open()
    assert ended(sync) == (0, "")
    assert len(snapshots(repository)) == 1


# A store by the network


@pytest.fixture
def store(tmp_path: Path, blank: Path, config_dir: Path) -> Iterator[S3]:
    """An S3 endpoint with an empty repository in it; the configuration names it."""
    shutil.copytree(blank, tmp_path / "s3" / "bucket" / "server")
    with S3(tmp_path / "s3") as made:
        configure(config_dir, made.address, made.env, AUTO)
        yield made


def test_a_store_that_is_down(btw: Btw, store: S3, backup: Backup, dst: Path) -> None:
    assert backup("first") == SILENCE
    store.stop()
    begun = time.monotonic()
    said(btw("sync", dst), 1, store.address, "connection refused")
    assert time.monotonic() - begun < 20  # 0.17 and newer ask again for 15 minutes
    said(backup("second"), 4, store.address, "connection refused")
    assert len(btw("list", dst).out.splitlines()) == 2
    said(backup("second"), 4, store.address)  # still unsent, although nothing has changed
    assert at_rest(dst)
    store.start()
    assert backup("second") == SILENCE
    assert len(snapshots(store.address, store.env)) == 2
    check_fetched(btw, dst)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ("secret", "signature"),
        ("password", "its password is not the one in OFFSITE_PASSWORD_FILE"),
        ("bucket", "sync --init"),
    ],
)
def test_a_store_that_refuses(
    btw: Btw, store: S3, config_dir: Path, backup: Backup, dst: Path, wrong: str, words: str
) -> None:
    if wrong == "password":
        (config_dir / "password").write_text("incorrect\n")
    else:
        address = store.address.replace("bucket", "other") if wrong == "bucket" else store.address
        secret = {"AWS_SECRET_ACCESS_KEY": "s3cr3t"} if wrong == "secret" else {}
        configure(config_dir, address, {**store.env, **secret}, AUTO)
    result = backup("first")
    said(result, 4, "off-site repository s3:", words)
    assert "s3cr3t" not in result.err
    said(btw("sync", dst), 1, words)
    assert at_rest(dst)
    configure(config_dir, store.address, store.env, AUTO)
    assert backup("first") == SILENCE
    check_fetched(btw, dst)


def test_a_store_that_goes_away_and_comes_back(
    btw: Btw, start: Start, store: S3, dst: Path, tmp_path: Path
) -> None:
    add_point(dst, size=40_000_000)
    server = tmp_path / "s3" / "bucket" / "server"
    sync = start("sync", dst)
    while sync.poll() is None and not any((server / "data").rglob("?" * 64)):
        time.sleep(0.001)
    assert sync.poll() is None, ended(sync)
    store.stop()
    time.sleep(1.5)
    store.start()
    status, err = ended(sync)
    assert status == 0, err
    check_fetched(btw, dst)


# Full and locked repositories


@pytest.fixture
def small(blank: Path, config_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """A repository on a small disk of its own; the configuration names it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=4m", "none", disk):
        shutil.copytree(blank, disk / "repository")
        configure(config_dir, disk / "repository", options=AUTO)
        yield disk / "repository"


def fill_up(disk: Path, room: int) -> Path:
    """Leave ``room`` KiB free on a disk. Returns the file to remove to make room."""
    free = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(free.f_bfree * free.f_frsize - room * 1024))
    return ballast


NO_ROOM = "no space left on device"


@pytest.mark.parametrize("room, words", [(0, []), (100, [NO_ROOM])])
def test_a_full_repository(
    btw: Btw, small: Path, backup: Backup, dst: Path, room: int, words: list[str]
) -> None:
    assert backup("little") == SILENCE
    ballast = fill_up(small.parent, room)
    large = hashlib.shake_128(b"large").hexdigest(300_000)
    said(backup(large), 4, small, *words)
    assert at_rest(dst)
    said(btw("sync", dst), 1, small, *words)
    assert len(btw("list", dst).out.splitlines()) == 2
    ballast.unlink()
    assert backup(large) == SILENCE
    assert len(snapshots(small)) == 2
    check_fetched(btw, dst)
    restic(small, "check", "--no-lock", "--read-data")


def test_a_repository_without_any_room_says_so(btw: Btw, small: Path, filled: Path) -> None:
    fill_up(small.parent, 0)
    said(btw("sync", filled), 1, small, NO_ROOM)


@contextmanager
def locking(
    repository: Path, top: Path, *, exclusive: bool, seconds: int = 300
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a stranger's restic that has locked the repository.

    An exclusive lock is held for that long, another one until its standard input is closed.
    """
    strace = ["strace", "-f", "-o", str(top / "lock.trace"), "-e", "trace=unlinkat"]
    # Its lock is the first file that it removes.
    strace += ["-e", f"inject=unlinkat:delay_enter={seconds}000000"]
    argv = [*strace, "restic", "--no-cache", "check"] if exclusive else ["restic", "backup", "--stdin"]
    variables = {"RESTIC_REPOSITORY": str(repository), "RESTIC_PASSWORD": PASSWORD}
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    try:
        while not _has_a_lock(repository):
            assert process.poll() is None
            time.sleep(0.01)
        yield process
    finally:
        with suppress(ProcessLookupError):  # where it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        bury(process.pid)


def _has_a_lock(repository: Path) -> bool:
    """Whether a lock is complete; it may be renamed, or be gone, while it is looked at."""
    with suppress(FileNotFoundError):
        return any(path.stat().st_mode & 0o777 == 0o400 for path in (repository / "locks").iterdir())
    return False


@traced
@pytest.mark.parametrize("exclusive", [True, False])
def test_the_lock_of_a_dead_process_blocks_nobody(
    btw: Btw, repository: Path, config_dir: Path, filled: Path, tmp_path: Path, exclusive: bool
) -> None:
    configure(config_dir, repository, options="OFFSITE_KEEP = {'last': 1}\n")
    assert btw("sync", filled) == SILENCE
    with locking(repository, tmp_path, exclusive=exclusive):
        pass
    assert any((repository / "locks").iterdir())
    add_point(filled, 1)
    assert btw("sync", filled) == SILENCE
    assert len(snapshots(repository)) == 1
    assert not any((repository / "locks").iterdir())
    check_fetched(btw, filled)


@traced
def test_a_repository_that_somebody_has_locked(
    btw: Btw, repository: Path, filled: Path, tmp_path: Path
) -> None:
    with locking(repository, tmp_path, exclusive=True):
        said(btw("sync", filled), 1, repository, "already locked exclusively")
        assert at_rest(filled)
    assert snapshots(repository) == []


def test_copies_are_not_removed_while_somebody_reads_them(
    btw: Btw, repository: Path, config_dir: Path, filled: Path, tmp_path: Path
) -> None:
    configure(config_dir, repository, options="OFFSITE_KEEP = {'last': 1}\n")
    assert btw("sync", filled) == SILENCE
    for number in (1, 2):
        add_point(filled, number)
        if number == 1:
            with locking(repository, tmp_path, exclusive=False):
                said(btw("sync", filled), 0, "warning: OFFSITE_KEEP could not be applied")
        else:
            assert btw("sync", filled) == SILENCE
        assert len(snapshots(repository)) == (2 if number == 1 else 1)
        check_fetched(btw, filled)


@traced
@pytest.mark.parametrize("exclusive", [True, False])
def test_a_lock_that_is_given_up_within_a_minute(
    btw: Btw,
    start: Start,
    repository: Path,
    config_dir: Path,
    filled: Path,
    tmp_path: Path,
    exclusive: bool,
) -> None:
    configure(config_dir, repository, options="OFFSITE_KEEP = {'last': 1}\n")
    assert btw("sync", filled) == SILENCE
    add_point(filled, 1)
    with locking(repository, tmp_path, exclusive=exclusive, seconds=6) as holder:
        sync = start("sync", filled)
        if WAITS:
            time.sleep(6)
            assert sync.poll() is None
        else:
            sync.wait()
        holder.communicate()
        status, err = ended(sync)
    if WAITS:
        assert (status, err) == (0, "")
    elif exclusive:
        said(Result(status, "", err), 1, repository, "already locked exclusively")
    else:
        said(Result(status, "", err), 0, "warning: OFFSITE_KEEP could not be applied", "already locked")
    ours = [snapshot for snapshot in snapshots(repository) if snapshot.get("tags")]
    assert len(ours) == (1 if WAITS or exclusive else 2)
    assert btw("sync", filled) == SILENCE
    check_fetched(btw, filled)


# Two at once


def test_two_syncs_of_one_destination(
    btw: Btw, start: Start, repository: Path, filled: Path, tmp_path: Path
) -> None:
    gate = gate_before(tmp_path, "backup")
    first = start("sync", filled, env=gate.env)
    gate.reached()
    said(btw("sync", filled), 75, filled, "sending")
    assert btw("list", filled).out == "2025-01-01T00:00:00.tbz\n"
    gate.open()
    assert ended(first) == (0, "")
    assert btw("sync", filled) == SILENCE
    assert len(snapshots(repository)) == 1
    check_fetched(btw, filled)


def test_a_sync_waits_for_another(
    btw: Btw, start: Start, repository: Path, filled: Path, tmp_path: Path
) -> None:
    gate = gate_before(tmp_path, "backup")
    first = start("sync", filled, env=gate.env)
    gate.reached()
    said(btw("sync", "--wait", "1s", filled), 75, filled)
    second = start("sync", "--wait", "1m", filled)
    threading.Timer(1, gate.open).start()
    assert ended(second) == (0, "")
    assert ended(first) == (0, "")
    assert len(snapshots(repository)) == 1


def test_a_sync_waits_for_a_backup(
    btw: Btw, start: Start, repository: Path, backup: Backup, src: Path, dst: Path, tmp_path: Path
) -> None:
    assert backup("first") == SILENCE
    gate = Gate(tmp_path / "gate", "tar")
    (src / "file").write_text("second")
    running = start("fs", src, dst, env=gate.env)
    gate.reached()
    said(btw("sync", dst), 75, dst, f"process {running.pid} ")
    second = start("sync", "--wait", "1m", dst)
    gate.open()
    assert (ended(running), ended(second)) == ((0, ""), (0, ""))
    check_fetched(btw, dst)


def test_a_backup_while_another_state_is_sent(
    btw: Btw,
    start: Start,
    repository: Path,
    config_dir: Path,
    backup: Backup,
    dst: Path,
    tmp_path: Path,
) -> None:
    assert backup("first") == SILENCE
    configure(config_dir, repository, options=AUTO)
    gate = gate_before(tmp_path, "backup")
    first = start("sync", dst, env=gate.env)
    gate.reached()
    said(backup("second"), 4, dst, "sending")
    gate.open()
    assert ended(first) == (0, "")
    assert len(snapshots(repository)) == 1
    assert backup("second") == SILENCE
    assert len(snapshots(repository)) == 2
    check_fetched(btw, dst)


# The destination belongs to somebody else

TARBALL, PLAIN = "2025-01-01T00:00:00.tbz", "2025-01-01T01:00:00.tar"


@pytest.mark.parametrize(
    "name", ["log.txt", TARBALL, PLAIN, f"{PLAIN}.sha256", "", "backup.tar", "rdiff-backup-data/*log"]
)
def test_nothing_of_outside_is_sent(btw: Btw, land: hostile.Land, repository: Path, name: str) -> None:
    chain = hostile.fill(land, btw, lambda: btw("fs", "-u", hostile.USER, land.src, land.dst), "rdiff")
    add_tarball(land.dst, TARBALL, {"file": "compressed"})
    subprocess.run(["tar", "-C", land.src, "-cf", land.dst / PLAIN, "--force-local", "."], check=True)
    (land.dst / f"{PLAIN}.sha256").write_text(f"{0:064}  {PLAIN}\n")
    for path in land.dst.iterdir():
        if path.is_file():
            os.chown(path, *hostile.ids())
    outside = name.startswith(("2025", "log"))
    victim = land.dst / name if outside else hostile.pick(land, name, chain)
    prepared = land.top / "prepared"
    subprocess.run(["cp", "-a", land.dst, prepared], check=True)
    wrong = []
    for how in [how for how in hostile.HOW if how not in ("file", "directory")]:
        subprocess.run(["rm", "-rf", land.dst], check=True)
        subprocess.run(["cp", "-a", prepared, land.dst], check=True)
        hostile.put(how, victim, land)
        before = land.canaries()
        result = btw("sync", land.dst)
        gone = result == SILENCE and not any(
            line.endswith(f"/{victim.relative_to(land.dst)}")
            for line in restic(repository, "ls", snapshots(repository)[-1]["id"]).splitlines()
        )
        refused = result.status == 1 and victim.name in result.err and len(result.err.splitlines()) == 1
        # What is no backup at all is passed over, as list does it.
        if not (refused or (gone and victim.parent == land.dst)):
            wrong.append(f"{how}: {result}")
        if land.canaries() != before or not at_rest(land.dst):
            wrong.append(f"{how}: not all is as it was")
    restored = land.roots / "restored"
    for snapshot in snapshots(repository):
        restic(repository, "restore", str(snapshot["id"]), f"--target={restored}")
    for path in restored.rglob("*"):
        if path.is_file() and hostile.MARK in path.read_bytes():
            wrong.append(f"a secret was sent: {path}")
    assert not wrong, "\n".join(wrong)


# A machine that has nothing


def test_a_fresh_machine(btw: Btw, store: S3, config_dir: Path, src: Path, dst: Path, tmp_path: Path) -> None:
    shutil.rmtree(src)
    trees.build(src)
    (src / "fifo").unlink()  # diff(1) finds those to be different
    home = tmp_path / "home"
    home.mkdir()
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    assert btw("fs", "-u", "nobody", src, dst, env={"HOME": str(home)}) == SILENCE
    lost = tmp_path / "lost"
    lost.mkdir()
    password = tmp_path / "password"
    shutil.copy(config_dir / "password", password)
    for path in (src, dst, config_dir, home):
        path.rename(lost / path.name)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    argv: list[str | Path] = ["env", "-i", f"PATH={programs}", SCRIPT, store.address, password, dst]
    argv += [tmp_path / "result", *(f"{name}={value}" for name, value in store.env.items())]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert f"{os.uname().nodename}:{dst} ({src})\n" in done.stdout
    check_same(lost / "src", tmp_path / "result" / "restored")
    check_same(lost / "dst", tmp_path / "result" / "fetched", ".btw-backup")
    trees.assert_same(lost / "src", tmp_path / "result" / "restored")
