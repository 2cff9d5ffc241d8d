"""Owners as the command line names them."""

import os

import pytest

from btw_backup.errors import Error
from btw_backup.system.ownership import parse_owner

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@as_root
@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("0", (0, -1)),
        ("12345", (12345, -1)),
        ("12345:54321", (12345, 54321)),
        (":54321", (-1, 54321)),
        ("root", (0, -1)),
        ("root:", (0, 0)),
        ("0:", (0, 0)),
        (":daemon", (-1, 1)),
        ("nobody:daemon", (65534, 1)),
        ("12345:daemon", (12345, 1)),
    ],
)
def test_parse_owner(text: str, owner: tuple[int, int]) -> None:
    assert parse_owner(text) == owner


@pytest.mark.parametrize(
    "text",
    ["", ":", "no-such-user", "no-such-user:0", "0:no-such-group", ":no-such-group", "12345:", "-1", "0:-1"]
    + ["4294967295", "4294967296", "1.5", "0:0:0", " 0", "\u0661", "root\n"],
)
def test_parse_owner_refuses(text: str) -> None:
    with pytest.raises(Error):
        parse_owner(text)
