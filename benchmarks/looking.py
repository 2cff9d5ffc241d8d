"""The cases of looking inside: what it costs to list, find and compare files."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from . import changes
from .cases import Bench
from .measure import BTW_BACKUP, Task
from .table import Row, absolute, compared

_CHAINS = 30


def looking(bench: Bench) -> Iterator[Row]:
    """Names, versions and changes of a tree with eleven points, beside restic; names in thirty chains."""
    place, tree = bench.place("looking"), bench.trees["A"]
    ours, restic = changes.eleven_points(place, tree)
    points = ours.points()
    shown = subprocess.check_output(
        ["restic", "snapshots", "--quiet", "--json"], env={**os.environ, **restic.env}, text=True
    )
    snapshots = [snapshot["id"] for snapshot in json.loads(shown)]
    pattern = "*9"
    cases: list[tuple[str, list[str | Path], list[str], float]] = [
        ("ls, A / restic ls", ["ls", ours.dst], ["ls", "latest"], 0.5),
        ("find, A, 11 points / restic find", ["find", ours.dst, pattern], ["find", pattern], 1.0),
        ("diff, A, neighbours / restic diff", ["diff", ours.dst, points[-2]], ["diff", *snapshots[-2:]], 1.5),
    ]
    for case, argv, other, limit in cases:
        task = Task(["restic", "--quiet", *other], env=restic.env)
        mine, theirs = bench.in_turn(Task([BTW_BACKUP, *argv]), task)
        yield compared(case, mine, theirs, limit)
    many = place / "many"
    _repeat(ours.newest(), many)
    [mine] = bench.in_turn(Task([BTW_BACKUP, "find", many, pattern]))
    yield absolute(f"find, A, {_CHAINS} chains of 11 points", mine, 30)
    shutil.rmtree(place)


def _repeat(chain: Path, dst: Path) -> None:
    """Make copies of a chain, each of another year, since times are only in names."""
    day = chain.name.partition("T")[0]
    dst.mkdir()
    for number in range(_CHAINS):
        other = f"{2000 + number}-01-01"
        copied = dst / chain.name.replace(day, other)
        shutil.copytree(chain, copied, copy_function=os.link)
        for path in [*copied.rglob(f"*{day}T*")]:
            path.rename(path.with_name(path.name.replace(f"{day}T", f"{other}T")))
