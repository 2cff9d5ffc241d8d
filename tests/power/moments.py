"""One run of the program, and the disks that power cuts at many moments of it would leave."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..faults.case import TIMEOUT, Broken, Case, Ended
from .disks import Disk
from .habits import Habit

_SYNCING = ("fsync", "fdatasync", "sync", "syncfs", "sync_file_range")
_NAMING = (
    *("rename", "renameat", "renameat2", "mkdir", "mkdirat", "symlink", "symlinkat"),
    *("unlink", "unlinkat", "rmdir"),
)
# The mean time between two moments at random, in seconds.
_PAUSE = 0.1


class Moment(NamedTuple):
    """The image that a power cut leaves; ``ended``: the command had exited with 0 by then."""

    image: Path
    where: str
    ended: bool = False


def cut(case: Case, disk: Disk, habit: Habit, rng: random.Random, *, synced: bool) -> list[Moment]:
    """Run the operation. Returns a power cut after each call that syncs or names, and others.

    ``synced``: without it, calls that sync do nothing.
    """
    found = []
    case.trace.touch()
    with case.running(_stopping(case.trace, synced=synced)) as process:
        for pid, where in _stops(case.trace, process, rng):
            found.append(Moment(disk.cut(), where))
            habit(disk, rng)
            found.append(Moment(disk.cut(), f"{where}, and then what the kernel writes"))
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
    ended = Ended(process.returncode, "", (case.top / "err").read_text())
    if ended.status != 0:
        raise Broken(f"the run exits with {ended.status}: {ended.err}")
    found.append(Moment(disk.cut(), "the end", ended=True))
    habit(disk, rng)
    found.append(Moment(disk.cut(), "some time after the end", ended=True))
    return found


def _stopping(trace: Path, *, synced: bool) -> list[str]:
    """Return the strace command that stops a process, or a child of it, after each of the calls."""
    syncing, naming = (",".join(f"?{name}" for name in names) for names in (_SYNCING, _NAMING))
    left_out = "" if synced else ":retval=0"
    return [
        *("strace", "-f", "-qq", "-y", "-s", "16", "-o", str(trace)),
        *("-e", f"trace={syncing},{naming}"),
        *("-e", f"inject={syncing}:signal=SIGSTOP{left_out}", "-e", f"inject={naming}:signal=SIGSTOP"),
    ]


def _stops(
    trace: Path, process: subprocess.Popen[bytes], rng: random.Random
) -> Iterator[tuple[int | None, str]]:
    """Yield which process has stopped after which call, and now and then None without any having stopped.

    The caller lets it go on.
    """
    calls: dict[str, str] = {}
    deadline, pause = time.monotonic() + 4 * TIMEOUT, _next_pause(rng)
    with trace.open(errors="replace") as file:
        rest = ""
        while time.monotonic() < deadline:
            ended = process.poll() is not None
            *lines, rest = (rest + file.read()).split("\n")
            for pid, text in (line.split(maxsplit=1) for line in lines):
                if text.startswith("--- stopped by SIGSTOP"):
                    yield int(pid), calls.get(pid, "")
                elif re.match(r"\w+\(", text):
                    calls[pid] = text
            if ended:
                return
            if time.monotonic() > pause:
                yield None, f"beside {list(calls.values())[-1]}" if calls else "early"
                pause = _next_pause(rng)
            time.sleep(0.001)
    raise Broken("it did not end")


def _next_pause(rng: random.Random) -> float:
    return time.monotonic() + rng.expovariate(1 / _PAUSE)
