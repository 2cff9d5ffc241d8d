"""``btw-backup prune``: removes backups that a retention policy does not keep."""

import argparse
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from .arguments import add_destinations, add_json, add_wait, destinations, span
from .destination.reader import Destination
from .destination.retention import Decision, Policy, decide
from .destination.writer import working_on
from .errors import Usage
from .messages import Messages, show_json

_COUNTS = {
    "last": "the newest N points",
    "hourly": "the newest point of each of the last N hours that have one; while these are fewer, the oldest",
    "daily": "the same for days",
    "weekly": "the same for weeks",
    "monthly": "the same for months",
    "yearly": "the same for years",
}

EXAMPLE = "btw-backup prune --dry-run --keep-daily 14 --keep-monthly 12 /var/backups/etc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="only shows what would be kept and removed, and why"
    )
    for word, about in _COUNTS.items():
        parser.add_argument(f"--keep-{word}", type=_count, default=0, metavar="N", help=f"keeps {about}")
    parser.add_argument(
        "--keep-within",
        type=span,
        metavar="SPAN",
        help="keeps all points that are less than this older than the newest, such as 14d",
    )
    add_wait(parser)
    add_json(parser)
    add_destinations(parser)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    policy = Policy(**{word: getattr(args, f"keep_{word}") for word in _COUNTS}, within=args.keep_within)
    if not policy.keeps_anything():
        raise Usage("no policy: say what to keep, for example --keep-daily 14")
    found: list[dict[str, Any]] = []
    shows = not args.json and (args.dry_run or args.verbose)
    tell = partial(_collect, found, args.dry_run) if args.json else _print if shows else _say_nothing
    act = partial(_decide, policy, tell) if args.dry_run else partial(_remove, policy, args.wait, tell)
    status = destinations(args).each(args.messages, act, headings=shows)
    if args.json:
        show_json(found)
    return status


_Tell = Callable[[str, Decision], None]


def _decide(policy: Policy, tell: _Tell, dst: str, messages: Messages) -> int:
    with Destination.open(dst) as destination:
        for line in destination.broken:
            messages.warning(f"{dst}: {line}")
        for decision in decide(destination.backups, policy):
            tell(dst, decision)
    return 0


def _remove(policy: Policy, wait: timedelta, tell: _Tell, dst: str, messages: Messages) -> int:
    with working_on(dst, messages.warning, wait=wait) as held:
        decisions = held.prune(policy)
    for decision in decisions:
        tell(dst, decision)
    removed = sum(not decision.keep for decision in decisions)
    messages.summary(f"removed {removed} of {len(decisions)} backups")
    return 0


def _print(dst: str, decision: Decision) -> None:
    verb = "keep" if decision.keep else "remove"
    print(f"{verb:6} {decision.backup.name} ({decision.reason})")


def _say_nothing(dst: str, decision: Decision) -> None:
    """Neither -n nor -v asks for more."""


def _collect(found: list[dict[str, Any]], dry_run: bool, dst: str, decision: Decision) -> None:
    """Add what ``--json`` prints of a backup that is kept or, unless it is a dry run, has been removed."""
    found.append(
        {
            "destination": dst,
            "backup": decision.backup.name,
            "keep": decision.keep,
            "reason": decision.reason,
            "removed": not (decision.keep or dry_run),
        }
    )
