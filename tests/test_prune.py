"""``btw-backup prune`` on real destinations removes what no rule keeps and nothing else, even if killed."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from .faults.tracing import CHANGING, parse_trace, tracing
from .helpers.running import Btw, Result

START = datetime(2025, 3, 1, 12, tzinfo=UTC)
SILENCE = Result(0, "", "")


def name_of(day: int) -> str:
    return f"{START + timedelta(days=day):%Y-%m-%dT%H:%M:%S}"


def add_tarball(dst: Path, day: int, ending: str = ".tbz") -> str:
    """Make a tarball of that day, with a checksum if it is not compressed."""
    path = dst / f"{name_of(day)}{ending}"
    path.write_bytes(b"it is not read\n")
    if ending == ".tar":
        with open(f"{path}.sha256", "wb") as file:
            subprocess.run(["sha256sum", path.name], cwd=dst, stdout=file, check=True)
    return path.name


def add_chain(dst: Path, days: Sequence[int], stage: Path) -> str:
    """Make a chain with a point on each of those days."""
    stage.mkdir(exist_ok=True)
    chain = dst / name_of(days[0])
    for day in days:
        seconds = int((START + timedelta(days=day)).timestamp())
        (stage / "content").write_text(f"day {day}\n" * 100)
        archive = stage / "to be backed up" / "backup.tar"
        archive.parent.mkdir(exist_ok=True)
        subprocess.run(["tar", "-C", stage, "-cf", archive, "./content"], check=True)
        os.utime(archive, (seconds, seconds))
        argv = ["rdiff-backup", "-v2", "--current-time", str(seconds), "backup"]
        subprocess.run([*argv, archive.parent, chain], check=True)
    return chain.name


def contents(top: Path) -> dict[str, bytes | None]:
    """Map everything outside the private directory to its content, or None if it is no file."""
    found = {str(path.relative_to(top)): path for path in top.rglob("*")}
    return {
        name: path.read_bytes() if path.is_file() else None
        for name, path in found.items()
        if not name.startswith(".btw-backup")
    }


def entries(dst: Path) -> list[str]:
    return sorted(name for name in os.listdir(dst) if name != ".btw-backup")


@pytest.fixture
def tarballs(dst: Path) -> list[str]:
    """Tarballs of five days, one of each kind."""
    kinds = (".tbz", ".tar.zst", ".tar", ".tar.gz", ".tar.xz")
    return [add_tarball(dst, day, ending) for day, ending in enumerate(kinds)]


def test_what_no_rule_keeps_goes(btw: Btw, dst: Path, tarballs: list[str]) -> None:
    assert btw("prune", "--keep-last", "2", dst) == SILENCE
    assert entries(dst) == tarballs[3:]
    assert [path.name for path in (dst / ".btw-backup").iterdir()] == ["lock"]


def test_a_checksum_goes_with_its_tarball_and_stays_with_it(btw: Btw, dst: Path, tarballs: list[str]) -> None:
    assert btw("prune", "--keep-last", "3", dst) == SILENCE
    assert entries(dst) == [tarballs[2], f"{tarballs[2]}.sha256", *tarballs[3:]]
    assert btw("prune", "--keep-last", "1", dst) == SILENCE
    assert entries(dst) == tarballs[4:]


def test_a_dry_run_changes_nothing_and_says_what_would_be_done(
    btw: Btw, dst: Path, tarballs: list[str]
) -> None:
    before = contents(dst)
    result = btw("prune", "--dry-run", "--keep-last", "1", "--keep-weekly", "2", dst)
    # 2 March 2025 is a Sunday.
    assert result == Result(
        0,
        f"remove {tarballs[0]} (no rule keeps it)\n"
        f"keep   {tarballs[1]} (weekly)\n"
        f"remove {tarballs[2]} (no rule keeps it)\n"
        f"remove {tarballs[3]} (no rule keeps it)\n"
        f"keep   {tarballs[4]} (last, weekly)\n",
        "",
    )
    assert contents(dst) == before
    assert ".btw-backup" not in os.listdir(dst)
    done = btw("-v", "prune", "--keep-last", "1", "--keep-weekly", "2", dst)
    assert (done.status, done.out) == (0, result.out)
    assert "removed 3 of 5 backups" in done.err
    assert entries(dst) == [tarballs[1], tarballs[4]]


def test_json_says_of_each_backup_what_was_done_and_why(btw: Btw, dst: Path, tarballs: list[str]) -> None:
    policy = ["--keep-last", "1", "--keep-weekly", "2"]
    expected = [
        {"destination": str(dst), "backup": name, "keep": keep, "reason": reason, "removed": not keep}
        for name, keep, reason in zip(
            tarballs,
            [False, True, False, False, True],
            ["no rule keeps it", "weekly", "no rule keeps it", "no rule keeps it", "last, weekly"],
            strict=True,
        )
    ]
    dry = btw("prune", "--json", "--dry-run", *policy, dst)
    assert (dry.status, dry.err) == (0, "")
    assert json.loads(dry.out) == [{**each, "removed": False} for each in expected]
    assert entries(dst) == sorted([*tarballs, f"{tarballs[2]}.sha256"])
    done = btw("-v", "prune", "--json", *policy, dst)
    assert (done.status, json.loads(done.out)) == (0, expected)
    assert done.err == "btw_backup: removed 3 of 5 backups\n"
    assert entries(dst) == [tarballs[1], tarballs[4]]


def test_json_of_several_destinations_is_one_array(
    btw: Btw, dst: Path, tmp_path: Path, tarballs: list[str]
) -> None:
    result = btw("prune", "--json", "--keep-last", "9", tmp_path / "missing", dst)
    assert result.status == 1 and "missing" in result.err
    found = json.loads(result.out)
    assert [each["backup"] for each in found] == tarballs
    assert {each["destination"] for each in found} == {str(dst)}
    alone = btw("prune", "--json", "--keep-last", "9", tmp_path / "missing")
    assert (alone.status, alone.out) == (1, "[]\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_dry_run_on_a_read_only_disk(btw: Btw, dst: Path, tarballs: list[str]) -> None:
    subprocess.run(["mount", "--bind", "-o", "ro", dst, dst], check=True)
    try:
        assert btw("prune", "-n", "--keep-last", "1", dst).status == 0
        refused = btw("prune", "--keep-last", "1", dst)
        assert refused.status == 1 and len(refused.err.splitlines()) == 1
    finally:
        subprocess.run(["umount", dst], check=True)
    assert set(tarballs) <= set(entries(dst))


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_chain_is_kept_as_long_as_one_of_its_points_is(
    btw: Btw, dst: Path, tmp_path: Path, last: int
) -> None:
    chain = add_chain(dst, [0, 1, 2], tmp_path / "stage")
    tarball = add_tarball(dst, 3)
    before = contents(dst / chain)
    assert btw("prune", "--keep-last", str(last), dst) == SILENCE
    if last == 1:
        assert entries(dst) == [tarball]
    else:
        assert entries(dst) == [chain, tarball]
        assert contents(dst / chain) == before
        assert btw("verify", "--at", name_of(2), dst) == SILENCE


def test_the_oldest_point_of_a_chain_keeps_it_too(btw: Btw, dst: Path, tmp_path: Path) -> None:
    chain = add_chain(dst, [-400, -399], tmp_path / "stage")
    later = add_chain(dst, [-200, 0], tmp_path / "stage")
    assert name_of(-400)[:4] == "2024" == name_of(-399)[:4] == name_of(-200)[:4]
    result = btw("prune", "-n", "--keep-yearly", "1", "--keep-within", "401d", dst)
    assert result.out == f"keep   {chain} (within)\nkeep   {later} (within, yearly)\n"
    assert btw("prune", "--keep-yearly", "2", dst) == SILENCE
    assert entries(dst) == [later]


def test_the_newest_stays_whatever_the_policy(btw: Btw, dst: Path, tmp_path: Path) -> None:
    chain = add_chain(dst, [-30, 5], tmp_path / "stage")  # its name is older than the tarball's
    add_tarball(dst, 0)
    assert btw("prune", "--keep-within", "0s", dst).status == 0
    assert entries(dst) == [chain]


@pytest.mark.parametrize("args", [[], ["--dry-run"], ["--keep-last", "0", "--keep-daily", "0"]])
def test_no_policy_is_a_usage_error(btw: Btw, dst: Path, tarballs: list[str], args: list[str]) -> None:
    before = contents(dst)
    result = btw("prune", *args, dst)
    assert (result.status, result.out) == (2, "")
    assert "policy" in result.err
    assert contents(dst) == before


@pytest.mark.parametrize(
    "args", [["--keep-last", "-1"], ["--keep-last", "x"], ["--keep-daily", "1.5"], ["--keep-within", "often"]]
)
def test_a_policy_that_makes_no_sense_is_a_usage_error(
    btw: Btw, dst: Path, tarballs: list[str], args: list[str]
) -> None:
    before = contents(dst)
    result = btw("prune", *args, dst)
    assert result.status == 2
    assert args[0] in result.err and args[1] in result.err
    assert contents(dst) == before


def test_what_btw_backup_did_not_make_stays(btw: Btw, dst: Path, tarballs: list[str], tmp_path: Path) -> None:
    (dst / "notes.txt").write_text("mine\n")
    (dst / "log.txt").write_text("a line\n")
    (dst / name_of(-9)).mkdir()  # no chain
    (dst / name_of(-9) / "precious").write_text("mine\n")
    (dst / f"{name_of(-8)}.tbz").mkdir()
    (dst / f"{name_of(-7)}.tbz").symlink_to(tmp_path / "elsewhere")
    (dst / f"{name_of(-6)}.zip").write_text("mine\n")
    (dst / "2025-02-30T00:00:00.tbz").write_text("there is no such day\n")
    (dst / f"old {name_of(-5)}.tbz").write_text("mine\n")
    elsewhere = tmp_path / "chain"
    elsewhere.mkdir()
    shutil.move(dst / add_chain(dst, [-4], tmp_path / "stage"), elsewhere)
    (dst / name_of(-4)).symlink_to(elsewhere / name_of(-4))
    foreign = contents(dst).keys() - {*tarballs, f"{tarballs[2]}.sha256"}
    before = {name: contents(dst)[name] for name in foreign}
    assert btw("prune", "--keep-last", "1", dst) == SILENCE
    assert contents(dst) == {**before, tarballs[4]: b"it is not read\n"}
    assert (elsewhere / name_of(-4) / "backup.tar").exists()


@pytest.mark.parametrize("of", [0, 9], ids=["of one that goes", "of one that is elsewhere"])
def test_a_checksum_that_an_administrator_made_stays(
    btw: Btw, dst: Path, tarballs: list[str], of: int
) -> None:
    """btw-backup makes none for a compressed tarball."""
    (dst / f"{name_of(of)}.tbz.sha256").write_text("mine\n")
    assert btw("prune", "--keep-last", "1", dst) == SILENCE
    assert entries(dst) == sorted([f"{name_of(of)}.tbz.sha256", tarballs[4]])


def test_the_lock(btw: Btw, dst: Path, tarballs: list[str]) -> None:
    (dst / ".btw-backup").mkdir(mode=0o700)
    with open(dst / ".btw-backup" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = contents(dst)
        result = btw("prune", "--keep-last", "1", dst)
        assert result.status == 75
        assert str(dst) in result.err and len(result.err.splitlines()) == 1
        assert btw("prune", "-n", "--keep-last", "1", dst).status == 0
        assert contents(dst) == before
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "btw_backup",
            "prune",
            "--wait",
            "1m",
            "--keep-last",
            "1",
            dst,
        ]
        with subprocess.Popen(command) as waiting:
            time.sleep(0.5)
            assert waiting.poll() is None
            assert contents(dst) == before
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert waiting.wait(60) == 0
    assert entries(dst) == tarballs[4:]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO"])
def test_an_entry_is_whole_or_gone_wherever_it_is_hit(
    btw: Btw, dst: Path, tmp_path: Path, fault: str
) -> None:
    add_chain(dst, [0, 1], tmp_path / "stage")
    add_tarball(dst, 2, ".tar")
    add_tarball(dst, 3, ".tbz")
    newest = add_chain(dst, [4, 5], tmp_path / "stage")
    before = contents(dst)
    copy = tmp_path / "copy"
    prune: list[str | Path] = [sys.executable, "-m", "btw_backup", "prune", "--keep-last", "1", copy]

    def hit(calls: set[str], inject: str = "") -> subprocess.CompletedProcess[str]:
        subprocess.run(["cp", "-a", dst, copy], check=True)
        argv = [*tracing(tmp_path / "trace", calls, inject), *prune]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(argv, capture_output=True, text=True, env=environment)

    assert hit(CHANGING).returncode == 0
    calls = [call for call in parse_trace((tmp_path / "trace").read_text()) if "copy" in call.text]
    shutil.rmtree(copy)
    removals = [call for call in calls if call.name.startswith("rename")]
    assert len(removals) == 3
    # Each rename, and a sample of the other calls that change the destination.
    hits = sorted({*removals, *calls[:: 4 if "KILL" in fault else 6]})
    gone = set()
    for call in hits:
        ended = hit({call.name}, f"{call.name}:{fault}:when={call.number}")
        assert ended.returncode == (-signal.SIGKILL if "KILL" in fault else 1), call
        assert "Traceback" not in ended.stderr, call
        left = contents(copy)
        there = os.listdir(copy)
        assert left == {name: before[name] for name in before if Path(name).parts[0] in there}, call
        listed = [line for line in btw("list", copy).out.splitlines() if not line.startswith(" ")]
        assert newest in listed
        gone.add(4 - len(listed))
        again = btw("prune", "--keep-last", "1", copy)
        assert again == SILENCE, call
        assert entries(copy) == [newest], call
        assert os.listdir(copy / ".btw-backup") == ["lock"], call
        shutil.rmtree(copy)
    assert gone >= {0, 1, 2}
