"""Runs against the number of files, unchanged and changed: ours, restic and borg, and a picture of them."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import subjects, trees
from .cases import Bench
from .measure import Measured, Task
from .subjects import Ours
from .table import Row, compared, seconds, table

_NAMES = ("btw-backup", "restic", "borg")
_LIMIT = 0.35


class Point(NamedTuple):
    """What runs with that many files took, unchanged or with one file changed, in the order of ``_NAMES``."""

    files: int
    unchanged: Sequence[Measured]
    changed: Sequence[Measured]


def measure(bench: Bench) -> list[Point]:
    """Let a tree grow, and measure it at each size."""
    place = bench.place("curve")
    tree = place / "tree"
    tree.mkdir()
    ours = Ours(place / "ours", tree, "rdiff")
    tasks = [ours.backup(), subjects.restic(place, tree), subjects.borg(place, tree)]
    one = tree / "0000" / "0000500"
    changing = [Task(task.argv, lambda: subjects.changed(one), task.cwd, task.env) for task in tasks]
    points = []
    made = 0
    for files in bench.scale.curve:
        trees.small(tree, made, files)
        made = files
        subjects.settle()
        for task in tasks:
            task.run()
        points.append(Point(files, bench.in_turn(*tasks), bench.in_turn(*changing)))
    shutil.rmtree(place)
    return points


def rows(points: Sequence[Point]) -> Iterator[Row]:
    """Changed runs of the largest tree, beside the others."""
    files, _, (mine, *theirs) = points[-1]
    for name, measured in zip(_NAMES[1:], theirs, strict=True):
        yield compared(f"changed, {files:,} small files, one / {name}", mine, measured, _LIMIT)


def tabulate(points: Sequence[Point]) -> str:
    """The medians, and the memory of our process."""
    header = ["Files", *_NAMES, "Our memory", *(f"{name}, changed" for name in _NAMES), "Our memory, changed"]
    return table(
        header,
        [[f"{point.files:,}", *_cells(point.unchanged), *_cells(point.changed)] for point in points],
    )


def _cells(measured: Sequence[Measured]) -> list[str]:
    probe = measured[0].probe
    assert probe is not None
    return [*(seconds(each.median) for each in measured), f"{probe.memory / 1e6:.0f} MB"]


def plot(points: Sequence[Point], picture: Path) -> None:
    """Draw the medians, with the least and the greatest of the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    files = [point.files for point in points]
    panels = (
        ("A run when nothing has changed", [point.unchanged for point in points]),
        ("A run when one file has changed", [point.changed for point in points]),
    )
    for axes, (title, runs) in zip(both, panels, strict=True):
        for number, name in enumerate(_NAMES):
            measured = [run[number] for run in runs]
            medians = [m.median for m in measured]
            axes.plot(files, medians, marker="o", linewidth=2.5 if number == 0 else 1.5, label=name)
            lowest, highest = [min(m.seconds) for m in measured], [max(m.seconds) for m in measured]
            axes.fill_between(files, lowest, highest, alpha=0.2)
        axes.set(xscale="log", yscale="log", xlabel="files", title=title)
        axes.grid(alpha=0.3)
    both[0].set(ylabel="seconds")
    both[0].legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
