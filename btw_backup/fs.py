"""``btw-backup fs``: backs up a filesystem hierarchy."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from . import fingerprint, tarball, workdir
from .arguments import add_destination, add_owner, add_wait
from .backups import ENDING_OF, Stored, summary
from .config import FsOptions, load_fs
from .destination import Destination, working_on
from .errors import INCOMPLETE, Error
from .files import create, write_all
from .spans import format_moment

_MIRROR = "backup.tar"


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
    options = load_fs(work.config_file)
    with working_on(args.dst, args.messages.warning, args.owner, args.wait) as destination:
        destination.check_series(_MIRROR)
        at = destination.next_time()
        source = tarball.examine_source(path, [args.dst, work.path], options.exclude, options.one_file_system)
        mark = fingerprint.take(source) if options.quick_check else None
        if mark is not None and _is_recorded(destination, options.type, mark):
            _note_unchanged(destination, options, at)
            args.messages.closing(summary(None, 0, time.monotonic() - started))
            return 0
        with tarball.archiving(source) as archive:
            stored = _store(destination, archive, at, options, work)
        if archive.result.status == 1:
            for line in archive.result.said.splitlines():
                destination.note(f"{format_moment(at)}: {line}")
        if mark is not None and mark.settled and archive.result.status == 0:
            _record(destination, options.type, mark)
    args.messages.closing(summary(stored, archive.size, time.monotonic() - started))
    if archive.result.status == 2:
        args.messages.said(archive.result.said)
        return INCOMPLETE
    return 0


@contextmanager
def _newest(destination: Destination, type_: str) -> Iterator[tuple[int, str] | None]:
    """The newest backup where it is of this type: its open tarfile, and how that is compressed."""
    newest = destination.backups[-1] if destination.backups else None
    if newest is None or newest.interrupted or newest.is_chain != (type_ == "rdiff"):
        yield None
        return
    with destination.opened(newest, _MIRROR) as file:
        yield file, newest.compression


def _is_recorded(destination: Destination, type_: str, mark: fingerprint.Fingerprint) -> bool:
    with _newest(destination, type_) as newest:
        return newest is not None and destination.is_recorded(mark.digest, newest[0])


def _record(destination: Destination, type_: str, mark: fingerprint.Fingerprint) -> None:
    with _newest(destination, type_) as newest:
        if newest is not None:
            destination.record(mark.digest, newest[0])


def _note_unchanged(destination: Destination, options: FsOptions, at: datetime) -> None:
    if options.type == "tar":
        name = format_moment(at) + ENDING_OF[options.compression]
        destination.note(f"{name}: no change in the data to be backed up: dropping backup")
    else:
        destination.note_unchanged(at, options.limits)


def _store(
    destination: Destination,
    archive: tarball.Archive,
    at: datetime,
    options: FsOptions,
    work: workdir.Workdir,
) -> Stored | None:
    """Compare the archive with the previous one while it is read; store it where it differs."""
    with _newest(destination, options.type) as previous:
        stream = tarball.changed_stream(archive, previous)
        if stream is None:
            archive.finish()
            _note_unchanged(destination, options, at)
            return None
        if options.type == "tar":
            with destination.prepared() as output:
                with tarball.compressing(output, options.compression) as packed:
                    for block in stream:
                        packed.write(block)
                archive.finish()
                name = format_moment(at) + ENDING_OF[options.compression]
                return destination.add_tarball(output, name, at)
        with workdir.staging(work) as stage:
            with create(_MIRROR, stage) as output:
                for block in stream:
                    write_all(output, block)
            archive.finish()
            return destination.add_point(stage, at, options.limits)
