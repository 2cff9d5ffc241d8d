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

from ..errors import Error
from ..programs import process
from ..system.confinement import At
from ..system.files import (
    BLOCK,
    closing,
    directory,
    open_regular,
    remove,
    same_content,
    same_until,
    start_writing,
    temporary_directory,
)
from ..system.trees import Linked, link_tree
from . import chain
from .chain import Unusable

_BackUp = Callable[[Callable[[], None]], process.Result]


@contextmanager
def beginning(stage: int, private: int, name: str, time: datetime) -> Iterator[Callable[[], None]]:
    """Make a new chain ``name`` in the private directory, of the one file in ``stage``.

    What has that name in the end is removed: the caller has moved the chain to its place by then.

    rdiff-backup starts at once, which takes as long as reading 100 MB. It reads the file when what
    this yields is called; that raises Error where it fails or did not do what it says.
    """
    with temporary_directory(name, private) as made, _backing_up(stage, private, name, time) as back_up:

        def finish() -> None:
            with _comparing(stage, made) as comparison:
                back_up(comparison.go_on).check()
                _check(made, comparison, (), time)

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
    with temporary_directory(name, private) as copied:
        linked = link_tree(extended, copied, chain.LINKABLE)
        with directory(chain.DATA, copied) as data:
            older = chain.read_state(os.listdir(data)).stamps
            chain.check_metadata(data, chain.mirror_name(copied))
        with _backing_up(stage, private, name, time) as back_up:

            def finish() -> Linked:
                with _comparing(stage, copied) as comparison:
                    result = back_up(comparison.go_on)
                    if result.status > 0:
                        raise Unusable(result.ending(), said=result.said)
                    result.check()
                    _check(copied, comparison, older, time)
                if older and not _is_compressed(copied, older[-1]):
                    _check_older(extended, private, name, older[-1])
                return linked

            yield finish


@contextmanager
def _backing_up(stage: int, private: int, name: str, time: datetime) -> Iterator[_BackUp]:
    """Start rdiff-backup; what this yields has it back up the stage, and waits for its end.

    That takes what is called meanwhile, as ``Program.wait``.
    """
    argv: list[str | At] = ["-v2", "--no-fsync", "--current-time", str(int(time.timestamp())), "backup"]
    # What to leave out, nothing, is read from the pipe before it looks for files.
    # Paths that hold "::" are remote hosts to it; these can't.
    argv += ["--exclude-filelist-stdin", ".", At(private, name)]
    with chain.started(argv, stage, private, process.PIPE) as program:

        def back_up(meanwhile: Callable[[], None]) -> process.Result:
            # It takes a file whose size and mtime are unchanged for unchanged; no earlier point has this.
            for entry in os.listdir(stage):
                os.utime(entry, (time.timestamp(), time.timestamp()), dir_fd=stage, follow_symlinks=False)
            program.stdin.close()
            return chain.ended(program, meanwhile)

        yield back_up


class _Comparison:
    """Compares the staged file ``name`` with the mirror while rdiff-backup still writes that.

    Then it need not come back from the disk, and has begun to go there. Made by ``_comparing``.
    """

    def __init__(self, name: str, staged: int, made: int) -> None:
        self.name = name
        self._staged = staged
        self._made = made
        self._growing: int | None = None
        self._same = 0

    def go_on(self) -> None:
        """Compare what there is by now."""
        if self._growing is None:
            self._growing = chain.open_temporary(self._made)
        if self._growing is not None:
            self._same = same_until(self._staged, self._growing, self._same)
            start_writing(self._growing)

    def agrees(self) -> bool:
        """Whether the finished mirror is the staged file."""
        with closing(open_regular(self.name, self._made)) as mirror:
            return same_content(self._staged, mirror, self._same if self._has_followed(mirror) else 0)

    def _has_followed(self, mirror: int) -> bool:
        """Whether the mirror is what was compared, and written no more since rdiff-backup set its mtime."""
        if self._growing is None or not os.path.sameopenfile(self._growing, mirror):
            return False
        return os.fstat(mirror).st_mtime_ns == os.fstat(self._staged).st_mtime_ns

    def close(self) -> None:
        if self._growing is not None:
            os.close(self._growing)


@contextmanager
def _comparing(stage: int, made: int) -> Iterator[_Comparison]:
    """Compare the one file in ``stage`` with the mirror of the chain in the open directory ``made``."""
    [name] = os.listdir(stage)
    with closing(open_regular(name, stage)) as staged:
        comparison = _Comparison(name, staged, made)
        try:
            yield comparison
        finally:
            comparison.close()


def _check(made: int, comparison: _Comparison, older: tuple[str, ...], time: datetime) -> None:
    """Raise Unusable unless the chain holds the staged file, and the older points still."""
    failure = Unusable("rdiff-backup exited with code: 0, but did not store the new point")
    with directory(chain.DATA, made) as data:
        state = chain.read_state(os.listdir(data))
        if state.interrupted or tuple(map(chain.moment, state.stamps)) != (*map(chain.moment, older), time):
            raise failure
        if chain.mirror_name(made) != comparison.name or not comparison.agrees():
            raise failure
        if chain.recorded(made, state.stamps[-1]) is None:
            raise failure
        if older:
            _check_increment(data, comparison.name, older[-1], failure)


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
    mirror = chain.mirror_name(extended) or ""
    with (
        directory(chain.RESTORED, private) as restored,
        closing(open_regular(mirror, extended)) as held,
        closing(open_regular(mirror, restored)) as given,
    ):
        if not same_content(held, given):
            raise Unusable(f"the point {stamp} is not stored")
    remove(chain.RESTORED, private)
