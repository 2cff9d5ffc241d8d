"""``btw-backup sync``: sends backups to the off-site repositories."""

import argparse
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from .arguments import add_destinations, add_wait, destinations
from .config import Offsite
from .destination.collection import Destinations
from .destination.reader import Destination
from .destination.view import View, viewing
from .destination.writer import working_on
from .errors import FAILED, Busy, Error, Usage, prefixing_errors, worst
from .messages import Messages, show, size
from .offsite import configuration, copies, stores
from .offsite.configuration import Staged
from .offsite.sending import Refused, send
from .offsite.state import State, check_holds, differences, examine
from .programs.restic import Exists, Repository, this_host

EXAMPLE = "btw-backup sync /var/backups/etc /var/backups/shop"
STATUSES = {"1": "something was not sent"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--init", action="store_true", help="first makes the repositories that are missing: needed once"
    )
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
    settings, repositories = stores.configured(args.config_dir)
    status = 0
    if args.init:
        usable = _make(repositories, args.messages)
        for line in _checklist(repositories, settings):
            show(line)
        status = 0 if usable == repositories else FAILED
        repositories = usable
    down: set[Repository] = set()

    def act(dst: str, messages: Messages) -> int:
        with prefixing_errors(dst):
            if args.dry_run:
                failed = _show(dst, repositories, messages)
            else:
                failed = _send(dst, repositories, settings, messages, args.wait, replace=args.replace)
        down.update(one for one, error in failed.items() if not isinstance(error, Refused))
        return FAILED if failed else 0

    statuses = [status, chosen.each(args.messages, act)]
    able = [repository for repository in repositories if repository not in down]
    with configuration.staging(settings) as staged:
        if args.dry_run:
            failed = _show_configuration(staged, able, args.messages)
        else:
            failed = _send_configuration(staged, able, settings, args.messages)
    return worst([*statuses, FAILED if failed else 0])


def _checklist(repositories: Sequence[Repository], settings: Offsite) -> Iterator[str]:
    """Yield the lines that tell what a new machine needs."""
    host = shlex.quote(this_host())
    yield "Put this into a safe in another building; without the password nobody can read the copies:"
    for repository in repositories:
        yield f"  OFFSITE, the address: {repository.shown}"
    yield f"  OFFSITE_PASSWORD_FILE, the password: what is in {settings.password_file}"
    if settings.env:
        yield f"  OFFSITE_ENV, the values of: {', '.join(settings.env)}"
    yield "and what to type on a new machine, once these are in config.py and in the password's file there:"
    yield "  btw-backup fetch --list"
    yield f"  btw-backup fetch --all --host {host}"


def _make(repositories: Sequence[Repository], messages: Messages) -> list[Repository]:
    """Make the repositories that are missing. Returns those that are there then.

    The others have been reported. Raises Error if none was made.
    """
    errors: dict[Repository, Error] = {}
    for repository in repositories:
        try:
            repository.create()
            messages.summary(f"created the off-site repository {repository.shown}")
        except Error as error:
            errors[repository] = error
    if len(errors) == len(repositories):
        raise Error(*(line for failure in errors.values() for line in failure.lines))
    failed = {one: failure for one, failure in errors.items() if not isinstance(failure, Exists)}
    for failure in failed.values():
        messages.report(failure)
    return [repository for repository in repositories if repository not in failed]


def _send(
    dst: str,
    repositories: Sequence[Repository],
    settings: Offsite,
    messages: Messages,
    wait: timedelta,
    *,
    replace: bool,
) -> dict[Repository, Error]:
    """Send a destination to each repository. Returns those where that failed."""
    with Destination.open(dst) as destination:  # an empty one stays as it is
        check_holds(destination)
    with _view(dst, messages.warning, wait) as (view, state):

        def send_to(repository: Repository) -> None:
            started = time.monotonic()
            added = send(view, state, repository, settings, messages, replace=replace)
            done = _done(added, state.size(), repository, settings)
            messages.summary(f"{dst}: {done}, {time.monotonic() - started:.1f} s")

        return stores.each(repositories, messages, send_to)


def _done(added: int | None, total: int, to: Repository, settings: Offsite) -> str:
    done = "nothing has changed" if added is None else f"{size(added)} sent of {size(total)}"
    return f"{done} (to {to.shown})" if len(settings.addresses) > 1 else done


def _send_configuration(
    staged: Staged, repositories: Sequence[Repository], settings: Offsite, messages: Messages
) -> dict[Repository, Error]:
    """Send the configuration directory to each repository. Returns those where that failed."""

    def send_to(repository: Repository) -> None:
        added = configuration.send(staged, repository, settings, messages)
        left_out = ["OFFSITE_PASSWORD_FILE", *(["the values of OFFSITE_ENV"] if settings.env else [])]
        without = "" if added is None else f", without {' and '.join(left_out)}"
        messages.summary(f"{staged.name}: {_done(added, staged.size(), repository, settings)}{without}")

    return stores.each(repositories, messages, send_to)


@contextmanager
def _view(dst: str, warn: Callable[[str], None], wait: timedelta) -> Iterator[tuple[View, State]]:
    """Yield a view of the destination and its state, as soon as no other run works on it or sends it."""
    deadline = time.monotonic() + wait.total_seconds()
    with ExitStack() as later:
        while True:
            try:
                with working_on(dst, warn) as held:
                    state = examine(held)
                    view = later.enter_context(viewing(held))
                break
            except Busy:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.2)
        yield view, state


def _show(dst: str, repositories: Sequence[Repository], messages: Messages) -> dict[Repository, Error]:
    """Show whether a destination would be sent to each repository. Returns those where that failed."""
    with Destination.open(dst) as destination:
        state = examine(destination)
        name = destination.directory.path()

    def show_for(repository: Repository) -> None:
        own = copies.own(copies.of_destinations(repository.snapshots()), name)
        nodes = repository.nodes(own[-1].snapshot.id) if own else ()
        unchanged = bool(own) and not differences(own[-1], nodes, state.nodes)
        show(_planned(dst, state.size(), unchanged, repository, repositories))

    return stores.each(repositories, messages, show_for)


def _show_configuration(
    staged: Staged, repositories: Sequence[Repository], messages: Messages
) -> dict[Repository, Error]:
    def show_for(repository: Repository) -> None:
        unchanged = configuration.is_same(staged, repository)
        show(_planned(staged.name, staged.size(), unchanged, repository, repositories))

    return stores.each(repositories, messages, show_for)


def _planned(
    path: str, total: int, unchanged: bool, repository: Repository, among: Sequence[Repository]
) -> str:
    where = f" {'in' if unchanged else 'to'} {repository.shown}" if len(among) > 1 else ""
    return f"{'unchanged' if unchanged else 'send'} {path} ({size(total)}){where}"
