"""``btw-backup fs``: what it stores comes back, and it stores only what changed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .helpers import trees
from .helpers.running import Btw, Result, break_bubblewrap, give_up_root_s_override

ENDINGS = {"bzip2": ".tbz", "zstd": ".tar.zst", "gzip": ".tar.gz", "xz": ".tar.xz", "none": ".tar"}
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
UNCHANGED = "no change in the data to be backed up"
DONE = Result(0, "", "")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Configure = Callable[..., Path]


def configure_in(config_dir: Path, src: Path, type_: str = "tar", **options: Any) -> Path:
    """Make or rewrite the working directory for ``src``. Returns its path."""
    work = config_dir / "test.0123"
    (work / "backup").mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (work / "src").is_symlink():
        (work / "src").symlink_to(src)
    lines = [f"{name} = {value!r}\n" for name, value in {"TYPE": type_, **options}.items()]
    (work / "config.py").write_text("".join(lines))
    return work


@pytest.fixture
def configure(config_dir: Path, src: Path) -> Configure:
    """Set the options for ``src``."""

    def run(type_: str = "tar", **options: Any) -> Path:
        return configure_in(config_dir, src, type_, **options)

    return run


@pytest.fixture(autouse=True)
def tidy(config_dir: Path, dst: Path) -> Iterator[None]:
    """Check after each test that nothing is left in a working directory or a private directory."""
    yield
    assert list(config_dir.glob("*/backup/*")) == []
    if (dst / ".btw-backup").is_dir():
        assert [path.name for path in (dst / ".btw-backup").iterdir() if not path.is_file()] == []
        assert (dst / ".btw-backup" / "lock").stat().st_size < 100


def visible(dst: Path) -> list[str]:
    """Return the names in a destination, without those that begin with a dot."""
    return sorted(name for name in os.listdir(dst) if not name.startswith("."))


def backups(dst: Path) -> list[str]:
    """Return the names of the tarballs and chains."""
    return [name for name in visible(dst) if re.match(TIME, name) and not name.endswith(".sha256")]


def points(btw: Btw, dst: Path) -> list[str]:
    """Return the lines that ``list`` prints."""
    return btw("list", dst).out.splitlines()


def log(dst: Path) -> str:
    return (dst / "log.txt").read_text()


def own_path(tmp_path: Path, *programs: str) -> dict[str, str]:
    """Return an environment in which there are no other programs than these."""
    where = Path(tempfile.mkdtemp(dir=tmp_path))
    for program in programs:
        found = shutil.which(program)
        assert found is not None
        (where / program).symlink_to(found)
    return {"PATH": str(where)}


class TestRoundTrip:
    @pytest.fixture
    def src(self, tmp_path: Path) -> Path:
        trees.build(tmp_path / "hostile")
        return tmp_path / "hostile"

    @staticmethod
    def change(src: Path) -> None:
        (src / "plain").write_text("this is new\n")
        (src / "fifo").unlink()
        (src / "fifo").mkdir()
        (src / trees.NOT_UTF8).rename(src / trees.LONG / trees.NOT_UTF8)
        (src / "added").write_text("added\n")

    def test_chain(self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path) -> None:
        configure("rdiff")
        assert btw("fs", src, dst) == DONE
        chain = dst / backups(dst)[0]
        first = trees.untar(chain / "backup.tar", tmp_path / "first")
        trees.assert_same(src, first)
        assert (first / "sparse").stat().st_blocks * 512 < 4 << 20
        self.change(src)
        assert btw("fs", src, dst) == DONE
        full, second = points(btw, dst)
        trees.assert_same(src, trees.untar(chain / "backup.tar", tmp_path / "mirror"))
        trees.assert_same(src, trees.restore_point(chain, second.strip(), tmp_path / "newest"))
        trees.assert_same(first, trees.restore_point(chain, full, tmp_path / "older"))

    def test_tarballs(self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path) -> None:
        configure("tar")
        assert btw("fs", src, dst) == DONE
        first = trees.untar(dst / backups(dst)[0], tmp_path / "first")
        trees.assert_same(src, first)
        self.change(src)
        assert btw("fs", src, dst) == DONE
        older, newest = backups(dst)
        trees.assert_same(src, trees.untar(dst / newest, tmp_path / "newest"))
        trees.assert_same(first, trees.untar(dst / older, tmp_path / "older"))

    @pytest.mark.parametrize("type_", ["tar", "rdiff"])
    def test_an_unchanged_tree_is_found_unchanged(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, type_: str
    ) -> None:
        configure(type_, COMPRESSION="none", QUICK_CHECK=False)
        assert btw("fs", src, dst) == DONE
        subprocess.run(
            ["find", src, "-type", "f", "-exec", "cat", "{}", "+"], check=True, stdout=subprocess.DEVNULL
        )
        assert btw("fs", src, dst) == DONE
        assert len(points(btw, dst)) == 1
        assert log(dst).count("\n") == 1

    @pytest.mark.parametrize(
        "change",
        [
            ["setfattr", "-n", "user.colour", "-v", "new", "large"],
            ["setfacl", "-m", "u:12345:r", "large"],
            ["touch", "-d", "@1000000000.123456788", "plain"],
            ["chmod", "u-s", "mode 4755"],
            pytest.param(["chown", "-h", "1:1", "dangling"], marks=as_root),
            pytest.param(["setcap", "-r", "capable"], marks=as_root),
        ],
        ids=lambda change: change[0],
    )
    def test_a_change_of_metadata_alone_is_stored(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, change: list[str]
    ) -> None:
        configure("tar", COMPRESSION="none")
        assert btw("fs", src, dst) == DONE
        subprocess.run(change, cwd=src, check=True)
        assert btw("fs", src, dst) == DONE
        assert len(backups(dst)) == 2


class TestSingleFile:
    @pytest.mark.parametrize("type_", ["tar", "rdiff"])
    @pytest.mark.parametrize("name", ["file", "-v", "odd *[a]\n name"])
    def test_round_trip(
        self, btw: Btw, config_dir: Path, dst: Path, tmp_path: Path, type_: str, name: str
    ) -> None:
        directory = tmp_path / "dir"
        directory.mkdir()
        (directory / name).write_text("content\n")
        (directory / "other").write_text("not asked for\n")
        configure_in(config_dir, directory / name, type_)
        for _ in range(2):
            assert btw("fs", directory / name, dst) == DONE
        [backup] = backups(dst)
        made = dst / backup / "backup.tar" if type_ == "rdiff" else dst / backup
        restored = trees.untar(made, tmp_path / "restored")
        assert os.listdir(restored) == [name]
        assert trees.facts(restored)[1:] and (restored / name).read_text() == "content\n"
        assert (restored / name).stat().st_mtime_ns == (directory / name).stat().st_mtime_ns


class TestUnchanged:
    def test_tarball(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure("tar")
        for _ in range(3):
            assert btw("fs", src, dst) == DONE
        [made] = backups(dst)
        assert re.fullmatch(rf"{TIME}\.tbz", made)
        line = rf"({TIME}\.tbz): {UNCHANGED}: dropping backup\n"
        match = re.fullmatch(line * 2, log(dst))
        assert match and made < match[1] <= match[2]

    @pytest.mark.parametrize(
        ("limits", "kind"),
        [
            ({}, "incremental"),
            ({"MAX_INCREMENTAL_COUNT": 0}, "full"),
            ({"MAX_INCREMENTAL_SPAN": "0s"}, "full"),
        ],
        ids=["incremental", "full by count", "full by span"],
    )
    def test_chain(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, limits: dict[str, Any], kind: str
    ) -> None:
        configure("rdiff", **limits)
        for _ in range(2):
            assert btw("fs", src, dst) == DONE
        [made] = points(btw, dst)
        line = rf"({TIME}): {UNCHANGED}: skipping creation of new {kind} backup\n"
        match = re.fullmatch(line, log(dst))
        assert match and made < match[1]

    def test_reading_and_an_idle_log_change_nothing(
        self, btw: Btw, configure: Configure, src: Path, dst: Path
    ) -> None:
        """A run that finds nothing new does not touch one byte of a chain."""
        configure("rdiff")
        btw("fs", src, dst)
        before = trees.facts(dst / backups(dst)[0])
        btw("fs", src, dst)
        assert trees.facts(dst / backups(dst)[0]) == before


class TestQuickCheck:
    @pytest.fixture
    def src(self) -> Path:
        """A source whose inodes have not changed for longer than the clock's tick."""
        return Path(json.__file__).parent

    @pytest.mark.parametrize("type_", ["tar", "rdiff"])
    def test_unchanged_inodes_are_not_read(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path, type_: str
    ) -> None:
        configure(type_)
        assert btw("fs", src, dst) == DONE
        without_tar = own_path(tmp_path, "bzip2", "rdiff-backup")
        assert btw("fs", src, dst, env=without_tar) == DONE
        assert log(dst).count(UNCHANGED) == 1
        configure(type_, EXCLUDE=["*.pyc"])
        assert btw("fs", src, dst, env=without_tar).status == 1
        configure(type_, QUICK_CHECK=False)
        assert btw("fs", src, dst, env=without_tar).status == 1

    @pytest.mark.parametrize("type_", ["tar", "rdiff"])
    def test_a_replaced_backup_is_compared_again(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path, type_: str
    ) -> None:
        """The record is valid only for the very file that was compared."""
        configure(type_)
        btw("fs", src, dst)
        made = dst / backups(dst)[0] / "backup.tar" if type_ == "rdiff" else dst / backups(dst)[0]
        content = bytearray(made.read_bytes())
        content[len(content) // 2] ^= 1
        made.write_bytes(content)
        assert btw("fs", src, dst, env=own_path(tmp_path, "bzip2", "rdiff-backup")).status == 1

    @pytest.mark.parametrize("type_", ["tar", "rdiff"])
    def test_a_change_within_the_clocks_tick_is_seen(
        self, btw: Btw, config_dir: Path, dst: Path, tmp_path: Path, type_: str
    ) -> None:
        """Same size, same mtime, right after a run that found nothing new."""
        source = tmp_path / "fresh"
        source.mkdir()
        configure_in(config_dir, source, type_, COMPRESSION="none")
        for text in ("one\n", "two\n"):
            (source / "file").write_text(text)
            os.utime(source / "file", (0, 0))
            assert btw("fs", source, dst) == DONE
        assert len(points(btw, dst)) == 2


class TestFullOrIncremental:
    def run(self, btw: Btw, src: Path, dst: Path, times: int) -> list[str]:
        for number in range(times):
            (src / "file").write_text(f"{number}\n")
            assert btw("fs", src, dst) == DONE
        return points(btw, dst)

    def test_count(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure("rdiff", MAX_INCREMENTAL_COUNT=2)
        lines = self.run(btw, src, dst, 5)
        assert [line.startswith(" ") for line in lines] == [False, True, True, False, True]

    def test_no_incrementals(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure("rdiff", MAX_INCREMENTAL_COUNT=0)
        assert [line.startswith(" ") for line in self.run(btw, src, dst, 2)] == [False, False]

    def test_span(self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path) -> None:
        configure("rdiff", MAX_INCREMENTAL_SPAN="1h")
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "backup.tar").write_text("old")
        for name, seconds in (("young", 1800), ("old", 7200)):
            target = dst if name == "young" else tmp_path / "other"
            target.mkdir(exist_ok=True)
            started = int(time.time()) - seconds
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(started))
            argv = ["rdiff-backup", "-v2", "--current-time", str(started), "backup"]
            subprocess.run([*argv, tmp_path / "old", target / stamp], check=True)
            assert btw("fs", src, target) == DONE
            lines = points(btw, target)
            assert lines[0] == stamp
            assert [line.startswith(" ") for line in lines] == [False, name == "young"]


class TestChangeOfOptions:
    def test_type(self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path) -> None:
        """The next backup is of the new kind, and the old ones stay."""
        configure("rdiff")
        assert btw("fs", src, dst) == DONE
        configure("tar")
        assert btw("fs", src, dst) == DONE
        (src / "file").write_text("changed\n")
        configure("rdiff")
        assert btw("fs", src, dst) == DONE
        first, second, third = points(btw, dst)
        assert [re.sub(TIME, "", line) for line in (first, second, third)] == ["", ".tbz", ""]
        trees.assert_same(src, trees.untar(dst / third / "backup.tar", tmp_path / "third"))
        assert (trees.untar(dst / second, tmp_path / "second") / "file").read_text() == "content\n"
        assert (
            trees.restore_point(dst / first, first, tmp_path / "first") / "file"
        ).read_text() == "content\n"

    @pytest.mark.parametrize("compression", ENDINGS)
    def test_compression(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path, compression: str
    ) -> None:
        configure("tar", COMPRESSION=compression)
        assert btw("fs", src, dst) == DONE
        [made] = backups(dst)
        assert re.fullmatch(TIME + re.escape(ENDINGS[compression]), made)
        trees.assert_same(src, trees.untar(dst / made, tmp_path / "restored"))
        other = "gzip" if compression != "gzip" else "zstd"
        configure("tar", COMPRESSION=other)
        assert btw("fs", src, dst) == DONE
        assert backups(dst) == [made]
        assert re.fullmatch(rf"{TIME}{re.escape(ENDINGS[other])}: {UNCHANGED}: dropping backup\n", log(dst))

    def test_bzip2_programs_are_interchangeable(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path
    ) -> None:
        configure("tar")
        (src / "large").write_bytes(os.urandom(2 << 20))
        for number, program in enumerate(("bzip2", "lbzip2", "pbzip2")):
            (src / "file").write_text(program)
            assert btw("fs", src, dst, env=own_path(tmp_path, "tar", program)) == DONE
            assert len(backups(dst)) == number + 1
            for other in ("bzip2", "lbzip2", "pbzip2"):
                assert btw("fs", src, dst, env=own_path(tmp_path, "tar", other)) == DONE
        assert len(backups(dst)) == 3
        trees.assert_same(src, trees.untar(dst / backups(dst)[-1], tmp_path / "restored"))


class TestLeftOut:
    def names(self, dst: Path) -> list[str]:
        return trees.members(dst / backups(dst)[-1])

    @pytest.mark.parametrize("type_", ["tar", "rdiff"])
    @pytest.mark.parametrize("name", ["dst", "-[d]?s*\\t"])
    def test_destination_and_working_directory(
        self, btw: Btw, config_dir: Path, src: Path, type_: str, name: str
    ) -> None:
        inside, config = src / name, src / "sub" / "etc"
        inside.mkdir()
        (src / f"{name}2").write_text("has a similar name\n")
        work = configure_in(config, src, type_)
        for _ in range(3):
            assert btw("--config-dir", config, "fs", src, inside) == DONE
        [line] = points(btw, inside)
        archive = inside / line / "backup.tar" if type_ == "rdiff" else inside / line
        names = subprocess.run(
            ["tar", "--force-local", "--quoting-style=literal", "-tf", archive],
            capture_output=True,
            text=True,
        )
        stored = names.stdout.splitlines()
        assert f"./{name}2" in stored and "./file" in stored
        assert [entry for entry in stored if entry.startswith((f"./{name}/", f"./sub/etc/{work.name}"))] == []

    def test_through_links(self, btw: Btw, configure: Configure, src: Path, tmp_path: Path) -> None:
        (src / "dst").mkdir()
        (tmp_path / "link").symlink_to("src/dst")
        configure("tar", COMPRESSION="none")
        for _ in range(2):
            assert btw("fs", src, "link", cwd=tmp_path, env={"PYTHONPATH": os.getcwd()}) == DONE
        assert len(backups(src / "dst")) == 1

    def test_exclude(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        (src / "sub" / "file").write_text("deeper\n")
        (src / "sub" / "thing.o").write_text("object\n")
        (src / "-x").write_text("x\n")
        configure("tar", EXCLUDE=["./file", "*.o", "./-x", "--help"])
        assert btw("fs", src, dst) == DONE
        assert self.names(dst) == ["./", "./sub/", "./sub/file", "./sub/other"]

    def test_a_newly_excluded_file_is_a_change(
        self, btw: Btw, configure: Configure, src: Path, dst: Path
    ) -> None:
        configure("tar")
        btw("fs", src, dst)
        configure("tar", EXCLUDE=["./file"])
        assert btw("fs", src, dst) == DONE
        assert self.names(dst) == ["./", "./sub/", "./sub/other"]

    def test_tagged_directory(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure("tar")
        (src / "cache").mkdir()
        (src / "cache" / "big").write_text("big\n")
        (src / "cache" / "below").mkdir()
        (src / "cache" / "NOBACKUP-TAG").touch()
        assert btw("fs", src, dst) == DONE
        names = self.names(dst)
        assert "./cache/" in names and "./file" in names
        assert not {"./cache/big", "./cache/below/"} & set(names)

    @as_root
    @pytest.mark.parametrize("only", [False, True])
    def test_one_file_system(self, btw: Btw, configure: Configure, src: Path, dst: Path, only: bool) -> None:
        configure("tar", ONE_FILE_SYSTEM=only)
        (src / "mounted").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", src / "mounted"], check=True)
        try:
            (src / "mounted" / "inner").write_text("on another file system\n")
            assert btw("fs", src, dst) == DONE
        finally:
            subprocess.run(["umount", src / "mounted"], check=True)
        assert "./mounted/" in self.names(dst)
        assert ("./mounted/inner" in self.names(dst)) is not only


class TestOwnership:
    def owners(self, dst: Path) -> dict[str, tuple[int, int]]:
        """Return the owners of everything in the destination but the private directory."""
        found = {}
        for name in visible(dst):
            for path in [dst / name, *(dst / name).rglob("*")]:
                found[str(path.relative_to(dst))] = (path.lstat().st_uid, path.lstat().st_gid)
        return found

    @as_root
    def test_of_a_chain_and_the_log(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        (src / "large").write_bytes(os.urandom(200_000))
        configure("rdiff")
        for number in (0, 1, 1):
            (src / "number").write_text(f"{number}\n")
            os.utime(src / "number", (0, 0))
            os.utime(src, (0, 0))
            assert btw("fs", "-u", "12345:54321", src, dst) == DONE
        found = self.owners(dst)
        assert "log.txt" in found and len(points(btw, dst)) == 2
        assert set(found.values()) == {(12345, 54321)}
        assert (dst.stat().st_uid, dst.stat().st_gid) == (0, 0)
        private = (dst / ".btw-backup").stat()
        assert (private.st_uid, private.st_mode & 0o7777) == (0, 0o700)

    @as_root
    @pytest.mark.parametrize(
        ("text", "owner"),
        [
            ("12345", (12345, 0)),
            ("12345:54321", (12345, 54321)),
            (":54321", (0, 54321)),
            ("nobody", (65534, 0)),
            ("nobody:", (65534, 65534)),
            ("nobody:daemon", (65534, 1)),
        ],
    )
    def test_forms(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, text: str, owner: tuple[int, int]
    ) -> None:
        configure("tar")
        for _ in range(2):
            assert btw("fs", f"--uid={text}", src, dst) == DONE
        found = self.owners(dst)
        assert len(found) == 4 and set(found.values()) == {owner}

    @as_root
    def test_what_earlier_runs_made_keeps_its_owner(
        self, btw: Btw, configure: Configure, src: Path, dst: Path
    ) -> None:
        configure("tar")
        for _ in range(2):
            btw("fs", src, dst)
        (src / "file").write_text("changed\n")
        assert btw("fs", "-u", "12345", src, dst) == DONE
        old, new = backups(dst)
        # What is noted of the backups is written anew.
        notes = {"log.txt": (0, 0), "source.txt": (12345, 0), "RESTORE.txt": (12345, 0)}
        assert self.owners(dst) == {old: (0, 0), new: (12345, 0), **notes}

    @pytest.mark.parametrize(
        "text", ["no-such-user", ":no-such-group", "nobody:no-such-group", "99999999999", ""]
    )
    def test_unknown(self, btw: Btw, configure: Configure, src: Path, dst: Path, text: str) -> None:
        configure("tar")
        result = btw("fs", "-u", text, src, dst)
        assert (result.status, result.out) == (1, "")
        assert re.fullmatch(r"btw_backup: .+\n", result.err)
        assert visible(dst) == []


class TestOutput:
    def test_verbose_says_what_was_made(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure("rdiff")
        first = btw("-v", "fs", src, dst)
        [made] = points(btw, dst)
        assert (first.status, first.out) == (0, "")
        assert re.fullmatch(rf"btw_backup: .*{made}.*\n", first.err)
        again = btw("--verbose", "fs", src, dst)
        assert re.fullmatch(r"btw_backup: .+\n", again.err)

    def test_quiet_still_says_what_failed(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure("tar")
        assert btw("-q", "fs", src, dst) == DONE
        result = btw("-q", "fs", src, dst / "missing")
        assert result.status == 1 and "missing" in result.err

    @pytest.mark.parametrize("flags", [[], ["-q"]], ids=["default", "quiet"])
    def test_on_a_terminal(
        self, config_dir: Path, configure: Configure, src: Path, dst: Path, flags: list[str]
    ) -> None:
        """One line at the end says what was made, except with -q."""
        configure("tar")
        ours, theirs = os.openpty()
        argv = [
            sys.executable,
            "-m",
            "btw_backup",
            "--config-dir",
            str(config_dir),
            *flags,
            "fs",
            str(src),
            str(dst),
        ]
        subprocess.run(argv, stderr=theirs, check=True, timeout=60)
        os.close(theirs)
        said = b""
        try:
            while block := os.read(ours, 1 << 16):
                said += block
        except OSError:  # EIO: the other end is closed, and all is read
            pass
        os.close(ours)
        if flags:
            assert said == b""
        else:
            last = said.decode().splitlines()[-1]
            assert backups(dst)[0].removesuffix(".tbz") in last

    def test_module_and_script_call_themselves_by_their_names(
        self, btw: Btw, config_dir: Path, src: Path, dst: Path
    ) -> None:
        assert btw("fs", src, dst).err == f"btw_backup: no working directory for: {src}\n"
        script = Path(sys.executable).with_name("btw-backup")
        done = subprocess.run(
            [script, "--config-dir", config_dir, "fs", src, dst], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (1, f"btw-backup: no working directory for: {src}\n")


class TestReading:
    @pytest.mark.parametrize("type_", ["tar", "rdiff"])
    def test_unreadable_parts_are_named(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, type_: str
    ) -> None:
        """The rest is stored, and the status is 3, even if nothing has changed."""
        configure(type_, COMPRESSION="none")
        (src / "secret").write_text("secret\n")
        (src / "closed").mkdir()
        for name in ("secret", "closed"):
            (src / name).chmod(0)
        for number in range(2):
            result = btw("-q", "fs", src, dst, preexec_fn=give_up_root_s_override)
            assert (result.status, result.out) == (3, "")
            assert "./secret" in result.err and "./closed" in result.err and "other" not in result.err
            assert (dst / "log.txt").exists() is (number == 1)
        [made] = backups(dst)
        archive = dst / made / "backup.tar" if type_ == "rdiff" else dst / made
        assert trees.members(archive) == ["./", "./file", "./sub/", "./sub/other"]

    def test_files_that_change_or_vanish_are_noted(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path
    ) -> None:
        """The compressor is slower than tar, so its output appears while tar still reads the first file."""
        configure("tar", COMPRESSION="gzip")
        big = src / "a-big"
        big.write_bytes(os.urandom(48 << 20))
        (src / "b-vanishing").write_text("soon gone\n")
        prepared = dst / ".btw-backup" / "run" / "tarball"
        meddled = threading.Event()

        def meddle() -> None:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if prepared.exists() and prepared.stat().st_size:
                    (src / "b-vanishing").unlink()
                    with open(big, "ab") as file:
                        file.write(b"more")
                    meddled.set()
                    return
                time.sleep(0.001)

        thread = threading.Thread(target=meddle)
        thread.start()
        result = btw("fs", src, dst)
        thread.join()
        assert meddled.is_set()
        assert result == DONE
        [made] = backups(dst)
        time_ = made.removesuffix(".tar.gz")
        noted = log(dst).splitlines()
        assert all(line.startswith(f"{time_}: ") for line in noted)
        assert [name for name in ("a-big", "b-vanishing") if not any(name in line for line in noted)] == []
        assert (trees.untar(dst / made, tmp_path / "restored") / "file").read_text() == "content\n"


class TestModes:
    @pytest.mark.parametrize("umask", [0o000, 0o777])
    def test_of_everything_made(self, btw: Btw, config_dir: Path, src: Path, dst: Path, umask: int) -> None:
        """Nobody else can read a backup, whatever the umask."""
        for type_ in ("rdiff", "tar"):
            source = src if type_ == "rdiff" else src / "sub"
            target = dst / type_
            target.mkdir()
            assert btw("fs-init", "--type", type_, source, "x", umask=umask).status == 0
            for _ in range(2):
                assert btw("fs", source, target, umask=umask) == DONE
        (src / "file").write_text("changed\n")
        assert btw("fs", src, dst / "rdiff", umask=umask) == DONE
        made = [config_dir, *config_dir.rglob("*"), *(dst / "rdiff").rglob("*"), *(dst / "tar").rglob("*")]
        modes = {str(p): p.lstat().st_mode for p in made if not p.is_symlink()}
        wrong = {name: oct(mode) for name, mode in modes.items() if mode & 0o7077 or not mode & 0o600}
        assert wrong == {}


class TestFailures:
    def check(self, result: Result, text: str) -> None:
        """Fail unless the run ended with status 1 and one line that holds ``text``."""
        assert (result.status, result.out) == (1, "")
        assert re.fullmatch(r"btw_backup: .+\n", result.err)
        assert text in result.err

    @pytest.mark.parametrize(
        ("type_", "there", "missing"),
        [
            ("tar", ["bzip2"], "tar"),
            ("tar", ["tar"], "bzip2"),
            ("rdiff", ["tar"], "rdiff-backup"),
            ("rdiff", ["rdiff-backup"], "tar"),
        ],
    )
    def test_missing_program(
        self,
        btw: Btw,
        configure: Configure,
        src: Path,
        dst: Path,
        tmp_path: Path,
        type_: str,
        there: list[str],
        missing: str,
    ) -> None:
        configure(type_)
        self.check(btw("fs", src, dst, env=own_path(tmp_path, *there)), missing)
        assert visible(dst) == []
        assert btw("fs", src, dst) == DONE
        (src / "file").write_text("changed\n")
        before = trees.facts(dst / backups(dst)[0]) if type_ == "rdiff" else []
        self.check(btw("fs", src, dst, env=own_path(tmp_path, *there)), missing)
        assert len(points(btw, dst)) == 1 and not (dst / "log.txt").exists()
        assert before == (trees.facts(dst / backups(dst)[0]) if type_ == "rdiff" else [])

    def test_missing_destination(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure("tar")
        self.check(btw("fs", src, dst / "missing"), str(dst / "missing"))
        assert not (dst / "missing").exists()

    def test_destination_is_a_file(self, btw: Btw, configure: Configure, src: Path) -> None:
        configure("tar")
        self.check(btw("fs", src, src / "file"), str(src / "file"))
        assert (src / "file").read_text() == "content\n"

    @pytest.mark.parametrize("kind", ["missing", "fifo", "device", "dangling"])
    def test_unfit_source(self, btw: Btw, config_dir: Path, dst: Path, tmp_path: Path, kind: str) -> None:
        source = Path("/dev/null") if kind == "device" else tmp_path / "source"
        if kind == "fifo":
            os.mkfifo(source)
        if kind == "dangling":
            source.symlink_to("nowhere")
        configure_in(config_dir, source)
        self.check(btw("fs", source, dst), str(source))
        assert visible(dst) == []

    def test_relative_source(self, btw: Btw, configure: Configure, dst: Path) -> None:
        configure("tar")
        assert btw("fs", "src", dst) == Result(1, "", "btw_backup: the source path must be absolute\n")

    def test_source_is_the_destination(self, btw: Btw, configure: Configure, src: Path) -> None:
        configure("tar")
        self.check(btw("fs", src, src), str(src))
        assert sorted(set(os.listdir(src)) - {".btw-backup"}) == ["file", "sub"]

    @pytest.mark.parametrize("type_", ["tar", "rdiff"])
    def test_chain_of_another_series(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path, type_: str
    ) -> None:
        configure(type_)
        (tmp_path / "dumped").mkdir()
        (tmp_path / "dumped" / "shop.dump").write_text("a database\n")
        chain = dst / "2020-01-01T00:00:00"
        argv = ["rdiff-backup", "-v2", "--current-time", "1577836800", "backup"]
        subprocess.run([*argv, tmp_path / "dumped", chain], check=True)
        before = trees.facts(chain)
        self.check(btw("fs", src, dst), "shop.dump")
        assert visible(dst) == [chain.name] and trees.facts(chain) == before

    def test_newest_point_in_the_future(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure("tar")
        (dst / "2999-01-01T00:00:00.tbz").touch()
        self.check(btw("fs", src, dst), "future")

    @pytest.mark.parametrize("damage", [b"", b"not a tarball", None], ids=["empty", "garbage", "cut short"])
    def test_a_damaged_tarball_is_not_taken_for_the_same(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path, damage: bytes | None
    ) -> None:
        configure("tar")
        btw("fs", src, dst)
        previous = dst / backups(dst)[0]
        previous.write_bytes(previous.read_bytes()[:-9] if damage is None else damage)
        btw("fs", src, dst)
        newest = backups(dst)[-1]
        assert newest != previous.name
        trees.assert_same(src, trees.untar(dst / newest, tmp_path / "restored"))


def with_program(tmp_path: Path, name: str, script: str) -> dict[str, str]:
    """The environment in which a program is this script; in it ``real`` is the program itself."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / name).write_text(f"#!/bin/sh\nreal={shutil.which(name)}\n{script}\n")
    (programs / name).chmod(0o755)
    break_bubblewrap(programs)
    return {"PATH": f"{programs}:{os.environ['PATH']}"}


@pytest.mark.parametrize("type_", ["tar", "rdiff"])
def test_a_point_counts_where_a_change_cannot_be_noted(
    btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path, type_: str
) -> None:
    configure(type_)
    (dst / "log.txt").mkdir()
    env = with_program(
        tmp_path, "tar", '$real "$@"; echo "tar: ./file: file changed as we read it" >&2; exit 1'
    )
    result = btw("fs", src, dst, env=env)
    assert result.status == 0 and len(backups(dst)) == 1
    [line] = result.err.splitlines()
    assert line.startswith("btw_backup: warning: ") and "log.txt" in line
    assert "file changed as we read it" in line
    # What a run that stored nothing has to say is that line.
    assert btw("fs", src, dst).status == 1


def test_a_new_chain_counts_where_its_reason_cannot_be_noted(
    btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path
) -> None:
    configure("rdiff")
    assert btw("fs", src, dst) == DONE
    (dst / "log.txt").mkdir()
    (src / "file").write_text("changed\n")
    once = tmp_path / "once"
    once.touch()
    env = with_program(
        tmp_path, "rdiff-backup", f'$real "$@" || exit; if [ -f {once} ]; then rm {once}; exit 1; fi'
    )
    result = btw("fs", src, dst, env=env)
    assert result.status == 0 and len(backups(dst)) == 2
    assert "started a new one" in result.err and "could not be noted" in result.err


@as_root
def test_an_addition_that_failed_leaves_its_room_to_the_new_chain(
    btw: Btw, configure: Configure, src: Path, tmp_path: Path
) -> None:
    """The disk has room for two archives, but not for three."""
    configure("rdiff")
    disk, once, programs = tmp_path / "disk", tmp_path / "once", tmp_path / "programs"
    disk.mkdir()
    programs.mkdir()
    break_bubblewrap(programs)
    real = shutil.which("rdiff-backup")
    fake = programs / "rdiff-backup"
    fake.write_text(f'#!/bin/sh\n{real} "$@" || exit\nif [ -f {once} ]; then rm {once}; exit 1; fi\n')
    fake.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=25m", "none", disk], check=True)
    try:
        (disk / "dst").mkdir()
        (src / "large").write_bytes(os.urandom(8_000_000))
        assert btw("fs", src, disk / "dst") == DONE
        (src / "large").write_bytes(os.urandom(8_000_000))
        once.touch()
        result = btw("fs", src, disk / "dst", env={"PATH": f"{programs}:{os.environ['PATH']}"})
        assert result.status == 0, result
        assert "started a new one" in result.err
        assert not once.exists()
        assert len(backups(disk / "dst")) == 2
    finally:
        subprocess.run(["umount", disk], check=True)
