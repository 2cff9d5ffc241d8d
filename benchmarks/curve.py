"""Unchanged runs against the number of files: ours, restic and borg, and a picture of it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import subjects, trees
from .cases import Bench
from .measure import Measured
from .subjects import Ours
from .table import seconds, table

_NAMES = ("btw-backup", "restic", "borg")


class Point(NamedTuple):
    """What unchanged runs with that many files took, in the order of ``_NAMES``."""

    files: int
    measured: Sequence[Measured]


def measure(bench: Bench) -> list[Point]:
    """Let a tree grow, and measure it at each size."""
    place = bench.place("curve")
    tree = place / "tree"
    tree.mkdir()
    ours = Ours(place / "ours", tree, "rdiff")
    tasks = [ours.backup(), subjects.restic(place, tree), subjects.borg(place, tree)]
    points = []
    made = 0
    for files in bench.scale.curve:
        trees.small(tree, made, files)
        made = files
        subjects.settle()
        for task in tasks:
            task.run()
        points.append(Point(files, bench.in_turn(*tasks)))
    shutil.rmtree(place)
    return points


def tabulate(points: Sequence[Point]) -> str:
    """The medians, and the memory of our process."""
    rows = []
    for point in points:
        probe = point.measured[0].probe
        assert probe is not None
        medians = [seconds(measured.median) for measured in point.measured]
        rows.append([f"{point.files:,}", *medians, f"{probe.memory / 1e6:.0f} MB"])
    return table(["Files", *_NAMES, "Our memory"], rows)


def plot(points: Sequence[Point], picture: Path) -> None:
    """Draw the medians, with the least and the greatest of the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    files = [point.files for point in points]
    for number, name in enumerate(_NAMES):
        measured = [point.measured[number] for point in points]
        medians = [m.median for m in measured]
        axes.plot(files, medians, marker="o", linewidth=2.5 if number == 0 else 1.5, label=name)
        lowest, highest = [min(m.seconds) for m in measured], [max(m.seconds) for m in measured]
        axes.fill_between(files, lowest, highest, alpha=0.2)
    axes.set(
        xscale="log", yscale="log", xlabel="files", ylabel="seconds", title="A run when nothing has changed"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
