"""Clocks that are wrong, clocks that jump, and time zones."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from .helpers.destinations import extracted, listed, restored, tree, visible
from .helpers.running import Btw, Gate


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


# The file holds the seconds that are added to the real time, or "=" and the time that it always is.
CLOCK = """
import os, time
_real, _offset = time.time, os.environ["TEST_CLOCK"]
def _shifted():
    with open(_offset) as file:
        text = file.read()
    return float(text[1:]) if text.startswith("=") else _real() + float(text or 0)
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
    newest = datetime.fromisoformat(f"{after[-1].strip()}Z").timestamp()
    if jump == -1:
        offset.write_text(f"={newest + jump}")  # a running clock could catch up before it is read
    if jump < 0:
        refused = btw("fs", src, dst, env=clock)
        assert refused.status == 1
        assert "in the future" in refused.err
        assert listed(btw, dst) == after
    if jump == -1:
        offset.write_text(f"={newest + 1}")  # it has caught up
    if jump != -3600:
        assert btw("fs", src, dst, env=clock) == (0, "", "")
        assert len(listed(btw, dst)) == len(after) + 1


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
