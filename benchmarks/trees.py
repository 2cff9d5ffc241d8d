"""What is backed up in the benchmarks: trees of files, and destinations made by hand."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

DIRECTORIES = 200
LARGE_FILES = 8
_WORDS = 5000
_POOL = 4 << 20
_FIRST = datetime(2025, 1, 1, tzinfo=UTC)
# What rdiff-backup 2.2 keeps for each point besides its increments and its marker.
_KEPT = (
    "error_log.{}.data.gz",
    "file_statistics.{}.data.gz",
    "mirror_metadata.{}.diff.gz",
    "session_statistics.{}.data",
)


def mixed(top: Path, files: int, total: int) -> None:
    """Make ``files`` files of ``total`` bytes: half of them text, half random, sizes log-normal."""
    rng = random.Random(1)
    text = _text(rng)
    weights = [rng.lognormvariate(0, 1.5) for _ in range(files)]
    scale = total / sum(weights)
    for number, weight in enumerate(weights):
        directory = top / f"directory-{number % DIRECTORIES:03}"
        directory.mkdir(parents=True, exist_ok=True)
        content = _content(rng, text, int(weight * scale), rng.random() < 0.5)
        (directory / f"file-{number:05}").write_bytes(content)
    _end(top)


def large(top: Path, size: int) -> None:
    """Make eight files of ``size`` bytes, in blocks of text and of random bytes."""
    rng = random.Random(2)
    text = _text(rng)
    top.mkdir()
    for number in range(LARGE_FILES):
        with (top / f"large-{number}").open("wb") as file:
            for block in range(size // _POOL):
                file.write(_content(rng, text, _POOL, block % 2 == 0))
            file.write(rng.randbytes(size % _POOL))
    _end(top)


def small(top: Path, start: int, stop: int) -> None:
    """Make the files of these numbers, each of 100 bytes, a thousand to a directory."""
    for number in range(start, stop):
        directory = top / f"{number // 1000:04}"
        if number % 1000 == 0:
            directory.mkdir(parents=True)
        (directory / f"{number:07}").write_bytes(b"%07d small\n" % number + bytes(86))


def wide(top: Path, count: int) -> None:
    """Make so many empty files in one directory."""
    top.mkdir()
    for number in range(count):
        (top / f"{number:07}").touch()


def chains(top: Path, count: int, incrementals: int) -> None:
    """Make directories with the names of chains in them, which is all that ``list`` reads."""
    for number in range(count):
        begun = _FIRST + timedelta(days=number)
        data = top / f"{begun:%Y-%m-%dT%H:%M:%S}" / "rdiff-backup-data"
        (data / "increments").mkdir(parents=True)
        (data.parent / "backup.tar").touch()
        times = [begun + timedelta(hours=hours) for hours in range(incrementals + 1)]
        stamps = [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in times]
        for name in _names(stamps):
            (data / name).touch()


def tarballs(top: Path, count: int) -> None:
    """Make files with the names of tarballs."""
    top.mkdir()
    for number in range(count):
        (top / f"{_FIRST + timedelta(hours=number):%Y-%m-%dT%H:%M:%S}.tbz").touch()


def _names(stamps: list[str]) -> Iterator[str]:
    yield from ("backup.log", "chars_to_quote", "special_escapes", f"current_mirror.{stamps[-1]}.data")
    yield from (f"increments.{stamp}.dir" for stamp in stamps[:-1])
    yield from (kept.format(stamp) for kept in _KEPT for stamp in stamps)


def _text(rng: random.Random) -> bytes:
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 10))) for _ in range(_WORDS)]
    return " ".join(rng.choices(words, k=2 * _POOL // 6)).encode()


def _content(rng: random.Random, text: bytes, size: int, compressible: bool) -> bytes:
    if not compressible:
        return rng.randbytes(size)
    start = rng.randrange(_POOL // 2)
    part = text[start : start + size]
    return part * (size // len(part)) + part[: size % len(part)] if part and size else b""


def _end(top: Path) -> None:
    # borg reads the newest file of a tree again each time: an empty one costs nothing.
    (top / "newest").write_bytes(b"\n")
