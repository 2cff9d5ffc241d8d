"""The quick check is never wrong: whatever changes is stored, and no file is read in vain."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .helpers.running import Btw, Result

# With this PATH tar cannot run, so a run that succeeds has read no file.
NO_TAR = {"PATH": "/nonexistent"}


class Setup(NamedTuple):
    """A source that nobody has touched for a while, backed up once."""

    src: Path
    dst: Path
    config: Path
    run: Callable[..., Result]

    def points(self) -> list[str]:
        return self.run("list", self.dst).out.split()


@pytest.fixture(params=["rdiff", "tar"])
def setup(
    request: pytest.FixtureRequest, settled_sources: Iterator[Path], btw: Btw, dst: Path, config_dir: Path
) -> Setup:
    src = next(settled_sources)
    assert btw("fs-init", "--type", request.param, src, "name").status == 0
    assert btw("fs", src, dst).status == 0
    [config] = config_dir.glob("name.*/config.py")
    unchanged = btw("fs", src, dst, env=NO_TAR)
    assert (unchanged.status, unchanged.err) == (0, ""), "the unchanged run has run tar"
    return Setup(src, dst, config, btw)


def names_below(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))


def same_size_and_mtime(src: Path) -> None:
    before = (src / "file").stat()
    (src / "file").write_text("CONTENT\n")
    os.utime(src / "file", ns=(before.st_atime_ns, before.st_mtime_ns))


def linked_elsewhere(src: Path) -> None:
    (src / "link").unlink()
    (src / "link").symlink_to("sub")


def replaced_with_same_mtime(src: Path) -> None:
    (src / "new").write_text("CONTENT\n")
    shutil.copystat(src / "file", src / "new")
    (src / "new").rename(src / "file")


CHANGES: dict[str, Callable[[Path], object]] = {
    "size and mtime kept": same_size_and_mtime,
    "replaced by a file of the same mtime": replaced_with_same_mtime,
    "renamed": lambda src: (src / "file").rename(src / "renamed"),
    "removed": lambda src: (src / "sub" / "other").unlink(),
    "mode": lambda src: (src / "file").chmod(0o600),
    "mode of a directory": lambda src: (src / "sub").chmod(0o700),
    "mode of the source itself": lambda src: src.chmod(0o711),
    "owner": lambda src: os.chown(src / "file", 1234, 1234),
    "an ACL": lambda src: subprocess.run(["setfacl", "-m", "u:1234:r", src / "file"], check=True),
    "an extended attribute": lambda src: os.setxattr(src / "file", "user.name", b"value"),
    "a hard link": lambda src: os.link(src / "file", src / "sub" / "hard"),
    "a link's target": linked_elsewhere,
    "a tag file": lambda src: (src / "sub" / "NOBACKUP-TAG").touch(),
    "an empty directory": lambda src: (src / "sub" / "empty").mkdir(),
    "mtime": lambda src: os.utime(src / "file", (1, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_stored(setup: Setup, change: str) -> None:
    CHANGES[change](setup.src)
    assert setup.run("fs", setup.src, setup.dst).status == 0
    assert len(setup.points()) == 2


def test_what_changed_back_is_no_change_and_leaves_nothing(setup: Setup) -> None:
    (setup.src / "large").write_bytes(
        os.urandom(100_000)
    )  # large enough that its backup is hard-linked, not copied
    time.sleep(2.1)
    assert setup.run("fs", setup.src, setup.dst).status == 0
    before = setup.points(), names_below(setup.dst)
    (setup.src / "file").chmod(0o600)
    (setup.src / "file").chmod(0o644)
    time.sleep(2.1)
    for env in ({}, NO_TAR):  # the second run knows what the first has found
        ended = setup.run("fs", setup.src, setup.dst, env=env)
        assert (ended.status, ended.out, ended.err) == (0, "", "")
        assert (setup.points(), names_below(setup.dst)) == before
        assert "no change" in (setup.dst / "log.txt").read_text().splitlines()[-1]
    assert list((setup.config.parent / "backup").iterdir()) == []


def test_an_option_is_changed(setup: Setup) -> None:
    setup.config.write_text(setup.config.read_text() + 'EXCLUDE = ["./sub"]\n')
    assert setup.run("fs", setup.src, setup.dst).status == 0
    assert len(setup.points()) == 2


def test_compression_alone_is_no_change(setup: Setup) -> None:
    setup.config.write_text(setup.config.read_text() + 'COMPRESSION = "gzip"\n')
    assert setup.run("fs", setup.src, setup.dst, env=NO_TAR).status == 0
    assert len(setup.points()) == 1


def test_another_destination(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    assert setup.run("fs", setup.src, tmp_path / "second").status == 0
    assert len(setup.run("list", tmp_path / "second").out.split()) == 1


def test_the_newest_backup_is_removed(setup: Setup) -> None:
    [entry] = setup.dst.glob("2*")
    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert setup.run("fs", setup.src, setup.dst).status == 0
    assert len(setup.points()) == 1


def test_the_newest_backup_is_replaced(setup: Setup) -> None:
    """The replacement has the name, size and mtime of the original, but other content."""
    [entry] = setup.dst.glob("2*")
    stored = entry / "backup.tar" if entry.is_dir() else entry
    before = stored.stat()
    stored.write_bytes(b"\1" * before.st_size)
    os.utime(stored, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert setup.run("fs", setup.src, setup.dst).status == 0
    assert len(setup.points()) == 2


@pytest.mark.parametrize("text", ["", "torn", "a b c d\n"])
def test_a_record_that_says_nothing_is_no_help_and_no_harm(setup: Setup, text: str) -> None:
    record = setup.dst / ".btw-backup" / "newest"
    whole = record.read_text()
    record.write_text(text or whole[:-3])
    (setup.src / "file").write_text("CONTENT\n")
    assert setup.run("fs", setup.src, setup.dst).status == 0
    assert len(setup.points()) == 2


def test_without_quick_check_everything_is_read(setup: Setup) -> None:
    setup.config.write_text(setup.config.read_text() + "QUICK_CHECK = False\n")
    refused = setup.run("fs", setup.src, setup.dst, env=NO_TAR)
    assert (refused.status, refused.err) == (1, "btw_backup: tar not found: install the package tar\n")
    assert setup.run("fs", setup.src, setup.dst).status == 0
    assert len(setup.points()) == 1


def test_a_change_in_what_is_left_out_costs_nothing(setup: Setup) -> None:
    setup.config.write_text(setup.config.read_text() + 'EXCLUDE = ["./cache/deep", "./nothing"]\n')
    (setup.src / "cache" / "deep").mkdir()
    time.sleep(2.1)
    assert setup.run("fs", setup.src, setup.dst).status == 0
    (setup.src / "cache" / "deep" / "file").touch()
    assert setup.run("fs", setup.src, setup.dst, env=NO_TAR).status == 0


def test_a_source_that_was_just_changed_is_not_recorded(btw: Btw, src: Path, dst: Path) -> None:
    """The file could change again within the clock tick in which it was walked."""
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    (src / "file").write_text("again\n")
    assert btw("fs", src, dst).status == 0
    record = (dst / ".btw-backup" / "newest").read_text()
    assert [line for line in record.splitlines() if line.startswith("- ")]
    assert btw("fs", src, dst, env=NO_TAR).status == 1


@pytest.mark.parametrize("setup", ["rdiff"], indirect=True)
def test_a_new_version_of_tar_begins_a_new_chain(setup: Setup, tmp_path: Path) -> None:
    """With it, every header may differ: as many increments as there are files."""
    other = tmp_path / "bin" / "tar"
    other.parent.mkdir()
    other.write_text(
        '#!/bin/sh\n[ "$1" != --version ] || exec echo "tar (GNU tar) 9.9"\n'
        f'exec {shutil.which("tar")} "$@"\n'
    )
    other.chmod(0o755)
    upgraded = {"PATH": f"{other.parent}:{os.environ['PATH']}"}
    assert setup.run("fs", setup.src, setup.dst, env=upgraded).status == 0
    assert len(setup.points()) == 1
    for number in (1, 2):
        (setup.src / "file").write_text(f"changed {number}\n" * number)
        assert setup.run("fs", setup.src, setup.dst, env=upgraded).status == 0
        assert len(list(setup.dst.glob("2*"))) == 2
    assert len(setup.points()) == 3
    said = [line for line in (setup.dst / "log.txt").read_text().splitlines() if "tar is now" in line]
    assert len(said) == 1
    assert said[0].endswith("made by " + own_version() + ": started a new chain") and "9.9" in said[0]


def own_version() -> str:
    return subprocess.check_output(["tar", "--version"], text=True).split()[3]
