"""``btw-backup fs-init`` and the working directories that it makes."""

import ast
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers.running import Btw, Result

DEFAULTS: dict[str, object] = {
    "DESTINATION": None,
    "OWNER": None,
    "KEEP": {},
    "MAX_INCREMENTAL_COUNT": 10,
    "MAX_INCREMENTAL_SPAN": "24h",
    "EXCLUDE": [],
    "EXCLUDE_FROM": None,
    "EXCLUDE_CACHES": False,
    "EXCLUDE_IF_PRESENT": [],
    "EXCLUDE_LARGER_THAN": None,
    "ONE_FILE_SYSTEM": False,
    "COMPRESSION": "bzip2",
    "QUICK_CHECK": True,
    "SHARE_PARTS": True,
    "BEFORE": [],
    "AFTER": [],
    "ON_FAILURE": [],
}
EXISTS = "btw_backup: there is already a directory for this path"


def created(result: Result) -> Path:
    """Return the path that the run printed."""
    match = re.fullmatch(r"btw_backup: created (.+)\n", result.out, re.DOTALL)
    assert (result.status, result.err) == (0, "") and match
    return Path(match[1])


def by_hand(config_dir: Path, name: str, src: Path | str, type_: str = "tar") -> Path:
    """Make a working directory as another version makes it."""
    work = config_dir / name
    (work / "backup").mkdir(mode=0o700, parents=True)
    (work / "src").symlink_to(src)
    (work / "config.py").write_text(f"TYPE = {type_!r}\n")
    return work


@pytest.mark.parametrize("type_", ["rdiff", "tar"])
def test_makes_a_working_directory(btw: Btw, config_dir: Path, src: Path, type_: str) -> None:
    work = created(btw("fs-init", "--type", type_, src, "home"))
    assert work.parent == config_dir and re.fullmatch(r"home\.[0-9a-f]{8,64}", work.name)
    assert os.listdir(config_dir) == [work.name]
    assert sorted(os.listdir(work)) == ["backup", "config.py", "real", "src"]
    assert os.readlink(work / "src") == str(src)
    assert os.listdir(work / "backup") == []


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_nobody_else_can_read_or_write_it(btw: Btw, config_dir: Path, src: Path, umask: int) -> None:
    work = created(btw("fs-init", "--type", "tar", src, "home", umask=umask))
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (config_dir, work, work / "backup", work / "config.py")
    ]
    assert modes == [0o700, 0o700, 0o700, 0o600]


@pytest.mark.parametrize("type_", ["rdiff", "tar"])
def test_config_sets_the_type_and_shows_every_default(btw: Btw, src: Path, type_: str) -> None:
    text = (created(btw("fs-init", "--type", type_, src, "home")) / "config.py").read_text()
    values: dict[str, object] = {}
    exec(text, {}, values)
    assert values == {"TYPE": type_}
    shown = dict(re.findall(r"^# ?([A-Z_]+) = (.+)$", text, re.MULTILINE))
    assert {name: ast.literal_eval(value) for name, value in shown.items()} == DEFAULTS


def test_uncommented_defaults_are_valid(btw: Btw, src: Path, dst: Path) -> None:
    config = created(btw("fs-init", "--type", "tar", src, "home")) / "config.py"
    config.write_text(re.sub(r"^# ?([A-Z_]+ = )", r"\1", config.read_text(), flags=re.MULTILINE))
    assert btw("fs", src, dst) == Result(0, "", "")


def test_the_same_path_gets_the_same_hash(btw: Btw, src: Path, tmp_path: Path) -> None:
    one, other = (
        created(btw("--config-dir", tmp_path / name, "fs-init", "--type", "tar", src, "home"))
        for name in "ab"
    )
    assert one.name == other.name


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}//", "{}/.", "{}/sub/..", "/{}", "//{}"])
def test_one_directory_per_path(btw: Btw, config_dir: Path, src: Path, dst: Path, spelling: str) -> None:
    """However the path is spelled, and even with another name or type."""
    work = created(btw("fs-init", "--type", "tar", src, "home"))
    path = spelling.format(src)
    assert btw("fs-init", "--type", "rdiff", path, "other") == Result(1, "", f"{EXISTS}\n")
    assert os.listdir(config_dir) == [work.name]
    assert btw("fs", path, dst) == Result(0, "", "")


def test_a_path_with_a_trailing_slash_is_the_path(btw: Btw, src: Path, dst: Path) -> None:
    work = created(btw("fs-init", "--type", "tar", f"{src}/", "home"))
    assert os.readlink(work / "src") == str(src)
    assert btw("fs", src, dst).status == 0


def test_symbolic_links_are_not_resolved(btw: Btw, src: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(src)
    one = created(btw("fs-init", "--type", "tar", src, "home"))
    other = created(btw("fs-init", "--type", "tar", link, "home"))
    assert one != other and os.readlink(other / "src") == str(link)


def test_several_sources_may_have_one_name(btw: Btw, config_dir: Path, src: Path) -> None:
    made = {
        created(btw("fs-init", "--type", "tar", path, "home")) for path in (src, src / "sub", src / "file")
    }
    assert set(config_dir.iterdir()) == made and len(made) == 3


@pytest.mark.parametrize("name", ["home.0000", "home.d41d8cd98f00b204e9800998ecf8427e", "a.b.c.1"])
def test_directories_with_another_hash_are_found(
    btw: Btw, config_dir: Path, src: Path, dst: Path, name: str
) -> None:
    by_hand(config_dir, name, f"{src}/" if name == "home.0000" else src)
    assert btw("fs", src, dst) == Result(0, "", "")
    assert btw("fs-init", "--type", "tar", src, "home") == Result(1, "", f"{EXISTS}\n")
    assert os.listdir(config_dir) == [name]


def test_other_entries_of_the_configuration_directory_do_not_matter(
    btw: Btw, config_dir: Path, src: Path, dst: Path
) -> None:
    config_dir.mkdir()
    (config_dir / "global.py").write_text("MAX_INCREMENTAL_COUNT = 3\n")
    (config_dir / "file").write_text("a file\n")
    (config_dir / "empty").mkdir()
    (config_dir / "odd").mkdir()
    (config_dir / "odd" / "src").mkdir()
    (config_dir / "dangling").symlink_to("nowhere")
    work = created(btw("fs-init", "--type", "tar", src, "home"))
    assert btw("fs", src, dst).status == 0
    assert len(os.listdir(config_dir)) == 6 and work.is_dir()


def test_without_a_backup_directory_it_works_too(btw: Btw, config_dir: Path, src: Path, dst: Path) -> None:
    (by_hand(config_dir, "home.0000", src, "rdiff") / "backup").rmdir()
    assert btw("fs", src, dst) == Result(0, "", "")


class TestIfMissing:
    def test_makes_what_is_missing(self, btw: Btw, src: Path) -> None:
        assert created(btw("fs-init", "--if-missing", "--type", "tar", src, "home")).is_dir()

    def test_succeeds_where_there_is_one(self, btw: Btw, config_dir: Path, src: Path) -> None:
        config = created(btw("fs-init", "--type", "tar", src, "home")) / "config.py"
        config.write_text("TYPE = 'tar'\nCOMPRESSION = 'xz'\n")
        assert btw("fs-init", "--if-missing", "--type", "tar", src, "other") == Result(0, "", "")
        assert "xz" in config.read_text() and len(os.listdir(config_dir)) == 1

    def test_fails_for_another_type(self, btw: Btw, src: Path) -> None:
        created(btw("fs-init", "--type", "tar", src, "home"))
        result = btw("fs-init", "--if-missing", "--type", "rdiff", src, "home")
        assert result.status == 1 and result.err.startswith(EXISTS)


class TestRefusals:
    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "/abs", ".hidden"])
    def test_wrong_names(self, btw: Btw, config_dir: Path, src: Path, tmp_path: Path, name: str) -> None:
        before = sorted(os.listdir(tmp_path))
        result = btw("fs-init", "--type", "tar", src, name)
        assert (result.status, result.out) == (1, "")
        assert re.fullmatch(r"btw_backup: .+\n", result.err)
        assert not config_dir.exists() and sorted(os.listdir(tmp_path)) == before

    @pytest.mark.parametrize("path", ["src", "./src", "", "~"])
    def test_relative_path(self, btw: Btw, config_dir: Path, src: Path, path: str) -> None:
        result = btw("fs-init", "--type", "tar", path, "home")
        assert result == Result(1, "", "btw_backup: the source path must be absolute\n")
        assert not config_dir.exists()

    def test_type_is_needed(self, btw: Btw, config_dir: Path, src: Path) -> None:
        for arguments in ([], ["--type", "zip"]):
            result = btw("fs-init", *arguments, src, "home")
            assert result.status == 2 and "--type" in result.err
        assert not config_dir.exists()

    def test_configuration_directory_is_a_file(self, btw: Btw, config_dir: Path, src: Path) -> None:
        config_dir.write_text("a file\n")
        result = btw("fs-init", "--type", "tar", src, "home")
        assert result.status == 1 and re.fullmatch(rf"btw_backup: .*{config_dir}.*\n", result.err)

    def test_no_working_directory(self, btw: Btw, config_dir: Path, src: Path, dst: Path) -> None:
        """The error repeats the path as it was written, with or without a configuration directory."""
        said = Result(1, "", f"btw_backup: no working directory for: {src}/\n")
        assert btw("fs", f"{src}/", dst) == said
        assert not config_dir.exists()
        by_hand(config_dir, "home.0000", src / "sub")
        assert btw("fs", f"{src}/", dst) == said


def test_runs_at_the_same_time_make_one_directory(btw: Btw, config_dir: Path, src: Path) -> None:
    argv: list[str | Path] = ["-m", "btw_backup", "--config-dir", config_dir, "fs-init", "--type", "tar", src]
    runs = [
        subprocess.Popen(
            [sys.executable, *argv, f"name{number}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for number in range(4)
    ]
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1, 1, 1]
    assert sorted(said) == [b"", *[f"{EXISTS}\n".encode()] * 3]
    assert len(os.listdir(config_dir)) == 1


def test_paths_that_are_not_utf8(btw: Btw, tmp_path: Path, dst: Path) -> None:
    source = tmp_path / os.fsdecode(b"\xe9 :: \n")
    source.mkdir()
    (source / "file").write_text("content\n")
    created(btw("fs-init", "--type", "tar", source, "home"))
    assert btw("fs", source, dst) == Result(0, "", "")
