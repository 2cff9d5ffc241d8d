"""The source of a filesystem backup: what its path is, and what of it is archived."""

import os
import stat
from collections.abc import Sequence

from .errors import Error, prefixing_errors
from .programs.tar import Source
from .system.trust import resolve
from .workdir import Workdir, record_real


def examine_source(
    work: Workdir, own: Sequence[str], exclude: tuple[str, ...], one_file_system: bool
) -> Source:
    """Find out what the source is; ``own`` are directories of ours that are never archived.

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
    recorded = record_real(work, real)
    if real != recorded and not secure:
        raise Error(
            f"{path}: refused, because it leads to {real} by a symbolic link that others can make, and"
            f" led to {recorded} before: where that is right, remove {work.real}"
        )
    if stat.S_ISREG(found.st_mode):
        return Source(os.path.dirname(real), os.path.basename(real), (), exclude, one_file_system)
    if not stat.S_ISDIR(found.st_mode):
        raise Error(f"the source is neither a directory nor a regular file: {path}")
    left_out = []
    for directory in map(os.path.realpath, own):
        if directory == real:
            raise Error(f"the source {path} is the destination or the working directory itself")
        if os.path.commonpath([directory, real]) == real:
            left_out.append(os.path.relpath(directory, real))
    return Source(real, "", tuple(left_out), exclude, one_file_system)
