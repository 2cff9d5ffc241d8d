"""Two runs at once, and locks that a dead process left."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .helpers.destinations import extracted, listed, tree
from .helpers.running import Btw, Gate, Start, ended


@pytest.fixture(params=["rdiff", "tar"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
        gate.reached()  # both are running now
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
