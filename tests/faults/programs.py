"""Every way in which the programs of an operation may fail."""

from collections.abc import Iterator
from dataclasses import dataclass

from .case import Broken, Case, Ended
from .faults import Fault, said
from .scenes import Scene


@dataclass(frozen=True)
class BadProgram(Fault):
    """A program that ours runs fails in some way. ``may_succeed``: ours may manage without it."""

    kind = "failing program"
    program: str
    way: str
    script: str
    may_succeed: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.program}: {self.way}"

    def strike(self, case: Case) -> Ended | None:
        case.fake(self.program, f"{self.script}")
        return case.run()

    def judge(self, case: Case, ended: Ended, there: bool) -> None:
        said(case, ended, there)
        if ended.status == 0 and not self.may_succeed:
            raise Broken(f"exits with 0 (new point: {there})")
        if ended.status == 1 and there:
            raise Broken("exits with 1, and the new point is there")

    def mend(self, case: Case) -> None:
        case.no_more_fakes()


_HALF = '"$real" "$@" | head -c {half}'
_WRITERS = {
    "fails at once": "echo no >&2; exit 64",
    "exits with 1 at once": "exit 1",
    "exits with 2 at once": "exit 2",
    "fails when all is done": '"$real" "$@"; exit 64',
    "fails halfway": f"{_HALF}; exit 64",
    "exits with 2 halfway": f"{_HALF}; exit 2",
    "is killed at once": "kill -9 $$",
    "is killed halfway": f"{_HALF}; kill -9 $$",
    "stores nothing, status 0": "exit 0",
    "stores half, status 0": f"{_HALF}; exit 0",
}
_COMPRESSING = 'case " $* " in *" -d "*) exec "$real" "$@";; esac; '
_DECOMPRESSING = 'case " $* " in *" -d "*) ;; *) exec "$real" "$@";; esac; '
_CHAIN = '"$real" "$@"; for chain; do :; done; '
# Those that rdiff-backup has written: it replaces files, and never writes into an old one.
_MIRRORS = '$(find "$chain" -maxdepth 1 -name "*.*" -type f -links 1)'
_CHANGED_LATE = (
    f'for f in {_MIRRORS}; do ln "$f" "$chain/rdiff-backup.tmp.1"; sleep 0.2; '
    'printf x | dd of="$f" conv=notrunc status=none; rm "$chain/rdiff-backup.tmp.1"; done'
)
_KEEPERS = {
    "fails at once": "echo no >&2; exit 1",
    "fails when all is done": '"$real" "$@"; exit 1',
    "exits with 2 at once": "exit 2",
    "is killed at once": "kill -9 $$",
    "is killed when all is done": '"$real" "$@"; kill -9 $$',
    "stores nothing, status 0": "exit 0",
    "empties the mirror, status 0": f"{_CHAIN}for f in {_MIRRORS}; do : >$f; done; exit 0",
    "truncates the mirror, status 0": f"{_CHAIN}truncate -s -1 {_MIRRORS}; exit 0",
    "changes the mirror when that was looked at, status 0": f"{_CHAIN}{_CHANGED_LATE}; exit 0",
    "loses the mirror, status 0": f'{_CHAIN}rm -f "$chain"/*.*; exit 0',
    "loses the metadata, status 0": f'{_CHAIN}rm -f "$chain"/rdiff-backup-data/mirror_metadata*; exit 0',
    "loses the marker, status 0": f'{_CHAIN}rm -f "$chain"/rdiff-backup-data/current_mirror*; exit 0',
}
_INCREMENTS = '$(find "$chain"/rdiff-backup-data/increments -type f -links 1)'
_EXTENDERS = {
    "loses the increments, status 0": f"{_CHAIN}rm -f {_INCREMENTS}; exit 0",
    "empties the increments, status 0": f"{_CHAIN}truncate -s 0 {_INCREMENTS}; exit 0",
    "truncates the increments, status 0": f"{_CHAIN}truncate -s -9 {_INCREMENTS}; exit 0",
}


# When it removes the older points of a copy.
_REMOVERS = {
    "fails": "exit 1",
    "exits with 2": '"$real" "$@"; exit 2',
    "is killed": "kill -9 $$",
    "does nothing, status 0": "exit 0",
    "loses the metadata, status 0": f'{_CHAIN}rm -rf "$chain"/rdiff-backup-data/mirror_metadata*; exit 0',
    "loses the marker, status 0": f'{_CHAIN}rm -f "$chain"/rdiff-backup-data/current_mirror*; exit 0',
}


def bad_programs(scene: Scene) -> Iterator[BadProgram]:
    """Every way in which the programs of an operation may fail."""
    for program in scene.programs:
        if program == "rdiff-backup":
            yield from _bad_keepers(scene)
            continue
        half = {"tar": 90_000, "lbzip2": 70_000}.get(program, 300)
        only = _COMPRESSING if program == "lbzip2" else ""
        for way, script in _WRITERS.items():
            yield BadProgram(program, way, only + script.format(half=half))
        if program == "lbzip2" and scene.rounds:
            for way, script in _WRITERS.items():
                text = _DECOMPRESSING + script.format(half=half)
                yield BadProgram(program, f"decompressing, {way}", text, may_succeed=True)


def _bad_keepers(scene: Scene) -> Iterator[BadProgram]:
    program = "rdiff-backup"
    for way, script in _KEEPERS.items():
        yield BadProgram(program, way, script)
    if scene.name == "parts-shared":
        for way, script in _REMOVERS.items():
            only = f'case " $* " in *" remove "*) ;; *) exec "$real" "$@";; esac; {script}'
            yield BadProgram(program, f"removing, {way}", only, may_succeed=True)
    if scene.name in ("incremental", "parts", "database", "globals"):
        for way, script in _EXTENDERS.items():
            # Only the copy of the chain is damaged, and a new chain can be started.
            yield BadProgram(program, way, script, may_succeed=True)
