"""The lines that monitors read."""

import re

LINE = re.compile(
    r"BTW-BACKUP (OK|WARNING|CRITICAL|UNKNOWN) - ([^|\n]+)"
    r"( \| (age=-?\d+s;;\d*;0 )?points=\d+ size=\d+B)?"
)
