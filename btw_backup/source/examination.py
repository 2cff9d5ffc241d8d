"""The source of a filesystem backup: what its path is, and what of it is archived."""

import os
import stat
from collections.abc import Sequence

from ..config import FsOptions
from ..errors import Error, prefixing_errors
from ..programs.tar import TAG, Source
from ..system.trust import resolve
from ..workdir import Workdir, record_real, recorded_real


def examine_source(work: Workdir, own: Sequence[str], options: FsOptions, *, records: bool = True) -> Source:
    """Find out what the source is; ``own`` are directories of ours that are never archived.

    ``records``: if an older version made the working directory, it is noted there where the source is.

    Raises Error if it is missing, can't be read, is neither directory nor file, or may be led
    elsewhere by somebody else: whoever owns a directory above it could have root read any other.
    """
    path = work.source
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            os.listdir(path)
    except FileNotFoundError:
        raise Error(f"the source does not exist: {path}") from None
    except OSError as error:
        raise Error(f"cannot read the source: {path}: {error.strerror}") from error
    with prefixing_errors(path):
        real, secure = resolve(path)
    recorded = record_real(work, real) if records else recorded_real(work) or real
    if real != recorded and not secure:
        raise Error(
            f"{path}: refused, because it leads to {real} by a symbolic link that others can make, and"
            f" led to {recorded} before: where that is right, remove {work.real}"
        )
    if stat.S_ISREG(found.st_mode):
        return _source(os.path.dirname(real), os.path.basename(real), (), options)
    if not stat.S_ISDIR(found.st_mode):
        raise Error(f"the source is neither a directory nor a regular file: {path}")
    if real in map(os.path.realpath, own):
        raise Error(f"the source {path} is the destination or the working directory itself")
    return source_at(real, own, options)


def source_at(real: str, own: Sequence[str], options: FsOptions) -> Source:
    """What is archived of a directory, a path without links, but for what is ``own``."""
    inside = [path for path in map(os.path.realpath, own) if os.path.commonpath([path, real]) == real]
    return _source(real, "", tuple(os.path.relpath(path, real) for path in inside), options)


def _source(directory: str, member: str, left_out: tuple[str, ...], options: FsOptions) -> Source:
    return Source(
        directory,
        member,
        left_out,
        exclude=(*options.exclude, *options.exclude_from),
        one_file_system=options.one_file_system,
        tags=(TAG, *options.exclude_if_present),
        caches=options.exclude_caches,
        larger_than=options.exclude_larger_than,
    )
