"""An incremental reads only the parts in which something has changed, and the archive is what it would be."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btw_backup.destination.record import Stretch
from btw_backup.programs.tar import Source, leaving_out_large, tar_command, tar_command_for_names
from btw_backup.source import fingerprint
from btw_backup.source.ranges import ranges_of
from btw_backup.source.walk import with_large

from .helpers.archives import CHANGES, Change, Store, apply, write
from .helpers.small_parts import SMALL

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads parts of a source")


class Chain(Store):
    """A store whose archive is kept up to date by what has changed; ``read`` are the names that tar got."""

    def __init__(self, top: Path, source: Source) -> None:
        super().__init__(top)
        self.source = source
        self.stretches: list[Stretch] = []
        self.options: str | None = None
        self.read: list[bytes] | None = None

    def update(self) -> None:
        source = with_large(self.source)
        found = fingerprint.take(source, [stretch.start for stretch in self.stretches])
        assert found is not None
        changed = found.changed(self.options, self.stretches)
        if not changed:
            return
        with ranges_of(source, self.parts, changed) as ranges, leaving_out_large(source) as left_out:
            if ranges is None:
                self.read = None
                command, data = tar_command(source, left_out), b""
            else:
                data = os.pread(ranges.named.names, 1 << 24, 0)
                self.read = data.split(b"\0")[:-1]
                command = tar_command_for_names(source, left_out)
            runs = None if ranges is None else ranges.runs
            archive = subprocess.run(
                command,
                cwd=source.directory,
                input=data,
                stdout=subprocess.PIPE,
                pass_fds=left_out.files,
                check=True,
            ).stdout
        self.add(archive, SMALL, runs)
        self.options = found.options
        self.stretches = [Stretch(*walked[:2]) for walked in found.walked]


def whole(source: Source) -> bytes:
    """What tar writes of all of it, up to the zeros that fill its last record."""
    command = tar_command(source)
    command[command.index("--blocking-factor=128")] = "--blocking-factor=1"
    if source.larger_than is not None:
        argv = ["find", ".", "-type", "f", "-size", f"+{source.larger_than}c", "-print0"]
        found = subprocess.check_output(argv, cwd=source.directory, text=True)
        large = [f"--exclude={name}" for name in found.split("\0")[:-1]]
        command[1:1] = ["--anchored", "--no-wildcards", *large]
    return subprocess.run(command, cwd=source.directory, stdout=subprocess.PIPE, check=True).stdout


ROUNDS = st.lists(CHANGES, min_size=1, max_size=5)
KINDS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "link",
                "link out of a directory",
                "symlink",
                "chmod",
                "rename directory",
                "empty",
                "tag",
                "other tag",
                "cache",
                "no cache",
                "attribute",
            ]
        ),
        st.integers(0, 59),
    ),
    max_size=3,
)


# What a directory gets besides another file.
FILES = {
    "tag": ("NOBACKUP-TAG", ""),
    "other tag": ("5-tag", ""),
    "empty": ("file", ""),
    "cache": ("CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n"),
    "no cache": ("CACHEDIR.TAG", "Signature: none\n"),
}


def alter(source: Path, kind: str, number: int) -> None:
    """Changes of other kinds than content."""
    path, other = source / f"many/{number:02}", source / f"d{number % 7}"
    if kind == "link out of a directory":
        write(other / "linked", 1000, number)
        (source / f"z{number}").unlink(missing_ok=True)
        os.link(other / "linked", source / f"z{number}")
    elif kind == "rename directory":
        if other.is_dir():
            shutil.rmtree(source / f"d{number}x", ignore_errors=True)
            other.rename(source / f"d{number}x")
        else:
            write(other / "inner", 3000, number)
    elif kind in FILES and other.is_dir():
        shutil.rmtree(other)
        write(other / "inner", 2000, number)
        name, text = FILES[kind]
        (other / name).write_text(text)
    elif path.is_file() and not path.is_symlink():
        _alter_file(path, kind, number)


def _alter_file(path: Path, kind: str, number: int) -> None:
    if kind == "link" and not (path.parent.parent / f"l{number}").exists():
        os.link(path, path.parent.parent / f"l{number}")
    elif kind == "symlink":
        path.unlink()
        path.symlink_to(f"to {number}")
    elif kind == "chmod":
        path.chmod(0o600 + number % 60)
    elif kind == "attribute":
        os.setxattr(path, "user.number", b"%d" % number)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rounds=ROUNDS,
    kinds=st.lists(KINDS, min_size=5, max_size=5),
    seed=st.integers(0, 1000),
    exclude=st.sampled_from([(), ("*5",), ("./many/07", "./c"), ("d1x",), ("*tag",)]),
    more=st.sampled_from(
        [{}, {"tags": ("NOBACKUP-TAG", "5-tag")}, {"caches": True}, {"larger_than": 1700}],
    ),
)
def test_it_is_what_tar_would_write(
    tmp_path_factory: pytest.TempPathFactory,
    rounds: list[list[Change]],
    kinds: list[list[tuple[str, int]]],
    seed: int,
    exclude: tuple[str, ...],
    more: dict[str, Any],
) -> None:
    top = tmp_path_factory.mktemp("ranges")
    for number in range(60):
        write(top / f"source/many/{number:02}", 1500, seed + number)
    os.link(top / "source/many/03", top / "source/zzz")
    source = Source(str(top / "source"), "", (), exclude, False, **more)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fingerprint, "_MEMBERS", 4)
        chain = Chain(top / "store", source)
        chain.update()
        for number, (changes, others) in enumerate(zip(rounds, kinds, strict=False)):
            for place, change in enumerate(changes):
                apply(top / "source", change, seed + 100 * number + place)
            for kind, which in others:
                alter(top / "source", kind, which)
            chain.update()
            assert b"".join(chain.contents()) == whole(source)
            assert chain.examined() == chain.parts
    shutil.rmtree(top)


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    for number in range(200):
        write(tmp_path / f"source/{number // 20:02}/{number:03}", 1000, number)
    monkeypatch.setattr(fingerprint, "_MEMBERS", 4)
    made = Chain(tmp_path / "store", Source(str(tmp_path / "source"), "", (), (), False))
    made.update()
    return made


def test_only_what_may_have_changed_is_read(chain: Chain, tmp_path: Path) -> None:
    write(tmp_path / "source/05/110", 1000, 999)
    chain.update()
    assert chain.read is not None and b"./05/110" in chain.read
    assert len(chain.read) < 25
    assert b"".join(chain.contents()) == whole(chain.source)


def test_two_places(chain: Chain, tmp_path: Path) -> None:
    write(tmp_path / "source/02/050", 1000, 999)
    (tmp_path / "source/08/170").unlink()
    chain.update()
    assert chain.read is not None and chain.read.count(b".") == 2 and len(chain.read) < 60
    assert b"".join(chain.contents()) == whole(chain.source)


def test_the_first_name_of_a_hard_link_is_read_too(chain: Chain, tmp_path: Path) -> None:
    os.link(tmp_path / "source/01/030", tmp_path / "source/08/1691")
    chain.update()
    write(tmp_path / "source/08/169", 1000, 5)
    chain.update()
    assert chain.read is not None and chain.read[0] == b"./01/030" and b"./01/031" not in chain.read
    assert b"".join(chain.contents()) == whole(chain.source)


@pytest.mark.parametrize("how", ["renamed before", "renamed after", "tagged", "moved away", "mounted over"])
def test_the_first_name_of_a_hard_link_goes_with_a_directory(chain: Chain, tmp_path: Path, how: str) -> None:
    """No inode of the other name tells."""
    source = tmp_path / "source"
    write(source / "00link/x", 2000, 1)
    write(source / "00link/alone", 2000, 1)
    (source / "08z").mkdir()
    os.link(source / "00link/x", source / "08z/x")
    chain.update()
    assert b"".join(chain.contents()) == whole(chain.source)
    if how == "tagged":
        (source / "00link/NOBACKUP-TAG").touch()
    elif how == "mounted over":
        if os.geteuid() != 0:
            pytest.skip("needs root to mount")
        subprocess.run(["mount", "-t", "tmpfs", "none", source / "00link"], check=True)
    else:
        new = {"renamed before": source / "00k", "renamed after": source / "09other"}
        (source / "00link").rename(new.get(how, tmp_path / "away"))
    try:
        chain.update()
        assert b"".join(chain.contents()) == whole(chain.source)
    finally:
        if how == "mounted over":
            subprocess.run(["umount", source / "00link"], check=True)


def test_a_directory_that_goes_with_its_part(chain: Chain, tmp_path: Path) -> None:
    for name in ("03", "04", "07"):
        shutil.rmtree(tmp_path / f"source/{name}")
    chain.update()
    assert b"".join(chain.contents()) == whole(chain.source)
    assert chain.examined() == chain.parts


def test_a_tag_that_is_excluded(chain: Chain, tmp_path: Path) -> None:
    """tar stores it if it finds it in its directory, and not if it gets its name."""
    chain.source = chain.source._replace(exclude=("*TAG",))
    write(tmp_path / "source/05/NOBACKUP-TAG", 1000, 1)
    chain.update()
    write(tmp_path / "source/05/NOBACKUP-TAG", 1000, 2)
    chain.update()
    assert chain.read is None
    assert b"".join(chain.contents()) == whole(chain.source)
