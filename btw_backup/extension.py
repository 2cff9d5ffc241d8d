"""Making a chain and adding points to it, with rdiff-backup.

Its exit status 0 does not mean that anything was stored (2.2.2), so what it did is checked here
before anybody sees it.
"""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, cast

from . import chain, process
from .chain import Unusable
from .errors import Error
from .files import BLOCK, Linked, directory, link_tree, open_regular, remove, same_content, start_writing


@contextmanager
def beginning(stage: int, private: int, name: str, time: datetime) -> Iterator[Callable[[], None]]:
    """Make a new chain ``name`` in the private directory, of the one file in ``stage``.

    rdiff-backup starts at once, which takes as long as reading 100 MB. It reads the file when what
    this yields is called; that raises Error where it fails or did not do what it says.
    """
    os.mkdir(name, 0o700, dir_fd=private)
    with _backing_up(stage, private, name, time) as back_up:

        def finish() -> None:
            back_up().check()
            with directory(name, private) as made:
                _check(stage, made, (), time)

        yield finish


@contextmanager
def extending(
    extended: int, stage: int, private: int, name: str, time: datetime
) -> Iterator[Callable[[], Linked]]:
    """Make a copy ``name`` of a chain in the private directory, and add a point to it.

    As ``beginning``; what this yields returns what both share, and the size that the chain had.
    Raises Error where the chain holds what no chain holds, and Unusable where it is damaged, or
    rdiff-backup fails or did not do what it says.
    """
    os.mkdir(name, 0o700, dir_fd=private)
    with directory(name, private) as copied:
        linked = link_tree(extended, copied, chain.LINKABLE)
        with directory(chain.DATA, copied) as data:
            older = chain.read_state(os.listdir(data)).stamps
            chain.check_metadata(data, chain.mirror_name(copied))
        with _backing_up(stage, private, name, time) as back_up:

            def finish() -> Linked:
                result = back_up()
                if result.status > 0:
                    raise Unusable(result.ending(), said=result.said)
                result.check()
                _check(stage, copied, older, time)
                if older and not _is_compressed(copied, older[-1]):
                    _check_older(extended, private, name, older[-1])
                return linked

            yield finish


@contextmanager
def _backing_up(
    stage: int, private: int, name: str, time: datetime
) -> Iterator[Callable[[], process.Result]]:
    """Start rdiff-backup; what this yields has it back up the stage, and waits for its end."""
    argv = ["-v2", "--no-fsync", "--current-time", str(int(time.timestamp())), "backup"]
    # What to leave out, nothing, is read from the pipe before it looks for files.
    # Paths that hold "::" are remote hosts to it; these can't.
    argv += ["--exclude-filelist-stdin", ".", f"/proc/self/fd/{private}/{name}"]
    with chain.started(argv, stage, private, process.PIPE) as program:

        def back_up() -> process.Result:
            # It takes a file whose size and mtime are unchanged for unchanged; no earlier point has this.
            for entry in os.listdir(stage):
                os.utime(entry, (time.timestamp(), time.timestamp()), dir_fd=stage, follow_symlinks=False)
            program.stdin.close()
            with directory(name, private) as written:
                result = chain.ended(program, lambda: start_writing(written))
                start_writing(written)
            return result

        yield back_up


def _check(stage: int, made: int, older: tuple[str, ...], time: datetime) -> None:
    """Raise Unusable unless the chain holds the staged file, and the older points still."""
    failure = Unusable("rdiff-backup exited with code: 0, but did not store the new point")
    with directory(chain.DATA, made) as data:
        state = chain.read_state(os.listdir(data))
        if state.interrupted or tuple(map(chain.moment, state.stamps)) != (*map(chain.moment, older), time):
            raise failure
        name = chain.mirror_name(made)
        if name is None or os.listdir(stage) != [name]:
            raise failure
        _check_same(stage, made, name, failure)
        if chain.recorded(made, state.stamps[-1]) is None:
            raise failure
        if older:
            _check_increment(data, name, older[-1], failure)


def _check_same(one: int, other: int, name: str, failure: Error) -> None:
    """Raise unless both open directories hold the same file of that name."""
    staged = open_regular(name, one)
    try:
        mirror = open_regular(name, other)
        try:
            if not same_content(staged, mirror):
                raise failure
        finally:
            os.close(mirror)
    finally:
        os.close(staged)


def _check_increment(data: int, name: str, stamp: str, failure: Error) -> None:
    """Raise unless the way back to the point before the new one has been stored, whole."""
    with directory("increments", data) as increments:
        for ending in ("diff.gz", "snapshot.gz", "diff", "snapshot"):
            try:
                fd = open_regular(f"{name}.{stamp}.{ending}", increments)
            except FileNotFoundError:
                continue
            with open(fd, "rb") as file:
                increment = gzip.open(file) if ending.endswith(".gz") else file
                if _is_whole(cast(IO[bytes], increment)):
                    return
    raise failure


def _is_whole(increment: IO[bytes]) -> bool:
    """Whether an increment can be read to its end, where gzip keeps a checksum, and is not empty."""
    try:
        size = sum(map(len, iter(lambda: increment.read(BLOCK), b"")))
    except (OSError, EOFError, zlib.error):
        return False
    return size > 0


def _is_compressed(made: int, stamp: str) -> bool:
    """Whether the increment of a point has gzip's checksum; that of a file like ``.bz2`` has not."""
    with directory(chain.DATA, made) as data, directory("increments", data) as increments:
        return any(f".{stamp}." in name and name.endswith(".gz") for name in os.listdir(increments))


def _check_older(extended: int, private: int, name: str, stamp: str) -> None:
    """Raise Unusable unless the copy ``name`` gives back at a point what is the chain's mirror."""
    try:
        chain.restore(private, name, stamp, private)
    except Error as error:
        raise Unusable(*error.lines, said=error.said) from error
    with directory(chain.RESTORED, private) as restored:
        mirror = chain.mirror_name(extended) or ""
        _check_same(extended, restored, mirror, Unusable(f"the point {stamp} is not stored"))
    remove(chain.RESTORED, private)
