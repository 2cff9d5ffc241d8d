"""Sources below directories of somebody else, who can lead their paths elsewhere."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .helpers import trees
from .helpers.running import Btw, Result

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

DONE = Result(0, "", "")
SOMEBODY = 65534


@pytest.fixture
def land() -> Iterator[Path]:
    """A directory that others can pass through."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def home(land: Path) -> Path:
    """A directory of somebody else's, with a source two levels down."""
    path = land / "home"
    (path / "area" / "data").mkdir(parents=True)
    (path / "area" / "data" / "file").write_text("mine\n")
    subprocess.run(["chown", "-R", f"{SOMEBODY}:{SOMEBODY}", path], check=True)
    return path


@pytest.fixture
def secret(land: Path) -> Path:
    """What nobody else can read: it has the names that the source has."""
    path = land / "secret"
    (path / "data").mkdir(parents=True)
    (path / "data" / "file").write_text("root:secret\n")
    (path / "data").chmod(0o700)
    return path


def as_somebody(*argv: str | Path) -> None:
    identity = [f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    subprocess.run(["setpriv", *identity, *argv], check=True)


def exchange(path: Path, target: Path) -> None:
    """What the owner can do: a link in place of what was there."""
    as_somebody("mv", "-T", path, f"{path}.mine")
    as_somebody("ln", "-s", target, path)


def init(btw: Btw, config_dir: Path, src: Path, type_: str = "tar", *, older: bool = False) -> Path:
    """Make a working directory, as an older version did where that is asked for."""
    assert btw("fs-init", "--type", type_, src, "name").status == 0
    [work] = config_dir.glob("name.*")
    if older:
        (work / "real").unlink()
    return work


def stored(dst: Path, tmp_path: Path) -> str:
    """The content of the file in the newest backup."""
    newest = max(dst.glob("2*"))
    target = tmp_path / "unpacked"
    shutil.rmtree(target, ignore_errors=True)
    return (trees.untar(newest if newest.is_file() else newest / "backup.tar", target) / "file").read_text()


def assert_refused(btw: Btw, src: Path, dst: Path, led: Path) -> None:
    before = sorted(dst.glob("2*"))
    result = btw("fs", "-u", str(SOMEBODY), src, dst)
    assert (result.status, result.out) == (1, "")
    assert str(src) in result.err and str(led) in result.err and len(result.err.splitlines()) == 1
    assert sorted(dst.glob("2*")) == before


@pytest.mark.parametrize("type_", ["tar", "rdiff"])
@pytest.mark.parametrize("older", [False, True], ids=["made", "made before"])
@pytest.mark.parametrize("place", ["area/data", "area"])
def test_a_link_in_the_place_of_a_source_is_refused(
    btw: Btw,
    config_dir: Path,
    dst: Path,
    home: Path,
    secret: Path,
    tmp_path: Path,
    place: str,
    older: bool,
    type_: str,
) -> None:
    src = home / "area" / "data"
    work = init(btw, config_dir, src, type_, older=older)
    assert btw("fs", "-u", str(SOMEBODY), src, dst) == DONE
    exchange(home / place, secret / "data" if place == "area/data" else secret)
    assert_refused(btw, src, dst, secret / "data")
    assert stored(dst, tmp_path) == "mine\n"
    (work / "real").unlink()  # as the message says
    assert btw("fs", src, dst) == DONE
    assert stored(dst, tmp_path) == "root:secret\n"


def test_a_file_is_no_exception(btw: Btw, config_dir: Path, dst: Path, home: Path, secret: Path) -> None:
    src = home / "area" / "data" / "file"
    init(btw, config_dir, src)
    assert btw("fs", src, dst) == DONE
    exchange(src, secret / "data" / "file")
    assert_refused(btw, src, dst, secret / "data" / "file")


def test_a_link_that_leads_where_it_led_is_none_to_refuse(
    btw: Btw, config_dir: Path, dst: Path, home: Path, secret: Path
) -> None:
    src = home / "link"
    as_somebody("ln", "-s", home / "area" / "data", src)
    init(btw, config_dir, src)
    assert btw("fs", src, dst) == DONE
    as_somebody("ln", "-sfn", "area/../area/data", src)
    assert btw("fs", src, dst) == DONE
    as_somebody("ln", "-sfn", secret / "data", src)
    assert_refused(btw, src, dst, secret / "data")


def test_a_link_of_root_may_move(btw: Btw, config_dir: Path, dst: Path, tmp_path: Path) -> None:
    """What a deployment does: /srv/current leads to another release."""
    current = tmp_path / "srv" / "current"
    for release in ("1", "2"):
        (tmp_path / "srv" / release).mkdir(parents=True)
        (tmp_path / "srv" / release / "file").write_text(f"{release}\n")
    current.symlink_to("1")
    init(btw, config_dir, current)
    for release in ("1", "2"):
        subprocess.run(["ln", "-sfn", release, current], check=True)
        assert btw("fs", current, dst) == DONE
        assert stored(dst, tmp_path) == f"{release}\n"


def test_a_link_of_root_in_a_directory_of_others_may_not_move(
    btw: Btw, config_dir: Path, dst: Path, home: Path, secret: Path, tmp_path: Path
) -> None:
    """The directory belongs to root, but the one above it does not."""
    (home / "roots").mkdir()
    (home / "roots" / "link").symlink_to(home / "area" / "data")
    src = home / "roots" / "link"
    init(btw, config_dir, src)
    assert btw("fs", src, dst) == DONE
    as_somebody("mv", home / "roots", home / "aside")
    as_somebody("mkdir", home / "roots")
    as_somebody("ln", "-s", secret / "data", src)
    assert_refused(btw, src, dst, secret / "data")


@pytest.mark.parametrize(("owner", "refused"), [(SOMEBODY, True), (0, False)])
def test_a_sticky_directory(
    btw: Btw, config_dir: Path, dst: Path, home: Path, secret: Path, tmp_path: Path, owner: int, refused: bool
) -> None:
    """In /tmp anybody may make a link, but nobody can replace what is root's."""
    common = tmp_path / "common"
    common.mkdir()
    common.chmod(0o1777)
    src = common / "link"
    src.symlink_to(home / "area" / "data")
    init(btw, config_dir, src)
    src.unlink()
    src.symlink_to(secret / "data")
    os.chown(src, owner, owner, follow_symlinks=False)
    if refused:
        assert_refused(btw, src, dst, secret / "data")
    else:
        assert btw("fs", src, dst) == DONE


@pytest.mark.parametrize("quick_check", [True, False])
def test_a_link_that_comes_after_the_look_is_refused(
    btw: Btw, config_dir: Path, dst: Path, home: Path, secret: Path, quick_check: bool
) -> None:
    """BEFORE runs between the look at the source and its reading."""
    src = home / "area" / "data"
    work = init(btw, config_dir, src)
    with (work / "config.py").open("a") as file:
        file.write(f"\nQUICK_CHECK = {quick_check}\n")
        file.write(f"BEFORE = ['sh', '-c', 'mv {src} {src}.mine; ln -s {secret}/data {src}']\n")
    result = btw("fs", src, dst)
    assert result.status == 1 and "replaced by a symbolic link" in result.err
    assert not list(dst.glob("2*"))


def test_what_is_mounted_before_is_read(
    btw: Btw, config_dir: Path, dst: Path, home: Path, secret: Path, tmp_path: Path
) -> None:
    """A snapshot, for one."""
    src = home / "area" / "data"
    work = init(btw, config_dir, src)
    with (work / "config.py").open("a") as file:
        file.write(f"\nBEFORE = ['mount', '--bind', {str(secret / 'data')!r}, {str(src)!r}]\n")
        file.write(f"AFTER = ['umount', {str(src)!r}]\n")
    assert btw("fs", src, dst) == DONE
    assert stored(dst, tmp_path) == "root:secret\n"
