"""The case of the part's size: what smaller and larger parts would cost."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from btw_backup.archive.parts import FULL, INCREMENTAL

from .cases import Bench
from .changes import one_file, one_place, size
from .measure import Task
from .subjects import Ours
from .table import Row, counted, seconds

_FACTORS = (0.25, 0.5, 1, 2, 4)
_SCRIPT = """
import sys
from btw_backup.archive import parts
from btw_backup.cli import main
names = ("least", "most", "cut")
scale = lambda sizes: sizes._replace(**{name: int(getattr(sizes, name) * %s) for name in names})
parts.INCREMENTAL, parts.FULL = scale(parts.INCREMENTAL), scale(parts.FULL)
sys.exit(main())
"""


def part_sizes(bench: Bench) -> Iterator[Row]:
    """Backups and restores with parts of other sizes, all in turn."""
    assert INCREMENTAL.least == FULL.least
    for name, change in (("A", one_file), ("B", one_place)):
        tree = bench.trees[name]
        place = bench.place(f"part-sizes-{name}")
        variants = [Ours(place / f"{factor}", tree, "rdiff") for factor in _FACTORS]
        changed = change(tree)
        wanted = str(sorted(path for path in tree.rglob("*") if path.is_file())[-2].relative_to(tree))
        firsts = bench.in_turn(*map(_scaled, [ours.first() for ours in variants], _FACTORS))
        before = [size(ours.dst) for ours in variants]
        laters = bench.in_turn(*map(_scaled, [ours.backup(changed) for ours in variants], _FACTORS))
        grown = [size(ours.dst) - was for ours, was in zip(variants, before, strict=True)]
        restores = bench.in_turn(
            *map(_scaled, [ours.restore(place / "target", paths=[wanted]) for ours in variants], _FACTORS)
        )
        for factor, ours, first, later, restore, added in zip(
            _FACTORS, variants, firsts, laters, restores, grown, strict=True
        ):
            count = len(list(ours.newest().glob("backup.tar*")))
            least = INCREMENTAL.least * factor / (1 << 20)
            yield counted(
                f"parts of {least:g} to {INCREMENTAL.most * factor / (1 << 20):g} MiB, {name}",
                "",
                f"{count} parts; first {seconds(first.median)}, changed {seconds(later.median)}, "
                f"one file back {seconds(restore.median)}, a change stores "
                f"{added / later.runs / 1_000_000:.1f} MB",
                True,
            )
        shutil.rmtree(place)


def _scaled(task: Task, factor: float) -> Task:
    argv: list[str | Path] = [sys.executable, "-c", _SCRIPT % factor, *task.argv[1:]]
    return replace(task, argv=argv)
