"""The states that monitors know, and the lines that they read."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from btw_backup.destination.verification import ALL, NEWEST, Verification
from btw_backup.monitoring import Facts, Limits, Report, State, judge, line, worst

from .helpers.monitors import LINE
from .helpers.running import Btw

PROMTOOL = Path(sys.executable).with_name("promtool")
RULES = Path(__file__).parent.parent / "docs" / "monitoring" / "btw-backup.rules.yml"

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
GOOD = Facts(NOW - 5 * HOUR, NOW - 2 * HOUR, 3, 286_000_000, False)
EMPTY = Facts(None, None, 0, 0, False)


@pytest.mark.parametrize(
    ("facts", "max_age", "state"),
    [
        (GOOD, None, State.OK),
        (GOOD, 2 * HOUR, State.OK),
        (GOOD, 2 * HOUR - timedelta(seconds=1), State.CRITICAL),
        (GOOD._replace(interrupted=True), 2 * HOUR, State.WARNING),
        (GOOD._replace(interrupted=True), HOUR, State.CRITICAL),
        (GOOD._replace(newest_time=NOW + HOUR, success=NOW + HOUR), HOUR, State.WARNING),
        (GOOD._replace(success=NOW), timedelta(), State.OK),
        (EMPTY, None, State.WARNING),
        (EMPTY, HOUR, State.CRITICAL),
    ],
)
def test_states(facts: Facts, max_age: timedelta | None, state: State) -> None:
    found, problem = judge(facts, NOW, Limits(max_age))
    assert found == state and bool(problem) == (state != State.OK)


VERIFIED = GOOD._replace(verified=Verification(NOW - 3 * DAY, 600, True, ALL))
DAMAGED = GOOD._replace(verified=Verification(NOW, 600, False, NEWEST))


@pytest.mark.parametrize(
    ("facts", "max_verify_age", "state"),
    [
        (GOOD, None, State.OK),
        (GOOD, DAY, State.WARNING),
        (VERIFIED, None, State.OK),
        (VERIFIED, 3 * DAY, State.OK),
        (VERIFIED, 3 * DAY - timedelta(seconds=1), State.WARNING),
        (DAMAGED, None, State.CRITICAL),
        (DAMAGED, DAY, State.CRITICAL),
        (DAMAGED._replace(interrupted=True), None, State.CRITICAL),
        (GOOD._replace(broken=("a chain",)), DAY, State.UNKNOWN),
    ],
)
def test_states_after_a_verification(facts: Facts, max_verify_age: timedelta | None, state: State) -> None:
    found, problem = judge(facts, NOW, Limits(2 * HOUR, max_verify_age))
    assert found == state and bool(problem) == (state != State.OK)


def test_what_is_worse() -> None:
    assert worst([State.OK, State.OK]) == State.OK
    assert worst([State.WARNING, State.OK]) == State.WARNING
    assert worst([State.UNKNOWN, State.WARNING]) == State.UNKNOWN
    assert worst([State.CRITICAL, State.UNKNOWN]) == State.CRITICAL


def test_lines() -> None:
    assert line(Report("/b/etc", State.OK, "", GOOD), NOW, 26 * HOUR) == (
        "BTW-BACKUP OK - /b/etc: newest point 2026-11-23T07:00:00Z, last success 2h 0m ago, 3 points, 286 MB"
        " | age=7200s;;93600;0 points=3 size=286000000B"
    )
    assert line(Report("/b", State.WARNING, "no backups yet", EMPTY), NOW, None) == (
        "BTW-BACKUP WARNING - /b: no backups yet, 0 points, 0 B | points=0 size=0B"
    )
    assert line(Report("/b", State.UNKNOWN, "gone", None), NOW, None) == "BTW-BACKUP UNKNOWN - /b: gone"
    forged = Report("/b|age=0s\nBTW-BACKUP OK\x1b[2J", State.UNKNOWN, "a | b", None)
    assert LINE.fullmatch(line(forged, NOW, None))


# Rules and dashboard


def promtool(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROMTOOL, *args], capture_output=True, text=True)


@pytest.fixture
def exported(btw: Btw, dst: Path, tmp_path: Path) -> set[str]:
    """The names of our metrics."""
    (dst / "2001-02-03T04:05:06.tbz").touch()
    assert btw("status", "--prometheus", tmp_path / "prom", dst).status == 0
    return set(re.findall("^# TYPE (btw_backup_[a-z_]+) gauge$", (tmp_path / "prom").read_text(), re.M))


def metrics(expression: str) -> set[str]:
    """The names in an expression of Prometheus that are neither functions nor operators."""
    plain = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", expression)
    return set(re.findall(r"\b[a-z_]+\b(?!\()", plain)) - {"unless"}


def test_the_rules_do_what_they_say() -> None:
    assert promtool("check", "rules", RULES).returncode == 0
    tested = promtool("test", "rules", RULES.with_name("btw-backup.rules.test.yml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_rules_use_what_is_exported(exported: set[str]) -> None:
    expressions = re.findall(r"^ +expr: (.+)$", RULES.read_text(), re.M)
    used = set().union(*map(metrics, expressions))
    assert len(expressions) == 8
    assert used - exported == {"node_textfile_mtime_seconds"}  # node_exporter has it of each file


def test_the_dashboard_uses_what_is_exported(exported: set[str], tmp_path: Path) -> None:
    dashboard = json.loads(RULES.with_name("btw-backup.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert set().union(*map(metrics, expressions)) == exported
    queried = [each["definition"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    found = [re.fullmatch(r"label_values\((.+), (?:instance|destination)\)", each) for each in queried]
    expressions += [match[1] for match in found if match]
    assert len(expressions) == 12 and metrics(expressions[-1]) <= exported
    rules = [{"record": f"r{number}", "expr": each} for number, each in enumerate(expressions)]
    # Any JSON is YAML, too.
    (tmp_path / "rules").write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    checked = promtool("check", "rules", tmp_path / "rules")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
