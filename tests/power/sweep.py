"""The sweep: cuts the power in each operation, on each file system, and counts the points that are lost."""

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..faults.case import LOST, Case, one_line, run
from ..faults.scenes import Scene
from ..faults.trying import heed_signals, prepared
from ..helpers.postgres_servers import INSTALLATIONS, Server
from .disks import KINDS, Disk, reflinking
from .habits import HABITS
from .judging import Judge
from .moments import Moment, cut
from .scenes import SCENES

# Mounted over: nobody outside sees it, and nothing stays.
_TOP = Path("/mnt")


@dataclass
class Tried:
    """How many moments were tried, how many different disks they left, and what was wrong."""

    moments: int = 0
    disks: int = 0
    wrong: list[str] = field(default_factory=list)

    def lost(self) -> int:
        """At how many moments a point was lost."""
        return sum(LOST in text for text in self.wrong)

    def add(self, other: "Tried") -> None:
        self.moments += other.moments
        self.disks += other.disks
        self.wrong += other.wrong

    def __str__(self) -> str:
        return f"{self.moments} moments tried ({self.disks} different disks), {self.lost()} points lost"


def _cut_in(scene: Scene, kind: str, habit: str, images: Path, args: argparse.Namespace) -> Tried:
    """Cut the power in one run of an operation."""
    rng = random.Random(f"{args.seed} {scene.name} {kind} {habit}")
    case = Case(scene, scene.top / f"{scene.name}-{kind}-{habit}")
    disk = Disk(KINDS[kind], images, case.top / "disk")
    case.dst, case.config = disk.root / "dst", disk.root / "config"
    judge = Judge(case, disk, rng, args.sample)
    try:
        with disk.mounted():
            scene.copy_to(disk.root)
            scene.settle(case)
            run("sync", "-f", disk.root)
            moments = cut(case, disk, HABITS[habit], rng, synced=not args.without_syncs)
            moments = _thinned(moments, args.most, rng)
        told = zip(moments, judge.judge(moments), strict=True)
    finally:
        disk.remove()
    where = f"{scene.name} on {kind}, {habit}"
    wrong = [f"{where}, {moment.where}: {wrong}" for moment, wrong in told if wrong]
    return Tried(len(moments), judge.disks(), wrong)


def _thinned(moments: list[Moment], most: int, rng: random.Random) -> list[Moment]:
    """Return those that share so many images, and all after the end."""
    images = [*dict.fromkeys(moment.image for moment in moments)]
    chosen = {*rng.sample(images, min(most, len(images)))}
    return [moment for moment in moments if moment.ended or moment.image in chosen]


def _sweep(name: str, images: Path, server: Server | None, args: argparse.Namespace) -> Tried:
    """Cut the power in an operation, on all file systems."""
    tried = Tried()
    with prepared(SCENES[name](), _TOP, server) as scene:
        for kind, habit in itertools.product(args.kinds, args.habits):
            started = time.monotonic()
            try:
                found = _cut_in(scene, kind, habit, images, args)
            except Exception as error:  # noqa: BLE001, RUF100 - the harness itself: say it and go on
                found = Tried(wrong=[f"{name} on {kind}, {habit}: the harness failed: {error!r}"])
            if args.verbose:
                seconds = time.monotonic() - started
                print(f"  {name} on {kind}, {habit}: {found}, {seconds:.0f} s", flush=True)
            tried.add(found)
    return tried


def main() -> int:
    args = _arguments()
    total = Tried()
    heed_signals()
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", _TOP)
    temporary = _TOP / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    with ExitStack() as stack:
        images = stack.enter_context(reflinking(_TOP))
        server = None
        if any(SCENES[name]().programs[:1] in (("pg_dump",), ("pg_dumpall",)) for name in args.scenes):
            server = Server(INSTALLATIONS[0])
            stack.callback(server.stop)
        with ThreadPoolExecutor(args.jobs) as pool:
            swept = pool.map(lambda name: _sweep(name, images, server, args), args.scenes)
            for name, tried in zip(args.scenes, swept, strict=True):
                print(f"{name}: {tried}", flush=True)
                total.add(tried)
    for failure in total.wrong:
        if not args.without_syncs or LOST not in failure:
            print(one_line(failure))
    failures = len(total.wrong) - total.lost()
    print(f"{total}" + (f", {failures} other failures" if failures else ""))
    return 1 if total.wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.power", description="Cuts the power in btw-backup."
    )
    about = "how many images of a run are looked at (default: %(default)s)"
    parser.add_argument("--most", type=int, default=40, metavar="N", help=about)
    about = "on how many disks of a run the program runs again (default: %(default)s)"
    parser.add_argument("--sample", type=int, default=3, metavar="N", help=about)
    parser.add_argument(
        "--without-syncs", action="store_true", help="let syncs do nothing; this loses points"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    parser.add_argument("--verbose", action="store_true", help="a line for each run")
    about = f"only this operation ({', '.join(SCENES)}), this file system ({', '.join(KINDS)})"
    about += f", or when the kernel writes like this ({', '.join(HABITS)})"
    parser.add_argument("--only", action="append", default=[], metavar="WHAT", help=about)
    args = parser.parse_args()
    if unknown := {*args.only} - {*SCENES, *KINDS, *HABITS}:
        parser.error(f"no such thing: {', '.join(unknown)}")
    for chosen, known in (("scenes", SCENES), ("kinds", KINDS), ("habits", HABITS)):
        setattr(args, chosen, [name for name in known if name in args.only] or list(known))
    return args


if __name__ == "__main__":
    sys.exit(main())
