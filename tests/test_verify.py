"""``btw-backup verify`` notices all damage that would change what is restored."""

import bz2
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from btw_backup.cli import main

from .helpers import trees
from .helpers.postgres_servers import MakeDatabase, Server
from .helpers.running import Btw, Gate, Result, Start, ended

PROG = "btw_backup"
SILENCE = Result(0, "", "")
START = datetime(2025, 1, 1, tzinfo=UTC)
CHAIN = "2025-01-01T00:00:00"
LATER = "2025-01-01T01:00:00"
# Programs that make and read each kind; a run takes the first one that is installed.
PACKING = {
    ".tbz": ("lbzip2 -c", "bzip2 -dc"),
    ".tar.zst": ("zstd -q -c -T0", "zstd -dc"),
    ".tar.gz": ("pigz -n -c", "gzip -dc"),
    ".tar.xz": ("xz -q -c -T0", "xz -dc"),
    ".tar": ("cat", "cat"),
}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def archive(top: Path, number: int = 0, size: int = 30_000) -> bytes:
    """Make an archive that has some content in common with those of other numbers."""
    rng = random.Random(number)
    tree = Path(tempfile.mkdtemp(dir=top))
    (tree / "common").write_bytes(random.Random("common").randbytes(size))
    (tree / "text").write_text("".join(f"line {rng.random()}\n" for _ in range(size // 40)))
    (tree / "zeros").write_bytes(bytes(size))
    return subprocess.run(["tar", "-C", tree, "-c", "."], stdout=subprocess.PIPE, check=True).stdout


def add_tarball(dst: Path, ending: str, content: bytes, command: str = "", hour: int = 0) -> Path:
    path = dst / f"{START + timedelta(hours=hour):%Y-%m-%dT%H:%M:%S}{ending}"
    packed = subprocess.run((command or PACKING[ending][0]).split(), input=content, stdout=subprocess.PIPE)
    path.write_bytes(packed.stdout)
    if ending == ".tar":
        with open(f"{path}.sha256", "wb") as file:
            subprocess.run(["sha256sum", path.name], cwd=dst, stdout=file, check=True)
    return path


def add_point(dst: Path, stage: Path, name: str, content: bytes, hour: int) -> Path:
    """Add a point to the chain with plain rdiff-backup. Returns the chain."""
    stage.mkdir(exist_ok=True)
    seconds = int(START.timestamp()) + 3600 * hour
    (stage / name).write_bytes(content)
    os.utime(stage / name, (seconds, seconds))
    argv: list[str | Path] = [
        "rdiff-backup",
        "-v2",
        "--current-time",
        str(seconds),
        "backup",
        stage,
        dst / CHAIN,
    ]
    subprocess.run(argv, check=True)
    return dst / CHAIN


def flipped(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


@pytest.fixture
def sound(dst: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], bool]]:
    """Tell whether ``verify`` finds no damage. It runs in this process, for speed."""
    signals = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    umask = os.umask(0o022)

    def run() -> bool:
        status = main(["verify", str(dst)], PROG)
        said = capfd.readouterr()
        assert said.out == ""
        assert (status, bool(said.err)) in ((0, False), (1, True)), said.err
        return status == 0

    yield run
    os.umask(umask)
    for signum, handler in signals.items():
        signal.signal(signum, handler)


class Sweep:
    """Flips bits of files one by one, and counts what ``verify`` finds."""

    def __init__(self, sound: Callable[[], bool], intact: Callable[[], bool]) -> None:
        self._sound = sound
        self._intact = intact
        assert sound() and intact()
        self.found = self.harmless = 0
        self.missed: list[str] = []

    def flip(self, path: Path, count: int, rng: random.Random, within: int | None = None) -> None:
        """Flip ``count`` random bits of the first ``within`` bytes, one at a time."""
        data = path.read_bytes()
        for _ in range(count):
            position, bit = rng.randrange(min(len(data), within or len(data))), rng.randrange(8)
            path.write_bytes(flipped(data, position, bit))
            if not self._sound():
                self.found += 1
            elif self._intact():
                self.harmless += 1
            else:
                self.missed.append(f"{path.name}: bit {bit} of byte {position} of {len(data)}")
        path.write_bytes(data)


def own_path(tmp_path: Path, *programs: str) -> str:
    """Return a PATH in which there are no other programs than these."""
    where = Path(tempfile.mkdtemp(dir=tmp_path))
    for program in set(programs):
        (where / program).symlink_to(shutil.which(program) or "missing")
    return str(where)


# Flipped bits


def unpacked(command: str, path: Path) -> bytes:
    with open(path, "rb") as file:
        return subprocess.run(command.split(), stdin=file, capture_output=True).stdout


@pytest.mark.parametrize("ending", PACKING)
def test_flips_in_a_tarball(dst: Path, tmp_path: Path, sound: Callable[[], bool], ending: str) -> None:
    content = archive(tmp_path)
    path = add_tarball(dst, ending, content)
    sweep = Sweep(sound, lambda: unpacked(PACKING[ending][1], path) == content)
    rng = random.Random(ending)
    sweep.flip(path, 30, rng)
    sweep.flip(path, 15, rng, within=24)
    if ending == ".tar":
        sweep.flip(Path(f"{path}.sha256"), 10, rng, within=64)
    assert sweep.missed == []
    assert sweep.found >= 30


@pytest.mark.parametrize("reader", ["lbzip2", "pbzip2", "bzip2"])
@pytest.mark.parametrize("writer", ["pbzip2", "bzip2"])
def test_flips_in_a_tarball_of_several_streams(
    dst: Path,
    tmp_path: Path,
    sound: Callable[[], bool],
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
    reader: str,
) -> None:
    """If a stream is damaged at its start, decompressors may ignore it as trailing garbage."""
    content = archive(tmp_path, size=150_000)
    path = add_tarball(dst, ".tbz", content, {"pbzip2": "pbzip2 -b1 -c"}.get(writer, f"{writer} -1 -c"))
    monkeypatch.setenv("PATH", own_path(tmp_path, "tar", "bzip2", reader))
    bzip2 = shutil.which("bzip2") or ""
    sweep = Sweep(sound, lambda: unpacked(f"{bzip2} -dc", path) == content)
    data = path.read_bytes()
    starts = [match.start() for match in re.finditer(rb"BZh[1-9]1AY&SY", data)]
    assert (len(starts) > 2) == (writer == "pbzip2")
    for start in starts[:3]:
        for position in range(start, start + 4):
            path.write_bytes(flipped(data, position, 1))
            assert not sound() or bz2.decompress(path.read_bytes()) == content, position - start
    path.write_bytes(data)
    sweep.flip(path, 5, random.Random(reader))
    assert sweep.missed == []


def restored(chain: Path, at: str, scratch: Path) -> bytes | None:
    """Return what plain rdiff-backup restores from a copy of the chain, or None if it fails."""
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        subprocess.run(["cp", "-a", chain, f"{place}/chain"], check=True)
        argv = ["rdiff-backup", "-v0", "restore", "--at", f"{at}Z", f"{place}/chain", f"{place}/out"]
        subprocess.run(argv, capture_output=True)
        found = [path for path in Path(place, "out").glob("*") if path.is_file()]
        return found[0].read_bytes() if len(found) == 1 else None


@pytest.fixture
def chain(dst: Path, tmp_path: Path) -> Path:
    """A chain of two points."""
    for hour in range(2):
        add_point(dst, tmp_path / "stage", "backup.tar", archive(tmp_path, hour), hour)
    return dst / CHAIN


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("backup.tar", 24),
        ("rdiff-backup-data/increments/backup.tar.*", 24),
        ("rdiff-backup-data/mirror_metadata.*", 8),
        # The other files; no point needs most of them.
        ("rdiff-backup-data/[!im]*", 1),
    ],
    ids=["mirror", "increment", "metadata", "others"],
)
def test_flips_in_a_chain(
    tmp_path: Path, chain: Path, sound: Callable[[], bool], pattern: str, count: int
) -> None:
    at = (CHAIN, LATER)
    originals = [restored(chain, time, tmp_path) for time in at]
    assert originals[1] == (chain / "backup.tar").read_bytes() != originals[0]

    def intact() -> bool:
        return [restored(chain, time, tmp_path) for time in at] == originals

    sweep = Sweep(sound, intact)
    rng = random.Random(pattern)
    files = sorted(path for path in chain.glob(pattern) if path.is_file() and path.stat().st_size)
    assert files
    for path in files:
        sweep.flip(path, count, rng)
        if count > 1:
            sweep.flip(path, 4, rng, within=12)
    assert sweep.missed == []
    assert sweep.found >= count * 0.9 or count == 1


def test_flips_in_a_dump(
    btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch,
    sound: Callable[[], bool],
) -> None:  # fmt: skip
    name = make_database(
        one_server, "shop", "CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 900) n"
    )
    assert btw("db", name, dst, env=one_server.as_superuser) == SILENCE
    monkeypatch.setenv("PATH", one_server.environment["PATH"])
    (dump,) = dst.glob("*/shop.dump")
    original = dump.read_bytes()
    sweep = Sweep(sound, lambda: dump.read_bytes() == original)
    sweep.flip(dump, 60, random.Random(1))
    assert (sweep.missed, sweep.found) == ([], 60)


def test_flips_in_globals(btw: Btw, dst: Path, one_server: Server, sound: Callable[[], bool]) -> None:
    assert btw("db", "-g", dst, env=one_server.as_superuser) == SILENCE
    (packed,) = dst.glob("*/global.sql.bz2")
    original = packed.read_bytes()
    sweep = Sweep(sound, lambda: packed.read_bytes() == original)
    sweep.flip(packed, 40, random.Random(2))
    assert (sweep.missed, sweep.found) == ([], 40)


# What it says


@pytest.fixture
def mixture(dst: Path, tmp_path: Path) -> list[str]:
    """A destination with a chain of three points, and a tarball of each kind. Returns the points' times."""
    for hour in range(3):
        add_point(dst, tmp_path / "stage", "backup.tar", archive(tmp_path, hour), hour)
    for hour, ending in enumerate(PACKING, 3):
        add_tarball(dst, ending, archive(tmp_path, hour), hour=hour)
    return [f"2025-01-01T{hour:02}:00:00" for hour in range(8)]


def ok(times: list[str]) -> str:
    return "".join(f"{PROG}: {time}Z: ok\n" for time in times)


def failing(result: Result) -> list[str]:
    """The times that errors are about."""
    lines = [line.removeprefix(f"{PROG}: ") for line in result.err.splitlines()]
    return [line[:19] for line in lines if line.startswith("2025")]


def test_all_is_well(btw: Btw, dst: Path, mixture: list[str]) -> None:
    before = trees.facts(dst)
    assert btw("verify", dst) == SILENCE
    assert btw("-v", "verify", dst) == Result(0, "", ok(mixture))
    assert btw("-v", "verify", "--latest", dst) == Result(0, "", ok(mixture[-1:]))
    assert btw("-v", "verify", "--at", mixture[1], dst) == Result(0, "", ok(mixture[1:2]))
    assert btw("-v", "verify", "--at", f"{mixture[4]}.tar.zst", dst) == Result(0, "", ok(mixture[4:5]))
    assert trees.facts(dst) == before


@as_root
def test_a_read_only_disk(btw: Btw, dst: Path, mixture: list[str], tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    subprocess.run(["mount", "--bind", "-o", "ro", dst, dst], check=True)
    try:
        assert btw("verify", dst, env={"TMPDIR": str(tmp_path / "tmp")}) == SILENCE
    finally:
        subprocess.run(["umount", dst], check=True)
    assert os.listdir(tmp_path / "tmp") == []


def increment_of(chain: Path, time: str) -> Path:
    (path,) = chain.glob(f"rdiff-backup-data/increments/backup.tar.{time}*")
    return path


def change_a_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(flipped(data, len(data) // 2, 3))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def cut_a_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [change_a_bit, cut, cut_a_byte, empty, Path.unlink])
def test_each_damaged_point_is_named_and_no_other(
    btw: Btw, dst: Path, mixture: list[str], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Damage to an increment affects all older points, and no newer ones."""
    damage(increment_of(dst / CHAIN, mixture[0]))
    bad = [mixture[0]]
    for hour, ending in enumerate(PACKING, 3):
        if damage is not Path.unlink:  # what is not there is not listed
            damage(dst / f"{mixture[hour]}{ending}")
            bad.append(mixture[hour])
    good = [time for time in mixture if time not in bad]
    (tmp_path / "tmp").mkdir()
    result = btw("-v", "verify", dst, env={"TMPDIR": str(tmp_path / "tmp")})
    assert (result.status, result.out) == (1, "")
    ours = [line for line in result.err.splitlines() if line.startswith(f"{PROG}: ")]
    assert [line for line in ours if line.endswith(": ok")] == ok(good).splitlines()
    failures = [line for line in ours if not line.endswith(": ok")]
    assert [line[len(f"{PROG}: ") :][:19] for line in failures] == bad
    assert all(re.fullmatch(rf"{PROG}: \S{{19}}Z: .{{10,}}", line) for line in failures)
    quiet = btw("verify", dst)
    assert quiet.status == 1 and ": ok" not in quiet.err
    assert btw("verify", "--at", mixture[2], dst) == SILENCE
    assert btw("verify", "--at", mixture[0], dst).status == 1
    assert btw("verify", "--latest", dst).status == (damage is not Path.unlink)
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("damage", [change_a_bit, cut, empty, Path.unlink])
def test_a_damaged_mirror_costs_all_points_of_the_chain(
    btw: Btw, dst: Path, mixture: list[str], damage: Callable[[Path], None]
) -> None:
    data = bytearray((dst / CHAIN / "backup.tar").read_bytes())
    damage(dst / CHAIN / "backup.tar")
    if damage is change_a_bit:  # in what all points have in common
        data[data.index(random.Random("common").randbytes(100))] ^= 1
        (dst / CHAIN / "backup.tar").write_bytes(data)
    result = btw("verify", dst)
    assert result.status == 1
    named = [
        line.removeprefix(f"{PROG}: ")[:19]
        for line in result.err.splitlines()
        if line.startswith(f"{PROG}: 2025")
    ]
    assert sorted(set(named)) == mixture[:3]
    assert btw("verify", "--latest", dst) == SILENCE


@pytest.mark.parametrize("damage", [change_a_bit, cut, empty, Path.unlink])
def test_damaged_metadata(btw: Btw, dst: Path, mixture: list[str], damage: Callable[[Path], None]) -> None:
    """Without a digest nobody can tell whether a point is sound."""
    for path in (dst / CHAIN / "rdiff-backup-data").glob("mirror_metadata.*"):
        damage(path)
    result = btw("verify", dst)
    assert result.status == 1
    named = {
        line.removeprefix(f"{PROG}: ")[:19]
        for line in result.err.splitlines()
        if line.startswith(f"{PROG}: 2025")
    }
    assert named == set(mixture[:3])


def test_a_sound_file_that_is_another(btw: Btw, dst: Path, tmp_path: Path, mixture: list[str]) -> None:
    """An archive that tar can read, but that was not backed up."""
    (dst / CHAIN / "backup.tar").write_bytes(archive(tmp_path, 99))
    (dst / f"{mixture[7]}.tar").write_bytes(archive(tmp_path, 99))
    result = btw("verify", dst)
    assert result.status == 1
    named = {
        line.removeprefix(f"{PROG}: ")[:19]
        for line in result.err.splitlines()
        if line.startswith(f"{PROG}: 2025")
    }
    assert {mixture[2], mixture[7]} <= named


def test_what_decompresses_but_is_no_archive(btw: Btw, dst: Path) -> None:
    (dst / "2025-01-01T00:00:00.tbz").write_bytes(bz2.compress(b"this is not an archive\n" * 1000))
    (dst / "2025-01-02T00:00:00.tar.gz").write_bytes(gzip.compress(b"nor is this\n" * 1000))
    result = btw("verify", dst)
    assert result.status == 1
    assert "2025-01-01T00:00:00Z: " in result.err and "2025-01-02T00:00:00Z: " in result.err


def test_nothing_to_verify(btw: Btw, dst: Path) -> None:
    result = btw("verify", dst)
    assert result.status == 1 and len(result.err.splitlines()) == 1
    assert btw("verify", "--latest", "--at", "3d", dst).status == 2


def test_a_point_that_is_removed_meanwhile_is_no_failure(
    btw: Btw, dst: Path, tmp_path: Path, start: Start
) -> None:
    for hour in range(2):
        add_tarball(dst, ".tar.gz", archive(tmp_path, hour), hour=hour)
    gate = Gate(tmp_path / "gate", "tar", only="--list")
    run = start("-v", "verify", dst, env=gate.env)
    gate.reached()
    (dst / f"{LATER}.tar.gz").unlink()
    gate.open()
    said = f"{PROG}: {CHAIN}Z: ok\n{PROG}: the point {LATER}Z has been removed meanwhile\n"
    assert ended(run) == (0, said)


# --json

KEYS = ["destination", "source", "backup", "time", "status", "problem", "seconds", "restored"]


def as_objects(result: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(result.out)
    for each in found:
        assert list(each) == KEYS
        assert each["time"] is None or 0 <= each["seconds"] < 100
        assert (each["status"] == "ok") == (each["problem"] is None)
    return found


def test_json_has_an_object_for_each_point(btw: Btw, dst: Path, mixture: list[str]) -> None:
    result = btw("verify", "--json", dst)
    assert (result.status, result.err) == (0, "")
    found = as_objects(result)
    assert [each["time"] for each in found] == [f"{time}Z" for time in mixture]
    assert [each["backup"] for each in found[2:4]] == [CHAIN, f"{mixture[3]}.tbz"]
    assert {each["status"] for each in found} == {"ok"}
    assert {each["destination"] for each in found} == {str(dst)}
    assert {each["source"] for each in found} == {each["restored"] for each in found} == {None}
    assert len(as_objects(btw("verify", "--json", "--latest", dst))) == 1


def test_json_says_what_is_damaged(btw: Btw, dst: Path, mixture: list[str]) -> None:
    """Each line on stderr, too. An entry that can't be read has no time."""
    change_a_bit(increment_of(dst / CHAIN, mixture[0]))
    (dst / "2025-01-02T00:00:00").mkdir()
    (dst / "2025-01-02T00:00:00" / "rdiff-backup-data").touch()
    result = btw("verify", "--json", dst)
    found = as_objects(result)
    assert result.status == 1
    bad = [each for each in found if each["status"] == "damaged"]
    assert [each["time"] for each in bad] == [None, f"{mixture[0]}Z"]
    assert result.err.splitlines() == [
        f"{PROG}: {bad[0]['problem']}", f"{PROG}: {mixture[0]}Z: {bad[1]['problem']}"
    ]  # fmt: skip
    assert len(found) == 9


def test_json_of_several_destinations_is_one_array(
    btw: Btw, two_points: Path, src: Path, dst: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    add_tarball(other, ".tbz", archive(tmp_path))
    result = btw("verify", "--json", tmp_path / "missing", dst, other)
    assert result.status == 1 and result.err.count("\n") == 1
    found = as_objects(result)
    assert [each["destination"] for each in found] == [str(dst), str(dst), str(other)]
    assert [each["source"] for each in found] == [str(src), str(src), None]
    assert btw("verify", "--json", tmp_path / "missing").out == "[]\n"
