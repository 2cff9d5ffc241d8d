"""What rdiff-backup stores of older versions, also as somebody has doctored it."""

import gzip
import os
import tempfile
from contextlib import ExitStack

import pytest

from btw_backup.destination.delta import Damaged, Scratch, older, whole

MAGIC = bytes.fromhex("72730236")
NEWER = bytes(range(256)) * 300


def copy(start: int, length: int) -> bytes:
    """The command that copies a range, with numbers of 8 bytes."""
    return b"\x54" + start.to_bytes(8) + length.to_bytes(8)


def literal(data: bytes, length: int | None = None) -> bytes:
    """The command that takes these bytes, or says that there are others."""
    return b"\x44" + (len(data) if length is None else length).to_bytes(8) + data


def followed(delta: bytes, size: int, ending: str = "diff.gz") -> bytes:
    """What a stored version gives, ``size`` being what was recorded of it."""
    stored = gzip.compress(delta) if ending.endswith(".gz") else delta
    with ExitStack() as opened, tempfile.TemporaryFile() as newer:
        newer.write(NEWER)
        newer.flush()
        version = os.memfd_create("version")
        os.write(version, stored)
        content = older(whole(newer.fileno()), version, ending, size, Scratch(opened))
        return b"".join(content.blocks())


@pytest.mark.parametrize("ending", ["diff", "diff.gz"])
def test_a_delta_is_followed(ending: str) -> None:
    delta = (
        MAGIC + copy(1000, 70000) + literal(b"new" * 1000) + b"\x03abc" + copy(0, 10) + copy(10, 5) + b"\0"
    )
    expected = NEWER[1000:71000] + b"new" * 1000 + b"abc" + NEWER[:15]
    assert followed(delta, len(expected), ending) == expected


@pytest.mark.parametrize("ending", ["snapshot", "snapshot.gz"])
def test_a_snapshot_is_all_of_it(ending: str) -> None:
    assert followed(b"all of it", 9, ending) == b"all of it"


DOCTORED = {
    "no delta": b"nothing of the kind",
    "empty": b"",
    "no end": MAGIC + copy(0, 10),
    "reserved": MAGIC + b"\x80\0",
    "copy of nothing": MAGIC + copy(0, 0) + copy(0, 10) + b"\0",
    "copy from outside": MAGIC + copy(len(NEWER) - 5, 10) + b"\0",
    "copy from far outside": MAGIC + copy(2**63, 2**63) + b"\0",
    "literal of nothing": MAGIC + literal(b"") + copy(0, 10) + b"\0",
    "literal without end": MAGIC + literal(b"x", 2**64 - 1) + b"\0",
    "literal beyond the end": MAGIC + literal(b"x" * 5, 10) + b"\0",
    "too much": MAGIC + copy(0, len(NEWER)) * 100_000 + b"\0",
    "too little": MAGIC + copy(0, 9) + b"\0",
    "a bomb": MAGIC + literal(bytes(50 << 20)) + b"\0",
}


@pytest.mark.parametrize("kind", DOCTORED)
def test_a_doctored_delta_is_damaged(kind: str) -> None:
    with pytest.raises(Damaged):
        followed(DOCTORED[kind], 10)


def test_zeros_without_end_after_a_version_are_not_read() -> None:
    """gzip takes them for padding, and a hole in a file costs nothing."""
    with ExitStack() as opened, tempfile.TemporaryFile() as newer:
        version = os.memfd_create("version")
        os.write(version, gzip.compress(MAGIC + b"\x01a\0"))
        os.ftruncate(version, 1 << 40)
        with pytest.raises(Damaged):
            older(whole(newer.fileno()), version, "diff.gz", 1, Scratch(opened))
