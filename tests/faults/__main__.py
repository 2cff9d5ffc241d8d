"""The command line: try the faults, and count the points that they cost."""

import argparse
import compileall
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..helpers import postgres_servers
from ..helpers.running import end_server
from .case import LOST, ROOT, one_line
from .faults import Fault
from .scenes import SCENES, Scene
from .trying import attempt, faults_of, heed_signals, prepared


def _try_all(
    scene: Scene, faults: Sequence[Fault], jobs: int, verbose: bool
) -> tuple[Counter[str], list[str]]:
    """Try the faults. Returns how many of each kind took effect, and what went wrong."""
    tried: Counter[str] = Counter()
    failures = []

    def one(fault: Fault) -> tuple[Fault, list[str] | None]:
        try:
            return fault, attempt(scene, fault)
        except Exception as error:  # noqa: BLE001, RUF100 - the harness itself: say it and go on
            return fault, [f"the harness failed: {error!r}"]

    with ThreadPoolExecutor(jobs) as pool:
        for fault, wrong in pool.map(one, faults):
            if wrong is None:
                tried["without effect"] += 1
                continue
            tried[fault.kind] += 1
            failures += [f"{scene.name}: {fault}: {'; '.join(wrong)}"] if wrong else []
            if verbose:
                print(f"  {fault}: {one_line('; '.join(wrong)) or 'good'}", flush=True)
    return tried, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Tries faults on btw-backup.")
    parser.add_argument("--quick", action="store_true", help="try a sample only")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    parser.add_argument("--verbose", action="store_true", help="a line for each fault")
    kinds = sorted(cls.kind for cls in Fault.__subclasses__())
    about = f"only this operation ({', '.join(SCENES)}), or this kind of fault ({', '.join(kinds)})"
    parser.add_argument("--only", action="append", default=[], metavar="KIND", help=about)
    args = parser.parse_args()
    if unknown := set(args.only) - set(SCENES) - set(kinds):
        parser.error(f"no such kind: {', '.join(unknown)}")
    names = [name for name in SCENES if name in args.only] or list(SCENES)
    only = [kind for kind in kinds if kind in args.only] or kinds
    heed_signals()
    compileall.compile_dir(ROOT / "btw_backup", quiet=1)  # the runs write no bytecode, and would not find any
    total, failures = 0, []
    server = None
    with tempfile.TemporaryDirectory(prefix="btw-faults-") as top:
        os.chmod(top, 0o755)
        try:
            for name in names:
                if SCENES[name]().programs[:1] in (("pg_dump",), ("pg_dumpall",)) and server is None:
                    server = postgres_servers.Server(postgres_servers.INSTALLATIONS[0])
                with prepared(SCENES[name](), Path(top), server) as scene:
                    faults = faults_of(scene, random.Random(f"{args.seed} {name}"), quick=args.quick)
                    faults = [fault for fault in faults if fault.kind in only]
                    tried, wrong = _try_all(scene, faults, args.jobs, args.verbose)
                without = tried.pop("without effect", 0)
                counts = ", ".join(f"{count} {kind}" for kind, count in sorted(tried.items()))
                note = f" ({without} more had no effect)" if without else ""
                print(f"{name}: {tried.total()} faults: {counts}{note}; {len(wrong)} wrong", flush=True)
                total += tried.total()
                failures += wrong
        finally:
            end_server()
            if server is not None:
                server.stop()
    for failure in failures:
        print(one_line(failure))
    lost = sum(LOST in failure for failure in failures)
    print(f"{total} faults tried, {lost} points lost" + (f", {len(failures)} failures" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
