"""Sizes with which a small archive has many parts."""

from btw_backup.archive.parts import Sizes

SMALL = Sizes(least=4096, most=16384, cut=8192, one_of=8)
# For a full backup, which joins what has become small.
SMALL_FULL = SMALL._replace(small=2048)
# What ``running.replacing`` is given.
REPLACED = {
    "archive.parts.INCREMENTAL": f"module.{SMALL!r}",
    "archive.parts.FULL": f"module.{SMALL_FULL!r}",
}
