"""What a retention policy keeps: by its properties, by restic's documentation, and by restic itself."""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btw_backup.destination.catalog import Backup, Point
from btw_backup.destination.retention import Policy, decide, kept_times

WORDS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")

# Properties

# Close together, so that many share an hour, a day, a week.
TIMES = st.builds(
    lambda days, seconds: datetime(2024, 12, 20, tzinfo=UTC) + timedelta(days=days, seconds=seconds),
    st.sampled_from([0, 1, 2, 9, 10, 11, 12, 40, 400, 800]),
    st.sampled_from([0, 1, 59, 3599, 3600, 43200, 86399]),
)
POLICIES = st.builds(
    Policy,
    *[st.integers(0, 4) for _ in WORDS],
    st.none() | st.timedeltas(timedelta(), timedelta(days=900)),
)


def chains(times: Sequence[datetime], lengths: Sequence[int]) -> list[Backup]:
    """Make backups of those points, oldest first, with ``lengths`` points each."""
    left = sorted(set(times))
    made = []
    for length in [*lengths, *[1] * len(left)]:
        if points := left[:length]:
            made.append(Backup(points[0].isoformat(), length > 1, tuple(Point(time, "") for time in points)))
        left = left[length:]
    return made


BACKUPS = st.builds(chains, st.lists(TIMES, max_size=30), st.lists(st.integers(1, 5), max_size=6))


@settings(deadline=None)
@given(BACKUPS, POLICIES)
def test_kept_and_removed_are_everything(backups: list[Backup], policy: Policy) -> None:
    assert [decision.backup for decision in decide(backups, policy)] == backups


@settings(deadline=None)
@given(BACKUPS, POLICIES)
def test_the_newest_is_always_kept(backups: list[Backup], policy: Policy) -> None:
    assert [decision.keep for decision in decide(backups, policy)][-1:] == [True][: len(backups)]


@settings(deadline=None)
@given(BACKUPS, POLICIES, POLICIES)
def test_a_more_generous_policy_never_keeps_less(backups: list[Backup], one: Policy, other: Policy) -> None:
    spans = [policy.within for policy in (one, other) if policy.within is not None]
    counts = [max(pair) for pair in zip(one[:6], other[:6], strict=True)]
    generous = {
        d.backup for d in decide(backups, Policy._make([*counts, max(spans, default=None)])) if d.keep
    }
    assert {decision.backup for decision in decide(backups, one) if decision.keep} <= generous


@settings(deadline=None)
@given(BACKUPS, POLICIES)
def test_a_chain_is_kept_where_a_point_of_it_is(backups: list[Backup], policy: Policy) -> None:
    kept = kept_times([point.time for backup in backups for point in backup.points], policy)
    for decision in decide(backups, policy)[:-1]:
        assert decision.keep == any(point.time in kept for point in decision.backup.points)
        assert decision.reason


@settings(deadline=None)
@given(st.lists(TIMES, max_size=30), POLICIES)
def test_no_rule_keeps_more_than_its_count(times: list[datetime], policy: Policy) -> None:
    reasons = [word for words in kept_times(times, policy).values() for word in words]
    for word in WORDS:
        assert reasons.count(word) <= getattr(policy, word)


@settings(deadline=None)
@given(st.lists(TIMES, max_size=30), POLICIES)
def test_what_was_kept_once_is_kept_again(times: list[datetime], policy: Policy) -> None:
    kept = kept_times(times, policy)
    assert kept_times(list(kept), policy) == kept


def test_the_oldest_stays_where_a_count_is_not_used_up() -> None:
    times = [datetime(2025, 1, day, hour, tzinfo=UTC) for day in (1, 2, 3) for hour in (1, 2)]
    kept = kept_times(times, Policy(daily=4))
    assert kept == {times[5]: ["daily"], times[3]: ["daily"], times[1]: ["daily"], times[0]: ["oldest daily"]}
    assert sorted(kept_times(times, Policy(daily=3))) == [times[1], times[3], times[5]]


def test_weeks_of_two_years_and_days_of_two_months_are_not_mixed_up() -> None:
    # ISO week 1 of 2025 begins in 2024; week 1 of 2024 is another.
    times = [datetime(*day, tzinfo=UTC) for day in ((2024, 1, 2), (2024, 12, 30), (2025, 1, 1), (2025, 2, 1))]
    assert list(kept_times(times, Policy(weekly=9))) == [times[3], times[2], times[0]]
    assert list(kept_times(times, Policy(daily=9))) == times[::-1]


# The examples of restic's documentation, "Removing snapshots according to a policy"

SUNDAYS = [datetime(2014, 9, 7, 10, tzinfo=UTC) + timedelta(weeks=week) for week in range(12)]
DAILY = [datetime(2017, 1, 1, 12, tzinfo=UTC) + timedelta(days=day) for day in range(3 * 365)]


def test_example_keep_daily_of_weekly_snapshots_keeps_the_last_four_sundays() -> None:
    assert sorted(kept_times(SUNDAYS, Policy(daily=4))) == SUNDAYS[-4:]


def test_example_of_several_snapshots_a_day_the_last_is_kept() -> None:
    times = [time.replace(hour=hour) for time in SUNDAYS for hour in (0, 9, 23)]
    assert sorted(kept_times(times, Policy(daily=4))) == [time.replace(hour=23) for time in SUNDAYS[-4:]]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (Policy(last=1), ["2019-12-31"]),
        (Policy(daily=7), [f"2019-12-{day}" for day in range(25, 32)]),
        (
            Policy(daily=3, weekly=5),
            ["2019-12-31", "2019-12-30", "2019-12-29", "2019-12-22", "2019-12-15", "2019-12-08"],
        ),
        (Policy(monthly=4), ["2019-12-31", "2019-11-30", "2019-10-31", "2019-09-30"]),
        # "If there are not enough snapshots to keep one for each ... option, the oldest is kept" (0.17).
        (Policy(yearly=75), ["2019-12-31", "2018-12-31", "2017-12-31", "2017-01-01"]),
        # "the last 7 days, 4 weeks, 12 months, 75 years": a point that several rules keep counts for each.
        (
            Policy(last=2, daily=2, monthly=2, yearly=2),
            ["2019-12-31", "2019-12-30", "2019-11-30", "2018-12-31"],
        ),
        (Policy(within=timedelta(days=2, hours=1)), ["2019-12-31", "2019-12-30", "2019-12-29"]),
    ],
)
def test_example_of_a_daily_backup_for_three_years(policy: Policy, kept: list[str]) -> None:
    assert sorted(time.date().isoformat() for time in kept_times(DAILY, policy)) == sorted(kept)


# restic itself


class Restic:
    """A repository with snapshots of two hosts; each host has a series of points."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._run("init")

    def _run(self, *argv: str) -> bytes:
        flags = ["--quiet", "--no-cache", f"--repo={self._top / 'repository'}"]
        return subprocess.run(
            ["restic", *flags, *argv],
            input=b"content",
            stdout=subprocess.PIPE,
            check=True,
            env={**os.environ, "RESTIC_PASSWORD": "test", "GOMAXPROCS": "2"},
        ).stdout

    def add(self, host: str, time: datetime) -> None:
        self._run("backup", "--stdin", f"--host={host}", f"--time={time:%Y-%m-%d %H:%M:%S}")

    def kept(self, policy: Policy) -> dict[str, set[datetime]]:
        """Return what ``restic forget`` keeps of each host."""
        argv = [f"--keep-{word}={count}" for word, count in zip(WORDS, policy, strict=False) if count]
        if policy.within is not None:
            argv.append(f"--keep-within={policy.within.days}d{policy.within.seconds // 3600}h")
        groups = json.loads(self._run("forget", "--no-lock", "--dry-run", "--json", "--group-by=host", *argv))
        return {
            group["host"]: {datetime.fromisoformat(kept["time"]) for kept in group["keep"]}
            for group in groups
        }


@pytest.fixture
def restic(tmp_path: Path) -> Restic:
    if shutil.which("restic") is None:
        pytest.skip("restic is not installed")
    return Restic(tmp_path)


def random_series() -> dict[str, list[datetime]]:
    """Return points that share hours, days and weeks, around New Year and at the turn of hours and days."""
    rng = random.Random(4)
    made = {}
    for host, spread in (("dense", 4), ("sparse", 500)):
        start = datetime(2024, 12, 29, tzinfo=UTC)
        times = {start + timedelta(days=rng.randrange(spread), hours=rng.randrange(24)) for _ in range(8)}
        times |= {time - timedelta(seconds=1) for time in sorted(times)[:2]}
        times |= {time + timedelta(seconds=rng.randrange(3600)) for time in sorted(times)[-3:]}
        # No other point is a whole number of hours older: another test covers the ends of spans.
        made[host] = [*sorted(times), max(times) + timedelta(seconds=5417)]
    return made


def random_policies(count: int) -> list[Policy]:
    """Return policies with each rule alone, and mixtures."""
    rng = random.Random(44)
    alone = [
        Policy._make([*(rng.randrange(2, 9) if each == word else 0 for each in WORDS), None])
        for word in WORDS
    ]
    mixed = [
        Policy._make(
            [
                *[rng.choice([0, 0, 1, 2, 3, 7]) for _ in WORDS],
                rng.choice([None, timedelta(hours=rng.randrange(1, 3000))]),
            ]
        )
        for _ in range(count)
    ]
    return [policy for policy in alone + mixed if policy.keeps_anything()]


def ours(times: Sequence[datetime], policy: Policy) -> set[datetime]:
    """What we keep; before 0.17 restic did not keep the oldest where a count is not used up."""
    said = subprocess.check_output(["restic", "version"], text=True)
    version = tuple(map(int, said.split()[1].split(".")))
    kept = kept_times(times, policy).items()
    return {
        time
        for time, reasons in kept
        if version >= (0, 17) or not all(reason.startswith("oldest ") for reason in reasons)
    }


def test_restic_keeps_the_same(restic: Restic) -> None:
    series = random_series()
    policies = random_policies(8)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: restic.add(*pair), [(host, t) for host in series for t in series[host]]))
        for policy, theirs in zip(policies, pool.map(restic.kept, policies), strict=True):
            assert {host: ours(times, policy) for host, times in series.items()} == theirs, policy


def test_restic_keeps_the_same_at_the_ends_of_a_span(restic: Restic) -> None:
    newest = datetime(2025, 1, 2, 12, tzinfo=UTC)
    times = [newest - timedelta(hours=12, seconds=second) for second in (1, 0, -1)] + [newest]
    for time in times:
        restic.add("host", time)
    policy = Policy(within=timedelta(hours=12))
    assert {"host": set(kept_times(times, policy))} == restic.kept(policy)
