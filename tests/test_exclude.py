"""What a filesystem backup leaves out: the options, each against what tar lists of the stored archive."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btw_backup.archive.names import member_of
from btw_backup.programs.tar import Source, tar_command
from btw_backup.source.walk import Tree, leaves_out, walk

from .helpers.destinations import joined, listed
from .helpers.running import Btw, Gate, Result, Start, ended, give_up_root_s_override, replacing
from .helpers.small_parts import REPLACED

DONE = Result(0, "", "")
SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
NO_TAR = {"PATH": "/nonexistent"}

Configure = Callable[..., Path]


@pytest.fixture
def configure(btw: Btw, src: Path, config_dir: Path) -> Configure:
    """Set the options of the source. Returns the working directory."""
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    [work] = config_dir.glob("name.*")

    def go(type_: str = "tar", **options: Any) -> Path:
        lines = [f"{name} = {value!r}\n" for name, value in options.items()]
        (work / "config.py").write_text(f"TYPE = {type_!r}\nCOMPRESSION = 'none'\n" + "".join(lines))
        return work

    return go


def stored(btw: Btw, src: Path, dst: Path) -> set[str]:
    """Back up. Returns the paths in the newest archive as tar lists them, but for the source itself."""
    assert btw("fs", src, dst) == DONE
    return names_in(dst)


def names_in(dst: Path) -> set[str]:
    argv = ["tar", "--force-local", "--quoting-style=escape", "-tf", str(max(dst.glob("2*.tar")))]
    top, *names = subprocess.check_output(argv, text=True).splitlines()
    assert top == "./"
    return {name.removeprefix("./") for name in names}


def put(path: Path, text: str = "content\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class TestTags:
    def test_caches(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure(EXCLUDE_CACHES=True)
        for directory in ("right", "more", "wrong", "short", "link", "directory"):
            put(src / directory / "in" / "file")
        put(src / "right" / "CACHEDIR.TAG", SIGNATURE)
        put(src / "more" / "CACHEDIR.TAG", f"{SIGNATURE}\n# of a program\n")
        put(src / "wrong" / "CACHEDIR.TAG", SIGNATURE.upper())
        put(src / "short" / "CACHEDIR.TAG", SIGNATURE[:-1])
        (src / "link" / "CACHEDIR.TAG").symlink_to("../right/CACHEDIR.TAG")
        (src / "directory" / "CACHEDIR.TAG").mkdir()
        names = stored(btw, src, dst)
        assert {"right/", "right/CACHEDIR.TAG", "more/", "more/CACHEDIR.TAG"} <= names
        assert {name for name in names if name.endswith("in/file")} == {
            f"{directory}/in/file" for directory in ("wrong", "short", "link", "directory")
        }

    def test_caches_are_stored_by_default(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure()
        put(src / "cache" / "CACHEDIR.TAG", SIGNATURE)
        put(src / "cache" / "file")
        assert "cache/file" in stored(btw, src, dst)

    def test_if_present(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure(EXCLUDE_IF_PRESENT=[".nobackup", "t*g"])
        for directory in ("tagged", "starred", "like", "link", "both", "fifo"):
            put(src / directory / "in" / "file")
        put(src / "tagged" / ".nobackup")
        put(src / "starred" / "t*g")
        put(src / "like" / "tag")
        (src / "link" / ".nobackup").symlink_to("in")
        put(src / "both" / "t*g")
        put(src / "both" / "NOBACKUP-TAG")
        os.mkfifo(src / "fifo" / ".nobackup")
        assert stored(btw, src, dst) - {"file", "sub/", "sub/other"} == {
            *("tagged/", "tagged/.nobackup", "starred/", "starred/t*g", "fifo/", "fifo/.nobackup"),
            *("like/", "like/in/", "like/in/file", "like/tag"),
            *("link/", "link/in/", "link/in/file", "link/.nobackup"),
            *("both/", "both/NOBACKUP-TAG"),
        }

    def test_a_tag_is_stored_although_a_pattern_excludes_it(
        self, btw: Btw, configure: Configure, src: Path, dst: Path
    ) -> None:
        configure(EXCLUDE_CACHES=True, EXCLUDE=["*.TAG"])
        put(src / "cache" / "CACHEDIR.TAG", SIGNATURE)
        put(src / "cache" / "file")
        put(src / "other.TAG")
        assert stored(btw, src, dst) == {"file", "sub/", "sub/other", "cache/", "cache/CACHEDIR.TAG"}

    @pytest.mark.parametrize("exclude", [(), ("*.TAG", "./fifo/.no", "in")])
    def test_a_walk_finds_what_tar_archives(self, src: Path, exclude: tuple[str, ...]) -> None:
        for directory in ("cache", "both", "no cache", "directory", "fifo", "link", "socket"):
            put(src / directory / "in" / "file")
        for name in ("cache/CACHEDIR.TAG", "both/CACHEDIR.TAG", "both/in/CACHEDIR.TAG"):
            put(src / name, SIGNATURE)
        put(src / "both" / ".no")
        put(src / "no cache" / "CACHEDIR.TAG")
        put(src / "directory" / "NOBACKUP-TAG" / "in" / "it")
        os.mkfifo(src / "fifo" / ".no")
        (src / "link" / ".no").symlink_to("in")
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(src / "socket" / ".no"))
        source = Source(str(src), "", (), exclude, False, tags=("NOBACKUP-TAG", ".no"), caches=True)
        assert walked(source) - {b"./socket/.no"} == archived(source)


class TestLargerThan:
    @pytest.mark.parametrize(("limit", "size"), [("1000", 1000), ("2K", 2048), ("1M", 1 << 20)])
    def test_only_larger_files(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, limit: str, size: int
    ) -> None:
        configure(EXCLUDE_LARGER_THAN=limit)
        for name, length in (("just", size), ("over", size + 1), ("sub/huge", 1 << 40)):
            put(src / name, "")
            os.truncate(src / name, length)
        os.link(src / "over", src / "sub" / "linked")
        (src / "over a link").symlink_to("over")
        assert stored(btw, src, dst) == {"file", "just", "over a link", "sub/", "sub/other"}

    def test_any_name(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        configure(EXCLUDE_LARGER_THAN="100")
        odd = [
            b"new\nline",
            b"blank ",
            b"tab\t",
            b"\xff\xfe",
            b"a*b",
            b"a?b",
            b"[a]",
            b"back\\slash",
            b"#",
            b"-x",
        ]
        for name in map(os.fsdecode, odd):
            put(src / "sub" / name, "x" * 200)
        small = ("new", "line", "blank", "tab", "axb", "a", "backslash", "x")
        for name in small:
            put(src / "sub" / name)
        assert stored(btw, src, dst) == {"file", "sub/", "sub/other", *(f"sub/{name}" for name in small)}

    def test_the_source_itself_is_stored(self, btw: Btw, config_dir: Path, tmp_path: Path, dst: Path) -> None:
        put(tmp_path / "single", "x" * 200)
        assert btw("fs-init", "--type", "tar", tmp_path / "single", "name").status == 0
        [config] = config_dir.glob("name.*/config.py")
        config.write_text("TYPE = 'tar'\nCOMPRESSION = 'none'\nEXCLUDE_LARGER_THAN = '100'\n")
        assert btw("fs", tmp_path / "single", dst) == DONE
        assert subprocess.check_output(["tar", "--force-local", "-tf", *dst.glob("2*.tar")]) == b"./single\n"

    def test_so_many_odd_names_that_no_command_line_holds_them(
        self, btw: Btw, configure: Configure, src: Path, dst: Path
    ) -> None:
        configure(EXCLUDE_LARGER_THAN="100")
        deep = src.joinpath(*(["d" * 250] * 12))
        deep.mkdir(parents=True)
        for number in range(1000):
            (deep / f"{'n' * 200}\n{number}").write_bytes(bytes(200))
            (deep / f"{number}").write_bytes(bytes(200))
        left = {name for name in stored(btw, src, dst) if name.startswith("d") and not name.endswith("/")}
        assert len(left) == 950 and all("\\n" in name for name in left)

    @pytest.mark.parametrize("quick", [True, False])
    def test_files_grow_and_shrink_before_tar_reads_them(
        self,
        btw: Btw,
        start: Start,
        configure: Configure,
        src: Path,
        dst: Path,
        tmp_path: Path,
        quick: bool,
    ) -> None:
        """They are taken for what they were, and the next run finds that they are not."""
        configure(EXCLUDE_LARGER_THAN="100", QUICK_CHECK=quick)
        put(src / "growing", "x" * 100)
        put(src / "shrinking", "x" * 101)
        gate = Gate(tmp_path / "gate", "tar", only="--create")
        running = start("fs", src, dst, env=gate.env)
        gate.reached()
        put(src / "growing", "y" * 101)
        put(src / "shrinking", "y" * 100)
        gate.open()
        assert ended(running) == (0, "")
        assert names_in(dst) == {"file", "growing", "sub/", "sub/other"}
        assert stored(btw, src, dst) == {"file", "shrinking", "sub/", "sub/other"}

    @pytest.mark.parametrize("quick", [True, False])
    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may pass through")
    def test_what_cannot_be_read_does_not_matter(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, quick: bool
    ) -> None:
        configure(EXCLUDE_LARGER_THAN="100", QUICK_CHECK=quick)
        put(src / "closed" / "file", "x" * 200)
        put(src / "open" / "large", "x" * 200)
        (src / "closed").chmod(0)
        result = btw("fs", src, dst, preexec_fn=give_up_root_s_override)
        assert result.status == 3 and "closed" in result.err
        assert not {name for name in names_in(dst) if name.endswith(("closed/file", "large"))}


class TestFrom:
    def test_patterns(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        work = configure(EXCLUDE=["*.o"], EXCLUDE_FROM="patterns")
        (work / "patterns").write_bytes(b"# comment\n\n  \n./sub\r\n  *.tmp  \n  # more\n\xff*\n\\#x\nlast")
        for name in ("a.o", "b.tmp", "#x", "last", "deep/last", "deep/sub", "kept"):
            put(src / name)
        Path(os.fsdecode(os.fsencode(src) + b"/\xffx")).touch()
        assert stored(btw, src, dst) == {"file", "kept", "deep/", "deep/sub"}

    def test_an_absolute_path(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, tmp_path: Path
    ) -> None:
        put(tmp_path / "patterns", "./sub\n")
        configure(EXCLUDE_FROM=str(tmp_path / "patterns"))
        assert stored(btw, src, dst) == {"file"}

    def test_it_is_missing(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        work = configure(EXCLUDE_FROM="patterns")
        said = f"btw_backup: {work}/config.py: EXCLUDE_FROM: there is no file {work}/patterns\n"
        assert btw("fs", src, dst) == Result(1, "", said)
        assert btw("fs", "--dry-run", src, dst) == Result(1, "", said)
        assert os.listdir(dst) == []
        checked = btw("check-config")
        assert checked.status == 1 and said in checked.err

    def test_all_errors_in_it(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        work = configure(EXCLUDE_FROM="patterns")
        (work / "patterns").write_bytes(b"./fine\n/var/cache\n./sub/\na\0b\n")
        result = btw("fs", src, dst)
        assert (result.status, result.out) == (1, "")
        assert [line.split(": ")[1] for line in result.err.splitlines()] == [
            f"{work}/patterns:{number}" for number in (2, 3, 4)
        ]

    @pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
    @pytest.mark.parametrize("how", ["writable", "of somebody else", "a fifo", "a dangling link"])
    def test_it_cannot_be_trusted(
        self, btw: Btw, configure: Configure, src: Path, dst: Path, how: str
    ) -> None:
        path = configure(EXCLUDE_FROM="patterns") / "patterns"
        if how == "a fifo":
            os.mkfifo(path)
        elif how == "a dangling link":
            path.symlink_to("nothing")
        else:
            path.touch()
            path.chmod(0o666) if how == "writable" else os.chown(path, 1234, 1234)
        result = btw("fs", src, dst)
        assert (result.status, result.out) == (1, "") and f"{path}: " in result.err
        assert os.listdir(dst) == []


PARTS = ["a", "b", "ab", "*", "?", "[a]", "[!a]", "[^ab]", "[[:alpha:]]", "\\*", "\\a", "é"]
PARTS += [".", "./", "/", "b/a"]
NAMES = [*rb"a b ab a.b * a* .a [a] \a".split(), "é".encode(), b"\xff", b"a\xff", b"new\nline"]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of names that patterns may match, three levels deep."""
    top = tmp_path_factory.mktemp("named")
    for one in NAMES:
        for two in NAMES[:5]:
            inner = os.path.join(os.fsencode(top), one, two)
            os.makedirs(inner)
            for three in NAMES[4:9]:
                os.close(os.open(os.path.join(inner, three), os.O_CREAT))
    return top


def usable(text: str) -> bool:
    """Whether EXCLUDE takes this pattern."""
    return not text.startswith("/") and not text.endswith("/")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    patterns=st.lists(
        st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join).filter(usable),
        min_size=1,
        max_size=3,
    )
)
def test_patterns_match_what_they_match_for_tar(named: Path, patterns: list[str]) -> None:
    source = Source(str(named), "", (), tuple(patterns), False)
    assert walked(source) == archived(source)


def archived(source: Source) -> set[bytes]:
    """What tar lists of its archive of a source."""
    utf8, plain = ({**os.environ, "LC_ALL": locale} for locale in ("C.UTF-8", "C"))
    archive = subprocess.check_output(tar_command(source), cwd=source.directory, env=utf8)
    listing = ["tar", "-t", "--quoting-style=escape"]
    names = subprocess.check_output(listing, input=archive, env=plain).split(b"\n")
    return {name.rstrip(b"/") for name in names} - {b""}


def walked(source: Source) -> set[bytes]:
    """What a walk finds, as tar lists it."""
    return {escaped(member_of(order)) for order, _, _ in walk(Tree.of(source, leaves_out(source)))}


def escaped(name: bytes) -> bytes:
    """A name as tar lists it."""
    text = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    return b"".join(bytes([byte]) if byte < 0x80 else b"\\%o" % byte for byte in text)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads parts of a source")
def test_an_incremental_is_what_tar_would_write(config_dir: Path, tmp_path: Path, dst: Path) -> None:
    """Tags and large files come and go, and only parts are read."""
    src = tmp_path / "src"
    for number in range(200):
        put(src / f"{number // 20:02}" / f"{number:03}", f"{number}\n" * 200)
    put(src / "03" / "large", "x" * 5000)
    btw = replacing(config_dir, {**REPLACED, "source.fingerprint._MEMBERS": "4"})
    assert btw("fs-init", "--type", "rdiff", src, "it").status == 0
    [config] = config_dir.glob("*/config.py")
    config.write_text(
        "TYPE = 'rdiff'\nEXCLUDE_CACHES = True\nEXCLUDE_IF_PRESENT = ['.no']\nEXCLUDE_LARGER_THAN = '4K'\n"
        "EXCLUDE_FROM = 'patterns'\n"
    )
    (config.parent / "patterns").write_text("*7\n")
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: put(src / "05" / ".no"),
        lambda: put(src / "06" / "CACHEDIR.TAG", SIGNATURE),
        lambda: put(src / "08" / "171", "grown" * 1000),
        lambda: put(src / "03" / "large", "small"),
        lambda: put(src / "06" / "CACHEDIR.TAG", "of nothing"),
        lambda: (src / "05" / ".no").unlink(),
        lambda: put(src / "08" / "171", "small again"),
    ]
    for number, change in enumerate(changes):
        change()
        assert btw("fs", src, dst) == DONE
        [chain] = dst.glob("2*")
        archive = joined(chain, tmp_path / f"archive {number}").read_bytes()
        assert archive == whole(src, "*7", 4096), number


def whole(source: Path, pattern: str, limit: int) -> bytes:
    """What tar writes of the source with options of its own, up to the end of the archive."""
    large = subprocess.check_output(["find", ".", "-type", "f", "-size", f"+{limit}c"], cwd=source, text=True)
    argv = ["tar", "--create", "--file=-", "--format=posix", "--blocking-factor=1", "--sort=name"]
    argv += ["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"]
    argv += ["--acls", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"]
    argv += ["--exclude-tag=NOBACKUP-TAG", "--exclude-tag=.no", "--exclude-caches", f"--exclude={pattern}"]
    argv += [f"--exclude={name}" for name in large.splitlines()]
    return subprocess.run([*argv, "."], cwd=source, stdout=subprocess.PIPE, check=True).stdout


class TestChanges:
    @pytest.mark.parametrize(
        ("option", "value", "expected"),
        [
            ("EXCLUDE_CACHES", True, {"file", "sub/", "sub/CACHEDIR.TAG"}),
            ("EXCLUDE_IF_PRESENT", ["other"], {"file", "sub/", "sub/other"}),
            ("EXCLUDE_LARGER_THAN", "6", {"sub/", "sub/other"}),
            ("EXCLUDE_FROM", "patterns", {"file", "sub/", "sub/CACHEDIR.TAG"}),
        ],
    )
    def test_an_option_is_changed(
        self,
        btw: Btw,
        configure: Configure,
        src: Path,
        dst: Path,
        option: str,
        value: Any,
        expected: set[str],
    ) -> None:
        put(src / "sub" / "CACHEDIR.TAG", SIGNATURE)
        put(configure() / "patterns", "./sub/other\n")
        assert stored(btw, src, dst) == {"file", "sub/", "sub/other", "sub/CACHEDIR.TAG"}
        configure(**{option: value})
        assert stored(btw, src, dst) == expected
        assert len(listed(btw, dst)) == 2

    def test_the_file_of_patterns_is_changed(
        self, btw: Btw, configure: Configure, src: Path, dst: Path
    ) -> None:
        work = configure(EXCLUDE_FROM="patterns")
        for text, expected in (("./sub\n", {"file"}), ("./file\n", {"sub/", "sub/other"})):
            put(work / "patterns", text)
            assert stored(btw, src, dst) == expected

    def test_an_unchanged_run_reads_nothing(
        self, btw: Btw, settled_sources: Iterator[Path], config_dir: Path, dst: Path
    ) -> None:
        src = next(settled_sources)
        assert btw("fs-init", "--type", "tar", src, "name").status == 0
        [config] = config_dir.glob("name.*/config.py")
        config.write_text(
            "TYPE = 'tar'\nEXCLUDE_CACHES = True\nEXCLUDE_IF_PRESENT = ['.no']\nEXCLUDE_LARGER_THAN = '7'\n"
            "EXCLUDE_FROM = 'patterns'\n"
        )
        put(config.parent / "patterns", "*.o\n# nothing\n")
        assert btw("fs", src, dst) == DONE
        put(config.parent / "patterns", "*.o\n")
        (src / "file").write_text("larger than the limit, as before\n")
        assert btw("fs", src, dst, env=NO_TAR) == DONE
        assert len(listed(btw, dst)) == 1

    def test_tags_and_large_files_come_and_go(
        self, btw: Btw, configure: Configure, src: Path, dst: Path
    ) -> None:
        configure(EXCLUDE_IF_PRESENT=[".no"], EXCLUDE_LARGER_THAN="100")
        assert "sub/other" in stored(btw, src, dst)
        put(src / "sub" / ".no")
        assert stored(btw, src, dst) == {"file", "sub/", "sub/.no"}
        put(src / "file", "x" * 101)
        assert stored(btw, src, dst) == {"sub/", "sub/.no"}
        (src / "sub" / ".no").unlink()
        put(src / "file", "x" * 100)
        assert stored(btw, src, dst) == {"file", "sub/", "sub/other"}


class TestAgainst:
    """``diff --against`` the source."""

    def test_what_is_left_out_is_not_new(self, btw: Btw, configure: Configure, src: Path, dst: Path) -> None:
        work = configure(
            EXCLUDE=["*.o"],
            EXCLUDE_FROM="patterns",
            EXCLUDE_CACHES=True,
            EXCLUDE_IF_PRESENT=[".no"],
            EXCLUDE_LARGER_THAN="100",
        )
        put(work / "patterns", "./left\n")
        put(src / "cache" / "CACHEDIR.TAG", SIGNATURE)
        put(src / "tagged" / ".no")
        stored(btw, src, dst)
        for name in ("a.o", "left/file", "cache/file", "tagged/file", "sub/file"):
            put(src / name)
        put(src / "large", "x" * 200)
        assert btw("diff", "--against", src, dst) == Result(0, "+  sub/file\n", "")
        assert btw("diff", "--against", f"{src}/", dst).out == "+  sub/file\n"

    def test_what_is_left_out_by_now_is_not_gone(
        self, btw: Btw, configure: Configure, src: Path, dst: Path
    ) -> None:
        configure()
        put(src / "link" / "file")
        stored(btw, src, dst)
        configure(EXCLUDE=["./sub", "./file", "./link"])
        put(src / "file", "changed\n")
        (src / "link").rename(src / "sub" / "link")
        (src / "link").symlink_to("sub/link")
        assert btw("diff", "--against", src, dst).out == "M  file\nT  link\n-  link/file\n"
