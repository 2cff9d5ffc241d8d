"""Which faults are tried on an operation, and how one is tried."""

import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..helpers import postgres_servers
from .case import Broken
from .faults import (
    ERRORS,
    SIGNALS,
    Failing,
    FailingChild,
    Fault,
    Kill,
    KillAll,
    KillChild,
    KillWithChild,
    Signalled,
    SmallDisk,
)
from .programs import bad_programs
from .scenes import AS_ROOT, DbScene, Scene
from .tracing import FAILING


def attempt(scene: Scene, fault: Fault) -> list[str] | None:
    """Try a fault. Returns what is wrong afterwards, or None if the fault took no effect."""
    with scene.case() as case:
        wrong = []
        try:
            ended = fault.strike(case)
            if ended is None:
                return None
            there = False
            try:
                there = scene.check_points(case)
            except Broken as error:
                wrong.append(str(error))
            try:
                fault.judge(case, ended, there)
            except Broken as error:
                wrong.append(str(error))
            fault.mend(case)
            scene.check_retry(case, there=there)
        except Broken as error:
            wrong.append(str(error))
        finally:
            if isinstance(fault, SmallDisk):
                fault.give_back(case)
        return wrong


def faults_of(scene: Scene, rng: random.Random, *, quick: bool) -> list[Fault]:
    """Return the faults to try on an operation: all, or a sample."""
    calls = scene.traced()
    failing = [call for call in calls if call.name in FAILING and "<pipe:" not in call.text]
    every: list[list[Fault]] = [
        [Kill(call) for call in calls],
        [KillAll(call) for call in calls if call.name != "wait4"],
        [Signalled(SIGNALS[i % 3], call) for i, call in enumerate(calls)],
        [Failing(ERRORS[(i + rng.randrange(4)) % 4], call) for i, call in enumerate(failing)],
        list(bad_programs(scene)),
    ]
    for program in scene.programs:
        inner = scene.traced_child(program)
        every.append([KillChild(program, call, i % 2 == 0) for i, call in enumerate(inner)])
        every.append([KillWithChild(program, call) for call in inner])
        failing = [call for call in inner if call.name in FAILING]
        every.append([FailingChild(program, ERRORS[i % 4], call) for i, call in enumerate(failing)])
    if AS_ROOT:
        every.append(
            [SmallDisk("dst", "KiB", kib) for kib in (0, 4, 8, 24, 64, 128, 160, 192, 256, 320, 400)]
        )
        every.append([SmallDisk("dst", "inodes", count) for count in (0, 1, 2, 3, 5, 8, 12, 16, 20, 24, 30)])
        every.append([SmallDisk("config", "KiB", kib) for kib in (0, 4, 8, 64, 140)])
        every.append([SmallDisk("config", "inodes", count) for count in (0, 1, 2)])
        every.append([SmallDisk("dst", "read-only", 0), SmallDisk("config", "read-only", 0)])
    if quick:
        renames = [call for call in calls if call.name in ("rename", "renameat2")]
        publishing = [Kill(renames[-1]), KillAll(renames[-1])] if renames else []
        picked = [rng.choice(group) for group in every if group]
        kills = [fault for fault in picked if isinstance(fault, (Kill, KillAll, KillWithChild))]
        others = [fault for fault in picked if fault not in kills]
        return [*publishing, *kills[: 3 - len(publishing)], *rng.sample(others, min(3, len(others)))]
    # Each of our own calls gets a kill and an error; a sample of the rest is enough.
    return [fault for group in every if group for fault in _thinned(group)]


def _thinned(group: list[Fault]) -> list[Fault]:
    limit = {KillAll: 80, Signalled: 24, KillChild: 16, KillWithChild: 16, FailingChild: 32}.get(
        type(group[0]), 1000
    )
    return group[:: -(-len(group) // limit)]


def heed_signals() -> None:
    """Have signals that this process ignores end its children, which would ignore them, too."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is signal.SIG_IGN:  # under nohup(1), for one
            signal.signal(signum, signal.SIG_DFL)


@contextmanager
def prepared(scene: Scene, top: Path, server: postgres_servers.Server | None) -> Iterator[Scene]:
    """Prepare an operation that faults can be tried on, below ``top``."""
    if isinstance(scene, DbScene):
        assert server is not None
        scene.server = server
    scene.prepare(top / scene.name)
    try:
        yield scene
    finally:
        shutil.rmtree(scene.top)
