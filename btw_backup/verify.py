"""``btw-backup verify``: reads backups to their last byte and says which are damaged."""

import argparse
import bz2
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from . import offsite
from .arguments import add_at, add_destinations, destinations
from .config import load_db
from .destination.catalog import GLOBALS
from .destination.collection import Destinations
from .destination.contents import Content
from .destination.reader import Destination
from .errors import FAILED, Error, Usage
from .messages import Messages
from .programs import postgres
from .programs.restic import Repository, Snapshot
from .programs.tar import listing
from .times import shown_moment

# How many differences from an off-site copy are named.
_SHOWN = 5

EXAMPLE = "btw-backup -v verify /var/backups/etc"
STATUSES = {"1": "something is damaged, or could not be read"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    add_at(which)
    which.add_argument("--latest", action="store_true", help="verifies only the newest point")
    which.add_argument(
        "--offsite",
        action="store_true",
        help="verifies the off-site repository instead, and that its newest copy is what dst holds",
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
        help="also restores the newest dump of a database into a scratch database, and drops that",
    )
    add_destinations(parser)


def _subset(text: str) -> str:
    percent, of = re.fullmatch(r"(\d+(?:\.\d+)?)%", text), re.fullmatch(r"(\d+)/(\d+)", text)
    amount = re.fullmatch(r"0*[1-9]\d*[KMGT]?", text)
    if not (
        amount or (percent and 0 < float(percent[1]) <= 100) or (of and 0 < int(of[1]) <= int(of[2]) <= 256)
    ):
        raise argparse.ArgumentTypeError(f"must be a part such as 5%, 1/7 or 500M, not {text!r}")
    return text


def run(args: argparse.Namespace) -> int:
    if args.offsite and args.restore_test:
        raise Usage("--restore-test cannot be used with --offsite")
    if args.subset is not None and not args.offsite:
        raise Usage("--subset is for --offsite")
    chosen = destinations(args)
    if args.offsite:
        return _verify_offsite(chosen, args)
    return chosen.each(args.messages, partial(_verify, args, chosen.named))


def _verify(args: argparse.Namespace, among_others: bool, dst: str, messages: Messages) -> int:
    with Destination.open(dst) as destination:
        for line in destination.broken:
            messages.error(line)
        failures = len(destination.broken)
        latest = destination.choose(args.at, datetime.now(UTC))
        passed: set[object] = set()
        points = [latest] if args.at or args.latest else destination.points()
        for chosen in points:
            time = shown_moment(chosen.point.time)
            try:
                with (
                    destination.opened(chosen) as content,
                    messages.progress(f"verifying {time}", content.size()) as advance,
                ):
                    _check(content, passed, advance)
                    # Beside databases there are globals, of which there is no such test.
                    passed_over = among_others and content.database() is None
                    if chosen == latest and args.restore_test and not passed_over:
                        _restore_test(content, args.config_dir)
            except Error as error:
                failures += 1
                messages.passed_on(error.stderr)
                for line in error.lines:
                    messages.error(f"{time}: {line}")
            else:
                messages.summary(f"{time}: ok")
    return FAILED if failures else 0


def _verify_offsite(destinations: Destinations, args: argparse.Namespace) -> int:
    """Verify the repository, once, and compare each destination with its newest copy."""
    _, repository = offsite.configured(args.config_dir)
    snapshots = repository.snapshots()
    repository.check(args.subset)
    return destinations.each(args.messages, partial(_compare, repository, snapshots))


def _compare(repository: Repository, snapshots: Sequence[Snapshot], dst: str, messages: Messages) -> int:
    """Raise Error unless the newest copy of a destination is what that holds."""
    with Destination.open(dst) as destination:
        state = offsite.examine(destination)
        own = offsite.own_copies(snapshots, destination.directory.path())
    if not own:
        raise Error(f"there is no off-site copy of {dst}: send it with sync")
    differences = offsite.differences(own[-1], repository.nodes(own[-1].snapshot.id), state)
    if differences:
        shown = differences[:_SHOWN]
        if len(differences) > _SHOWN:
            shown.append(f"… and {len(differences) - _SHOWN} more")
        raise Error(*shown, f"the newest off-site copy differs from {dst}: send it with sync")
    messages.summary(f"{dst}: the off-site copy of {shown_moment(own[-1].snapshot.time)} is ok")
    return 0


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


def _restore_test(content: Content, config_dir: str) -> None:
    """Restore a dump into a scratch database. Raises Error if it can't be restored."""
    database = content.database()
    if database is None:
        raise Error("--restore-test is for backups of a database")
    server = load_db(config_dir, database).server
    scratch = f"btw_backup_test_{secrets.token_hex(4)}"
    with content.file() as dumped:
        postgres.create_database(scratch, dumped, server)
        try:
            postgres.restore(scratch, dumped, server)
        finally:
            postgres.drop_database(scratch, server)
