"""What monitoring systems read: a plugin's lines and states, JSON, the text of Prometheus."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, NamedTuple

from .destination.verification import NEWEST, PART, POINT, Verification
from .messages import one_line, size
from .times import age, shown_moment


class State(IntEnum):
    """The exit statuses of a monitoring plugin."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


# UNKNOWN must not hide a backup that is known to be too old.
_RISING = (State.OK, State.WARNING, State.UNKNOWN, State.CRITICAL)


# What was verified if not all was, in words.
_SCOPES = {NEWEST: " (the newest point only)", POINT: " (one point only)", PART: " (a part only)"}


class CopyFacts(NamedTuple):
    """The off-site copies of a destination.

    ``copied``: when the newest was made; ``unsent``: the time of the oldest point that is newer. If there
    are several repositories: in the one that is furthest behind.
    """

    copied: datetime | None
    unsent: datetime | None


class Facts(NamedTuple):
    """What a destination holds.

    ``success``: when a run last succeeded, whether or not it had something to store. ``used``: the
    space on the disk in bytes. ``interrupted``: the newest backup is a chain left half done.
    ``copies`` is None if none are configured; ``broken``: entries that can't be read; ``source`` is None
    if it is not known. ``verified``, ``restored`` and ``copy_verified``: the last verification, the last
    restore test, and the last verification of the off-site copy, None if none is remembered.
    """

    newest_time: datetime | None
    success: datetime | None
    points: int
    used: int
    interrupted: bool
    copies: CopyFacts | None = None
    broken: tuple[str, ...] = ()
    source: str | None = None
    verified: Verification | None = None
    restored: Verification | None = None
    copy_verified: Verification | None = None


class Limits(NamedTuple):
    """How long ago the last success, and the last verification, may be; None if any time will do."""

    age: timedelta | None = None
    verify_age: timedelta | None = None


class Report(NamedTuple):
    """A destination and its state. ``problem`` is empty if all is well; ``facts`` is None if unknown."""

    dst: str
    state: State
    problem: str
    facts: Facts | None


def judge(facts: Facts, now: datetime, limits: Limits) -> tuple[State, str]:
    """Return the state of a destination, and what is wrong with it, or an empty string."""
    if facts.success is None and facts.broken:
        return State.UNKNOWN, facts.broken[0]
    if facts.success is None:
        return (State.WARNING if limits.age is None else State.CRITICAL), "no backups yet"
    problem = _critical_problem(facts, facts.success, now, limits.age)
    if problem:
        return State.CRITICAL, problem
    if facts.broken and not facts.interrupted:
        return State.UNKNOWN, facts.broken[0]
    problem = _lesser_problem(facts, facts.success, now, limits.verify_age)
    return (State.WARNING, problem) if problem else (State.OK, "")


def _critical_problem(facts: Facts, success: datetime, now: datetime, max_age: timedelta | None) -> str:
    if max_age is not None and now - success > max_age:
        return f"no success within {age(max_age.total_seconds())}"
    unsent = facts.copies and facts.copies.unsent
    if max_age is not None and unsent is not None and now - unsent > max_age:
        return f"no off-site copy since {shown_moment(unsent)}"
    if facts.verified is not None and not facts.verified.is_ok:
        return "the last verification found damage"
    return ""


def _lesser_problem(facts: Facts, success: datetime, now: datetime, max_verify_age: timedelta | None) -> str:
    if facts.interrupted:
        return "the newest chain was interrupted"
    if success > now:
        return "the newest point or run is dated in the future"
    if facts.copies is not None and facts.copies.copied is None:
        return "no off-site copy yet"
    verified = facts.verified
    if max_verify_age is not None and (verified is None or now - verified.ended > max_verify_age):
        return f"no verification within {age(max_verify_age.total_seconds())}"
    return ""


def worst(states: Sequence[State]) -> State:
    """Return the worst of at least one state."""
    return max(states, key=_RISING.index)


def line(report: Report, now: datetime, max_age: timedelta | None) -> str:
    """Return a line in the form of a monitoring plugin: text, a bar, and performance data."""
    words = [report.problem] if report.problem else []
    data = ""
    if report.facts is not None:
        words += _words(report.facts, now)
        data = f" | {_performance(report.facts, now, max_age)}"
    text = one_line(f"{report.dst}: {', '.join(words)}").replace("|", "\\x7c")
    return f"BTW-BACKUP {report.state.name} - {text}{data}"


def _words(facts: Facts, now: datetime) -> Iterator[str]:
    if facts.newest_time is not None and facts.success is not None:
        yield f"newest point {shown_moment(facts.newest_time)}"
        seconds = (now - facts.success).total_seconds()
        yield f"last success {age(seconds)} ago" if seconds >= 0 else f"last success in {age(-seconds)}"
    if facts.copies is not None and facts.copies.copied is not None:
        yield f"off-site copy {age((now - facts.copies.copied).total_seconds())} ago"
    for what, verified in (
        ("verified", facts.verified),
        ("restored on trial", facts.restored),
        ("off-site copy verified", facts.copy_verified),
    ):
        if verified is not None:
            extent = "" if verified is facts.restored else _SCOPES.get(verified.scope, "")
            yield f"{what} {age((now - verified.ended).total_seconds())} ago{extent}"
    yield f"{facts.points} point{'s' if facts.points != 1 else ''}"
    yield size(facts.used)
    if facts.source is not None:
        yield f"source {facts.source}"


def _performance(facts: Facts, now: datetime, max_age: timedelta | None) -> str:
    data = f"points={facts.points} size={facts.used}B"
    if facts.success is None:
        return data
    limit = "" if max_age is None else int(max_age.total_seconds())
    return f"age={_seconds(facts.success, now)}s;;{limit};0 {data}"


def _seconds(since: datetime, now: datetime) -> int:
    return int((now - since).total_seconds())


def as_object(report: Report, now: datetime) -> dict[str, Any]:
    """Return what ``--json`` prints for a destination: sizes in bytes, ages in seconds, null if unknown."""
    facts = report.facts or Facts(None, None, 0, 0, False)
    known = report.facts is not None
    copied = facts.copies and facts.copies.copied
    unsent = facts.copies and facts.copies.unsent
    verified, restored, copy_verified = facts.verified, facts.restored, facts.copy_verified
    return {
        "destination": report.dst,
        "source": facts.source,
        "status": report.state.name,
        "problem": report.problem or None,
        "newest": facts.newest_time and shown_moment(facts.newest_time),
        "last_success": facts.success and shown_moment(facts.success),
        "age": facts.success and _seconds(facts.success, now),
        "points": facts.points if known else None,
        "stored": facts.used if known else None,
        "offsite_newest": copied and shown_moment(copied),
        "offsite_age": copied and _seconds(copied, now),
        "unsent_since": unsent and shown_moment(unsent),
        "verified": verified and shown_moment(verified.ended),
        "verified_age": verified and _seconds(verified.ended, now),
        "verify_seconds": verified and verified.seconds,
        "verify_result": verified and verified.result,
        "verify_scope": verified and verified.scope,
        "restore_tested": restored and shown_moment(restored.ended),
        "offsite_verified": copy_verified and shown_moment(copy_verified.ended),
    }


_METRICS: tuple[tuple[str, str, Callable[[Facts], datetime | int | None]], ...] = (
    ("newest_point_timestamp_seconds", "When the newest point was made.", lambda facts: facts.newest_time),
    (
        "last_success_timestamp_seconds",
        "When a run last succeeded, even if nothing had changed.",
        lambda facts: facts.success,
    ),
    ("points", "The number of points that can be restored.", lambda facts: facts.points),
    ("stored_bytes", "The space that the destination takes.", lambda facts: facts.used),
    (
        "offsite_newest_timestamp_seconds",
        "When the newest off-site copy was made.",
        lambda facts: facts.copies.copied if facts.copies else None,
    ),
    (
        "last_verify_timestamp_seconds",
        "When the last verification ended.",
        lambda facts: facts.verified and facts.verified.ended,
    ),
    (
        "last_verify_duration_seconds",
        "How long it took.",
        lambda facts: facts.verified and facts.verified.seconds,
    ),
    (
        "last_verify_ok",
        "Whether it found no damage.",
        lambda facts: facts.verified and int(facts.verified.is_ok),
    ),
    (
        "last_restore_test_timestamp_seconds",
        "When a point was last restored on trial.",
        lambda facts: facts.restored and facts.restored.ended,
    ),
    (
        "offsite_last_verify_timestamp_seconds",
        "When the off-site copy was last verified.",
        lambda facts: facts.copy_verified and facts.copy_verified.ended,
    ),
)


def exposition(reports: Sequence[Report]) -> str:
    """Return the text that Prometheus reads; unknown values are left out."""
    known = [(report.dst, report.facts) for report in reports if report.facts is not None]
    text = ""
    for name, about, measure in _METRICS:
        text += f"# HELP btw_backup_{name} {about}\n# TYPE btw_backup_{name} gauge\n"
        for dst, facts in known:
            value = measure(facts)
            if value is not None:
                number = value if isinstance(value, int) else int(value.timestamp())
                text += f'btw_backup_{name}{{destination="{_escaped(dst)}"}} {number}\n'
    return text


def _escaped(label: str) -> str:
    shown = label.encode(errors="backslashreplace").decode()
    return shown.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def replace(path: str, content: bytes) -> None:
    """Replace a file that everybody may read, in one step: nobody sees it half written."""
    # The collector reads every file whose name ends in .prom.
    where = os.path.dirname(path) or "."
    fd, prepared = tempfile.mkstemp(dir=where, prefix=".btw-backup.", suffix=".tmp")
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.replace(prepared, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(prepared)
        raise
