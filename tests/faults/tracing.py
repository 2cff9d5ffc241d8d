"""System calls as strace(1) shows and counts them: the places where a fault can hit."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# What changes a file system. open(2) does with some flags only.
OPENING = {"open", "openat"}
_WRITING = {"write", "pwrite64", "sendfile", "copy_file_range"}
_NAMING = {"rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat"}
_REMOVING = {"unlink", "unlinkat", "rmdir"}
_INODES = {"chown", "fchown", "fchownat", "lchown", "chmod", "fchmod", "fchmodat", "utimensat"}
_SYNCING = {"ftruncate", "truncate", "fsync", "fdatasync"}
CHANGING = OPENING | _WRITING | _NAMING | _REMOVING | _INODES | _SYNCING
# What starts children and awaits them.
CHILDREN = {"clone", "clone3", "vfork", "wait4"}
FAILING = OPENING | _WRITING | _NAMING | _SYNCING


class Call(NamedTuple):
    """A system call of a traced run: the ``number``-th of its name, counted from 1."""

    name: str
    number: int
    text: str


def tracing(output: Path, calls: set[str], fault: str = "") -> list[str]:
    """Return the strace command that logs those calls of one process, not of its children."""
    # "?": not every machine has all of them.
    names = ",".join(f"?{name}" for name in sorted(calls))
    inject = ["-e", f"inject={fault}"] if fault else []
    return ["strace", "-qq", "-y", "-s", "16", "-o", str(output), "-e", f"trace={names}", *inject]


def parse_trace(text: str) -> list[Call]:
    """Return the calls that change a file system, or start or await a child; strace's numbering."""
    counts: Counter[str] = Counter()
    found = []
    for line in text.splitlines():
        match = re.match(r"(\w+)\(", line)
        if match is None:
            continue
        name = match[1]
        counts[name] += 1
        reads = name in OPENING and not re.search(r"O_CREAT|O_TRUNC", line)
        says = re.match(r"write\([12]<", line)
        if not reads and not says and "= ?" not in line:
            found.append(Call(name, counts[name], re.sub(r'/[^ "<]*/case-\d+/', "", line)))
    return found
