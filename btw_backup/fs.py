"""``btw-backup fs``: backs up a filesystem hierarchy."""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from typing import NamedTuple

from . import fingerprint, hooks, offsite, workdir
from .archive import parts
from .archive.parts import Made, Part
from .archive.stream import Archive, archiving, changed_blocks
from .arguments import add_destination, add_owner, add_wait
from .config import FsOptions, load_fs, load_general
from .destination.append import NewPoint, NewTarball, Stored, closing_line
from .destination.catalog import ENDING_OF, Backup
from .destination.labels import ARCHIVE
from .destination.newest import newest_archive
from .destination.record import NOTHING_KNOWN, Record
from .destination.writer import LockedDestination, working_on
from .errors import INCOMPLETE, Error
from .messages import Messages
from .programs import compressors, versions
from .programs.tar import Source
from .source import examine_source
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
    known = _known(destination, options.type)
    if mark is not None and known.fingerprint == mark.digest:
        _note_unchanged(destination, options, at)
        return _Done(None, 0, "")
    # Inodes that differ are taken for a difference in the archive, which is then looked for last.
    is_likely = options.quick_check and known.fingerprint is not None
    settled = mark is not None and fingerprint.settle(mark, source)
    is_tarball = options.type == "tar"
    with (
        messages.progress(_size(destination, options.type)) as advance,
        archiving(source, digested=is_tarball, advance=advance) as archive,
    ):
        if is_tarball:
            is_likely = options.quick_check and known.digest is not None
            stored = _store_tarball(destination, archive, at, options, known.digest, is_likely)
            stored_parts: Sequence[Part] = ()
        else:
            stored, stored_parts = _store_parts(destination, archive, at, options, work, known, is_likely)
    if stored is None:
        _note_unchanged(destination, options, at)
    if archive.result.status == 1:
        for line in archive.result.stderr.splitlines():
            note = destination.note_of_stored if stored else destination.note
            note(f"{format_moment(at)}: {line}")
    told = mark.digest if mark is not None and settled and archive.result.status == 0 else None
    tar = None if is_tarball else _tar()  # nobody asks which one made a tarball
    destination.record(Record(told, archive.digest(), tar, stored_parts))
    return _Done(stored, archive.size, archive.result.stderr if archive.result.status == 2 else "")


def _previous(destination: LockedDestination, type_: str) -> Backup | None:
    """The newest backup if it is of this type."""
    backup = destination.newest_backup()
    is_usable = backup is not None and not backup.interrupted and backup.is_chain == (type_ == "rdiff")
    return backup if is_usable else None


def _known(destination: LockedDestination, type_: str) -> Record:
    """What was recorded of the newest backup if it is of this type."""
    return destination.recorded() if _previous(destination, type_) else NOTHING_KNOWN


def _size(destination: LockedDestination, type_: str) -> int | None:
    """The size of the newest backup's archive in bytes; None if there is none, or it is not known."""
    backup = _previous(destination, type_)
    return None if backup is None else destination.size(backup)


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


def _store_tarball(
    destination: LockedDestination,
    archive: Archive,
    at: datetime,
    options: FsOptions,
    known: str | None,
    is_likely: bool,
) -> Stored | None:
    """Store the archive if it is not what the newest tarball holds; None if it is.

    ``known`` is the SHA-256 of what that holds, if it is known.
    """
    blocks: Iterator[bytes] | None = archive.blocks()
    backup = _previous(destination, "tar")
    with ExitStack() as opened:
        if backup is not None and not is_likely:
            file = opened.enter_context(destination.stored_file(backup))
            blocks = changed_blocks(archive, (file, backup.compression))
        if blocks is None:
            return None
        tarball = opened.enter_context(NewTarball(destination, at, options.compression))
        with compressors.compressing(tarball.file, options.compression) as packed:
            for block in blocks:
                packed.write(block)
        compressors.check_ending(tarball.file, options.compression, archive.size)
        if archive.digest() == known:
            return None
        return tarball.commit(archive.size)


def _store_parts(
    destination: LockedDestination,
    archive: Archive,
    at: datetime,
    options: FsOptions,
    work: workdir.Workdir,
    known: Record,
    is_likely: bool,
) -> tuple[Stored | None, list[Part]]:
    """Store the archive if it is not what the newest chain holds. Also return the parts of it."""
    with (
        newest_archive(destination, _previous(destination, "rdiff"), known.parts) as before,
        workdir.staging(work) as stage,
    ):
        afresh = before.unusable
        if known.tar not in (None, _tar()):
            # Its headers may all be written otherwise: as many differences as there are files.
            afresh = f"tar is now {_tar()}, and the newest backup was made by {known.tar}"
        with NewPoint(
            destination, stage, at, options.limits, shares=options.share_parts, afresh=afresh
        ) as point:
            if is_likely:
                point.prepare()
            sizes = parts.FULL if point.is_full else parts.INCREMENTAL
            found = []
            for part in parts.compare(archive.blocks(), before.parts, before.open, stage, sizes):
                if isinstance(part, Made):
                    point.prepare()
                found.append(part)
            if found == before.parts:
                return None, before.parts
            return point.commit_archive(found, before.parts)
