"""Measures btw-backup against other programs: ``python -m benchmarks.bench``, or ``make bench``.

Prints a table, and writes it with a picture for the documentation. Takes about an hour on an idle
machine, and 20 GB below the directory that ``--work`` names.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from . import cases, changes, curve, database, looking, part_sizes, sending, syncing, table
from .cases import FULL, QUICK, Bench
from .table import Row

_ROOT = Path(__file__).parent.parent
_CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "unchanged": cases.unchanged,
    "wide": cases.wide,
    "chains": cases.chains,
    "changing": changes.changing,
    "sharing": changes.sharing,
    "syncing": syncing.syncing,
    "getting-back": changes.getting_back,
    "looking": looking.looking,
    "part-sizes": part_sizes.part_sizes,
    "tarballs": cases.tarballs,
    "list": cases.listing,
    "db": database.database,
    "version": cases.starting,
    "restore": cases.restoring,
    "verify": cases.verifying,
    "offsite": sending.sending,
}
_PROGRAMS = ("tar", "rdiff-backup", "lbzip2", "restic", "borg")
_TREELESS = {"wide", "list", "db", "version", "offsite"}
_CURVE = "curve"


def main() -> None:
    args = _parser().parse_args()
    scale = QUICK if args.quick else FULL
    if args.rounds:
        scale = replace(scale, rounds=args.rounds)
    chosen = args.only or [*_CASES, _CURVE]
    with tempfile.TemporaryDirectory(prefix="btw-bench.", dir=args.work) as name:
        top = Path(name)
        _isolate(top)
        about = table.machine(top, [*_PROGRAMS, *database.programs()])
        bench = Bench(top, scale)
        if set(chosen) - _TREELESS - {_CURVE}:
            _say("making the trees")
            bench.make_trees()
        rows = [row for case in chosen if case in _CASES for row in _measured(bench, case)]
        drawn = ""
        if _CURVE in chosen:
            _say(_CURVE)
            points = curve.measure(bench)
            rows += curve.rows(points)
            drawn = curve.tabulate(points)
            print(drawn)
            if args.write:
                curve.plot(points, args.write / "docs" / "runs.png")
        if any(row.memory for row in rows):
            rows.append(cases.peak(rows))
        if rows:
            print(table.results(rows))
    print(*about, sep="\n")
    if args.write:
        written = args.write / "benchmarks" / "results.rst"
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(table.document(rows, drawn, about))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small trees and few rounds: only to try it out")
    parser.add_argument("--rounds", type=int, help="how often each case is measured")
    parser.add_argument("--work", type=Path, default="/var/tmp", help="where the trees are made: %(default)s")
    every = [*_CASES, _CURVE]
    parser.add_argument(
        "--only", nargs="+", choices=every, metavar="CASE", help=f"only these cases: {', '.join(every)}"
    )
    parser.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=_ROOT,
        help="writes benchmarks/results.rst and docs/runs.png below this directory; without one,"
        " where this program is",
    )
    return parser


def _isolate(top: Path) -> None:
    """Keep the user's own files and settings out of it, for all programs alike."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "USER")}
    os.environ.clear()
    temporary = top / "tmp"
    temporary.mkdir()
    for directory in (top, temporary):  # the server that is measured runs under another account
        directory.chmod(0o711)
    own = {"HOME": str(top), "TMPDIR": str(temporary), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    os.environ.update({**kept, **own})
    tempfile.tempdir = str(temporary)


def _measured(bench: Bench, case: str) -> Iterator[Row]:
    started = time.monotonic()
    for row in _CASES[case](bench):
        _say(f"{row.case}: {row.measured}, {row.met}")
        yield row
    _say(f"{case} took {time.monotonic() - started:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
