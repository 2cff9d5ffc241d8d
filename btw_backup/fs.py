"""``btw-backup fs``: backs up a filesystem hierarchy."""

import argparse
import os
import shlex
import time

from . import hooks, workdir
from .arguments import add_adopt, add_destination, add_owner, add_wait
from .config import FsOptions, Offsite, Storage, load_fs, load_general
from .destination import binding, success
from .destination.append import closing_line
from .destination.labels import ARCHIVE
from .destination.writer import working_on
from .errors import FAILED, INCOMPLETE
from .messages import Messages
from .offsite import automatic
from .source.examination import examine_source
from .source.storing import store_source

EXAMPLE = "btw-backup fs -u backup: /etc /var/backups/etc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_owner(parser)
    add_adopt(parser)
    add_wait(parser)
    parser.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="only shows how much would be stored, the largest directories, and what each rule leaves out;"
        " a directory counts with all below it, and is not listed if nearly all of that is in one directory",
    )
    parser.add_argument("src", help="the absolute path of what to back up")
    add_destination(parser)


def run(args: argparse.Namespace) -> int:
    path = workdir.normalize(args.src)
    work = workdir.find(args.config_dir, path)
    if work is None:
        args.messages.error(f"no working directory for: {args.src}")
        args.messages.summary(f"make it with: {_making_workdir(args.config_dir, path)}")
        return FAILED
    general = load_general(args.config_dir)
    options = load_fs(work.config_file, general)
    if args.dry_run:
        from .source.preview import show_preview  # a backup does not wait for it

        return show_preview(work, args.dst, options, args.messages)
    storage = Storage(args.dst, args.owner, wait=args.wait, adopt=args.adopt)
    return back_up(work, options, storage, general.offsite, args.messages)


def back_up(
    work: workdir.Workdir,
    options: FsOptions,
    storage: Storage,
    off_site: Offsite | None,
    messages: Messages,
) -> int:
    """Back up the source of a working directory. Returns the exit status."""
    started = time.monotonic()
    dst, warn = storage.dst, messages.warning
    described = hooks.Run("fs", work.source, os.path.abspath(dst))
    with automatic.sending(off_site, messages) as sending:
        with (
            hooks.on_failure(options.hooks, described, warn),
            working_on(dst, warn, storage.owner, storage.wait) as destination,
        ):
            binding.check_series(destination, ARCHIVE)
            binding.check(destination, work.source, adopt=storage.adopt)
            at = destination.next_time()
            source = examine_source(work, [dst, work.path], options)
            workdir.remove_left(work)
            with hooks.around(options.hooks, described, warn):
                done = store_source(destination, source, at, options, work, messages)
            success.conclude(destination, at, work.source, storage.keep if done.stored else None)
            sending.take(destination)
        messages.summary(closing_line(done.stored, done.size, time.monotonic() - started))
        messages.passed_on(done.unreadable)
        return sending.finish() or (INCOMPLETE if done.unreadable else 0)


def _making_workdir(config_dir: str, source: str) -> str:
    """The command line that makes a working directory for a source."""
    where = [] if config_dir == os.path.expanduser("~/.btw-backup") else ["--config-dir", config_dir]
    name = os.path.basename(source) or "root"
    return shlex.join(["btw-backup", *where, "fs-init", "--type", "rdiff", source, name])
