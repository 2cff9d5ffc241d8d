"""The names of members, and their order.

A member of a source is named ``./path``, the source itself ``.``.
"""

from collections.abc import Collection


def to_path(name: bytes) -> bytes:
    """The path of a member relative to the source, empty for that itself."""
    return b"" if name in (b".", b"./") else name.removeprefix(b"./").rstrip(b"/")


def to_name(path: bytes) -> bytes:
    """The inverse of ``to_path``."""
    return b"./" + path if path else b"."


def shown(name: bytes) -> str:
    """The path of a member for people and JSON, ``.`` for the source itself."""
    return name.removeprefix(b"./").decode(errors="surrogateescape")


def order_of(path: bytes) -> bytes:
    """The place of a member in the order of an archive; ``path`` is relative to the source, empty for itself.

    Compared as bytes, places are in the order of a walk in which a directory comes before what is in it, and
    names are sorted.
    """
    return path.replace(b"/", b"\0")


def path_of(order: bytes) -> bytes:
    """The inverse of ``order_of``."""
    return order.replace(b"\0", b"/")


def place_of(name: bytes) -> bytes:
    """The order of the member of that name."""
    return order_of(to_path(name))


def member_of(order: bytes) -> bytes:
    """The inverse of ``place_of``."""
    return to_name(path_of(order))


def is_among(name: bytes, names: Collection[bytes]) -> bool:
    """Whether a member is one of these, or below one of them."""
    return any(name == wanted or name.startswith(wanted + b"/") for wanted in names)
