"""``btw-backup fs``: backs up a filesystem hierarchy."""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple

from . import fingerprint, hooks, offsite, workdir
from .archive.stream import Archive, archiving, changed_stream
from .arguments import add_destination, add_owner, add_wait
from .config import FsOptions, load_fs, load_general
from .destination.append import adding
from .destination.catalog import ARCHIVE, ENDING_OF, Stored, summary
from .destination.record import Record
from .destination.writer import Destination, working_on
from .errors import INCOMPLETE, Error
from .messages import Messages
from .programs import compressors
from .programs.tar import Source
from .source import examine_source
from .system.files import create, same_content, write_all
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
    with offsite.Sending(general.offsite, args.messages) as sending:
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
            sending.take(destination)
        args.messages.closing(summary(done.stored, done.size, time.monotonic() - started))
        args.messages.said(done.unreadable)
        return sending.finish() or (INCOMPLETE if done.unreadable else 0)


class _Done(NamedTuple):
    """What was stored, None if nothing; the archive's size in bytes; what tar could not read."""

    stored: Stored | None
    size: int
    unreadable: str


def _back_up(
    destination: Destination,
    source: Source,
    at: datetime,
    options: FsOptions,
    work: workdir.Workdir,
    messages: Messages,
) -> _Done:
    """Back up the source, where it has changed."""
    mark = fingerprint.take(source) if options.quick_check else None
    with _newest(destination, options.type) as newest:
        if mark is not None and newest is not None and newest.known.fingerprint == mark.digest:
            _note_unchanged(destination, options, at)
            return _Done(None, 0, "")
        expected = None if newest is None else newest.size
        with (
            messages.progress(expected) as advance,
            archiving(source, digested=options.type == "tar", advance=advance) as archive,
        ):
            stored = _store(destination, archive, newest, at, options, work)
    if archive.result.status == 1:
        for line in archive.result.said.splitlines():
            note = destination.note_of_stored if stored else destination.note
            note(f"{format_moment(at)}: {line}")
    settled = mark is not None and mark.settled and archive.result.status == 0
    _record(destination, options.type, Record(mark.digest if mark and settled else "-", archive.digest()))
    return _Done(stored, archive.size, archive.result.said if archive.result.status == 2 else "")


class _Newest(NamedTuple):
    """The newest backup: its open tarfile, how that is compressed, and what was recorded of it.

    ``size``: of the archive in bytes, None where it is not known.
    """

    file: int
    compression: str
    known: Record
    size: int | None


@contextmanager
def _newest(destination: Destination, type_: str) -> Iterator[_Newest | None]:
    """The newest backup where it is of this type."""
    newest = destination.backups[-1] if destination.backups else None
    if newest is None or newest.interrupted or newest.is_chain != (type_ == "rdiff"):
        yield None
        return
    with destination.opened(newest, ARCHIVE) as file:
        size = os.fstat(file).st_size if newest.compression == "none" else None
        yield _Newest(file, newest.compression, destination.recorded(file) or Record("-", "-"), size)


def _record(destination: Destination, type_: str, record: Record) -> None:
    with _newest(destination, type_) as newest:
        if newest is not None:
            destination.record(record, newest.file)


def _note_unchanged(destination: Destination, options: FsOptions, at: datetime) -> None:
    if options.type == "tar":
        name = format_moment(at) + ENDING_OF[options.compression]
        destination.note(f"{name}: no change in the data to be backed up: dropping backup")
    else:
        destination.note_unchanged(at, options.limits)


def _store(
    destination: Destination,
    archive: Archive,
    newest: _Newest | None,
    at: datetime,
    options: FsOptions,
    work: workdir.Workdir,
) -> Stored | None:
    """Compare the archive with the newest one, and store it where it differs; None where not."""
    if options.type == "tar":
        return _store_tarball(destination, archive, newest, at, options)
    # Inodes that differ are taken for a difference in the archive, which is then looked for last.
    differs = options.quick_check and newest is not None and newest.known.fingerprint != "-"
    previous = None if newest is None or differs else (newest.file, newest.compression)
    blocks = changed_stream(archive, previous)
    if blocks is None:
        archive.finish()
        _note_unchanged(destination, options, at)
        return None
    with (
        workdir.staging(work) as stage,
        create(ARCHIVE, stage) as output,
        adding(destination, stage, at, options.limits) as add,
    ):
        for block in blocks:
            write_all(output, block)
        archive.finish()
        if differs and newest is not None and same_content(output, newest.file):
            _note_unchanged(destination, options, at)
            return None
        return add()


def _store_tarball(
    destination: Destination,
    archive: Archive,
    newest: _Newest | None,
    at: datetime,
    options: FsOptions,
) -> Stored | None:
    differs = options.quick_check and newest is not None and newest.known.digest != "-"
    previous = None if newest is None or differs else (newest.file, newest.compression)
    blocks = changed_stream(archive, previous)
    if blocks is not None:
        with destination.prepared() as output:
            with compressors.compressing(output, options.compression) as packed:
                for block in blocks:
                    packed.write(block)
            archive.finish()
            compressors.check_ending(output, options.compression, archive.size)
            if newest is None or archive.digest() != newest.known.digest:
                name = format_moment(at) + ENDING_OF[options.compression]
                return destination.add_tarball(output, name, at, archive.size)
    archive.finish()
    _note_unchanged(destination, options, at)
    return None
