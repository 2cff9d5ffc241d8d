"""The cases of the table: what is measured, against what, and its limit."""

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import subjects, trees
from .measure import BTW_BACKUP, Measured, Task, in_turn, plus, shell
from .subjects import Ours, changed, emptied
from .table import Row, absolute, compared, counted

_EXTRACT = "tar --extract --preserve-permissions --numeric-owner --acls --xattrs --xattrs-include='*'"
_VERIFIED_INCREMENTALS = 10
_MEMORY = 40


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int
    files: int
    total: int
    large: int
    database: int
    chains: int
    tarballs: int
    wide: int
    broad: int
    curve: tuple[int, ...]


FULL = Scale(
    rounds=5,
    files=30_000,
    total=300_000_000,
    large=100_000_000,
    database=1_000_000_000,
    chains=1000,
    tarballs=10_000,
    wide=100_000,
    broad=200_000,
    curve=(1000, 10_000, 100_000, 1_000_000),
)
QUICK = Scale(
    rounds=2,
    files=3000,
    total=30_000_000,
    large=10_000_000,
    database=50_000_000,
    chains=100,
    tarballs=1000,
    wide=10_000,
    broad=5_000,
    curve=(1000, 10_000),
)


class Bench:
    """Where the benchmarks work, and the trees that they work on."""

    def __init__(self, top: Path, scale: Scale) -> None:
        self.top = top
        self.scale = scale
        self.trees = {"A": top / "A", "B": top / "B"}

    def make_trees(self) -> None:
        """Make both trees, before anything is measured."""
        trees.mixed(self.trees["A"], self.scale.files, self.scale.total)
        trees.large(self.trees["B"], self.scale.large)
        subjects.settle()

    def place(self, name: str) -> Path:
        """A new directory for one case."""
        place = self.top / name
        place.mkdir()
        return place

    def in_turn(self, *tasks: Task) -> list[Measured]:
        """Measure these, as many rounds as the scale says."""
        return in_turn(tasks, self.scale.rounds)


def unchanged(bench: Bench) -> Iterator[Row]:
    """Unchanged runs, of both trees and types, and what they write."""
    for name, tree in bench.trees.items():
        place = bench.place(f"unchanged-{name}")
        ours = {kind: Ours(place / kind, tree, kind) for kind in ("rdiff", "tar")}
        others = {"restic": subjects.restic(place, tree), "borg": subjects.borg(place, tree)}
        for task in (*(mine.backup() for mine in ours.values()), *others.values()):
            task.run()
        # Each of ours right before each other one, so that every compared pair ran in turn.
        tasks = [
            task for mine in ours.values() for other in others.values() for task in (mine.backup(), other)
        ]
        measured = iter(bench.in_turn(*tasks))
        for kind in ours:
            for other in others:
                yield compared(
                    f"unchanged, {name}, type {kind} / {other}", next(measured), next(measured), 0.35
                )
        for kind, mine in ours.items():
            yield _written(f"unchanged, {name}, type {kind}: written", mine)
            expect_points(mine, 1)
        yield from _reading(bench, name, ours)
        shutil.rmtree(place)


def _reading(bench: Bench, name: str, backed_up: dict[str, Ours]) -> Iterator[Row]:
    """Unchanged runs that read everything."""
    place, tree = bench.place(f"reading-{name}"), bench.trees[name]
    reading = {
        kind: Ours(place / kind, tree, kind, mine.dst, "QUICK_CHECK = False\n")
        for kind, mine in backed_up.items()
    }
    rdiff, tar, piped, unpacked = bench.in_turn(
        reading["rdiff"].backup(),
        reading["tar"].backup(),
        Task(shell(f"{subjects.tar(tree)} | cat > /dev/null"), cwd=tree),
        Task(subjects.decompress(reading["tar"].newest())),
    )
    yield compared(f"QUICK_CHECK off, {name}, type rdiff / tar | cat", rdiff, piped, 1.3, 0.15)
    if 1.2 * unpacked.median >= 1.3 * piped.median + 0.15:
        yield compared(f"QUICK_CHECK off, {name}, type tar / decompressing", tar, unpacked, 1.2)
    else:
        yield compared(f"QUICK_CHECK off, {name}, type tar / tar | cat", tar, piped, 1.3, 0.15)
    for mine in reading.values():
        expect_points(mine, 1)


def _written(case: str, ours: Ours) -> Row:
    """What a run changes in the destination: the log's line, the fingerprint, and who holds the lock."""
    before = _files(ours.dst)
    probe = ours.backup().probe()
    after = _files(ours.dst)
    assert probe is not None
    grown = {
        path: len(content) - len(before.get(path, b"")) * (path.name == "log.txt")
        for path, content in after.items()
        if before.get(path) != content
    }
    said = ", ".join(f"{path.name} {size} B" for path, size in sorted(grown.items()))
    met = {path.name for path in grown} <= {"log.txt", "newest", "lock"} and sum(grown.values()) < 600
    return counted(case, "log line, fingerprint", f"{said}; {probe.written // 1024} KiB of pages", met)


def _files(directory: Path) -> dict[Path, bytes]:
    """All files, large ones by what stat says of them."""
    return {
        path: path.read_bytes() if path.stat().st_size < 1 << 16 else str(path.stat()[:8]).encode()
        for path in directory.rglob("*")
        if path.is_file()
    }


def chains(bench: Bench) -> Iterator[Row]:
    """First and changed runs of type rdiff."""
    place, tree = bench.place("chains"), bench.trees["A"]
    ours, stage, repository = Ours(place, tree, "rdiff"), place / "stage", place / "repository"
    by_hand = subjects.tar_and_rdiff_backup(tree, stage, repository)

    def start_again() -> None:
        emptied(stage)
        emptied(repository)

    synced = Task(subjects.on_disk(by_hand, repository / "backup.tar"), start_again, tree)
    mine, theirs, stored = bench.in_turn(ours.first(), Task(by_hand, start_again, tree), synced)
    yield compared("first, A, type rdiff / tar, rdiff-backup", mine, theirs, 1.25)
    yield compared("first, A, type rdiff / tar, rdiff-backup, sync", mine, stored, 1.25)
    points = 1
    for case, change in _changes(tree):
        mine, theirs = bench.in_turn(ours.backup(change), Task(by_hand, change, tree))
        yield compared(f"{case}, A, type rdiff / tar, rdiff-backup", mine, theirs, 1.15)
        points += mine.runs
    expect_points(ours, points)
    shutil.rmtree(place)


def tarballs(bench: Bench) -> Iterator[Row]:
    """First and changed runs of type tar."""
    place, tree = bench.place("tarballs"), bench.trees["A"]
    ours, by_hand = Ours(place, tree, "tar"), subjects.tar_compressed(tree, place / "by-hand.tbz")
    mine, theirs = bench.in_turn(ours.first(), by_hand)
    yield compared("first, A, type tar / tar | lbzip2", mine, theirs, 1.1)
    points = 1
    for case, change in _changes(tree):
        mine, theirs = bench.in_turn(ours.backup(change), by_hand)
        yield compared(f"{case}, A, type tar / tar | lbzip2", mine, theirs, 1.1)
        points += mine.runs
    expect_points(ours, points)
    shutil.rmtree(place)


def _changes(tree: Path) -> list[tuple[str, Callable[[], None]]]:
    files = sorted(path for path in tree.glob("*/*") if path.stat().st_size > 100)
    middle, late = files[len(files) // 2], files[-1]
    return [("one file changed", lambda: changed(middle)), ("a late file changed", lambda: changed(late))]


def restoring(bench: Bench) -> Iterator[Row]:
    """Restoring the newest point."""
    for name in ("A", "B"):
        place = bench.place(f"restoring-{name}")
        chained = Ours(place / "rdiff", bench.trees[name], "rdiff")
        packed = Ours(place / "tar", bench.trees[name], "tar")
        for ours in (chained, packed):
            ours.backup().run()
        from_chain, from_tarball, extracted, unpacked = bench.in_turn(
            chained.restore(place / "from-chain"),
            packed.restore(place / "from-tarball"),
            extract(chained.newest(), place / "by-hand"),
            Task(subjects.decompress(packed.newest())),
        )
        yield compared(f"restore, {name}, type rdiff / tar -x", from_chain, extracted, 1.15)
        both = plus(unpacked, extracted)
        yield compared(f"restore, {name}, type tar / decompressing + tar -x", from_tarball, both, 1.15)
        shutil.rmtree(place)


def extract(chain: Path, target: Path) -> Task:
    """Unpacking the newest point of a chain by hand."""
    script = f"cd {shlex.quote(str(target))}; cat {shlex.quote(str(chain))}/backup.tar* | {_EXTRACT} --file=-"
    return Task(shell(script), lambda: emptied(target))


def verifying(bench: Bench) -> Iterator[Row]:
    """Verifying a chain of ten incrementals."""
    place, tree = bench.place("verifying"), bench.trees["A"]
    ours = Ours(place, tree, "rdiff")
    ours.backup().run()
    _, change = _changes(tree)[0]
    for _ in range(_VERIFIED_INCREMENTALS):
        ours.backup(change).run()
    points = ours.points()
    expect_points(ours, 1 + _VERIFIED_INCREMENTALS)
    verify = "rdiff-backup -v2 verify --at"
    by_hand = [f"{verify} {point}Z {shlex.quote(str(ours.newest()))}" for point in points]
    mine, theirs = bench.in_turn(ours.verify(), Task(shell(*by_hand)))
    yield compared("verify, A, 11 points / rdiff-backup verify", mine, theirs, 1.0)
    shutil.rmtree(place)


def listing(bench: Bench) -> Iterator[Row]:
    """Listing many backups."""
    place = bench.place("listing")
    trees.chains(place / "chains", bench.scale.chains, 10)
    trees.tarballs(place / "tarballs", bench.scale.tarballs)
    chained, packed = bench.in_turn(*(Task([BTW_BACKUP, "list", place / n]) for n in ("chains", "tarballs")))
    yield absolute(f"list, {bench.scale.chains:,} chains of 10 incrementals", chained, 0.5)
    yield absolute(f"list, {bench.scale.tarballs:,} tarballs", packed, 2.0)
    shutil.rmtree(place)


def wide(bench: Bench) -> Iterator[Row]:
    """Unchanged runs of one directory with many files, where memory could grow with their number."""
    place = bench.place("wide")
    trees.wide(place / "tree", bench.scale.wide)
    ours, other = Ours(place / "ours", place / "tree", "rdiff"), subjects.restic(place, place / "tree")
    subjects.settle()
    for task in (ours.backup(), other):
        task.run()
    mine, theirs = bench.in_turn(ours.backup(), other)
    yield compared(f"unchanged, {bench.scale.wide:,} files in one directory / restic", mine, theirs, 0.35)
    shutil.rmtree(place)


def starting(bench: Bench) -> Iterator[Row]:
    """Starting, and nothing else, by the same interpreter in the same environment."""
    version, argparse = Task([BTW_BACKUP, "--version"]), Task([sys.executable, "-c", "import argparse"])
    mine, theirs = in_turn([version, argparse], 5 * bench.scale.rounds)
    yield compared("--version / python3 -c 'import argparse'", mine, theirs, 1.5)


def peak(rows: list[Row]) -> Row:
    """The peak memory of all cases."""
    most = max((row for row in rows if row.memory), key=lambda row: int(row.memory.split()[0]))
    value = int(most.memory.split()[0])
    case = f"memory of our process ({most.case.partition(' / ')[0]})"
    return counted(case, f"{_MEMORY} MB", most.memory, value <= _MEMORY)


def expect_points(ours: Ours, count: int) -> None:
    """Raise if the runs did not do what was to be measured."""
    if len(ours.points()) != count:
        raise RuntimeError(f"{ours.dst} has {len(ours.points())} points instead of {count}")
