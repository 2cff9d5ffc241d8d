"""``btw-backup verify``: reads backups to their last byte and says which are damaged."""

import argparse
import bz2
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from . import restore_test
from .arguments import add_at, add_destinations, add_json, destinations
from .destination import binding, verification
from .destination.catalog import GLOBALS, Chosen
from .destination.collection import Destinations
from .destination.contents import Content
from .destination.reader import Destination, Removed
from .destination.verification import Verification
from .errors import FAILED, Error, Undecided, Usage
from .messages import Messages, show_json
from .offsite import copies, stores
from .offsite.state import differences, examine
from .programs import postgres
from .programs.restic import Repository
from .programs.snapshots import Snapshot
from .programs.tar import listing
from .restore_test import Restored
from .times import shown_moment

# How many differences from an off-site copy are named.
_SHOWN = 5
_OK, _DAMAGED, _UNDECIDED = "ok", "damaged", "undecided"

EXAMPLE = "btw-backup -v verify /var/backups/etc"
STATUSES = {"1": "something is damaged, or could not be verified"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    add_at(which)
    which.add_argument("--latest", action="store_true", help="verifies only the newest point")
    which.add_argument(
        "--offsite",
        action="store_true",
        help="verifies each off-site repository instead, and that its newest copy is what dst holds",
    )
    parser.add_argument(
        "--subset",
        type=_subset,
        metavar="PART",
        help="with --offsite: reads only a part of the data, such as 5%%, 1/7 or 500M (default: all)",
    )
    parser.add_argument(
        "--restore-test",
        action="store_true",
        help="also restores the newest point: a filesystem into a scratch directory, where it is compared, a"
        " database into a scratch database",
    )
    add_json(parser)
    add_destinations(parser)


def _subset(text: str) -> str:
    percent, of = re.fullmatch(r"(\d+(?:\.\d+)?)%", text), re.fullmatch(r"(\d+)/(\d+)", text)
    amount = re.fullmatch(r"0*[1-9]\d*[KMGT]?", text)
    if not (
        amount or (percent and 0 < float(percent[1]) <= 100) or (of and 0 < int(of[1]) <= int(of[2]) <= 256)
    ):
        raise argparse.ArgumentTypeError(f"must be a part such as 5%, 1/7 or 500M, not {text!r}")
    return text


class Result(NamedTuple):
    """How the verification of a point ended, and what was restored of it.

    An entry that can't be read has no ``time``, an off-site copy no ``backup``.
    """

    dst: str
    source: str | None
    backup: str | None
    time: datetime | None
    status: str
    problem: str | None = None
    seconds: float | None = None
    restored: Restored | None = None

    def as_object(self) -> dict[str, Any]:
        """What ``--json`` prints of it."""
        return {
            "destination": self.dst,
            "source": self.source,
            "backup": self.backup,
            "time": self.time and shown_moment(self.time),
            "status": self.status,
            "problem": self.problem,
            "seconds": self.seconds and round(self.seconds, 3),
            "restored": self.restored and self.restored._asdict(),
        }


def run(args: argparse.Namespace) -> int:
    if args.offsite and args.restore_test:
        raise Usage("--restore-test cannot be used with --offsite")
    if args.subset is not None and not args.offsite:
        raise Usage("--subset is for --offsite")
    chosen = destinations(args)
    results: list[Result] = []
    if args.offsite:
        status = _verify_offsite(chosen, args, results)
    else:
        status = chosen.each(args.messages, partial(_verify, args, chosen.named, results))
    if args.json:
        show_json(result.as_object() for result in results)
    return status


def _verify(
    args: argparse.Namespace, among_others: bool, results: list[Result], dst: str, messages: Messages
) -> int:
    begun, first = time.monotonic(), len(results)
    with Destination.open(dst) as destination:
        source = binding.read(destination.directory)
        for line in destination.broken:
            messages.error(line)
            results.append(Result(dst, source, None, None, _DAMAGED, line))
        latest = destination.choose(args.at, datetime.now(UTC))
        passed: set[object] = set()
        for chosen in [latest] if args.at or args.latest else destination.points():
            about = Result(dst, source, chosen.backup.name, chosen.point.time, _OK)
            test = None
            if args.restore_test and chosen == latest:
                test = partial(_restore, args.config_dir, among_others, messages)
            examine = partial(_examine, destination, chosen, passed, test, messages)
            try:
                results.append(_attempt(about, examine, messages))
            except Removed as removed:  # by prune, which is its right
                if args.at or args.latest:
                    raise
                messages.summary(str(removed))
        _note(args, results[first:], time.monotonic() - begun, destination)
    return FAILED if any(result.status != _OK for result in results[first:]) else 0


def _attempt(about: Result, examine: Callable[[], Restored | None], messages: Messages) -> Result:
    """Examine a point, say how that ended, and return the result."""
    begun = time.monotonic()
    at = shown_moment(about.time) if about.time else ""
    restored, status, problem = None, _OK, None
    try:
        restored = examine()
    except Removed:
        raise
    except Error as error:
        status = _UNDECIDED if isinstance(error, Undecided) else _DAMAGED
        problem = str(error)
        messages.passed_on(error.stderr)
        for line in error.lines:
            messages.error(f"{at}: {line}")
    else:
        messages.summary(f"{at}: ok" if restored is None else f"{at}: ok, restored {restored}")
    seconds = time.monotonic() - begun
    return about._replace(status=status, problem=problem, seconds=seconds, restored=restored)


def _examine(
    destination: Destination,
    chosen: Chosen,
    passed: set[object],
    test: Callable[[Content], Restored | None] | None,
    messages: Messages,
) -> Restored | None:
    with destination.opened(chosen) as content:
        with messages.progress(f"verifying {shown_moment(chosen.point.time)}", content.size()) as advance:
            _check(content, passed, advance)
        return None if test is None else test(content)


def _restore(config_dir: str, among_others: bool, messages: Messages, content: Content) -> Restored | None:
    """Make the restore test of a point; beside databases there are globals, of which there is none."""
    if among_others and content.name == GLOBALS:
        return None
    return restore_test.restore(content, config_dir, messages)


def _note(
    args: argparse.Namespace, results: Sequence[Result], seconds: float, destination: Destination
) -> None:
    """Remember the verification, unless all that can be said is that something could not be verified."""
    statuses = {result.status for result in results}
    if _DAMAGED not in statuses and statuses != {_OK}:
        return
    scope = verification.NEWEST if args.latest else verification.POINT if args.at else verification.ALL
    made = Verification(datetime.now(UTC), round(seconds), _DAMAGED not in statuses, scope)
    verification.note(made, destination.directory)
    for result in results:
        if result.restored is not None:
            tested = made._replace(seconds=round(result.seconds or 0), is_ok=True, scope=verification.POINT)
            verification.note(tested, destination.directory, verification.RESTORE_TEST)


def _verify_offsite(chosen: Destinations, args: argparse.Namespace, results: list[Result]) -> int:
    """Verify each repository, once, and compare each destination with its newest copy there."""
    begun = time.monotonic()
    _, repositories = stores.configured(args.config_dir)
    held: dict[Repository, list[Snapshot]] = {}

    def check(repository: Repository) -> None:
        snapshots = repository.snapshots()
        repository.check(args.subset)
        held[repository] = snapshots

    failed = stores.each(repositories, args.messages, check)
    if not held:
        return FAILED
    scope = verification.ALL if args.subset is None else verification.PART

    def compare(dst: str, messages: Messages) -> int:
        times: list[datetime] = []
        with Destination.open(dst) as destination:
            about = Result(dst, binding.read(destination.directory), None, None, _OK)
            wrong = stores.each(
                [*held], messages, lambda one: times.append(_compare(one, held[one], destination))
            )
            if wrong:
                problem = "; ".join(map(str, wrong.values()))
                results.append(about._replace(status=_UNDECIDED, problem=problem))
                return FAILED
            seconds = time.monotonic() - begun
            results.append(about._replace(time=min(times), seconds=seconds))
            if not failed:
                made = Verification(datetime.now(UTC), round(seconds), is_ok=True, scope=scope)
                verification.note(made, destination.directory, verification.OFFSITE)
            messages.summary(f"{dst}: the off-site copy of {shown_moment(min(times))} is ok")
        return 0

    status = chosen.each(args.messages, compare)
    return FAILED if failed else status


def _compare(repository: Repository, snapshots: Sequence[Snapshot], destination: Destination) -> datetime:
    """Return the time of a destination's newest copy. Raises Error unless it is what that holds."""
    state = examine(destination)
    own = copies.own(copies.of_destinations(snapshots), destination.directory.path())
    where = repository.shown
    if not own:
        raise Error(f"there is no off-site copy of {destination.path} in {where}: send it with sync")
    different = differences(own[-1], repository.nodes(own[-1].snapshot.id), state.nodes)
    if different:
        shown = different[:_SHOWN]
        if len(different) > _SHOWN:
            shown.append(f"… and {len(different) - _SHOWN} more")
        differs = f"the newest off-site copy in {where} differs from {destination.path}"
        raise Error(*shown, f"{differs}: send it with sync")
    return own[-1].snapshot.time


def _check(content: Content, passed: set[object], advance: Callable[[int], None]) -> None:
    """Raise Error unless the content is what was stored, and its own program can read all of it.

    Files of an archive that have ``passed`` are not read again.
    """
    if content.name == GLOBALS:
        decompressor = bz2.BZ2Decompressor()
        try:
            content.write_to(decompressor.decompress, advance)
        except OSError as error:
            raise Error(f"{content.name} is damaged: {error}") from error
        if not decompressor.eof:
            raise Error(f"{content.name} is damaged: it ends too early")
    elif content.database() is not None and not content.is_older:
        with content.file(advance) as dumped:
            postgres.read_dump(dumped)
    elif content.is_recorded():
        # What has the recorded digest is what was stored, and was whole then.
        content.check(passed, advance)
    else:
        with listing() as listed:
            content.write_to(listed.write, advance)
