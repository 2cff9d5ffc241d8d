"""What goes wrong in a run, and how the run must end if it does."""

import dataclasses
import errno
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass

from .case import LOST, ROOT, TIMEOUT, TRACEBACK, Broken, Case, Ended, run
from .tracing import Call, tracing

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong in a run. The summary counts faults by ``kind``."""

    kind = "fault"

    def __str__(self) -> str:
        values = (getattr(self, each.name) for each in dataclasses.fields(self))
        shown = (f"{v.name}#{v.number} {v.text[:110]}" if isinstance(v, Call) else str(v) for v in values)
        return f"{self.kind} {' '.join(shown)}"

    def strike(self, case: Case) -> Ended | None:
        """Run the operation and hit it. Returns None if the fault took no effect."""
        raise NotImplementedError

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        """Raise Broken if the run did not end as it should; ``there``: whether the new point exists."""

    def mend(self, case: Case) -> None:
        """Remove the cause before the next run."""


def inject(case: Case, call: Call, what: str) -> Ended | None:
    ended = case.run(*tracing(case.trace, {call.name}, f"{call.name}:{what}:when={call.number}"))
    return ended if _was_hit(case) else None


def _was_hit(case: Case) -> bool:
    if not case.trace.exists():
        return False
    text = case.trace.read_text(errors="replace")
    return "(INJECTED)" in text or "--- SIG" in text or "+++ killed" in text or text.endswith("= ?\n")


@dataclass(frozen=True)
class Kill(Fault):
    """SIGKILL hits the program alone, in place of the call."""

    kind = "kill"
    call: Call

    def strike(self, case: Case) -> Ended | None:
        ended = inject(case, self.call, "signal=SIGKILL")
        return ended if ended is None or ended.status in (-9, 999) else None

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        if ended.status != -9:
            raise Broken(f"killed, and then: {ended.err}")


@dataclass(frozen=True)
class KillAll(Fault):
    """SIGKILL hits the program and its children at once, just after the call."""

    kind = "kill all"
    call: Call

    def strike(self, case: Case) -> Ended | None:
        fault = f"{self.call.name}:signal=SIGSTOP:when={self.call.number}"
        with case.running(tracing(case.trace, {self.call.name}, fault)) as process:
            stopped = _stopped(case, process)
        return case.ended(status=-9) if stopped else None


def _stopped(case: Case, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the traced process is stopped. Returns False if it ended instead."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if case.trace.exists() and "--- stopped by SIGSTOP" in case.trace.read_text(errors="replace"):
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    raise Broken("it did not end")


@dataclass(frozen=True)
class KillChild(Fault):
    """SIGKILL hits a program that ours runs, every time or only the first time."""

    kind = "kill a child"
    program: str
    call: Call
    always: bool

    def strike(self, case: Case) -> Ended | None:
        fault = f"{self.call.name}:signal=SIGKILL:when={self.call.number}"
        once = "" if self.always else f'mkdir {case.top}/once 2>/dev/null || exec "$real" "$@"; '
        strace = " ".join(tracing(case.trace, {self.call.name}, fault))
        case.fake(self.program, f'{once}exec {strace} "$real" "$@"')
        ended = case.run()
        return ended if _was_hit(case) else None

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        said(case, ended, there)

    def mend(self, case: Case) -> None:
        case.no_more_fakes()


@dataclass(frozen=True)
class KillWithChild(Fault):
    """SIGKILL hits everything, just after a call of a program that ours runs, like a power cut."""

    kind = "kill all in a child"
    program: str
    call: Call

    def strike(self, case: Case) -> Ended | None:
        fault = f"{self.call.name}:signal=SIGSTOP:when={self.call.number}"
        case.fake(self.program, f'exec {" ".join(tracing(case.trace, {self.call.name}, fault))} "$real" "$@"')
        with case.running() as process:
            stopped = _stopped(case, process)
        return case.ended(status=-9) if stopped else None

    def mend(self, case: Case) -> None:
        case.no_more_fakes()


@dataclass(frozen=True)
class Signalled(Fault):
    """A signal asks the program to end."""

    kind = "signal"
    signal: signal.Signals
    call: Call

    def strike(self, case: Case) -> Ended | None:
        return inject(case, self.call, f"signal={self.signal.name}")

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        if ended.status != 128 + self.signal:
            raise Broken(f"exits with {ended.status}: {ended.err}")
        if TRACEBACK in ended.err:
            raise Broken(ended.err)
        case.scene.check_left_over(case, "the run that was ended")


@dataclass(frozen=True)
class Failing(Fault):
    """A system call of the program fails."""

    kind = "error"
    error: str
    call: Call

    def strike(self, case: Case) -> Ended | None:
        return inject(case, self.call, f"error={self.error}")

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        said(case, ended, there, os.strerror(getattr(errno, self.error)))


@dataclass(frozen=True)
class FailingChild(Fault):
    """A system call of a program that ours runs fails, every time; the program may not even report it."""

    kind = "error in a child"
    program: str
    error: str
    call: Call

    def strike(self, case: Case) -> Ended | None:
        fault = f"{self.call.name}:error={self.error}:when={self.call.number}"
        case.fake(self.program, f'exec {" ".join(tracing(case.trace, {self.call.name}, fault))} "$real" "$@"')
        ended = case.run()
        return ended if _was_hit(case) else None

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        # If tar goes on without a part of the source, the status is 3. rdiff-backup prints tracebacks of
        # its own.
        if self.program != "tar" or ended.status != 3:
            theirs = f"{ROOT}/btw_backup" not in ended.err
            said(case, ended._replace(err=ended.err.replace(TRACEBACK, "")) if theirs else ended, there)

    def mend(self, case: Case) -> None:
        case.no_more_fakes()


def said(case: Case, ended: Ended, there: bool, reason: str = "") -> None:
    """Raise Broken unless a run succeeded, or failed with an error message.

    If a ``reason`` is given, the message must name a file or a disk.
    """
    if TRACEBACK in ended.err:
        raise Broken(f"a traceback: {ended.err}")
    if ended.status == 0:
        if case.scene.adds and not there:
            raise Broken(f"{LOST}exits with 0, and the new point is missing")
        return
    if ended.status != 1:
        raise Broken(f"exits with {ended.status}: {ended.err}")
    ours = [line for line in ended.err.splitlines() if line.startswith("btw_backup: ")]
    if not ours:
        raise Broken(f"says nothing: {ended.err!r}")
    if reason and not any(re.search(r"/|\.txt|\.tar|\.dump|\.btw|\d{4}-", line) for line in ours):
        raise Broken(f"names neither file nor disk: {ended.err!r}")


@dataclass(frozen=True)
class SmallDisk(Fault):
    """The destination or the configuration directory is on a disk with few KiB or inodes left."""

    kind = "full disk"
    where: str
    what: str
    room: int

    def strike(self, case: Case) -> Ended | None:
        path = case.top / self.where
        aside = case.top / "aside"
        path.rename(aside)
        path.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=4000,mode=700", "tmpfs", path)
        try:
            run("cp", "-a", f"{aside}/.", path)
            room = os.statvfs(path)
            if self.what == "KiB":
                used = (room.f_blocks - room.f_bfree) * room.f_frsize // 1024
                small = f"size={max(4, used + self.room)}k"
            elif self.what == "inodes":
                small = f"nr_inodes={room.f_files - room.f_ffree + self.room}"
            else:
                small = "ro"
            run("mount", "-o", f"remount,{small}", path)
            return case.run()
        except BaseException:
            self.give_back(case)
            raise

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        said(case, ended, there, "no room")

    def mend(self, case: Case) -> None:
        run("mount", "-o", "remount,rw,size=16m,nr_inodes=4000", case.top / self.where)

    def give_back(self, case: Case) -> None:
        """Unmount the small disk."""
        run("umount", "--lazy", case.top / self.where)
