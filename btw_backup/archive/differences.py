"""What differs between two archives, member by member."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, Self, TypeVar

from . import headers
from .members import Member
from .names import place_of

NEW = "+"
GONE = "-"
CONTENT = "M"
ATTRIBUTES = "U"
TYPE = "T"

# A file is one whether or not it has another name before it in the archive, or holes.
_FILES = (b"0", b"\0", b"7", b"S", headers.HARD_LINK)


class Keepable(Protocol):
    """What ``pairs`` may have to keep for long."""

    def kept(self) -> Self:
        """The same in a form that takes little memory."""


Item = TypeVar("Item", bound=Keepable)


class Difference(NamedTuple):
    """A path that differs, relative to the source: how, and its sizes before and after in bytes.

    ``change`` is NEW, GONE or TYPE, or holds CONTENT and ATTRIBUTES. A size is None where there is no file.
    """

    path: str
    change: str
    before: int | None
    after: int | None


def pairs(
    old: Iterator[tuple[bytes, Item]], new: Iterator[tuple[bytes, Item]]
) -> Iterator[tuple[bytes, Item | None, Item | None]]:
    """Yield what has the same name in both, and what is in one only, with None in the place of the other.

    Little is kept if both are in the order of a walk with sorted names, and if little differs.
    """
    only_old: dict[bytes, Item] = {}
    only_new: dict[bytes, Item] = {}
    first, second = next(old, None), next(new, None)
    while first is not None or second is not None:
        if first is not None and second is not None and first[0] == second[0]:
            yield first[0], first[1], second[1]
            first, second = next(old, None), next(new, None)
        elif second is None or (first is not None and place_of(first[0]) < place_of(second[0])):
            assert first is not None
            if first[0] in only_new:
                yield first[0], first[1], only_new.pop(first[0])
            else:
                only_old[first[0]] = first[1].kept()
            first = next(old, None)
        else:
            if second[0] in only_old:
                yield second[0], only_old.pop(second[0]), second[1]
            else:
                only_new[second[0]] = second[1].kept()
            second = next(new, None)
    for name, item in only_old.items():
        yield name, item, None
    for name, item in only_new.items():
        yield name, None, item


def change(old: Member, new: Member, same_data: Callable[[], bool]) -> str:
    """How two members of one name differ, empty if not at all, or only in the time of a directory.

    ``same_data`` is asked if nothing else tells whether the content of a file is the same.
    """
    if old.kind != new.kind and not (old.kind in _FILES and new.kind in _FILES):
        return TYPE
    found = CONTENT if _is_other_content(old, new, same_data) else ""
    if (old.header, old.extension) == (new.header, new.extension):
        return found
    if (old.mode, old.owner, old.attributes()) != (new.mode, new.owner, new.attributes()):
        return found + ATTRIBUTES
    if not found and old.modified != new.modified and new.kind != headers.DIRECTORY:
        return ATTRIBUTES
    return found


def _is_other_content(old: Member, new: Member, same_data: Callable[[], bool]) -> bool:
    if new.kind in _FILES:
        return not same_data()
    return (old.link, old.device) != (new.link, new.device)
