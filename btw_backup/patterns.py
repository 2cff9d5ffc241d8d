"""Shell patterns for paths in a backup."""

import re
from collections.abc import Callable, Sequence
from fnmatch import translate

from .errors import Usage

# Matches any number of directories.
_ANY = "**"


def matcher(patterns: Sequence[str], *, ignores_case: bool = False) -> Callable[[str], bool]:
    """Return a function that tells whether a path, relative to the source, matches one of the patterns.

    A pattern is for the last component of a path or, if it holds a ``/``, for the whole path, component by
    component; ``**`` is any number of them. Raises Usage for an empty one.
    """
    if not all(pattern.strip("/") for pattern in patterns):
        raise Usage("a pattern is empty")
    flags = re.IGNORECASE if ignores_case else 0
    names = [translate(pattern) for pattern in patterns if "/" not in pattern]
    name = re.compile("|".join(names) if names else r"(?!)", flags)
    wholes = [_components(pattern, flags) for pattern in patterns if "/" in pattern]

    def matches(path: str) -> bool:
        if name.match(path[path.rfind("/") + 1 :]):
            return True
        return bool(wholes) and any(_matches(whole, path.split("/")) for whole in wholes)

    return matches


def _components(pattern: str, flags: int) -> list[re.Pattern[str] | None]:
    """The components of a pattern; None for ``**``."""
    words = [word for word in pattern.split("/") if word not in ("", ".")]
    return [None if word == _ANY else re.compile(translate(word), flags) for word in words]


def _matches(pattern: Sequence[re.Pattern[str] | None], words: Sequence[str]) -> bool:
    # How many of the words what has been looked at of the pattern may stand for.
    places = {0}
    for component in pattern:
        if component is None:
            places = set(range(min(places, default=len(words) + 1), len(words) + 1))
        else:
            places = {place + 1 for place in places if place < len(words) and component.match(words[place])}
    return len(words) in places
