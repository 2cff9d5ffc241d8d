"""Archives in parts, and random changes of what they are made from."""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from btw_backup.archive import parts
from btw_backup.archive.division import compare, compare_some
from btw_backup.archive.parts import Made, Part, Sizes
from btw_backup.destination import labels
from btw_backup.programs.tar import Source, tar_command
from btw_backup.system.directories import Directory

from .small_parts import SMALL


class Store:
    """The parts of an archive, in a directory; ``add`` stores what another archive has otherwise."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.parts: list[Part] = []
        (top / "parts").mkdir(parents=True)
        (top / "stage").mkdir()

    @contextmanager
    def open(self, name: str) -> Iterator[int]:
        with open(self.top / "parts" / name, "rb") as file:
            yield file.fileno()

    def add(self, archive: bytes, sizes: Sizes, runs: list[tuple[int, int]] | None = None) -> list[str]:
        """Return the names of parts that were made, not found again. ``runs``: it holds only these parts."""
        blocks = iter([archive[start : start + 3072] for start in range(0, len(archive), 3072)])
        with Directory.at(str(self.top / "stage")) as stage:
            if runs is None:
                found = [*compare(blocks, self.parts, self.open, stage, sizes)]
            else:
                found = [*compare_some(blocks, self.parts, runs, self.open, stage, sizes)]
        names = labels.names(found, self.parts)
        made = []
        for part, name in zip(found, names, strict=True):
            if isinstance(part, Made):
                (self.top / "stage" / part.name).rename(self.top / "parts" / name)
                made.append(name)
        assert not os.listdir(self.top / "stage")
        for name in {*os.listdir(self.top / "parts")} - {*names}:
            (self.top / "parts" / name).unlink()
        self.parts = [Part(name, part.size, part.start) for part, name in zip(found, names, strict=True)]
        return made

    def contents(self) -> list[bytes]:
        """What the parts hold, in the order in which a shell sorts their names."""
        return [path.read_bytes() for path in sorted((self.top / "parts").iterdir())]

    def examined(self) -> list[Part]:
        def files() -> Iterator[tuple[str, int]]:
            for name in sorted(os.listdir(self.top / "parts")):
                with self.open(name) as file:
                    yield name, file

        return [*parts.parts(files(), SMALL.cut)]


def archived(source: Path) -> bytes:
    """What tar writes, without the zeros after the end of the archive that fill its last record."""
    command = tar_command(Source(str(source), "", (), (), False))
    command[command.index("--blocking-factor=128")] = "--blocking-factor=1"
    return subprocess.run(command, cwd=source, stdout=subprocess.PIPE, check=True).stdout


def write(path: Path, size: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(size))


NAMES = st.sampled_from(
    [
        "a",
        "b",
        "c/a",
        "c/b",
        "c/d/e",
        "f",
        "n" * 120,
        "ü/ü",
        "z",
        *(f"many/{number:02}" for number in range(30)),
    ]
)
# Sizes about those at which a part ends, or data is cut.
FILE_SIZES = st.one_of(
    st.integers(0, 2000), st.sampled_from([4096, 8191, 8192, 8193, 16384, 24576, 30000, 50000])
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["write", "grow", "remove", "rename", "touch"]), NAMES, NAMES, FILE_SIZES),
    max_size=12,
)


Change = tuple[str, str, str, int]


def apply(source: Path, change: Change, seed: int) -> None:
    """Apply a change of CHANGES."""
    kind, name, other, size = change
    path = source / name
    if kind == "write":
        write(path, size, seed)
    elif not path.exists():
        return
    elif kind == "grow":
        with open(path, "ab") as file:
            file.write(bytes(size))
    elif kind == "remove":
        path.unlink()
    elif kind == "rename":
        (source / other).parent.mkdir(parents=True, exist_ok=True)
        path.rename(source / other)
    else:
        os.utime(path, (seed, seed))
