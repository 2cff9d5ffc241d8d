"""The state of a chain, read from the names in rdiff-backup's directory."""

import pytest

from btw_backup.destination.chain import read_state

A, B, C = "2026-11-22T22:16:17Z", "2026-11-22T18:16:17-05:00", "2026-11-23T09:16:17+09:00"


@pytest.mark.parametrize(
    ("names", "state"),
    [
        ([], ((), False)),
        ([f"increments.{A}.dir"], ((), False)),
        ([f"current_mirror.{A}.data"], ((A,), False)),
        ([f"current_mirror.{B}.data", f"increments.{A}.dir"], ((A, B), False)),
        ([f"current_mirror.{C}.data", f"increments.{B}.dir", f"increments.{A}.dir"], ((A, B, C), False)),
        ([f"current_mirror.{A}.data", f"current_mirror.{B}.data"], ((A,), True)),
        ([f"current_mirror.{B}.data", f"current_mirror.{C}.data", f"increments.{A}.dir"], ((A, B), True)),
        ([f"current_mirror.{A}.data", f"current_mirror.{B}.data", f"increments.{A}.dir"], ((A,), True)),
        (
            ["current_mirror.snapshot", f"current_mirror.{A}.data.tmp", "backup.log", "increments"],
            ((), False),
        ),
        ([f"current_mirror.{A}.data", f"mirror_metadata.{B}.snapshot.gz", "chars_to_quote"], ((A,), False)),
    ],
)
def test_read_state(names: list[str], state: tuple[tuple[str, ...], bool]) -> None:
    assert read_state(names) == state
    assert read_state(names[::-1]) == state
