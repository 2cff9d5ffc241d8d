"""A chain in the private directory: rdiff-backup adds a point to it before anybody sees it."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import IO, cast

from ..errors import Error
from ..programs import process, rdiff_backup
from ..system.directories import Directory
from ..system.files import BLOCK, same_content
from ..system.trees import Linked, link_tree
from . import chain, contents
from .chain import Unusable

_NOTHING_LINKED = Linked(set(), 0)


class WorkingChain:
    """The chain in the open ``directory``, new or a copy. Made by ``working_chain``.

    ``linked``: what a copy shares with its original.
    """

    def __init__(
        self,
        directory: Directory,
        linked: Linked,
        older: tuple[str, ...],
        back_up: Callable[[], process.Result],
        stage: Directory,
        name: str,
        time: datetime,
    ) -> None:
        self.directory = directory
        self.linked = linked
        self._older = older
        self._back_up = back_up
        self._stage = stage
        self._name = name
        self._time = time

    def add(self) -> None:
        """Have rdiff-backup add the staged file. Raises Unusable unless it really did."""
        result = self._back_up()
        if result.status > 0:
            raise Unusable(result.ending(), stderr=result.stderr)
        result.check()
        failure = Unusable("rdiff-backup exited with code: 0, but did not store the new point")
        with self.directory.open(chain.DATA) as data:
            state = chain.read_state(data.names())
            times = [*map(chain.moment, self._older), self._time]
            if state.interrupted or list(map(chain.moment, state.stamps)) != times:
                raise failure
            if chain.mirror_name(self.directory) != self._name:
                raise failure
            if chain.recorded(data, state.stamps[-1]) is None:
                raise failure
            with self._stage.file(self._name) as staged, self.directory.file(self._name) as mirror:
                if not same_content(staged, mirror):
                    raise failure
            if self._older and not self._holds_version(data, self._older[-1]):
                raise failure

    def _holds_version(self, data: Directory, stamp: str) -> bool:
        """Whether the way back to the point before the new one is stored, undamaged."""
        with data.open(chain.INCREMENTS) as increments:
            version = chain.open_version(increments, self._name, stamp)
            if version is None:
                return False
            with open(version[0], "rb") as file:
                if version[1].endswith(".gz"):
                    return _is_whole(cast(IO[bytes], gzip.open(file)))
        # rdiff-backup does not gzip the delta of a compressed file: there is no checksum.
        with ExitStack() as files:
            try:
                contents.of_chain(self.directory, stamp, files).write_to(lambda block: None)
            except Error as error:
                raise Unusable(*error.lines, stderr=error.stderr) from error
        return True


def _is_whole(increment: IO[bytes]) -> bool:
    """Whether an increment can be read to its end, which gzip's checksum tells, and is not empty."""
    try:
        size = sum(map(len, iter(lambda: increment.read(BLOCK), b"")))
    except (OSError, EOFError, zlib.error):
        return False
    return size > 0


@contextmanager
def working_chain(
    stage: Directory,
    name: str,
    private: Directory,
    chain_name: str,
    time: datetime,
    extended: Directory | None,
) -> Iterator[WorkingChain]:
    """Prepare a chain of that name in the private directory, and start rdiff-backup.

    It is a copy of the chain ``extended``, or new if that is None; ``add`` adds the file ``name`` in
    ``stage``. Raises Error if the chain holds anything that does not belong in a chain, and Unusable if
    it is damaged.

    At the end, whatever has the chain's name is removed: the caller has moved the chain away by then.
    """
    with private.temporary(chain_name) as made:
        linked = _NOTHING_LINKED
        older: tuple[str, ...] = ()
        if extended is not None:
            linked = link_tree(extended, made, chain.is_linkable, left_out=chain.is_temporary, strict=True)
            chain.check(made)
            with made.open(chain.DATA) as data:
                older = chain.read_state(data.names()).stamps
        with rdiff_backup.backing_up(stage, name, private, chain_name, time) as back_up:
            yield WorkingChain(made, linked, older, back_up, stage, name, time)
