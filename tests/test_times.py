"""How ages are written."""

import pytest

from btw_backup.times import age


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h 0m"),
        (86399, "23h 59m"),
        (86400, "1d 0h"),
        (400 * 86400 + 7200, "400d 2h"),
        (-7260, "-2h 1m"),
    ],
)
def test_ages(seconds: float, words: str) -> None:
    assert age(seconds) == words
