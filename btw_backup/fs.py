"""``btw-backup fs``: backs up a filesystem hierarchy."""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import NamedTuple

from . import fingerprint, hooks, offsite, workdir
from .archive.stream import Archive, archiving, changed_blocks
from .arguments import add_destination, add_owner, add_wait
from .config import FsOptions, load_fs, load_general
from .destination.append import NewPoint, NewTarball, Stored, closing_line
from .destination.catalog import ARCHIVE, ENDING_OF
from .destination.record import Record
from .destination.writer import LockedDestination, working_on
from .errors import INCOMPLETE, Error
from .messages import Messages
from .programs import compressors, versions
from .programs.tar import Source
from .source import examine_source
from .system.files import same_content, write_all
from .times import format_moment

EXAMPLE = "btw-backup fs -u backup: /etc /var/backups/etc"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_owner(parser)
    add_wait(parser)
    parser.add_argument("src", help="the absolute path of what to back up")
    add_destination(parser)


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    path = workdir.normalize(args.src)
    work = workdir.find(args.config_dir, path)
    if work is None:
        raise Error(f"no working directory for: {args.src}")
    general = load_general(args.config_dir)
    options = load_fs(work.config_file, general)
    warn = args.messages.warning
    described = hooks.Run("fs", path, os.path.abspath(args.dst))
    with offsite.sending(general.offsite, args.messages) as sending:
        with (
            hooks.on_failure(options.hooks, described, warn),
            working_on(args.dst, warn, args.owner, args.wait) as destination,
        ):
            destination.check_series(ARCHIVE)
            at = destination.next_time()
            source = examine_source(work, [args.dst, work.path], options.exclude, options.one_file_system)
            workdir.remove_left(work)
            with hooks.around(options.hooks, described, warn):
                done = _back_up(destination, source, at, options, work, args.messages)
            destination.note_success(at)
            sending.take(destination)
        args.messages.summary(closing_line(done.stored, done.size, time.monotonic() - started))
        args.messages.passed_on(done.unreadable)
        return sending.finish() or (INCOMPLETE if done.unreadable else 0)


class _Done(NamedTuple):
    """What was stored, None if nothing; the archive's size in bytes; what tar could not read."""

    stored: Stored | None
    size: int
    unreadable: str


def _back_up(
    destination: LockedDestination,
    source: Source,
    at: datetime,
    options: FsOptions,
    work: workdir.Workdir,
    messages: Messages,
) -> _Done:
    """Back up the source if it has changed."""
    mark = fingerprint.take(source) if options.quick_check else None
    with _newest_archive(destination, options.type) as previous:
        if mark is not None and previous is not None and previous.known.fingerprint == mark.digest:
            _note_unchanged(destination, options, at)
            return _Done(None, 0, "")
        settled = mark is not None and fingerprint.settle(mark, source)
        with (
            messages.progress(None if previous is None else previous.size) as advance,
            archiving(source, digested=options.type == "tar", advance=advance) as archive,
        ):
            stored = _store(destination, archive, previous, at, options, work)
    if stored is None:
        _note_unchanged(destination, options, at)
    if archive.result.status == 1:
        for line in archive.result.stderr.splitlines():
            note = destination.note_of_stored if stored else destination.note
            note(f"{format_moment(at)}: {line}")
    told = mark.digest if mark is not None and settled and archive.result.status == 0 else None
    tar = _tar() if options.type == "rdiff" else None  # nobody asks which one made a tarball
    with _newest_archive(destination, options.type) as stored_now:
        if stored_now is not None:
            destination.record(Record(told, archive.digest(), tar), stored_now.file)
    return _Done(stored, archive.size, archive.result.stderr if archive.result.status == 2 else "")


class _NewestArchive(NamedTuple):
    """The newest backup's archive: its open file, how it is compressed, and what was recorded of it.

    ``size``: of the archive in bytes, None if it is not known.
    """

    file: int
    compression: str
    known: Record
    size: int | None


@contextmanager
def _newest_archive(destination: LockedDestination, type_: str) -> Iterator[_NewestArchive | None]:
    """Open the newest backup if it is of this type."""
    backup = destination.newest_backup()
    if backup is None or backup.interrupted or backup.is_chain != (type_ == "rdiff"):
        yield None
        return
    with destination.stored_file(backup, ARCHIVE) as file:
        size = os.fstat(file).st_size if backup.compression == "none" else None
        yield _NewestArchive(file, backup.compression, destination.recorded(file), size)


def _tar() -> str | None:
    """The version of tar, None if it does not tell it: no backup fails for that."""
    with suppress(Error):
        return versions.shown(versions.version("tar")) or None
    return None


def _note_unchanged(destination: LockedDestination, options: FsOptions, at: datetime) -> None:
    if options.type == "tar":
        name = format_moment(at) + ENDING_OF[options.compression]
        destination.note(f"{name}: no change in the data to be backed up: dropping backup")
    else:
        destination.note_unchanged(at, options.limits)


def _store(
    destination: LockedDestination,
    archive: Archive,
    previous: _NewestArchive | None,
    at: datetime,
    options: FsOptions,
    work: workdir.Workdir,
) -> Stored | None:
    """Store the archive if it is not what the newest backup holds; None if it is."""
    is_tarball = options.type == "tar"
    blocks: Iterator[bytes] | None = archive.blocks()
    if previous is not None:
        # Inodes that differ are taken for a difference in the archive, which is then looked for last.
        known = previous.known.digest if is_tarball else previous.known.fingerprint
        if not options.quick_check or known is None:
            blocks = changed_blocks(archive, (previous.file, previous.compression))
    if blocks is None:
        return None
    if is_tarball:
        with NewTarball(destination, at, options.compression) as tarball:
            with compressors.compressing(tarball.file, options.compression) as packed:
                for block in blocks:
                    packed.write(block)
            compressors.check_ending(tarball.file, options.compression, archive.size)
            if previous is not None and archive.digest() == previous.known.digest:
                return None
            return tarball.commit(archive.size)
    afresh = None
    if previous is not None and previous.known.tar not in (None, _tar()):
        # Its headers may all be written otherwise: as many differences as there are files.
        afresh = f"tar is now {_tar()}, and the newest backup was made by {previous.known.tar}"
    with (
        workdir.staging(work) as stage,
        stage.create(ARCHIVE) as staged,
        NewPoint(destination, stage, ARCHIVE, at, options.limits, afresh) as point,
    ):
        for block in blocks:
            write_all(staged, block)
        if previous is not None and same_content(staged, previous.file):
            return None
        return point.commit()
