"""Two runs at once, clocks that are wrong, and chains that something else left broken."""

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from .conftest import Btw
from .faults import CHANGING, parse_trace, tracing

NO_MORE = "cannot add to the chain"


def tree(top: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def visible(dst: Path) -> dict[str, bytes]:
    """Every file of a destination that is not private."""
    return {name: data for name, data in tree(dst).items() if not name.startswith(".btw-backup")}


def listed(btw: Btw, dst: Path) -> list[str]:
    result = btw("list", dst)
    assert (result.status, result.err) == (0, "")
    return result.out.splitlines()


def extracted(dst: Path, name: str, to: Path) -> dict[str, bytes]:
    """What the newest point of a backup holds, by tar alone."""
    to.mkdir()
    path = dst / name
    archive = path if path.is_file() else path / "backup.tar"
    subprocess.run(["tar", "--force-local", "-C", to, "-xpf", archive], check=True)
    return tree(to)


def restored(chain: Path, at: str, to: Path) -> dict[str, bytes]:
    """What a point of a chain holds, by rdiff-backup and tar alone, from a copy of the chain."""
    to.mkdir()
    subprocess.run(["cp", "-a", chain, to / "chain"], check=True)
    argv = ["rdiff-backup", "-v0", "restore", "--at", f"{at}Z", to / "chain", to / "out"]
    subprocess.run(argv, check=True, cwd=to)
    (to / "tree").mkdir()
    subprocess.run(["tar", "-C", to / "tree", "-xpf", to / "out" / "backup.tar"], check=True)
    return tree(to / "tree")


@pytest.fixture(params=["rdiff", "tar"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def initialised(btw: Btw, src: Path) -> Path:
    """The source, with a working directory of the rdiff type."""
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    return src


class Gate:
    """A program that waits when it is run, until it is opened."""

    def __init__(self, top: Path, program: str, then: str = "") -> None:
        top.mkdir()
        self._go, self._started = top / "go", top / "started"
        script = top / program
        script.write_text(
            f'#!/bin/sh\ntouch "{self._started}"\nwhile [ ! -e "{self._go}" ]; do sleep 0.02; done\n{then}\n'
            f'exec {shutil.which(program)} "$@"\n'
        )
        script.chmod(0o755)
        self.env = {"PATH": f"{top}:{os.environ['PATH']}"}

    def open(self) -> None:
        self._go.touch()

    def reached(self) -> None:
        """Wait until the program was run."""
        deadline = time.monotonic() + 30
        while not self._started.exists():
            assert time.monotonic() < deadline, "it never ran"
            time.sleep(0.01)


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(config_dir: Path) -> Iterator[Start]:
    """Start a run that goes on in the background."""
    running: list[subprocess.Popen[str]] = []

    def go(*args: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
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


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_second_run_names_the_first_and_gives_up(
    btw: Btw, start: Start, initialised: Path, dst: Path, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate", "tar")
    first = start("fs", initialised, dst, env=gate.env)
    gate.reached()
    began = time.monotonic()
    second = btw("fs", initialised, dst)
    assert time.monotonic() - began < 5
    assert second.status == 75
    assert f"process {first.pid} " in second.err
    assert str(dst) in second.err
    assert len(second.err.splitlines()) == 1
    assert listed(btw, dst) == []  # reading needs no lock
    gate.open()
    assert ended(first) == (0, "")
    assert len(listed(btw, dst)) == 1
    assert tree(initialised) == extracted(dst, listed(btw, dst)[0], tmp_path / "out")


def test_second_run_waits(btw: Btw, start: Start, initialised: Path, dst: Path, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate", "tar")
    first = start("fs", initialised, dst, env=gate.env)
    gate.reached()
    began = time.monotonic()
    impatient = btw("fs", "--wait", "1s", initialised, dst)
    assert impatient.status == 75
    assert 1 <= time.monotonic() - began < 6
    second = start("fs", "--wait", "1m", initialised, dst)
    time.sleep(0.5)
    assert second.poll() is None
    (initialised / "late").write_text("written while the first is running\n")
    gate.open()
    assert ended(first)[0] == 0
    assert ended(second) == (0, "")
    chain = listed(btw, dst)[0]
    assert extracted(dst, chain, tmp_path / "out") == tree(initialised)


def test_first_run_killed_while_the_second_waits(
    btw: Btw, start: Start, initialised: Path, dst: Path, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate", "tar")
    first = start("fs", initialised, dst, env=gate.env)
    gate.reached()
    second = start("fs", "--wait", "1m", initialised, dst)
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert ended(second) == (0, "")
    assert len(listed(btw, dst)) == 1


def test_destinations_side_by_side(
    btw: Btw, start: Start, src: Path, dst: Path, tmp_path: Path, kind: str
) -> None:
    sources, destinations = [src, tmp_path / "src2"], [dst, tmp_path / "dst2"]
    shutil.copytree(src, sources[1])
    (sources[1] / "file").write_text("another\n")
    destinations[1].mkdir()
    gates = [Gate(tmp_path / f"gate{number}", "tar") for number in range(2)]
    for source in sources:
        assert btw("fs-init", "--type", kind, source, "name").status == 0
    runs = [
        start("fs", source, destination, env=gate.env)
        for source, destination, gate in zip(sources, destinations, gates, strict=True)
    ]
    for gate in gates:
        gate.reached()  # both are at work now
    for gate in gates:
        gate.open()
    assert [ended(run) for run in runs] == [(0, ""), (0, "")]
    for number, (source, destination) in enumerate(zip(sources, destinations, strict=True)):
        (name,) = listed(btw, destination)
        assert extracted(destination, name, tmp_path / f"out{number}") == tree(source)


def test_one_source_to_two_destinations_at_the_same_moment(
    btw: Btw, start: Start, src: Path, dst: Path, tmp_path: Path, config_dir: Path, kind: str
) -> None:
    destinations = [dst, tmp_path / "dst2"]
    destinations[1].mkdir()
    assert btw("fs-init", "--type", kind, src, "name").status == 0
    for number in range(3):
        (src / "file").write_text(f"state {number}\n")
        gates = [Gate(tmp_path / f"gate{number}{each.name}", "tar") for each in destinations]
        runs = [start("fs", src, each, env=gate.env) for each, gate in zip(destinations, gates, strict=True)]
        for gate in gates:
            gate.reached()
        for gate in gates:
            gate.open()
        assert [ended(run) for run in runs] == [(0, ""), (0, "")]
    for number, destination in enumerate(destinations):
        names = listed(btw, destination)
        assert len(names) == 3
        newest = names[-1] if kind == "tar" else names[0]
        assert extracted(destination, newest, tmp_path / f"out{number}") == tree(src)
    assert not list(config_dir.glob("*/backup/*"))


@pytest.mark.parametrize("living", [False, True])
def test_a_lock_file_alone_blocks_nobody(btw: Btw, initialised: Path, dst: Path, living: bool) -> None:
    assert btw("fs", initialised, dst).status == 0
    with _process() as pid:
        (dst / ".btw-backup" / "lock").write_text(f"process {pid if living else 2**22 + 1}\n")
        (initialised / "file").write_text("new\n")
        assert btw("fs", initialised, dst) == (0, "", "")
    assert len(listed(btw, dst)) == 2


def test_a_chain_whose_marker_names_a_living_process(btw: Btw, initialised: Path, dst: Path) -> None:
    assert btw("fs", initialised, dst).status == 0
    (marker,) = dst.glob("*/rdiff-backup-data/current_mirror.*")
    with _process() as pid:
        marker.write_text(f"PID {pid}\n")
        (initialised / "file").write_text("new\n")
        assert btw("fs", initialised, dst) == (0, "", "")
    assert len(listed(btw, dst)) == 2


@contextmanager
def _process() -> Iterator[int]:
    """A process that has nothing to do with backups."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("backup", ["rdiff", "tar"])
def test_newest_point_in_the_future(btw: Btw, src: Path, dst: Path, backup: str) -> None:
    assert btw("fs-init", "--type", backup, src, "name").status == 0
    assert btw("fs", src, dst).status == 0
    (name,) = listed(btw, dst)
    future = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S")
    (dst / name).rename(dst / f"{future}{name[19:]}")
    before = visible(dst)
    (src / "file").write_text("new\n")
    result = btw("fs", src, dst)
    assert result.status == 1
    assert future in result.err
    assert "in the future" in result.err
    assert len(result.err.splitlines()) == 1
    assert visible(dst) == before
    assert listed(btw, dst) == [f"{future}{name[19:]}"]


# A chain that something else left broken


@pytest.fixture
def two_points(btw: Btw, initialised: Path, dst: Path) -> Path:
    """A chain of a full backup and an incremental, and a source that has changed since."""
    for number in range(2):
        (initialised / "file").write_text(f"state {number}\n")
        assert btw("fs", initialised, dst).status == 0
    (initialised / "file").write_text("state 2\n")
    return dst / listed(btw, dst)[0]


def started_anew(btw: Btw, source: Path, dst: Path, tmp_path: Path) -> None:
    """Check that the next backup starts a chain and says so once, and the old one stays as it is."""
    before, old = listed(btw, dst), visible(dst)
    assert not any("1969" in line or "1970" in line for line in before)
    result = btw("fs", source, dst)
    assert result.status == 0, result
    assert NO_MORE in result.err
    assert result.err.count("warning") == 1
    log = (dst / "log.txt").read_text()
    assert log.count(NO_MORE) == 1
    after = listed(btw, dst)
    assert after[:-1] == before
    assert {name: data for name, data in visible(dst).items() if name in old and name != "log.txt"} == old
    assert extracted(dst, after[-1], tmp_path / "new") == tree(source)
    (source / "file").write_text("state 3\n")
    assert btw("fs", source, dst) == (0, "", "")
    assert (dst / "log.txt").read_text() == log
    assert len(listed(btw, dst)) == len(after) + 1


def test_two_markers(btw: Btw, two_points: Path, src: Path, dst: Path, tmp_path: Path) -> None:
    (marker,) = two_points.glob("rdiff-backup-data/current_mirror.*")
    shutil.copy(marker, marker.with_name("current_mirror.2001-01-01T00:00:00Z.data"))
    result = btw("list", dst)
    assert (result.status, result.err) == (0, "")
    assert two_points.name in result.out
    started_anew(btw, src, dst, tmp_path)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("first", [True, False])
def test_rdiff_backup_was_killed_in_the_chain(
    btw: Btw, initialised: Path, dst: Path, tmp_path: Path, first: bool
) -> None:
    for number in range(1 if first else 2):
        (initialised / "file").write_text(f"state {number}\n")
        assert btw("fs", initialised, dst).status == 0
    before = listed(btw, dst)
    (initialised / "file").write_text("state 2\n")
    stage = tmp_path / "stage"
    stage.mkdir()
    subprocess.run(["tar", "-C", initialised, "-cf", stage / "backup.tar", "."], check=True)
    time.sleep(1)
    argv = ["rdiff-backup", "-v2", "backup", str(stage)]
    subprocess.run(["cp", "-a", dst, tmp_path / "traced"], check=True)
    trace = tmp_path / "trace"
    subprocess.run(
        [*tracing(trace, CHANGING), *argv, tmp_path / "traced" / before[0]], capture_output=True, check=True
    )
    calls = [call for call in parse_trace(trace.read_text(errors="replace")) if "traced" in call.text]
    interrupted = 0
    # At the rename that publishes the second marker, and at some before and after it.
    for call in calls[:: max(1, len(calls) // 8)] + calls[-3:]:
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", dst, copy], check=True)
        fault = f"{call.name}:signal=SIGKILL:when={call.number}"
        subprocess.run([*tracing(trace, {call.name}, fault), *argv, copy / before[0]], capture_output=True)
        now = listed(btw, copy)
        assert now[: len(before)] == before, call
        assert not any("1969" in line for line in now)
        points = [before[0], *(line[1:] for line in before[1:])]
        markers = len(list(copy.glob("*/rdiff-backup-data/current_mirror.*")))
        old = visible(copy)
        result = btw("fs", initialised, copy)
        assert result.status == 0, (call, result)
        after = listed(btw, copy)
        assert len(after) == len(now) + 1, call
        if markers > 1:
            interrupted += 1
            assert NO_MORE in result.err
            assert NO_MORE in (copy / "log.txt").read_text()
            assert {name: visible(copy)[name] for name in old if name != "log.txt"} == {
                name: data for name, data in old.items() if name != "log.txt"
            }
        else:
            for number, at in enumerate(points):
                found = restored(copy / before[0], at, tmp_path / f"{call.number}-{call.name}-{number}")
                assert found["file"] == f"state {number}\n".encode(), call
        newest = [line for line in after if not line.startswith(" ")][-1]
        assert extracted(copy, newest, tmp_path / "out") == tree(initialised), call
        shutil.rmtree(tmp_path / "out")
        shutil.rmtree(copy)
    assert interrupted > 0


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing"])
def test_damaged_metadata(
    btw: Btw, two_points: Path, src: Path, dst: Path, tmp_path: Path, damage: str
) -> None:
    (metadata,) = two_points.glob("rdiff-backup-data/mirror_metadata.*.snapshot.gz")
    data = metadata.read_bytes()
    if damage == "missing":
        metadata.unlink()
    else:
        metadata.write_bytes({"truncated": data[:60], "empty": b"", "garbage": b"not gzip\n"}[damage])
    started_anew(btw, src, dst, tmp_path)


def test_metadata_that_says_nothing(btw: Btw, two_points: Path, src: Path, dst: Path, tmp_path: Path) -> None:
    (metadata,) = two_points.glob("rdiff-backup-data/mirror_metadata.*.snapshot.gz")
    metadata.write_bytes(gzip.compress(b""))
    before = listed(btw, dst)
    result = btw("fs", src, dst)
    assert result.status == 0, result
    after = listed(btw, dst)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1
    newest = [line for line in after if not line.startswith(" ")][-1]
    assert extracted(dst, newest, tmp_path / "new") == tree(src)


# Clocks


CLOCK = """
import os, time
_real, _offset = time.time, os.environ["TEST_CLOCK"]
def _shifted():
    with open(_offset) as file:
        return _real() + float(file.read() or 0)
time.time = _shifted
time.time_ns = lambda: int(_shifted() * 10**9)
"""


@pytest.mark.parametrize("jump", [-3600, -1, 1, 3600])
def test_the_clock_jumps_while_a_backup_runs(
    btw: Btw, two_points: Path, src: Path, dst: Path, tmp_path: Path, jump: int
) -> None:
    before = listed(btw, dst)
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    offset = tmp_path / "offset"
    offset.write_text("0")
    gate = Gate(tmp_path / "gate", "tar", then=f'printf %s {jump} > "{offset}"')
    gate.open()
    clock = {"PYTHONPATH": str(tmp_path / "clock"), "TEST_CLOCK": str(offset)}
    result = btw("fs", src, dst, env={**gate.env, **clock})
    assert result == (0, "", ""), result
    after = listed(btw, dst)
    assert after[:-1] == before
    assert extracted(dst, before[0], tmp_path / "out") == tree(src)
    (src / "file").write_text("state 3\n")
    # The clock stays where it jumped to.
    again = btw("fs", src, dst, env=clock)
    if jump == -3600:
        assert again.status == 1
        assert "in the future" in again.err
        assert listed(btw, dst) == after
    else:
        assert again.status in ((0, 1) if jump < 0 else (0,))
        assert len(listed(btw, dst)) == len(after) + (again.status == 0)


def test_time_zones_make_no_difference(btw: Btw, initialised: Path, dst: Path, tmp_path: Path) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    zones = ["UTC", "Asia/Tokyo", "America/New_York", "Pacific/Kiritimati", "NoSuch/Zone"]
    for number, zone in enumerate(zones):
        (initialised / "file").write_text(f"state {number}\n")
        assert btw("fs", initialised, dst, env={"TZ": zone}) == (0, "", "")
    names = listed(btw, dst)
    assert len(names) == len(zones)
    times = [datetime.fromisoformat(line.strip()).replace(tzinfo=UTC) for line in names]
    assert times == sorted(times)
    assert began <= times[0]
    assert times[-1] <= datetime.now(UTC)
    for number, name in enumerate(names):
        found = restored(dst / names[0], name.strip(), tmp_path / f"out{number}")
        assert found["file"] == f"state {number}\n".encode()
