"""The case of off-site copies: how much is sent to an S3 endpoint on loopback when little has changed."""

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.repositories import S3, configure

from . import subjects, trees
from .cases import Bench
from .measure import BTW_BACKUP
from .subjects import Ours
from .table import Row, counted

_CHANGED = 1_000_000
_LIMIT = 20_000_000
_FILES = 8
_PLACES = 10


def sending(bench: Bench) -> Iterator[Row]:
    """Measure what is sent of a source ten times the size of a large file."""
    place = bench.place("sending")
    tree, bucket, rng = place / "tree", place / "s3", random.Random(7)
    bucket.mkdir()
    size = 10 * bench.scale.large
    trees.large(tree, size // _FILES)
    ours = Ours(place, tree, "rdiff")
    with S3(bucket) as s3:
        configure(ours.config_dir, s3.address, s3.env)
        _call(ours, "sync", "--init")
        ours.backup().run()
        _call(ours, "sync", ours.dst)
        sent = _sent(ours, bucket, 1, rng)
        yield counted(
            f"sent off-site, 1 MB of {size // 1_000_000:,} MB changed",
            f"{_LIMIT // 1_000_000} MB",
            f"{sent / 1_000_000:.1f} MB",
            sent <= _LIMIT,
        )
        # restic sends whole blocks, of 1 MiB on average, so each place costs one or two.
        sent = _sent(ours, bucket, _PLACES, rng)
        case = f"sent off-site, the same in {_PLACES} places"
        yield Row(case, "", f"{sent / 1_000_000:.1f} MB", "", "", "", "")
    shutil.rmtree(place)


def _sent(ours: Ours, bucket: Path, places: int, rng: random.Random) -> int:
    """Return by how many bytes the repository grows if changes at that many places are sent."""
    _change(ours.source, places, rng)
    ours.backup().run()
    before = _stored(bucket)
    _call(ours, "sync", ours.dst)
    sent = _stored(bucket) - before
    if sent < _CHANGED:
        raise RuntimeError(f"only {sent} bytes were sent")
    return sent


def _change(tree: Path, places: int, rng: random.Random) -> None:
    """Overwrite 1 MB in all, in that many places."""
    files = sorted(path for path in tree.iterdir() if path.stat().st_size > _CHANGED)
    for place in range(places):
        with files[place % len(files)].open("r+b") as file:
            file.seek(rng.randrange(files[0].stat().st_size - _CHANGED))
            file.write(rng.randbytes(_CHANGED // places))
    subjects.settle()


def _call(ours: Ours, *args: str | Path) -> None:
    subprocess.run([BTW_BACKUP, "--config-dir", ours.config_dir, *args], check=True)


def _stored(bucket: Path) -> int:
    return sum(path.stat().st_size for path in bucket.rglob("*") if path.is_file())
