"""``btw-backup status``: says how old and how large the backups are.

Its lines and exit statuses are those that Nagios and its relatives read.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from . import offsite
from .arguments import span
from .config import load_general
from .destination.catalog import Backup, open_destination, scan
from .destination.writer import LOG
from .errors import Error, naming
from .messages import show
from .monitoring import CopyFacts, Facts, Report, State, as_object, exposition, judge, line, replace, worst
from .programs import process
from .programs.restic import Snapshot
from .system.files import closing, open_regular
from .times import parse_moment

EXAMPLE = "btw-backup status --max-age 26h /var/backups/etc /var/backups/shop"

# How much of the end of log.txt is read, in bytes.
_TAIL = 64 * 1024
# TIME, or the name that a tarball would have had.
_UNCHANGED = re.compile(
    rb"^([-:T0-9]+)(?:\.[.a-z]+)?: no change in the data to be backed up: (?:skipping|dropping)", re.MULTILINE
)


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
    snapshots, problem = _snapshots(args.config_dir)
    reports = [_report(dst, now, args.max_age, snapshots) for dst in dict.fromkeys(args.dst)]
    if problem:
        args.messages.error(problem)
        reports = [_unreached(report) for report in reports]
    if args.json:
        print(json.dumps([as_object(report, now) for report in reports], indent=2))
    else:
        for report in reports:
            show(line(report, now, args.max_age))
    state = worst([report.state for report in reports])
    if args.prometheus is not None:
        try:
            replace(args.prometheus, exposition(reports).encode())
        except OSError as error:
            args.messages.error(f"{args.prometheus}: {error.strerror or error}")
            state = worst([state, State.UNKNOWN])
    return state


def _snapshots(config_dir: str) -> tuple[list[Snapshot] | None, str]:
    """What the off-site repository holds, None where there is none; and why it could not be asked."""
    try:
        settings = load_general(config_dir).offsite
        return (None if settings is None else offsite.repository(settings).snapshots()), ""
    except Error as error:
        return None, str(error)


def _unreached(report: Report) -> Report:
    """The report where nothing is known of the off-site copies."""
    if report.problem:
        return report
    return report._replace(state=State.WARNING, problem="the off-site repository cannot be asked")


def _report(dst: str, now: datetime, max_age: timedelta | None, snapshots: list[Snapshot] | None) -> Report:
    try:
        with closing(open_destination(dst)) as destination, naming("cannot be read"):
            facts = examine(destination, snapshots)
    except Error as error:
        return Report(dst, State.UNKNOWN, str(error), None)
    return Report(dst, *judge(facts, now, max_age), facts)


def examine(destination: int, snapshots: Sequence[Snapshot] | None = None) -> Facts:
    """What an open destination holds. Raises Error or OSError where it can't be read.

    ``snapshots``: what the off-site repository holds, None where there is none.
    """
    backups = scan(destination)
    newest = max((backup.newest for backup in backups), default=None)
    unchanged = None if newest is None else last_unchanged(_log_tail(destination))
    return Facts(
        newest,
        max((time for time in (newest, unchanged) if time is not None), default=None),
        sum(len(backup.points) for backup in backups),
        _used(destination),
        bool(backups) and backups[-1].interrupted,
        None if snapshots is None else _copies(destination, backups, snapshots),
    )


def _copies(destination: int, backups: Sequence[Backup], snapshots: Sequence[Snapshot]) -> CopyFacts:
    own = offsite.own_copies(snapshots, offsite.name_of(destination))
    points = [point.time for backup in backups for point in backup.points]
    unsent = [time for time in points if not own or time > own[-1].newest]
    return CopyFacts(own[-1].snapshot.time if own else None, min(unsent, default=None))


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
