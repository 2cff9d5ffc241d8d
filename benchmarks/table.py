"""The table of results, the machine that they were measured on, and the document that holds both."""

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from .measure import Measured, Probe

_HEADER = ("Case", "Limit", "Measured", "Ours", "Other", "Memory", "Met")


class Row(NamedTuple):
    """A row of the table, as it is printed."""

    case: str
    limit: str
    measured: str
    ours: str
    other: str
    memory: str
    met: str


def compared(case: str, ours: Measured, other: Measured, limit: float, allowed: float = 0) -> Row:
    """A comparison pair by pair, after ``allowed`` seconds that ours may take beyond that."""
    ratios = [(a - allowed) / b for a, b in zip(ours.seconds, other.seconds, strict=True)]
    median = statistics.median(ratios)
    return Row(
        case,
        f"{limit} ×" + (f" + {allowed} s" if allowed else ""),
        f"{median:.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        seconds(ours.median),
        seconds(other.median),
        _memory(ours.probe),
        _met(median <= limit),
    )


def absolute(case: str, ours: Measured, limit: float) -> Row:
    """A case with a limit in seconds."""
    measured = f"{ours.median:.2f} s ({min(ours.seconds):.2f}–{max(ours.seconds):.2f})"
    met = _met(ours.median <= limit)
    return Row(case, f"{limit} s", measured, seconds(ours.median), "", _memory(ours.probe), met)


def counted(case: str, limit: str, measured: str, met: bool) -> Row:
    """A case that is not about time."""
    return Row(case, limit, measured, "", "", "", _met(met))


def seconds(value: float) -> str:
    """Seconds with as many digits as mean something."""
    return f"{value:.3f} s" if value < 1 else f"{value:.1f} s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A simple table of reStructuredText. An empty first cell would continue the row before."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def results(rows: Sequence[Row]) -> str:
    """The table of all cases."""
    return table(_HEADER, rows)


def machine(work: Path, programs: Sequence[str]) -> list[str]:
    """What a reader needs to know of the machine and the programs on it, one fact a line."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    system = _first_line("findmnt", "-n", "-o", "FSTYPE", "-T", str(work))
    versions = [f"{os.path.basename(program)} {_version(program)}" for program in programs]
    return [
        f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {pages / 2**30:.0f} GiB of memory",
        f"Linux {platform.release()}, {system}, {_distribution()}, Python {platform.python_version()}",
        ", ".join(versions),
    ]


def document(rows: Sequence[Row], curve: str, about: Sequence[str]) -> str:
    """The document with everything that was measured."""
    facts = "\n".join(f"* {fact}" for fact in about)
    return f"""\
============
Measurements
============

Made by ``make bench`` on {datetime.now(UTC):%Y-%m-%d}, with a warm cache. Ours and the others run in
turn, round by round; what takes few seconds runs twice in its turn, and the second time counts. Seconds are
medians of the rounds; a ratio is the median of those of each round, with the least and the greatest. Where a
limit grants seconds besides, they are subtracted from ours first. Memory is the peak of our own process,
without the programs that it runs.

* Tree A: 30,000 files of 300 MB together in 200 directories, half of them text and half random, their sizes
  log-normal.
* Tree B: 8 files of 100 MB, half text and half random.

{facts}

{results(rows)}

Runs by the number of files
===========================

The time that a run takes when nothing has changed, or one file, grows with the number of files, not with
their size.

{curve}

.. image:: ../docs/runs.png
   :alt: Seconds of a run against the number of files, unchanged and changed: btw-backup, restic and borg
"""


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def _memory(probe: Probe | None) -> str:
    return f"{probe.memory / 1e6:.0f} MB" if probe else ""


def _distribution() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", "an unknown distribution")


def _version(program: str) -> str:
    printed = _first_line(program, "version" if program == "restic" else "--version")
    found = re.search(r"\b\d+(\.\w+)+", printed)
    return found[0] if found else printed


def _first_line(*argv: str) -> str:
    printed = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True).stdout
    return printed.decode().splitlines()[0].strip()
