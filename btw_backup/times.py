"""Time spans and moments as people write them."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pytimeparse.timeparse import timeparse

from .errors import Error


def parse_span(text: str) -> timedelta:
    """Convert a span that ``pytimeparse`` reads, such as ``24h``. Raises ValueError."""
    seconds = timeparse(text)
    if seconds is None or seconds < 0:
        raise ValueError(f"must be a time span such as '24h' or '7d', not {text!r}")
    try:
        return timedelta(seconds=seconds)
    except OverflowError as error:
        raise ValueError(f"is too long a time span: {text!r}") from error


_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def parse_moment(text: str) -> datetime | None:
    """Convert a backup's name, such as ``2026-11-22T22:16:17``, to its UTC time; None if it is not one."""
    if not _MOMENT.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        return None


def format_moment(moment: datetime) -> str:
    """The inverse of ``parse_moment``."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S")


def shown_moment(moment: datetime) -> str:
    """The moment for people, in UTC: ``2026-11-22T22:16:17Z``."""
    return format_moment(moment) + "Z"


def local_moment(moment: datetime) -> str:
    """The moment for people, in the local time zone: ``2026-11-22T23:16:17+01:00``."""
    return moment.astimezone().isoformat(timespec="seconds")


_PERIODS = {
    "%Y-%m-%d": timedelta(days=1),
    "%Y-%m-%dT%H": timedelta(hours=1),
    "%Y-%m-%dT%H:%M": timedelta(minutes=1),
    "%Y-%m-%dT%H:%M:%S": timedelta(seconds=1),
}


def latest_moment(at: str, now: datetime) -> datetime:
    """The last second that ``at`` means: a time or its beginning, or a span before ``now``. Raises Error."""
    return _moments(at, now)[1]


def earliest_moment(at: str, now: datetime) -> datetime:
    """The first second that ``at`` means. Raises Error."""
    return _moments(at, now)[0]


def _moments(at: str, now: datetime) -> tuple[datetime, datetime]:
    """The first and the last second that ``at`` means, a time in UTC unless it has an offset."""
    for form, period in _PERIODS.items():
        for zone in ("", "%z"):
            with suppress(ValueError, OverflowError):
                first = datetime.strptime(re.sub(r"\.t[.a-z]+$", "", at), form + zone)
                first = (first if first.tzinfo else first.replace(tzinfo=UTC)).astimezone(UTC)
                if first > now:
                    raise Error(f"{at} is in the future")
                return first, first + (period - timedelta(seconds=1))
    if ":" in at:  # to pytimeparse, 12:20 is a span
        raise Error(f"not a time: {at!r}: say the day, too, such as {format_moment(now)[:16]}")
    try:
        return (moment := now - parse_span(at)), moment
    except (ValueError, OverflowError):
        raise Error(
            f"not a time: {at!r}: use what list prints, or its beginning, such as 2026-11-22, or a span: 3d"
        ) from None


def age(seconds: float) -> str:
    """An age in words, rounded down: ``45s``, ``12m``, ``3h 12m``, ``5d 3h``."""
    if seconds < 0:
        return f"-{age(-seconds)}"
    minutes, hours, days = (int(seconds // length) for length in (60, 3600, 86400))
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m" if minutes else f"{int(seconds)}s"
