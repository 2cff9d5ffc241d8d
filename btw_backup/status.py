"""``btw-backup status``: says how old and how large the backups are.

Its lines and exit statuses are those that Nagios and its relatives read.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, NamedTuple

from . import process
from .arguments import span
from .backups import open_destination, scan
from .destination import LOG
from .errors import Error, naming
from .files import closing, open_regular
from .measures import age
from .messages import one_line, size
from .spans import format_moment, parse_moment

EXAMPLE = "btw-backup status --max-age 26h /var/backups/etc /var/backups/shop"

# How much of the end of log.txt is read, in bytes.
_TAIL = 64 * 1024
# TIME, or the name that a tarball would have had.
_UNCHANGED = re.compile(
    rb"^([-:T0-9]+)(?:\.[.a-z]+)?: no change in the data to be backed up: (?:skipping|dropping)", re.MULTILINE
)


class State(IntEnum):
    """The exit statuses of a monitoring plugin."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


# UNKNOWN must not hide a backup that is known to be too old.
_RISING = (State.OK, State.WARNING, State.UNKNOWN, State.CRITICAL)


class Facts(NamedTuple):
    """What a destination holds.

    ``success``: when a run last succeeded, whether or not it had something to store. ``used``: the
    space on the disk in bytes. ``interrupted``: the newest backup is a chain left half done.
    """

    newest: datetime | None
    success: datetime | None
    points: int
    used: int
    interrupted: bool


class Report(NamedTuple):
    """A destination and its state. ``problem`` is empty where all is well, ``facts`` None where unknown."""

    dst: str
    state: State
    problem: str
    facts: Facts | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-age",
        type=span,
        metavar="SPAN",
        help="how long ago the last success may be, such as 26h; longer is CRITICAL (default: any time)",
    )
    parser.add_argument("--json", action="store_true", help="print an array of objects instead of lines")
    parser.add_argument(
        "--prometheus", metavar="FILE", help="also write FILE for node_exporter's textfile collector"
    )
    parser.add_argument("dst", nargs="+", help="a directory that holds backups")


def run(args: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    reports = [_report(dst, now, args.max_age) for dst in dict.fromkeys(args.dst)]
    if args.json:
        print(json.dumps([as_object(report, now) for report in reports], indent=2))
    else:
        for report in reports:
            _show(line(report, now, args.max_age))
    state = worst([report.state for report in reports])
    if args.prometheus is not None:
        try:
            _replace(args.prometheus, exposition(reports).encode())
        except OSError as error:
            args.messages.error(f"{args.prometheus}: {error.strerror or error}")
            state = worst([state, State.UNKNOWN])
    return state


def _show(text: str) -> None:
    """Print text that may hold the name of any file."""
    encoding = sys.stdout.encoding
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _report(dst: str, now: datetime, max_age: timedelta | None) -> Report:
    try:
        with closing(open_destination(dst)) as destination, naming("cannot be read"):
            facts = examine(destination)
    except Error as error:
        return Report(dst, State.UNKNOWN, str(error), None)
    return Report(dst, *judge(facts, now, max_age), facts)


def examine(destination: int) -> Facts:
    """What an open destination holds. Raises Error or OSError where it can't be read."""
    backups = scan(destination)
    newest = max((backup.newest for backup in backups), default=None)
    unchanged = None if newest is None else last_unchanged(_log_tail(destination))
    return Facts(
        newest,
        max((time for time in (newest, unchanged) if time is not None), default=None),
        sum(len(backup.points) for backup in backups),
        _used(destination),
        bool(backups) and backups[-1].interrupted,
    )


def _log_tail(destination: int) -> bytes:
    """The last lines of log.txt; nothing where it is no regular file."""
    with naming(LOG):
        try:
            fd = open_regular(LOG, destination)
        except (FileNotFoundError, Error):
            return b""
        with closing(fd):
            start = max(os.fstat(fd).st_size - _TAIL, 0)
            tail = os.pread(fd, _TAIL, start)
    return tail.partition(b"\n")[2] if start else tail


def last_unchanged(log: bytes) -> datetime | None:
    """The time of the last line that says that a run found nothing changed; None if none does."""
    times = [parse_moment(match[1].decode()) for match in _UNCHANGED.finditer(log)]
    return next((time for time in reversed(times) if time is not None), None)


def _used(destination: int) -> int:
    """The space that everything below a destination takes, in bytes; hard links count once.

    What may not be read, such as the private directory where we are not root, counts as empty.
    """
    argv = ["du", "--summarize", "--block-size=1", "."]
    with process.Program(argv, stdout=process.PIPE, cwd=destination) as program:
        said = program.stdout.read()
        # 1: something could not be read, or vanished meanwhile
        program.wait().check(accepted=(0, 1))
    return int(said.split()[0]) - os.fstat(destination).st_blocks * 512


def judge(facts: Facts, now: datetime, max_age: timedelta | None) -> tuple[State, str]:
    """The state of a destination and what is wrong with it, empty where nothing is."""
    if facts.success is None:
        return (State.WARNING if max_age is None else State.CRITICAL), "no backups yet"
    if max_age is not None and now - facts.success > max_age:
        return State.CRITICAL, f"no success within {age(max_age.total_seconds())}"
    if facts.interrupted:
        return State.WARNING, "the newest chain was interrupted"
    if facts.success > now:
        return State.WARNING, "the newest point or run is dated in the future"
    return State.OK, ""


def worst(states: Sequence[State]) -> State:
    """The worst of at least one state."""
    return max(states, key=_RISING.index)


def line(report: Report, now: datetime, max_age: timedelta | None) -> str:
    """One line in the form of a monitoring plugin: words, a bar, and performance data."""
    words = [report.problem] if report.problem else []
    data = ""
    if report.facts is not None:
        words += _words(report.facts, now)
        data = f" | {_performance(report.facts, now, max_age)}"
    said = one_line(f"{report.dst}: {', '.join(words)}").replace("|", "\\x7c")
    return f"BTW-BACKUP {report.state.name} - {said}{data}"


def _words(facts: Facts, now: datetime) -> Iterator[str]:
    if facts.newest is not None and facts.success is not None:
        yield f"newest point {format_moment(facts.newest)}"
        seconds = (now - facts.success).total_seconds()
        yield f"last success {age(seconds)} ago" if seconds >= 0 else f"last success in {age(-seconds)}"
    yield f"{facts.points} point{'s' if facts.points != 1 else ''}"
    yield size(facts.used)


def _performance(facts: Facts, now: datetime, max_age: timedelta | None) -> str:
    data = f"points={facts.points} size={facts.used}B"
    if facts.success is None:
        return data
    limit = "" if max_age is None else int(max_age.total_seconds())
    return f"age={_seconds(facts.success, now)}s;;{limit};0 {data}"


def _seconds(since: datetime, now: datetime) -> int:
    return int((now - since).total_seconds())


def as_object(report: Report, now: datetime) -> dict[str, Any]:
    """What ``--json`` prints of a destination: sizes in bytes, the age in seconds, null for unknown."""
    facts = report.facts or Facts(None, None, 0, 0, False)
    known = report.facts is not None
    return {
        "destination": report.dst,
        "status": report.state.name,
        "problem": report.problem or None,
        "newest": facts.newest and f"{format_moment(facts.newest)}Z",
        "last_success": facts.success and f"{format_moment(facts.success)}Z",
        "age": facts.success and _seconds(facts.success, now),
        "points": facts.points if known else None,
        "stored": facts.used if known else None,
    }


def exposition(reports: Sequence[Report]) -> str:
    """The text that Prometheus reads; what is unknown is left out."""
    known = [(report.dst, report.facts) for report in reports if report.facts is not None]
    text = ""
    for name, about, values in (
        (
            "newest_point_timestamp_seconds",
            "When the newest point was made.",
            [(dst, facts.newest and int(facts.newest.timestamp())) for dst, facts in known],
        ),
        (
            "last_success_timestamp_seconds",
            "When a run last succeeded, also where nothing had changed.",
            [(dst, facts.success and int(facts.success.timestamp())) for dst, facts in known],
        ),
        ("points", "The number of points that can be restored.", [(dst, f.points) for dst, f in known]),
        ("stored_bytes", "The space that the destination takes.", [(dst, f.used) for dst, f in known]),
    ):
        text += f"# HELP btw_backup_{name} {about}\n# TYPE btw_backup_{name} gauge\n"
        for dst, value in values:
            if value is not None:
                text += f'btw_backup_{name}{{destination="{_escaped(dst)}"}} {value}\n'
    return text


def _escaped(label: str) -> str:
    shown = label.encode(errors="backslashreplace").decode()
    return shown.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _replace(path: str, content: bytes) -> None:
    """Write a file that everybody may read, in one step: it is there as it was, or whole."""
    # The collector reads all names that end in .prom.
    where = os.path.dirname(path) or "."
    fd, prepared = tempfile.mkstemp(dir=where, prefix=".btw-backup.", suffix=".tmp")
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.replace(prepared, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(prepared)
        raise
