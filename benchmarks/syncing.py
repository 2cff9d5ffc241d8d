"""What it costs that a power cut loses nothing: the syncs of a run, and the time that they take."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

from .cases import Bench
from .changes import one_file
from .measure import Task
from .subjects import Ours, settle
from .table import Row

# Those of the source's file system come from QUICK_CHECK, and are not counted.
_CALLS = "fsync,fdatasync"
_FULL = "MAX_INCREMENTAL_COUNT = 0\n"


def syncing(bench: Bench) -> Iterator[Row]:
    """The syncs of first, changed and unchanged runs."""
    place, tree = bench.place("syncing"), bench.trees["A"]
    change = one_file(tree)
    for name, kind, options in (("rdiff", "rdiff", ""), ("rdiff, full", "rdiff", _FULL), ("tar", "tar", "")):
        ours = Ours(place / name, tree, kind, options=options)
        for case, prepare in (("first", settle), ("one file changed", change), ("unchanged", settle)):
            yield _synced(f"syncs, {case}, A, type {name}", ours.backup(prepare))
    shutil.rmtree(place)


def _synced(case: str, task: Task) -> Row:
    """Run it once. The time is the sum over all calls."""
    task.prepare()
    os.sync()
    with tempfile.NamedTemporaryFile("r") as trace:
        argv = ["strace", "-f", "--seccomp-bpf", "-qq", "-T", "-o", trace.name, "-e", f"trace={_CALLS}"]
        subprocess.run([*argv, *task.argv], check=True)
        seconds = [float(found) for found in re.findall(r"sync\(.*<([\d.]+)>$", trace.read(), re.MULTILINE)]
    if not seconds:
        raise RuntimeError(f"{case}: there are none")
    return Row(case, "", f"{len(seconds)}, {sum(seconds):.3f} s", "", "", "", "")
