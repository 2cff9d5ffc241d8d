"""``btw-backup status``: reports the age and the size of backups.

Its lines and exit statuses are those that Nagios and its relatives read.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from . import offsite
from .arguments import add_destinations, add_json, destinations, span
from .config import load_general
from .destination import binding, verification
from .destination.log import last_success
from .destination.reader import Destination
from .errors import Error, prefixing_errors
from .messages import show
from .monitoring import (
    CopyFacts,
    Facts,
    Limits,
    Report,
    State,
    as_object,
    exposition,
    judge,
    line,
    replace,
    worst,
)
from .programs import process
from .programs.restic import Snapshot
from .system.directories import Directory

EXAMPLE = "btw-backup status --max-age 26h /var/backups/etc /var/backups/shop"
STATUSES = {
    "0": "OK",
    "1": "WARNING: there are no backups yet; the newest chain was interrupted; a point is dated in the"
    " future; there is no off-site copy yet; the off-site repository can't be reached; or, with"
    " --max-verify-age, the last verification is longer ago",
    "2": "CRITICAL: the last verification found damage; or, with --max-age, the last success is longer ago,"
    " there are no backups, or a point is older than that and has no off-site copy",
    "3": "UNKNOWN: a destination is missing or can't be read, as its line says; or FILE can't be written",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-age",
        type=span,
        metavar="SPAN",
        help="sets how long ago the last success may be, such as 26h; longer is CRITICAL (default: any time)",
    )
    parser.add_argument(
        "--max-verify-age",
        type=span,
        metavar="SPAN",
        help="sets how long ago the last verification may be, such as 35d; longer is WARNING (default: any"
        " time)",
    )
    add_json(parser)
    parser.add_argument(
        "--prometheus",
        metavar="FILE",
        help="also writes FILE, a .prom file, for node_exporter's textfile collector",
    )
    add_destinations(parser)


def run(args: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    snapshots, problem = _snapshots(args.config_dir)
    limits = Limits(args.max_age, args.max_verify_age)
    reports = [_report(dst, now, limits, snapshots) for dst in destinations(args).paths]
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
    """Return what the off-site repository holds, None if there is none; and why it can't be reached."""
    try:
        settings = load_general(config_dir).offsite
        return (None if settings is None else offsite.repository(settings).snapshots()), ""
    except Error as error:
        return None, str(error)


def _unreached(report: Report) -> Report:
    """Return the report for when nothing is known about the off-site copies."""
    if report.problem:
        return report
    return report._replace(state=State.WARNING, problem="the off-site repository cannot be reached")


def _report(dst: str, now: datetime, limits: Limits, snapshots: list[Snapshot] | None) -> Report:
    try:
        with Destination.open(dst) as destination, prefixing_errors("cannot be read"):
            facts = examine(destination, snapshots)
    except Error as error:
        return Report(dst, State.UNKNOWN, str(error), None)
    return Report(dst, *judge(facts, now, limits), facts)


def examine(destination: Destination, snapshots: Sequence[Snapshot] | None = None) -> Facts:
    """Examine what a destination holds. Raises Error or OSError if it can't be read.

    ``snapshots``: what the off-site repository holds, None if there is none.
    """
    backups = destination.backups
    newest_time = max((backup.newest_time for backup in backups), default=None)
    success = None if newest_time is None else last_success(destination.directory)
    return Facts(
        newest_time,
        max((time for time in (newest_time, success) if time is not None), default=None),
        sum(len(backup.points) for backup in backups),
        _used(destination.directory),
        bool(backups) and backups[-1].interrupted,
        None if snapshots is None else _copies(destination, snapshots),
        destination.broken,
        binding.read(destination.directory),
        verification.last(destination.directory),
        verification.last(destination.directory, verification.RESTORE_TEST),
        verification.last(destination.directory, verification.OFFSITE),
    )


def _copies(destination: Destination, snapshots: Sequence[Snapshot]) -> CopyFacts:
    own = offsite.own_copies(snapshots, destination.directory.path())
    points = [chosen.point.time for chosen in destination.points()]
    unsent = [time for time in points if not own or time > own[-1].newest_time]
    return CopyFacts(own[-1].snapshot.time if own else None, min(unsent, default=None))


def _used(destination: Directory) -> int:
    """Return the space that everything below a destination takes, in bytes; hard links count once.

    Unreadable directories, such as the private one if we are not root, count as empty.
    """
    argv = ["du", "--summarize", "--block-size=1", "."]
    with process.Program(argv, stdout=process.PIPE, cwd=destination.fileno()) as program:
        printed = program.stdout.read()
        # 1: something could not be read, or vanished meanwhile
        program.wait().check(accepted=(0, 1))
    return int(printed.split()[0]) - destination.status().st_blocks * 512
