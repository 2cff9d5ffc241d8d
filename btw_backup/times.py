"""Time spans and moments as people write them."""

import re
from datetime import UTC, datetime, timedelta

from pytimeparse.timeparse import timeparse


def parse_span(text: str) -> timedelta:
    """The span that ``pytimeparse`` reads, such as ``24h``. Raises ValueError."""
    seconds = timeparse(text)
    if seconds is None or seconds < 0:
        raise ValueError(f"must be a time span such as '24h' or '7d', not {text!r}")
    try:
        return timedelta(seconds=seconds)
    except OverflowError as error:
        raise ValueError(f"is too long a time span: {text!r}") from error


_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def parse_moment(text: str) -> datetime | None:
    """The UTC time that a backup's name says, such as ``2026-11-22T22:16:17``; None if none."""
    if not _MOMENT.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        return None


def format_moment(moment: datetime) -> str:
    """The inverse of ``parse_moment``."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S")


_PERIODS = {
    "%Y-%m-%d": timedelta(days=1),
    "%Y-%m-%dT%H": timedelta(hours=1),
    "%Y-%m-%dT%H:%M": timedelta(minutes=1),
    "%Y-%m-%dT%H:%M:%S": timedelta(seconds=1),
}


def last_moment(text: str) -> datetime | None:
    """The last second of the day, hour, minute or second that the text names; None if none."""
    for form, period in _PERIODS.items():
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC) + period - timedelta(seconds=1)
        except ValueError:
            continue
    return None
