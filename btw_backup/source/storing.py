"""Storing a source in a destination if it has changed: as a tarball, or as parts of a chain."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from typing import NamedTuple

from .. import workdir
from ..archive import parts
from ..archive.division import compare, compare_some
from ..archive.parts import Made, Part
from ..archive.stream import Archive, archiving, changed_blocks
from ..config import FsOptions
from ..destination.append import NewPoint, NewTarball, Stored, Uncompared
from ..destination.catalog import ENDING_OF, Backup
from ..destination.newest import NewestArchive, newest_archive
from ..destination.record import NOTHING_KNOWN, Record, Stretch
from ..destination.writer import LockedDestination
from ..errors import Error
from ..messages import Messages
from ..programs import compressors, versions
from ..programs.process import Result
from ..programs.tar import Source
from ..system.directories import Directory
from ..times import format_moment
from . import fingerprint
from .ranges import Range, Ranges, ranges_of
from .walk import with_large


class Done(NamedTuple):
    """What was stored, None if nothing; the archive's size in bytes; what tar could not read."""

    stored: Stored | None
    size: int
    unreadable: str


def store_source(
    destination: LockedDestination,
    source: Source,
    at: datetime,
    options: FsOptions,
    work: workdir.Workdir,
    messages: Messages,
) -> Done:
    """Store the source in the destination if it has changed since the newest backup there.

    ``work`` is where parts of the archive are staged. Raises Error if nothing could be stored.
    """
    source = with_large(source)
    known = _known(destination, options.type)
    starts = [stretch.start for stretch in known.stretches]
    mark = fingerprint.take(source, starts) if options.quick_check else None
    changed = None if mark is None else mark.changed(known.options, known.stretches)
    if changed == []:
        _note_unchanged(destination, options, at)
        return Done(None, 0, "")
    before = _Before(known, changed, mark and mark.size())
    stretches: Sequence[Stretch] = () if mark is None else mark.settle(source)
    store = _store_tarball if options.type == "tar" else _store_parts
    try:
        read = store(destination, source, at, options, work, messages, before)
    except Uncompared:
        read = store(destination, source, at, options, work, messages, before._replace(changed=None))
    if read.stored is None:
        _note_unchanged(destination, options, at)
    if read.result.status == 1:
        for line in read.result.stderr.splitlines():
            note = destination.note_of_stored if read.stored else destination.note
            note(f"{format_moment(at)}: {line}")
    if read.result.status != 0:  # it may be what it was before a change, or after
        stretches = _without(stretches, read.ranges)
    options_known = None if mark is None else mark.options
    destination.record(Record(options_known, read.digest, read.tar, read.parts, stretches))
    return Done(read.stored, read.size, read.result.stderr if read.result.status == 2 else "")


class _Before(NamedTuple):
    """What is known before the source is read: of the newest backup, and from a walk over the inodes.

    ``changed`` is where they differ, ``size`` that of all files in bytes; None if it is not known.
    """

    known: Record
    changed: Sequence[Range] | None
    size: int | None


class _Read(NamedTuple):
    """What was read, and how tar ended; what was stored of it, None if nothing; what is known of it now.

    ``size`` is in bytes. ``ranges``: what was read, None if that was everything.
    """

    result: Result
    size: int
    stored: Stored | None
    digest: str | None = None
    tar: str | None = None
    parts: Sequence[Part] = ()
    ranges: Ranges | None = None


def _without(stretches: Sequence[Stretch], ranges: Ranges | None) -> list[Stretch]:
    """The stretches, without the digests of those that were read."""
    stops = [*(stretch.start for stretch in stretches[1:]), None]
    return [
        stretch._replace(digest=None) if ranges is None or ranges.hold(stretch.start, stop) else stretch
        for stretch, stop in zip(stretches, stops, strict=False)
    ]


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
    source: Source,
    at: datetime,
    options: FsOptions,
    work: workdir.Workdir,
    messages: Messages,
    before: _Before,
) -> _Read:
    """Store the archive if it is not what the newest tarball holds."""
    backup = _previous(destination, "tar")
    with ExitStack() as opened:
        advance = opened.enter_context(
            messages.progress("backing up", _size(destination, "tar") or before.size)
        )
        archive = opened.enter_context(archiving(source, digested=True, advance=advance))
        blocks: Iterator[bytes] | None = archive.blocks()
        # Inodes that differ are taken for a difference in the archive, which is then looked for last.
        if backup is not None and (before.changed is None or before.known.digest is None):
            file = opened.enter_context(destination.stored_file(backup))
            blocks = changed_blocks(archive, (file, backup.compression))
        stored = None
        if blocks is not None:
            tarball = opened.enter_context(NewTarball(destination, at, options.compression))
            with compressors.compressing(tarball.file, options.compression) as packed:
                for block in blocks:
                    packed.write(block)
            compressors.check_ending(tarball.file, options.compression, archive.size)
            if archive.digest() != before.known.digest:
                stored = tarball.commit(archive.size)
        return _Read(archive.result, archive.size, stored, archive.digest())


def _store_parts(
    destination: LockedDestination,
    source: Source,
    at: datetime,
    options: FsOptions,
    work: workdir.Workdir,
    messages: Messages,
    before: _Before,
) -> _Read:
    """Store the parts of the archive that are not those of the newest chain."""
    tar, known = _tar(), before.known
    with ExitStack() as opened:
        newest = opened.enter_context(
            newest_archive(destination, _previous(destination, "rdiff"), known.parts)
        )
        afresh = newest.unusable
        if known.tar not in (None, tar):
            # Its headers may all be written otherwise: as many differences as there are files.
            afresh = f"tar is now {tar}, and the newest backup was made by {known.tar}"
        stage = opened.enter_context(workdir.staging(work))
        adding = NewPoint(
            destination,
            stage,
            at,
            options.limits,
            messages.progress,
            shares=options.share_parts,
            afresh=afresh,
        )
        point = opened.enter_context(adding)
        ranges = None
        if before.changed is not None and known.options is not None:
            point.prepare()  # something has changed, most likely
            if not point.is_full:
                ranges = opened.enter_context(ranges_of(source, newest.parts, before.changed))
        read = [slice(*run) for run in ranges.runs] if ranges else [slice(None)]
        expected = sum(part.size for run in read for part in newest.parts[run])
        found = []
        sizes = parts.FULL if point.is_full else parts.INCREMENTAL
        with (
            messages.progress("backing up", expected or before.size) as advance,
            archiving(
                source, digested=False, advance=advance, named=ranges.named if ranges else None
            ) as archive,
        ):
            for part in _compared(archive, newest, ranges, stage, sizes):
                if isinstance(part, Made):
                    point.prepare()
                found.append(part)
        stored, now = None, newest.parts
        if any(isinstance(part, Made) for part in found) or len(found) != len(newest.parts):
            stored, now = point.commit_archive(found, newest.parts, compared=ranges is None)
        size = sum(part.size for part in now)
    return _Read(archive.result, size, stored, None, tar, now, ranges)


def _compared(
    archive: Archive, newest: NewestArchive, ranges: Ranges | None, stage: Directory, sizes: parts.Sizes
) -> Iterator[Part | Made]:
    if ranges is None:
        return compare(archive.blocks(), newest.parts, newest.open, stage, sizes)
    return compare_some(archive.blocks(), newest.parts, ranges.runs, newest.open, stage, sizes)
