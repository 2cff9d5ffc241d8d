"""Configuration files: every error is reported, and nothing untrusted is executed."""

import os
import re
import stat
from pathlib import Path

import pytest

from .helpers.running import Btw, Result

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def config(config_dir: Path, src: Path) -> Path:
    """The path of a configuration file for ``src``; its working directory exists."""
    work = config_dir / "test.0123"
    (work / "backup").mkdir(mode=0o700, parents=True)
    (work / "src").symlink_to(src)
    return work / "config.py"


def check_failed(result: Result, *lines: str) -> None:
    """Fail unless the run printed exactly these lines, in which ``…`` stands for anything."""
    pattern = "".join(re.escape(f"btw_backup: {line}").replace("…", ".*") + "\n" for line in lines)
    assert (result.status, result.out) == (1, "")
    assert re.fullmatch(pattern, result.err), result.err


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("TYPE", ["'zip'", "''", "1", "None", "['tar']", "'TAR'"]),
            ("MAX_INCREMENTAL_COUNT", ["-1", "'10'", "1.5", "None", "True", "[]"]),
            ("MAX_INCREMENTAL_SPAN", ["24", "'soon'", "''", "None", "'-1h'", "'99999999999w'", "b'24h'"]),
            (
                "EXCLUDE",
                ["'*.o'", "[1]", "None", "['/var/cache']", "['./tmp/']", "['']", "{'*.o': 1}", "['a\\0b']"],
            ),
            ("EXCLUDE_FROM", ["''", "1", "['patterns']", "'a\\0b'"]),
            ("EXCLUDE_CACHES", ["1", "'yes'", "None"]),
            (
                "EXCLUDE_IF_PRESENT",
                ["'tag'", "[1]", "None", "['']", "['.']", "['..']", "['a/b']", "['a\\0b']"],
            ),
            ("EXCLUDE_LARGER_THAN", ["500", "'0'", "'1.5G'", "'1GB'", "'-1M'", "'large'", "''", "True"]),
            ("ONE_FILE_SYSTEM", ["1", "'yes'", "None"]),
            ("COMPRESSION", ["'rar'", "9", "None", "''", "'BZIP2'"]),
            ("QUICK_CHECK", ["0", "'no'", "None"]),
        ],
    )
    def test_values(self, btw: Btw, config: Path, src: Path, dst: Path, name: str, values: list[str]) -> None:
        for value in values:
            other = "" if name == "TYPE" else "TYPE = 'tar'"
            config.write_text(f"{other}\n# a comment\n{name} = {value}\n")
            check_failed(btw("fs", src, dst), f"{config}:3: …{name}…")
        assert os.listdir(dst) == []

    def test_all_of_a_file_at_once(self, btw: Btw, config: Path, src: Path, dst: Path) -> None:
        config.write_text(
            "TYPE = 'zip'\n\nMAX_INCREMENTAL_COUNT = -1\nEXCLUDES = []\n"
            "MAX_INCREMENTAL_SPAN = 'x'\nQUICK_CHECK = 3\n"
        )
        check_failed(
            btw("fs", src, dst),
            f"{config}:1: …TYPE…",
            f"{config}:3: …MAX_INCREMENTAL_COUNT…",
            f"{config}:4: …EXCLUDES…EXCLUDE…",
            f"{config}:5: …MAX_INCREMENTAL_SPAN…",
            f"{config}:6: …QUICK_CHECK…",
        )

    def test_a_missing_type_is_told_with_the_others(
        self, btw: Btw, config: Path, src: Path, dst: Path
    ) -> None:
        config.write_text("\nQUICK_CHECK = 3\n")
        result = btw("fs", src, dst)
        assert (result.status, result.out) == (1, "")
        said = result.err.splitlines()
        assert len(said) == 2 and all(line.startswith(f"btw_backup: {config}:") for line in said)
        assert any("TYPE" in line for line in said) and any(f"{config}:2: " in line for line in said)

    @pytest.mark.parametrize("text", ["", "# nothing\n", None], ids=["empty", "comment", "no file"])
    def test_missing_type(self, btw: Btw, config: Path, src: Path, dst: Path, text: str | None) -> None:
        if text is not None:
            config.write_text(text)
        check_failed(btw("fs", src, dst), f"{config}…TYPE…")

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [("MAX_INCREMENTAL_COUNTS", "MAX_INCREMENTAL_COUNT"), ("EXCLUDES", "EXCLUDE"), ("TYP", "TYPE")],
    )
    def test_nearest_name(
        self, btw: Btw, config: Path, src: Path, dst: Path, name: str, nearest: str
    ) -> None:
        config.write_text(f"TYPE = 'tar'\n{name} = 3\n")
        result = btw("fs", src, dst)
        check_failed(result, f"{config}:2: …{name}…")
        assert re.search(rf"\b{nearest}\?", result.err)

    @pytest.mark.parametrize(
        ("text", "line", "said"),
        [
            ("TYPE = 'tar'\nif:\n", 2, ""),
            ("TYPE = 'tar\n", 1, ""),
            ("TYPE = 'tar'\n\n\n1 / 0\n", 4, "ZeroDivisionError"),
            ("import no_such_module\n", 1, "no_such_module"),
            ("def helper():\n    raise OSError('gone')\n\nhelper()\n", 2, "gone"),
            ("TYPE = undefined\n", 1, "undefined"),
            ("raise SystemExit(0)\n", 1, "SystemExit"),
            ("TYPE = 'tar'\nimport sys\nsys.exit()\n", 3, ""),
        ],
    )
    def test_broken_code(
        self, btw: Btw, config: Path, src: Path, dst: Path, text: str, line: int, said: str
    ) -> None:
        config.write_text(text)
        check_failed(btw("fs", src, dst), f"{config}:{line}: …{said}…")

    @pytest.mark.parametrize(
        "content", [b"TYPE = 'tar'\nEXCLUDE = ['\xff']\n", b"TYPE = 'tar'\0\n"], ids=["not UTF-8", "NUL"]
    )
    def test_not_text(self, btw: Btw, config: Path, src: Path, dst: Path, content: bytes) -> None:
        config.write_bytes(content)
        check_failed(btw("fs", src, dst), f"{config}:…")

    def test_database_options(self, btw: Btw, config_dir: Path, dst: Path) -> None:
        """TYPE and similar options are for filesystem backups only."""
        config_dir.mkdir()
        path = config_dir / "shop.py"
        path.write_text(
            "TYPE = 'tar'\nCONNECTION = 1\nRUN_AS = 'no-such-user'\nMAX_INCREMENTAL_COUNT = 'x'\n"
        )
        check_failed(
            btw("db", "shop", dst),
            f"{path}:1: …TYPE…",
            f"{path}:2: …CONNECTION…",
            f"{path}:3: …no-such-user…",
            f"{path}:4: …MAX_INCREMENTAL_COUNT…",
        )


def test_the_file_is_executed_as_python(btw: Btw, config: Path, src: Path, dst: Path) -> None:
    config.write_text(
        "import os\n_days = 7\nlower = 'ignored'\nMAX_INCREMENTAL_SPAN = f'{_days}d'\n"
        "TYPE = 'rdiff' if os.path.isabs(__file__) else None\nMAX_INCREMENTAL_COUNT = sum([1, 2])\n"
        "EXCLUDE = ['*.o'] + ['./tmp']\nCOMPRESSION = 'xz'\nONE_FILE_SYSTEM = not False\n"
        "QUICK_CHECK = False\n"
    )
    assert btw("fs", src, dst) == Result(0, "", "")


class TestTrust:
    """A configuration file is code that root runs."""

    @pytest.fixture(autouse=True)
    def code(self, config: Path, tmp_path: Path) -> None:
        config.write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\nTYPE = 'tar'\n")

    def check_refused(self, result: Result, tmp_path: Path, path: Path) -> None:
        assert (result.status, result.out) == (1, "")
        assert re.fullmatch(r"btw_backup: .+\n", result.err) and str(path) in result.err
        assert not (tmp_path / "executed").exists()

    def test_ours_is_executed(self, btw: Btw, src: Path, dst: Path, tmp_path: Path) -> None:
        assert btw("fs", src, dst).status == 0 and (tmp_path / "executed").exists()

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o1602], ids=oct)
    def test_file_that_others_can_write(
        self, btw: Btw, config: Path, src: Path, dst: Path, tmp_path: Path, mode: int
    ) -> None:
        config.chmod(mode)
        assert stat.S_IMODE(config.stat().st_mode) == mode
        self.check_refused(btw("fs", src, dst), tmp_path, config)

    @pytest.mark.parametrize("level", [0, 1, 2], ids=["working", "configuration", "above"])
    @pytest.mark.parametrize("mode", [0o770, 0o707], ids=oct)
    def test_directory_that_others_can_write(
        self, btw: Btw, config: Path, src: Path, dst: Path, tmp_path: Path, level: int, mode: int
    ) -> None:
        config.parents[level].chmod(mode)
        self.check_refused(btw("fs", src, dst), tmp_path, config.parents[level])

    @as_root
    @pytest.mark.parametrize("level", [None, 0, 1, 2], ids=["file", "working", "configuration", "above"])
    def test_owner(
        self, btw: Btw, config: Path, src: Path, dst: Path, tmp_path: Path, level: int | None
    ) -> None:
        path = config if level is None else config.parents[level]
        os.chown(path, 12345, -1)
        self.check_refused(btw("fs", src, dst), tmp_path, path)

    @as_root
    def test_link_to_somebody_elses_file(
        self, btw: Btw, config: Path, src: Path, dst: Path, tmp_path: Path
    ) -> None:
        config.rename(tmp_path / "theirs.py")
        os.chown(tmp_path / "theirs.py", 12345, -1)
        config.symlink_to(tmp_path / "theirs.py")
        self.check_refused(btw("fs", src, dst), tmp_path, config)

    @pytest.mark.parametrize("steps", [1, 2])
    def test_link_by_way_of_a_directory_that_others_can_write(
        self, btw: Btw, config: Path, src: Path, dst: Path, tmp_path: Path, steps: int
    ) -> None:
        shared = tmp_path / "shared"
        shared.mkdir()
        target = shared / "link.py"
        if steps == 1:
            config.rename(target)
        else:
            config.rename(tmp_path / "good.py")
            target.symlink_to(tmp_path / "good.py")
        config.symlink_to(target)
        shared.chmod(0o777)
        self.check_refused(btw("fs", src, dst), tmp_path, shared)

    def test_link_to_a_file_of_ours(
        self, btw: Btw, config: Path, src: Path, dst: Path, tmp_path: Path
    ) -> None:
        config.rename(tmp_path / "ours.py")
        config.symlink_to("../../ours.py")
        assert btw("fs", src, dst).status == 0 and (tmp_path / "executed").exists()

    def test_configuration_directory_behind_a_link(
        self, btw: Btw, config_dir: Path, src: Path, dst: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "shared").mkdir()
        config_dir.rename(tmp_path / "shared" / "config")
        config_dir.symlink_to("shared/config")
        assert btw("fs", src, dst).status == 0
        (tmp_path / "executed").unlink()
        (tmp_path / "shared").chmod(0o777)
        self.check_refused(btw("fs", src, dst), tmp_path, tmp_path / "shared")

    @pytest.mark.parametrize("kind", ["fifo", "directory", "dangling", "loop"])
    def test_no_regular_file(
        self, btw: Btw, config: Path, src: Path, dst: Path, tmp_path: Path, kind: str
    ) -> None:
        config.unlink()
        if kind == "fifo":
            os.mkfifo(config)
        elif kind == "directory":
            config.mkdir()
        else:
            config.symlink_to("nowhere" if kind == "dangling" else config)
        self.check_refused(btw("fs", src, dst), tmp_path, config)

    def test_database_file(self, btw: Btw, config: Path, config_dir: Path, dst: Path, tmp_path: Path) -> None:
        for name in ("shop.py", "global.py"):
            config.rename(config_dir / name)
            (config_dir / name).chmod(0o666)
            self.check_refused(
                btw("db", *(["shop"] if name == "shop.py" else ["-g"]), dst), tmp_path, config_dir / name
            )
            (config_dir / name).rename(config)
