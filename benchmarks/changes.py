"""The cases of changed sources: what a run costs after a change, and what it costs to get a file back."""

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from . import subjects, trees
from .cases import Bench, expect_points, extract
from .measure import Task
from .subjects import Ours, changed, emptied, settle
from .table import Row, compared, counted

_INCREMENTALS = 10
_SHARING = "MAX_INCREMENTAL_COUNT = 0\n"
_MB = 1_000_000
_PLACES = 20
_PART = 16 << 20
# What ours has rdiff-backup leave out.
_UNASKED = ("--no-file-statistics", "--no-hard-links")


def changing(bench: Bench) -> Iterator[Row]:
    """Changed runs of three trees, beside restic and borg."""
    many = bench.top / "C"
    trees.mixed(many, bench.scale.broad, bench.scale.broad * 10_000)
    settle()
    for name, tree, change, what, limits in (
        ("A", bench.trees["A"], one_file(bench.trees["A"]), "one file", (0.45, 0.45)),
        ("B", bench.trees["B"], one_place(bench.trees["B"]), "1 MB", (0.65, 1.0)),
        ("C", many, _some_files(many), f"500 of {bench.scale.broad:,} files", (0.5, 0.5)),
    ):
        place = bench.place(f"changing-{name}")
        ours = Ours(place, tree, "rdiff")
        others = {"restic": subjects.restic(place, tree), "borg": subjects.borg(place, tree)}
        for task in (ours.backup(), *others.values()):
            task.run()
        tasks = [Task(task.argv, change, task.cwd, task.env) for task in (ours.backup(), *others.values())]
        mine, *theirs, alone = bench.in_turn(*tasks, _rdiff_backup_alone(place, ours, change))
        for other, measured, limit in zip(others, theirs, limits, strict=True):
            yield compared(f"changed, {name}, {what} / {other}", mine, measured, limit)
            yield compared(f"rdiff-backup alone, {name}, {what} / {other}", alone, measured, limit)
        expect_points(ours, 2 + mine.runs)
        yield from _room(name, ours, change)
        yield _read(name, ours, change)
        shutil.rmtree(place)
    shutil.rmtree(many)


def _rdiff_backup_alone(place: Path, ours: Ours, change: Callable[[], None]) -> Task:
    """What rdiff-backup does in a changed run, made once for this."""
    before, stage, chain = place / "before", place / "stage", place / "chain"
    known = _files(ours.newest())
    shutil.copytree(ours.newest(), before)
    change()
    ours.backup().run()
    stage.mkdir()
    for name, (size, inode) in _files(ours.newest()).items():
        stored, staged = ours.newest() / name, stage / name
        if known.get(name) == (size, inode):
            staged.touch()
            os.truncate(staged, size)
            shutil.copystat(stored, staged)
        else:
            shutil.copy2(stored, staged)

    def prepare() -> None:
        shutil.rmtree(chain, ignore_errors=True)
        # It replaces parts by rename: they can be linked.
        shutil.copytree(before, chain, copy_function=_link_or_copy)

    return Task(["rdiff-backup", "-v2", "--no-fsync", "backup", *_UNASKED, stage, chain], prepare)


def _link_or_copy(path: str, target: str) -> None:
    (os.link if os.path.basename(path).startswith("backup.tar") else shutil.copy2)(path, target)


def one_file(tree: Path) -> Callable[[], None]:
    """Change one small file."""
    files = sorted(path for path in tree.glob("*/*") if path.stat().st_size > 100)
    return lambda: changed(files[len(files) // 2])


def one_place(tree: Path) -> Callable[[], None]:
    """Change one megabyte of a large file."""

    def change() -> None:
        with (tree / "large-3").open("r+b") as file:
            file.seek(random.randrange(file.seek(0, os.SEEK_END) - _MB))
            file.write(random.randbytes(_MB))
        settle()

    return change


def _some_files(tree: Path) -> Callable[[], None]:
    """Change 500 files, in 20 directories."""
    directories = sorted(path for path in tree.iterdir() if path.is_dir())[:: trees.DIRECTORIES // _PLACES]
    files = [path for directory in directories for path in sorted(directory.iterdir())[:25]]

    def change() -> None:
        for path in files:
            with path.open("r+b") as file:
                file.write(random.randbytes(8))
        settle()

    return change


def _room(name: str, ours: Ours, change: Callable[[], None]) -> Iterator[Row]:
    """What one more changed run takes of the disks."""
    ours.backup().run()  # what the other programs' turns have changed
    change()
    chain = ours.newest()
    used, before = size(ours.dst), _files(chain)
    older = sum(path.stat().st_size for path in chain.glob("rdiff-backup-data/increments/*.gz"))
    most = _watched(ours.stage(), ours.backup().run)
    after = _files(chain)
    differ = sum(size for path, (size, inode) in after.items() if before.get(path) != (size, inode))
    increments = sum(path.stat().st_size for path in chain.glob("rdiff-backup-data/increments/*.gz"))
    added = (
        increments
        - older
        + sum(size for size, _ in after.values())
        - sum(size for size, _ in before.values())
    )
    grown = size(ours.dst) - used
    yield counted(
        f"staged, {name}",
        "2 × what differs",
        f"{most / _MB:.1f} of {differ / _MB:.1f} MB",
        most <= 2 * differ + _MB,
    )
    yield counted(
        f"disk that an incremental adds, {name}",
        "increments, growth + 1 MB",
        f"{grown / _MB:.1f}, {added / _MB:.1f} MB",
        grown <= added + _MB,
    )


def _read(name: str, ours: Ours, change: Callable[[], None]) -> Row:
    """What tar reads in one more changed run, as the kernel counts it."""
    change()
    before = _files(ours.newest())
    # A shell's count includes the programs that it has waited for (proc(5), /proc/PID/io).
    counted_by = ours.dst.parent / "counting"
    counted_by.mkdir()
    wrapper, count = counted_by / "tar", counted_by / "count"
    tar = shutil.which("tar")
    wrapper.write_text(
        f'#!/bin/sh\n{tar} "$@"\nstatus=$?\n'
        f'case "$*" in *--create*) cat /proc/$$/io > {count};; esac\nexit $status\n'
    )
    wrapper.chmod(0o755)
    backup = ours.backup()
    Task(backup.argv, env={"PATH": f"{counted_by}:{os.environ['PATH']}"}).run()
    after = _files(ours.newest())
    differ = sum(size for path, (size, inode) in before.items() if after.get(path) != (size, inode))
    # A large member is in several parts, and is read as a whole.
    largest = max(path.stat().st_size for path in ours.source.rglob("*"))
    read = int(count.read_text().split()[1])
    return counted(
        f"read by tar, {name}",
        "parts that differ + a part, or member",
        f"{read / _MB:.1f}, {differ / _MB:.1f} MB",
        read <= differ + max(_PART, largest),
    )


def _files(chain: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_ino) for path in chain.glob("backup.tar*")}


def size(top: Path) -> int:
    """What du(1) says, in bytes: a hard link counts once."""
    return int(subprocess.check_output(["du", "-s", "-B1", top]).split()[0])


def _watched(directory: Path, run: Callable[[], object]) -> int:
    """Call ``run``. Returns the most that the directory had in it meanwhile, in bytes."""
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.01):
            used = sum(path.stat().st_blocks * 512 for path in directory.rglob("new.*") if path.exists())
            most = max(most, used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    ended.set()
    watcher.join()
    return most


def sharing(bench: Bench) -> Iterator[Row]:
    """A full backup that shares, beside an incremental, and one that has to read everything, too."""
    place, tree = bench.place("sharing"), bench.trees["A"]
    change = one_file(tree)
    full, incremental, reading = (
        Ours(place / name, tree, "rdiff", None, options)
        for name, options in (("full", _SHARING), ("incremental", ""), ("reading", "QUICK_CHECK = False\n"))
    )
    for ours in (full, incremental, reading):
        ours.backup().run()
    mine, *theirs = bench.in_turn(*(ours.backup(change) for ours in (full, incremental, reading)))
    for name, measured in zip(("incremental", "incremental that reads everything"), theirs, strict=True):
        yield compared(f"full that shares, A, one file changed / {name}", mine, measured, 1.5)
    before, known = (
        size(full.dst),
        {inode for chain in full.dst.glob("2*") for _, inode in _files(chain).values()},
    )
    full.backup(change).run()
    differ = sum(size for size, inode in _files(full.newest()).values() if inode not in known)
    grown = size(full.dst) - before
    yield counted(
        "disk that a full backup adds, A",
        "what differs + 2 MB",
        f"{grown / _MB:.1f}, {differ / _MB:.1f} MB",
        grown <= differ + 2 * _MB,
    )
    shutil.rmtree(place)


def eleven_points(place: Path, tree: Path) -> tuple[Ours, Task]:
    """Back up a tree eleven times with btw-backup and restic, with 300 files changed between each."""
    files = sorted(path for path in tree.glob("*/*") if path.stat().st_size > 5000)
    ours, restic = Ours(place, tree, "rdiff"), subjects.restic(place, tree)
    for number in range(1 + _INCREMENTALS):
        if number:
            for path in random.Random(number).sample(files, min(300, len(files) // 20)):
                path.write_bytes(path.read_bytes()[:-1] + b"%d" % (number % 10))
            settle()
        ours.backup().run()
        restic.run()
    return ours, restic


def getting_back(bench: Bench) -> Iterator[Row]:
    """One file, and all of them, from the newest and from the oldest of eleven points."""
    place, tree = bench.place("getting-back"), bench.trees["A"]
    files = sorted(path for path in tree.glob("*/*") if path.stat().st_size > 5000)
    ours, restic = eleven_points(place, tree)
    points = ours.points()
    wanted = files[len(files) // 2]
    inside = wanted.relative_to(tree)
    snapshots = subprocess.check_output(
        ["restic", "snapshots", "--quiet", "--json"], env={**os.environ, **restic.env}, text=True
    )
    oldest = snapshots.partition('"id":"')[2][:64]
    target, other = place / "target", place / "other"
    for name, at, snapshot, limit in (
        ("newest", points[-1], "latest", 0.3),
        ("oldest of 11", points[0], oldest, 0.6),
    ):
        mine, theirs = bench.in_turn(
            ours.restore(target, "--at", at, paths=[str(inside)]),
            Task(
                ["restic", "restore", snapshot, "--quiet", "--include", wanted, "--target", other],
                lambda: emptied(other),
                env=restic.env,
            ),
        )
        yield compared(f"one file back, A, {name} point / restic restore", mine, theirs, limit)
    for name, at, limit in (("newest", points[-1], 1.15), ("oldest of 11", points[0], 1.3)):
        mine, theirs = bench.in_turn(ours.restore(target, "--at", at), extract(ours.newest(), other))
        yield compared(f"all back, A, {name} point / tar -x", mine, theirs, limit)
    shutil.rmtree(place)
