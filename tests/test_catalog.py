"""When a full backup is due."""

from datetime import UTC, datetime, timedelta

import pytest

from btw_backup.destination.catalog import Backup, Limits, Point, full_backup_due

START = datetime(2026, 11, 22, 22, 16, 17, tzinfo=UTC)
DAY = timedelta(days=1)


def chain_of(*hours: int) -> Backup:
    """A chain with points at these hours after START."""
    return Backup("2026-11-22T22:16:17", True, tuple(Point(START + timedelta(hours=h), "") for h in hours))


@pytest.mark.parametrize(
    ("chain", "after", "limits", "due"),
    [
        (None, timedelta(0), Limits(10, DAY), True),
        (chain_of(0), timedelta(hours=1), Limits(10, DAY), False),
        (chain_of(0), timedelta(hours=1), Limits(0, DAY), True),
        (chain_of(0), timedelta(hours=1), Limits(1, DAY), False),
        (chain_of(0, 1), timedelta(hours=2), Limits(1, DAY), True),
        (chain_of(0, 1), timedelta(hours=2), Limits(2, DAY), False),
        (chain_of(*range(11)), timedelta(hours=11), Limits(10, DAY), True),
        (chain_of(*range(10)), timedelta(hours=11), Limits(10, DAY), False),
        (chain_of(0), DAY, Limits(10, DAY), False),
        (chain_of(0), DAY + timedelta(seconds=1), Limits(10, DAY), True),
        (chain_of(0, 23), DAY + timedelta(seconds=1), Limits(10, DAY), True),
        (chain_of(0), timedelta(seconds=1), Limits(10, timedelta(0)), True),
    ],
)
def test_full_backup_due(chain: Backup | None, after: timedelta, limits: Limits, due: bool) -> None:
    assert full_backup_due(chain, START + after, limits) is due
