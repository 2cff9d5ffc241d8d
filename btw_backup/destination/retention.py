"""Which points a retention policy keeps, and why: its words mean what they mean in restic 0.17, in UTC."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from .catalog import Backup


class Policy(NamedTuple):
    """How many to keep of each kind; ``within``: all that are less than this older than the newest."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: timedelta | None = None

    def keeps_anything(self) -> bool:
        """Whether it is a policy at all."""
        return any(self[:6]) or self.within is not None


# What two points of the same hour, day, … have in common.
_PERIODS: dict[str, Callable[[datetime], object]] = {
    "last": lambda time: time,
    "hourly": lambda time: (time.date(), time.hour),
    "daily": lambda time: time.date(),
    "weekly": lambda time: time.isocalendar()[:2],
    "monthly": lambda time: (time.year, time.month),
    "yearly": lambda time: time.year,
}


def kept_times(times: Sequence[datetime], policy: Policy) -> dict[datetime, list[str]]:
    """Return the times that the policy keeps, each with the reasons: the newest of each period that has one.

    If there are fewer periods than the policy keeps, the oldest time stays as well. So when the first
    yearly backup is due, there is an old daily one that can serve as such.
    """
    reasons: dict[datetime, list[str]] = {}
    newest_first = sorted(set(times), reverse=True)
    for word, period in _PERIODS.items():
        left = getattr(policy, word)
        previous: object = None
        for time in newest_first:
            if not left:
                break
            if period(time) != previous:
                reasons.setdefault(time, []).append(word)
                left -= 1
            elif time == newest_first[-1]:
                reasons.setdefault(time, []).append(f"oldest {word}")
            previous = period(time)
    if policy.within is not None:
        for time in newest_first:
            if newest_first[0] - time < policy.within:
                reasons.setdefault(time, []).append("within")
    return reasons


class Decision(NamedTuple):
    """Whether a backup is kept, and why."""

    backup: Backup
    keep: bool
    reason: str


def decide(backups: Sequence[Backup], policy: Policy) -> list[Decision]:
    """Decide about each backup. A chain is kept as long as one of its points is."""
    kept = kept_times([point.time for backup in backups for point in backup.points], policy)
    newest_backup = max(backups, key=lambda backup: backup.newest_time, default=None)
    decisions = []
    for backup in backups:
        words = [word for point in backup.points for word in kept.get(point.time, [])]
        if words:
            decisions.append(Decision(backup, True, ", ".join(dict.fromkeys(words))))
        elif backup is newest_backup:
            decisions.append(Decision(backup, True, "the newest"))
        else:
            decisions.append(Decision(backup, False, "no rule keeps it"))
    return decisions
