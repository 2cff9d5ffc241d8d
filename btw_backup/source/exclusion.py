"""GNU tar's exclude patterns, matched as tar itself matches them."""

import os
import re
from collections.abc import Sequence

from ..system import calls

_SLASH = ord("/")
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


class Patterns:
    """Patterns that tar takes for unanchored ones with wildcards, as those of EXCLUDE are."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._names: dict[bytes, int] = {}
        self._globs: list[tuple[int, bytes]] = []
        for number, pattern in enumerate(map(os.fsencode, patterns)):
            if _has_wildcards(pattern):
                self._globs.append((number, pattern))
            else:
                self._names.setdefault(_ESCAPED.sub(rb"\1", pattern), number)

    def first(self, member: bytes) -> int | None:
        """The place of the first pattern that excludes a member, ``.`` or ``./…``; None if none does.

        No directory above it is excluded.
        """
        ends = [member, *(member[at + 1 :] for at, byte in enumerate(member) if byte == _SLASH)]
        named = min((self._names[end] for end in ends if end in self._names), default=None)
        for number, pattern in self._globs:
            if named is not None and named < number:
                break
            if any(calls.fnmatch(pattern, end) for end in ends):
                return number
        return named


def _has_wildcards(pattern: bytes) -> bool:
    return any(sign in _ESCAPED.sub(b"", pattern) for sign in (b"*", b"?", b"["))
