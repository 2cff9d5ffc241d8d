"""Chains that keep their archive in parts: what is stored, shared, restored, checked, and refused.

The parts are small here, so that a small source has many.
"""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .helpers.destinations import at_rest, mounted, tree
from .helpers.running import Btw, Result, replacing
from .helpers.small_parts import REPLACED, SMALL, SMALL_FULL

DONE = Result(0, "", "")
FILES = 150


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """A source of many files, a large one, and a hard link far from its first name."""
    top = tmp_path / "src"
    for number in range(FILES):
        fill(top / "many" / f"{number:03}", 1000)
    fill(top / "large", 50_000)
    os.link(top / "many" / "005", top / "zzz")
    return top


@pytest.fixture
def small(config_dir: Path) -> Btw:
    """Runs the program with small parts."""
    return replacing(config_dir, REPLACED)


@pytest.fixture
def configure(config_dir: Path, src: Path) -> Callable[..., None]:
    """Makes or changes the working directory."""

    def run(**options: object) -> None:
        work = config_dir / "src.0123"
        (work / "backup").mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (work / "src").is_symlink():
            (work / "src").symlink_to(src)
        lines = [f"{name} = {value!r}\n" for name, value in {"TYPE": "rdiff", **options}.items()]
        (work / "config.py").write_text("".join(lines))

    run()
    return run


def fill(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.randbytes(size))


def parts(chain: Path) -> dict[str, os.stat_result]:
    return {path.name: path.stat() for path in sorted(chain.glob("backup.tar*"))}


def chains(dst: Path) -> list[Path]:
    return sorted(path for path in dst.iterdir() if (path / "rdiff-backup-data").is_dir())


def points(btw: Btw, dst: Path) -> list[str]:
    return [line.strip() for line in btw("list", dst).out.splitlines()]


def by_hand(chain: Path, at: str, to: Path) -> dict[str, bytes]:
    """What a point holds, by rdiff-backup, cat and tar alone, from a copy of the chain."""
    to.mkdir()
    subprocess.run(["cp", "-a", chain, to / "chain"], check=True)
    argv: list[str | Path] = ["rdiff-backup", "-v0", "restore", "--at", f"{at}Z", to / "chain", to / "out"]
    subprocess.run(argv, check=True, cwd=to)
    (to / "tree").mkdir()
    subprocess.run(["sh", "-c", "cat out/backup.tar* | tar -C tree -xp"], check=True, cwd=to)
    return tree(to / "tree")


def change(src: Path, number: int) -> None:
    """Parts grow, go, come, change places."""
    many = src / "many"
    fill(many / f"{number:03}", 1300)
    fill(many / f"{number + 20:03}x", 20_000)
    for gone in range(number + 40, number + 55):
        (many / f"{gone:03}").unlink(missing_ok=True)
    with open(src / "large", "r+b") as file:
        file.seek(9000 * number)
        file.write(random.randbytes(5000))
    (many / f"{number + 80:03}").rename(src / f"{number}moved")


@pytest.fixture
def history(small: Btw, configure: Callable[..., None], src: Path, dst: Path) -> dict[str, dict[str, bytes]]:
    """Five points in two chains, and what the source held at each."""
    configure(MAX_INCREMENTAL_COUNT=2)
    held = {}
    for number in range(5):
        if number:
            change(src, number)
        assert small("fs", src, dst) == DONE
        held[points(small, dst)[-1]] = tree(src)
        assert at_rest(dst)
    assert [len(chain.name) for chain in chains(dst)] == [19, 19] and len(held) == 5
    return held


def test_every_point_is_restored(
    small: Btw, history: dict[str, dict[str, bytes]], dst: Path, tmp_path: Path
) -> None:
    for number, (at, held) in enumerate(history.items()):
        assert small("fs-restore", "--at", at, dst, tmp_path / f"{number}") == DONE
        assert tree(tmp_path / f"{number}") == held
        chain = chains(dst)[number // 3]
        assert by_hand(chain, at, tmp_path / f"by hand {number}") == held
    for chain in chains(dst):
        assert len(parts(chain)) > 10
        verified = subprocess.run(["rdiff-backup", "verify", chain], capture_output=True, text=True)
        assert verified.returncode == 0, verified.stderr
    assert small("verify", dst) == DONE


def test_an_incremental_replaces_only_what_differs(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path
) -> None:
    assert small("fs", src, dst) == DONE
    [chain] = chains(dst)
    before = parts(chain)
    fill(src / "many" / "070", 1000)
    assert small("fs", src, dst) == DONE
    after = parts(chain)
    replaced = [name for name in before if after[name].st_ino != before[name].st_ino]
    assert before.keys() == after.keys() and len(replaced) == 1
    increments = os.listdir(chain / "rdiff-backup-data" / "increments")
    assert [name.partition(".2")[0] for name in increments] == replaced


def test_a_full_backup_shares_what_is_the_same(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path
) -> None:
    configure(MAX_INCREMENTAL_COUNT=0)
    assert small("fs", src, dst) == DONE
    fill(src / "many" / "070", 1000)
    assert small("fs", src, dst) == DONE
    old, new = map(parts, chains(dst))
    anew = [name for name in old if old[name].st_ino != new[name].st_ino]
    # A full backup joins small parts if it can: the first one, of the source's own directory, stays small.
    small_ones = [name for name in anew if old[name].st_size < SMALL_FULL.small]
    assert old.keys() == new.keys() and small_ones == ["backup.tar"] and len(anew) == 2
    sizes = [point["stored"] for point in json.loads(small("list", "--json", dst).out)]
    assert sizes[1] < sizes[0] / 5
    # Removing the older one leaves the newer, and what is known of it, whole.
    assert small("prune", "--keep-last", "1", dst) == DONE
    assert small("verify", dst) == DONE
    assert len(chains(dst)) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("count", [0, 10])
def test_another_owner_shares_nothing(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path, count: int
) -> None:
    """The older chain stays its owner's, even if the run is killed."""
    configure(MAX_INCREMENTAL_COUNT=count)
    for uid in (12345, 23456, 23456, 0):
        fill(src / "many" / "070", uid)
        assert small("fs", *(("-u", str(uid)) if uid else ()), src, dst) == DONE
        owners = [{path.lstat().st_uid for path in [chain, *chain.rglob("*")]} for chain in chains(dst)]
        assert owners == ([{12345}, {23456}, {23456}, {0}] if count == 0 else [{uid}])[: len(owners)]
    assert small("verify", dst) == DONE


def test_nothing_is_shared_if_that_is_not_wanted(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path, tmp_path: Path
) -> None:
    configure(MAX_INCREMENTAL_COUNT=0, SHARE_PARTS=False)
    assert small("fs", src, dst) == DONE
    fill(src / "many" / "070", 1000)
    assert small("fs", src, dst) == DONE
    assert all(found.st_nlink == 1 for chain in chains(dst) for found in parts(chain).values())
    assert small("fs-restore", dst, tmp_path / "target") == DONE
    assert tree(tmp_path / "target") == tree(src)


def test_a_share_that_is_damaged_is_not_shared(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path, tmp_path: Path
) -> None:
    """All of the source is compared with what is shared, though sizes and times are the same."""
    configure(MAX_INCREMENTAL_COUNT=0)
    assert small("fs", src, dst) == DONE
    [chain] = chains(dst)
    damaged = chain / [*parts(chain)][5]
    flip(damaged)
    fill(src / "many" / "120", 1000)
    assert small("fs", src, dst) == DONE
    assert small("fs-restore", dst, tmp_path / "target") == DONE
    assert tree(tmp_path / "target") == tree(src)
    assert small("verify", "--latest", dst) == DONE
    assert small("verify", dst).status == 1


def flip(path: Path) -> None:
    """Flip one bit, and leave times and size as they are."""
    found = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("how", ["removed", "zeros", "of another version"])
def test_the_record_is_not_needed(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path, how: str
) -> None:
    assert small("fs", src, dst) == DONE
    [chain] = chains(dst)
    before = parts(chain)
    record = dst / ".btw-backup" / "newest"
    if how == "removed":
        record.unlink()
    else:
        record.write_bytes(bytes(100) if how == "zeros" else b"- - - something else\n")
    fill(src / "many" / "070", 1000)
    assert small("fs", src, dst) == DONE
    after = parts(chain)
    assert sum(after[name].st_ino != before[name].st_ino for name in before) == 1


def test_some_paths_need_only_their_parts(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path, tmp_path: Path
) -> None:
    assert small("fs", src, dst) == DONE
    [chain] = chains(dst)
    held = {
        name: [number for number in ("005", "070", "120") if b"/" + number.encode() in data]
        for name, data in ((path.name, path.read_bytes()) for path in chain.glob("backup.tar*"))
    }
    for name, numbers in held.items():
        if not numbers:
            flip(chain / name)
    assert small("fs-restore", dst, tmp_path / "one", "many/070", "many/120") == DONE
    assert tree(tmp_path / "one") == {
        f"many/{number}": (src / "many" / number).read_bytes() for number in ("070", "120")
    }
    flip(chain / next(name for name, numbers in held.items() if "070" in numbers))
    result = small("fs-restore", dst, tmp_path / "two", "many/070")
    assert result.status == 1 and "is damaged" in result.err and "is incomplete" in result.err


def test_a_hard_link_into_another_part(
    small: Btw, history: dict[str, dict[str, bytes]], dst: Path, tmp_path: Path
) -> None:
    for number, (at, held) in enumerate(history.items()):
        assert small("fs-restore", "--at", at, dst, tmp_path / f"{number}", "zzz") == DONE
        assert tree(tmp_path / f"{number}") == {"zzz": held["zzz"]}


def test_a_flipped_bit_is_found_in_every_point_that_needs_it(
    small: Btw, history: dict[str, dict[str, bytes]], dst: Path, tmp_path: Path
) -> None:
    """Whether verify reads a part once or not, points that other chains share with are named."""
    subprocess.run(["cp", "-a", dst, tmp_path / "copy"], check=True)
    whole = small("verify", tmp_path / "copy")
    assert whole == DONE
    stored = sorted(dst.glob("2*/backup.tar*")) + sorted(dst.glob("2*/*/increments/*.gz"))
    for path in random.sample(stored, 5):
        data = path.read_bytes()
        flip(path)
        wrong = []
        for number, (at, held) in enumerate(history.items()):
            target = tmp_path / f"target{number}"
            if small("fs-restore", "--at", at, dst, target).status == 0:
                assert tree(target) == held
            else:
                wrong.append(at)
            shutil.rmtree(target)
        result = small("verify", dst)
        assert wrong and result.status == 1, path
        named = {line.split(": ")[1] for line in result.err.splitlines()}
        assert named == {f"{at}Z" for at in wrong}, path
        assert "Traceback" not in result.err
        with open(path, "r+b") as file:  # the inode that chains share stays the same
            file.write(data)


def test_a_file_stays_the_archive_of_an_older_version(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path, tmp_path: Path
) -> None:
    """It is still read, and the next backup begins a chain in parts."""
    stage = tmp_path / "stage"
    stage.mkdir()
    argv: list[str | Path] = [
        "tar",
        "-C",
        src,
        "-c",
        "--format=posix",
        "--sort=name",
        "-f",
        stage / "backup.tar",
        ".",
    ]
    subprocess.run(argv, check=True)
    chain = dst / "2025-01-01T00:00:00"
    subprocess.run(
        ["rdiff-backup", "-v0", "--current-time", "1735689600", "backup", stage, chain], check=True
    )
    fill(src / "many" / "070", 1000)
    assert small("fs", src, dst) == DONE
    assert "the archive is now kept in parts: started a new chain" in (dst / "log.txt").read_text()
    old, new = chains(dst)
    assert [*parts(old)] == ["backup.tar"] and len(parts(new)) > 10
    assert small("verify", dst) == DONE
    assert small("fs-restore", "--at", "2025-01-01", dst, tmp_path / "target", "many/003") == DONE
    assert tree(tmp_path / "target") == {"many/003": (src / "many" / "003").read_bytes()}


def test_when_no_label_is_left_a_new_chain_begins(
    config_dir: Path, configure: Callable[..., None], src: Path, dst: Path, tmp_path: Path
) -> None:
    few = replacing(config_dir, {**REPLACED, "destination.labels._MOST_GROUPS": "1"})
    assert few("fs", src, dst) == DONE
    fill(src / "many" / "0705", 60_000)
    for number in range(100):
        fill(src / "many" / f"0706{number:03}", 1000)
    assert few("fs", src, dst) == DONE
    assert "there are too many parts between two others" in (dst / "log.txt").read_text()
    assert len(chains(dst)) == 2
    assert few("fs-restore", dst, tmp_path / "target") == DONE
    assert tree(tmp_path / "target") == tree(src)
    assert few("verify", dst) == DONE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_little_room(
    small: Btw, configure: Callable[..., None], config_dir: Path, src: Path, dst: Path, tmp_path: Path
) -> None:
    """The stage needs room for what differs, the destination for that and its increments."""
    fill(src / "large", 4_000_000)
    fill(src / "many" / "999", 4_000_000)
    small_parts = small
    with mounted("-t", "tmpfs", "-o", "size=12m", "none", dst):
        assert small_parts("fs", src, dst) == DONE
        stage = config_dir / "src.0123" / "backup"
        with mounted("-t", "tmpfs", "-o", "size=512k", "none", stage):
            stage.chmod(0o700)
            with open(src / "large", "r+b") as file:
                file.seek(2_000_000)
                file.write(random.randbytes(100_000))
            assert small_parts("fs", src, dst) == DONE
        assert small_parts("fs-restore", dst, tmp_path / "target") == DONE
        assert tree(tmp_path / "target") == tree(src)
        assert len(points(small_parts, dst)) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_one_file_stands_for_parts_of_the_same_size_and_time(
    small: Btw, configure: Callable[..., None], config_dir: Path, src: Path, dst: Path, tmp_path: Path
) -> None:
    """The stage has fewer inodes than there are parts that stay."""
    shutil.rmtree(src)
    fill(src / "large", 1_000_000)
    assert small("fs", src, dst) == DONE
    stage, image = config_dir / "src.0123" / "backup", tmp_path / "image"
    image.write_bytes(bytes(4 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "32", image], check=True)
    with mounted("-o", "loop", image, stage):
        stage.chmod(0o700)
        assert os.statvfs(stage).f_ffree < len(parts(chains(dst)[0])) // 2
        (src / "other").write_text("new")
        assert small("fs", src, dst) == DONE
    assert small("verify", dst) == DONE
    assert by_hand(chains(dst)[0], points(small, dst)[1], tmp_path / "hand") == tree(src)


@pytest.mark.parametrize(
    "name", ["backup.tar.12", "backup.tar.0000", "backup.tar.00010000", "backup.tar.x", "x"]
)
def test_what_is_no_part_is_refused(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path, name: str
) -> None:
    assert small("fs", src, dst) == DONE
    [chain] = chains(dst)
    (chain / name).write_bytes(b"")
    before = parts(chain)
    fill(src / "many" / "070", 1000)
    result = small("fs", src, dst)
    assert result.status == 1 and "refused" in result.err and name in result.err
    assert parts(chain).keys() == before.keys()
    assert chains(dst) == [chain]


def test_a_part_too_many_is_no_part_of_the_archive(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path, tmp_path: Path
) -> None:
    """It is never restored, and goes with the next backup, or a new chain begins."""
    assert small("fs", src, dst) == DONE
    [chain] = chains(dst)
    shutil.copy(chain / "backup.tar.0003", chain / "backup.tar.00035000")
    assert small("fs-restore", dst, tmp_path / "one") == DONE
    assert tree(tmp_path / "one") == tree(src)
    fill(src / "many" / "070", 1000)
    assert small("fs", src, dst).status == 0
    assert small("fs-restore", dst, tmp_path / "two") == DONE
    assert tree(tmp_path / "two") == tree(src)
    assert small("verify", "--latest", dst) == DONE


@pytest.mark.parametrize("how", ["touched", "missing"])
def test_a_part_that_is_not_as_it_was_left(
    small: Btw, configure: Callable[..., None], src: Path, dst: Path, tmp_path: Path, how: str
) -> None:
    """rdiff-backup would take what stands in for a part for a change."""
    assert small("fs", src, dst) == DONE
    [chain] = chains(dst)
    part = chain / [*parts(chain)][5]
    if how == "touched":
        os.utime(part, (1_000_000_000, 1_000_000_000))
    else:
        part.unlink()
    fill(src / "many" / "070", 1000)
    assert small("fs", src, dst).status == 0
    assert small("fs-restore", dst, tmp_path / "target") == DONE
    assert tree(tmp_path / "target") == tree(src)
    assert small("verify", "--latest", dst) == DONE


@pytest.mark.usefixtures("configure")
def test_data_that_was_cut_less_often_is_found_and_restored(
    btw: Btw, small: Btw, config_dir: Path, src: Path, dst: Path, tmp_path: Path
) -> None:
    seldom = {
        "archive.parts.INCREMENTAL": f"module.{SMALL._replace(cut=4 * SMALL.cut)!r}",
        "archive.parts.FULL": f"module.{SMALL_FULL._replace(cut=4 * SMALL_FULL.cut)!r}",
    }
    fill(src / "large", 5 * SMALL.cut * 4)
    assert replacing(config_dir, seldom)("fs", src, dst) == DONE
    (chain,) = chains(dst)
    assert [found.st_size for found in parts(chain).values()].count(4 * SMALL.cut) >= 4
    (at,) = points(btw, dst)
    assert len(small("ls", dst).out.splitlines()) == len(small("ls", dst, "many").out.splitlines()) + 3
    for path in ("large", "many/077", "zzz"):
        assert small("fs-restore", dst, tmp_path / path.replace("/", "-"), path) == DONE
        assert (tmp_path / path.replace("/", "-") / path).read_bytes() == (src / path).read_bytes()
    assert "many/077" in small("find", dst, "077").out
    fill(src / "many" / "077", 1000)
    assert small("fs", src, dst) == DONE
    assert small("diff", dst, at).out.split()[-1].endswith("many/077")
    with (src / "large").open("r+b") as file:
        file.seek(10 * SMALL.cut)
        file.write(b"changed")
    assert small("fs", src, dst) == DONE
    assert small("fs-restore", dst, tmp_path / "restored") == DONE
    assert tree(tmp_path / "restored") == tree(src)
