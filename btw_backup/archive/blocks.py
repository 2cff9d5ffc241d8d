"""Blocks of a stream, looked at before they are passed over."""

from collections.abc import Iterator

from ..errors import Error


class Blocks:
    """Blocks that follow one another, of which the next is looked at before it is passed over."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._sources = [blocks]
        self._rest = b""

    def peek(self, least: int = 1) -> bytes:
        """What follows: not less than that, but at the end, where it is empty."""
        while len(self._rest) < least and self._sources:
            block = next(self._sources[-1], b"")
            self._rest += block
            if not block:
                self._sources.pop()
        return self._rest

    def skip(self, count: int) -> None:
        """Pass over the beginning of what ``peek`` returned."""
        self._rest = self._rest[count:]

    def put_back(self, blocks: Iterator[bytes]) -> None:
        """Let these come next."""
        if self._rest:
            self._sources.append(iter((self._rest,)))
        self._sources.append(blocks)
        self._rest = b""

    def finish(self) -> None:
        """Read the rest. Raises Error unless it is zeros."""
        while block := self.peek():
            if block.strip(b"\0"):
                raise Error("the archive goes on after its end")
            self._rest = b""
