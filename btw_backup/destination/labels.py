"""The names of the files that hold an archive in parts: ``backup.tar``, then ``backup.tar.LABEL``.

Labels are digits whose order, as text and in any locale, is that of the archive: ``cat backup.tar*`` puts
it together. There is always one between two others.
"""

import re
from collections.abc import Sequence
from typing import Final

from ..archive.parts import Made, Part
from ..errors import Error

# The first part, and the only one of a small archive.
ARCHIVE: Final = "backup.tar"
# A label has these digits, or, between two that are neighbours, some more groups of them.
_GROUP: Final = 4
_MOST_GROUPS: Final = 30
_PART: Final = re.compile(
    rf"{re.escape(ARCHIVE)}(?:\.(?:\d{{{_GROUP}}}){{0,{_MOST_GROUPS - 1}}}(?!0{{{_GROUP}}})\d{{{_GROUP}}})?",
    re.ASCII,
)


class Exhausted(Error):
    """There is no label left between two others."""


def is_part(name: str) -> bool:
    """Whether this is the name of a part of an archive."""
    return _PART.fullmatch(name) is not None


def names(parts: Sequence[Part | Made], stored: Sequence[Part]) -> list[str]:
    """Return the names of an archive's parts; ``stored`` are those of the archive before.

    Stored parts keep theirs. One that replaces a stored part, or has no counterpart but came where one is
    gone, takes over its name, so that only a difference has to be stored. Raises Exhausted.
    """
    places = {part.name: place for place, part in enumerate(stored)}
    kept = [part if isinstance(part, Part) else part.replaces for part in parts]
    if kept and kept[0] is not None and kept[0].name != ARCHIVE:
        raise Exhausted(f"the first part of the archive is not {ARCHIVE}")
    # For each part, the place of the first stored part that stays after it.
    following = [len(stored)] * len(kept)
    for number in reversed(range(len(kept) - 1)):
        after = kept[number + 1]
        following[number] = following[number + 1] if after is None else places[after.name]
    found: list[str] = []
    free = 0  # the first stored part that was not passed yet
    for counterpart, end in zip(kept, following, strict=True):
        if counterpart is not None:
            found.append(counterpart.name)
            free = places[counterpart.name] + 1
        elif free < end:
            found.append(stored[free].name)
            free += 1
        elif not found:
            found.append(ARCHIVE)
        else:
            found.append(_between(found[-1], stored[end].name if end < len(stored) else None))
    return found


def _between(before: str, after: str | None) -> str:
    """A name between those of two parts, the second None at the end. It leaves room for more to follow."""
    low = before[len(ARCHIVE) + 1 :]
    high = None if after is None else after[len(ARCHIVE) + 1 :]
    width = len(low) or _GROUP
    number = _number(low, width) + 1
    while True:
        end = 10**width if high is None else _number(high, width) + (len(high) > width)
        if _number(low, width) < number < end and number % 10**_GROUP:
            return f"{ARCHIVE}.{number:0{width}}"
        width += _GROUP
        if width > _MOST_GROUPS * _GROUP:
            raise Exhausted("there are too many parts between two others")
        number = (_number(low, width) + (10**width if high is None else _number(high, width))) // 2


def _number(label: str, width: int) -> int:
    """The beginning of a label as a number of so many digits."""
    return int(label[:width].ljust(width, "0"))
