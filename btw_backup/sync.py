"""``btw-backup sync``: sends backups to the off-site repository."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from . import offsite
from .arguments import add_destinations, add_wait, destinations
from .config import Offsite
from .destination.collection import Destinations
from .destination.reader import Destination
from .destination.view import View, viewing
from .destination.writer import working_on
from .errors import Busy, Usage, prefixing_errors
from .messages import Messages, show, size
from .programs.restic import Repository

EXAMPLE = "btw-backup sync /var/backups/etc /var/backups/shop"
STATUSES = {"1": "something was not sent"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--init", action="store_true", help="first makes the repository: needed once")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only shows what would be sent")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="sends a destination even if it holds none of the backups of its newest copy",
    )
    add_wait(parser)
    add_destinations(parser)


def run(args: argparse.Namespace) -> int:
    if args.init and args.dry_run:
        raise Usage("--init cannot be used with --dry-run")
    chosen = Destinations.of([]) if args.init and not args.dst else destinations(args)
    settings, repository = offsite.configured(args.config_dir)
    if args.init:
        repository.create()
        args.messages.summary(f"created the off-site repository {repository.shown}")

    def act(dst: str, messages: Messages) -> int:
        with prefixing_errors(dst):
            if args.dry_run:
                _show(dst, repository)
            else:
                _send(dst, repository, settings, messages, args.wait, replace=args.replace)
        return 0

    return chosen.each(args.messages, act)


def _send(
    dst: str,
    repository: Repository,
    settings: Offsite,
    messages: Messages,
    wait: timedelta,
    *,
    replace: bool,
) -> None:
    started = time.monotonic()
    with Destination.open(dst) as destination:  # an empty one stays as it is
        offsite.check_holds(destination)
    with _view(dst, messages.warning, wait) as (view, state):
        added = offsite.send(view, state, repository, settings, messages, replace=replace)
        seconds = time.monotonic() - started
        if added is None:
            messages.summary(f"{dst}: nothing has changed, {seconds:.1f} s")
        else:
            of = size(state.size())
            messages.summary(f"{dst}: {size(added)} sent of {of}, {seconds:.1f} s")


@contextmanager
def _view(dst: str, warn: Callable[[str], None], wait: timedelta) -> Iterator[tuple[View, offsite.State]]:
    """Yield a view of the destination and its state, as soon as no other run works on it or sends it."""
    deadline = time.monotonic() + wait.total_seconds()
    with ExitStack() as later:
        while True:
            try:
                with working_on(dst, warn) as held:
                    state = offsite.examine(held)
                    view = later.enter_context(viewing(held))
                break
            except Busy:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.2)
        yield view, state


def _show(dst: str, repository: Repository) -> None:
    with Destination.open(dst) as destination:
        state = offsite.examine(destination)
        own = offsite.own_copies(repository.snapshots(), destination.directory.path())
    unchanged = own and not offsite.differences(own[-1], repository.nodes(own[-1].snapshot.id), state)
    show(f"{'unchanged' if unchanged else 'send'} {dst} ({size(state.size())})")
