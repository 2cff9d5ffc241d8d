"""An incremental reads only what inodes say has changed, as a user meets it."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from .helpers import trees
from .helpers.destinations import joined, mounted, tree
from .helpers.running import Btw, Gate, Result, break_bubblewrap, command, replacing
from .helpers.small_parts import REPLACED

DONE = Result(0, "", "")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads parts of a source")


class Setup(NamedTuple):
    """A source with a chain, and what tar was last told to read: nothing if that was everything."""

    btw: Btw
    src: Path
    dst: Path
    config: Path
    names: Path
    env: dict[str, str]

    def back_up(self) -> None:
        self.names.unlink(missing_ok=True)
        assert self.btw("fs", self.src, self.dst, env=self.env) == DONE

    def read(self) -> list[str]:
        if not self.names.exists():
            return []
        return os.fsdecode(self.names.read_bytes()).split("\0")[:-1]

    def restored(self, to: Path) -> dict[str, bytes]:
        assert self.btw("fs-restore", self.dst, to) == DONE
        return tree(to)

    def archive(self, to: Path) -> bytes:
        [chain] = self.dst.glob("2*")
        return joined(chain, to).read_bytes()


@pytest.fixture
def setup(config_dir: Path, tmp_path: Path, dst: Path) -> Iterator[Setup]:
    src = tmp_path / "src"
    for number in range(200):
        path = src / f"{number // 20:02}" / f"{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.randbytes(1000))
    btw = replacing(config_dir, {**REPLACED, "source.fingerprint._MEMBERS": "4"})
    assert btw("fs-init", "--type", "rdiff", src, "it").status == 0
    [config] = config_dir.glob("*/config.py")
    wrapped = tmp_path / "bin"
    wrapped.mkdir()
    break_bubblewrap(wrapped)
    (wrapped / "tar").write_text(
        f'#!/bin/sh\ncalls="{tmp_path}/calls"\n'
        'case "$*" in *--create*from=-) echo some;; *--create*) echo all;; esac >>"$calls"\n'
        f'case "$*" in *files-from=-) cat >"{tmp_path}/names"; exec {shutil.which("tar")} "$@" '
        f'<"{tmp_path}/names";; esac\nexec {shutil.which("tar")} "$@"\n'
    )
    (wrapped / "tar").chmod(0o755)
    made = Setup(btw, src, dst, config, tmp_path / "names", {"PATH": f"{wrapped}:{os.environ['PATH']}"})
    time.sleep(2.1)  # younger timestamps are never trusted
    made.back_up()
    assert made.read() == []
    yield made


def whole(source: Path) -> bytes:
    """What tar writes of the source now, up to the end of the archive."""
    argv = ["tar", "--create", "--file=-", "--format=posix", "--blocking-factor=1", "--sort=name"]
    argv += ["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"]
    argv += ["--acls", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"]
    argv += ["--exclude-tag=NOBACKUP-TAG", "."]
    return subprocess.run(argv, cwd=source, stdout=subprocess.PIPE, check=True).stdout


def test_only_the_parts_around_a_change_are_read(setup: Setup, tmp_path: Path) -> None:
    (setup.src / "05" / "110").write_bytes(b"changed")
    time.sleep(2.1)
    setup.back_up()
    assert "./05/110" in setup.read() and len(setup.read()) < 25
    assert setup.archive(tmp_path / "archive") == whole(setup.src)
    assert setup.restored(tmp_path / "target") == tree(setup.src)
    assert setup.btw("verify", setup.dst) == DONE


def test_what_is_young_is_read_again_and_nothing_else(setup: Setup, tmp_path: Path) -> None:
    (setup.src / "05" / "110").write_bytes(b"changed")
    setup.back_up()
    setup.back_up()
    assert "./05/110" in setup.read() and len(setup.read()) < 25
    time.sleep(2.1)
    setup.back_up()
    setup.back_up()
    assert setup.read() == []
    assert setup.archive(tmp_path / "archive") == whole(setup.src)


@pytest.mark.parametrize("why", ["full", "options", "record", "without quick check", "half of it"])
def test_everything_is_read_if_need_be(setup: Setup, tmp_path: Path, why: str) -> None:
    more = {
        "full": "MAX_INCREMENTAL_COUNT = 0\n",
        "options": "EXCLUDE = ['*.none']\n",
        "without quick check": "QUICK_CHECK = False\n",
    }
    with setup.config.open("a") as file:
        file.write(more.get(why, ""))
    if why == "record":
        (setup.dst / ".btw-backup" / "newest").unlink()
    for number in range(0, 200, 200 if why != "half of it" else 10):
        (setup.src / f"{number // 20:02}" / f"{number:03}").write_bytes(b"changed")
    time.sleep(2.1)
    setup.back_up()
    assert setup.read() == []
    assert setup.restored(tmp_path / "target") == tree(setup.src)


def test_a_full_backup_finds_what_no_inode_shows(setup: Setup, tmp_path: Path) -> None:
    """Rot in a part is not seen by an incremental that does not read it, but by the next full backup."""
    [chain] = setup.dst.glob("2*")
    for number, option in enumerate(("", "MAX_INCREMENTAL_COUNT = 0\n")):
        with setup.config.open("a") as file:
            file.write(option)
        (setup.src / "05" / "110").write_bytes(b"changed %d" % number)
        setup.back_up()
        if number == 0:
            part = chain / "backup.tar.0003"
            with part.open("r+b") as file_of_part:
                file_of_part.seek(2000)
                file_of_part.write(b"rot")
    assert setup.restored(tmp_path / "target") == tree(setup.src)


def test_a_member_vanishes_before_tar_reads_it(setup: Setup, tmp_path: Path) -> None:
    victim = setup.src / "05" / "111"
    (setup.src / "05" / "110").write_bytes(b"changed")
    with between_walk_and_reading(setup, tmp_path):
        victim.unlink()
        (setup.src / "05" / "new").write_bytes(b"new")
    setup.back_up()
    assert setup.restored(tmp_path / "target") == tree(setup.src)
    assert setup.archive(tmp_path / "archive") == whole(setup.src)


@contextmanager
def between_walk_and_reading(setup: Setup, tmp_path: Path) -> Iterator[None]:
    """Run a backup, whose walk over the inodes has ended while tar has not begun."""
    gate = Gate(tmp_path / "gate", "tar", only="--create")
    argv = [*replaced_command(setup), "fs", str(setup.src), str(setup.dst)]
    with subprocess.Popen(argv, env={**os.environ, **gate.env}, stderr=subprocess.PIPE) as running:
        gate.reached()
        yield
        gate.open()
        assert running.wait(60) == 0
        assert running.stderr is not None and running.stderr.read() == b""


def replaced_command(setup: Setup) -> list[str]:
    config = str(setup.config.parent.parent)
    return [*command({**REPLACED, "source.fingerprint._MEMBERS": "4"}), "--config-dir", config]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_directory_is_replaced_before_tar_reads_what_is_in_it(
    setup: Setup, tmp_path: Path, kind: str
) -> None:
    """By a link, root would be led to other files."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "110").write_bytes(b"of root")
    (setup.src / "05" / "110").write_bytes(b"changed")
    with between_walk_and_reading(setup, tmp_path):
        shutil.rmtree(setup.src / "05")
        if kind == "link":
            (setup.src / "05").symlink_to(secret)
        else:
            (setup.src / "05").write_bytes(b"a file now")
    assert b"of root" not in setup.archive(tmp_path / "archive")
    setup.back_up()
    assert setup.archive(tmp_path / "next archive") == whole(setup.src)


def test_a_new_chain_is_compared_with_all_of_the_source(setup: Setup, tmp_path: Path) -> None:
    """rdiff-backup can't add to the chain, after only some of the source was read."""
    keeper = tmp_path / "bin" / "rdiff-backup"
    keeper.write_text(
        "#!/bin/sh\nfor chain; do :; done\n"
        '[ ! -d "$chain/rdiff-backup-data" ] || { cat >/dev/null; exit 1; }\n'
        f'exec {shutil.which("rdiff-backup")} "$@"\n'
    )
    keeper.chmod(0o755)
    (setup.src / "05" / "110").write_bytes(b"changed")
    result = setup.btw("fs", setup.src, setup.dst, env=setup.env)
    assert result.status == 0 and "cannot add to the chain" in result.err
    assert "./05/110" in setup.read()
    calls = (tmp_path / "calls").read_text().split()
    assert calls[-2:] == ["some", "all"]
    assert len([*setup.dst.glob("2*")]) == 2
    assert setup.restored(tmp_path / "target") == tree(setup.src)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("stays", [True, False])
def test_another_file_system_below_the_source(setup: Setup, tmp_path: Path, stays: bool) -> None:
    """Dirty pages there are not written: only what is a minute old counts as unchanged later."""
    with setup.config.open("a") as file:
        file.write(f"ONE_FILE_SYSTEM = {stays}\n")
    with mounted("-t", "tmpfs", "none", setup.src / "03"):
        (setup.src / "03" / "there").write_bytes(b"there")
        time.sleep(2.1)
        setup.back_up()
        (setup.src / "02" / "059").write_bytes(b"changed")
        (setup.src / "04" / "080").write_bytes(b"changed")
        time.sleep(2.1)
        setup.back_up()
        assert "./02/059" in setup.read() and "./03" in setup.read()
        expected = tree(setup.src)
        if stays:
            expected = {name: data for name, data in expected.items() if not name.startswith("03/")}
        assert setup.restored(tmp_path / "target") == expected


def test_everything_odd(setup: Setup, tmp_path: Path) -> None:
    trees.build(setup.src / "odd")
    time.sleep(2.1)
    setup.back_up()
    for number, name in enumerate(("plain", trees.NEWLINE, trees.NOT_UTF8, "sparse", f"{trees.LONG}/file")):
        with open(setup.src / "odd" / name, "ab") as file:
            file.write(b"more")
        time.sleep(2.1)
        setup.back_up()
        assert setup.archive(tmp_path / f"archive {number}") == whole(setup.src), name
    trees.assert_same(setup.src, _target(setup, tmp_path))


def _target(setup: Setup, tmp_path: Path) -> Path:
    assert setup.btw("fs-restore", setup.dst, tmp_path / "target") == DONE
    return tmp_path / "target"
