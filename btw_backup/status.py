"""``btw-backup status``: reports the age and the size of backups.

Its lines and exit statuses are those that Nagios and its relatives read.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from .arguments import add_destinations, add_json, destinations, span
from .config import load_general
from .destination import binding, verification
from .destination.log import last_success
from .destination.reader import Destination
from .errors import Error, prefixing_errors
from .messages import Messages, show
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
from .offsite import copies, stores
from .programs import process
from .programs.snapshots import Snapshot
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
    stored, problem = _stored(args.config_dir, args.messages)
    limits = Limits(args.max_age, args.max_verify_age)
    chosen = destinations(args)
    reports = [_report(dst, now, limits, stored) for dst in chosen.paths]
    if problem:
        reports = [_unreached(report, problem) for report in reports]
    if args.json:
        print(json.dumps([as_object(report, now) for report in reports], indent=2))
    else:
        for report in reports:
            if report.state != State.OK or not args.quiet:
                show(line(report, now, args.max_age))
    state = worst([State.UNKNOWN if chosen.status else State.OK, *(report.state for report in reports)])
    if args.prometheus is not None:
        try:
            replace(args.prometheus, exposition(reports).encode())
        except OSError as error:
            args.messages.error(f"{args.prometheus}: {error.strerror or error}")
            state = worst([state, State.UNKNOWN])
    return state


def _stored(config_dir: str, messages: Messages) -> tuple[list[list[Snapshot]], str]:
    """Return what each off-site repository holds that can be reached, and which cannot be."""
    found: list[list[Snapshot]] = []
    try:
        settings = load_general(config_dir).offsite
        if settings is None:
            return found, ""
        repositories = stores.repositories(settings)
    except Error as error:
        messages.report(error)
        return found, "the off-site repository cannot be reached"
    failed = stores.each(repositories, messages, lambda repository: found.append(repository.snapshots()))
    names = " or ".join(repository.shown for repository in failed)
    return found, f"the off-site repository {names} cannot be reached" if failed else ""


def _unreached(report: Report, problem: str) -> Report:
    """Return the report for when nothing is known about some off-site copies."""
    return report if report.problem else report._replace(state=State.WARNING, problem=problem)


def _report(dst: str, now: datetime, limits: Limits, stored: list[list[Snapshot]]) -> Report:
    try:
        with Destination.open(dst) as destination, prefixing_errors("cannot be read"):
            facts = examine(destination, stored)
    except Error as error:
        return Report(dst, State.UNKNOWN, str(error), None)
    return Report(dst, *judge(facts, now, limits), facts)


def examine(destination: Destination, stored: Sequence[Sequence[Snapshot]] = ()) -> Facts:
    """Examine what a destination holds. Raises Error or OSError if it can't be read.

    ``stored``: what each off-site repository holds.
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
        _copies(destination, stored) if stored else None,
        destination.broken,
        binding.read(destination.directory),
        verification.last(destination.directory),
        verification.last(destination.directory, verification.RESTORE_TEST),
        verification.last(destination.directory, verification.OFFSITE),
    )


def _copies(destination: Destination, stored: Sequence[Sequence[Snapshot]]) -> CopyFacts:
    """Return the facts of the repository that is furthest behind."""
    newest = []
    for snapshots in stored:
        own = copies.own(copies.of_destinations(snapshots), destination.directory.path())
        newest.append(own[-1] if own else None)
    points = [chosen.point.time for chosen in destination.points()]
    unsent = [time for time in points for copy in newest if copy is None or time > copy.newest_time]
    copied = [copy.snapshot.time for copy in newest if copy is not None]
    return CopyFacts(min(copied) if len(copied) == len(newest) else None, min(unsent, default=None))


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
