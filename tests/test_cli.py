"""The command line as a whole: usage, names, exit statuses, output that cannot be written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers.destinations import BASE, add_tarball
from .helpers.running import Btw, Result

WIDE = {"COLUMNS": "300"}
SCRIPT = Path(sys.executable).with_name("btw-backup")


def test_help_names_the_commands_and_general_options(btw: Btw) -> None:
    result = btw("--help", env=WIDE)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("usage: btw_backup [-h] [-q")
    for text in (
        "-q, --quiet",
        "-v, --verbose",
        "--config-dir CONFIG_DIR",
        "--version",
        "fs  ",
        "fs-init  ",
        "list  ",
        "db  ",
        "backs up a filesystem hierarchy",
        "initializes the working directory for backups",
        "lists backups",
        "makes a database backup",
    ):
        assert text in result.out


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("fs", ["[-h] [-u UID[:GID]]", "src dst"]),
        ("fs-init", ["[-h] --type {rdiff,tar}", "src name"]),
        ("db", ["[-h] [-g] [-u UID[:GID]]", "[db] dst"]),
        ("list", ["[-h]", "[dst ...]"]),
    ],
)
def test_usage_lines(btw: Btw, command: str, parts: list[str]) -> None:
    begin, end = parts
    for result, output in (
        (btw(command, "-h", env=WIDE), "out"),
        (btw(command, "--no-such", env=WIDE), "err"),
    ):
        first = getattr(result, output).splitlines()[0]
        assert first.startswith(f"usage: btw_backup {command} {begin}") and first.endswith(f" {end}")
        assert result.status == (0 if output == "out" else 2)


def test_version(btw: Btw) -> None:
    result = btw("--version")
    assert (result.status, result.err) == (0, "")
    assert re.fullmatch(r"btw_backup \d+(\.\d+)+\S*\n", result.out)
    script = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True)
    assert script.stdout == result.out.replace("_", "-")


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "-q",
        "backup",
        "fs",
        "fs /src",
        "fs /src /dst more",
        "fs-init --type tar /src",
        "fs-init /src name",
        "fs-init --type zip /src name",
        "list",
        "db",
        "db a b c",
        "-q -v list .",
        "--quiet --verbose list .",
        "--config-dir",
        "fs -u",
        "list --nonsense .",
    ],
)
def test_usage_errors(btw: Btw, config_dir: Path, arguments: str) -> None:
    result = btw(*arguments.split())
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("usage: btw_backup")
    assert re.match(r"btw_backup.*: error: ", result.err.splitlines()[-1])
    assert not config_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["db"], "either -g (--global) or a database name must be specified"),
        (["db", "-g", "name"], "-g (--global) cannot be used with a database name"),
        (["db", "--global", "name"], "-g (--global) cannot be used with a database name"),
    ],
)
def test_a_database_or_the_globals(btw: Btw, dst: Path, arguments: list[str], text: str) -> None:
    result = btw(*arguments, dst)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1] == f"btw_backup: {text}"
    assert os.listdir(dst) == []


def test_the_configuration_directory_is_in_the_home_by_default(src: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    argv: list[str | Path] = [SCRIPT, "fs-init", "--type", "tar", src, "name"]
    done = subprocess.run(
        argv, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path / "home")}
    )
    assert (done.returncode, done.stderr) == (0, "")
    [made] = (tmp_path / "home" / ".btw-backup").iterdir()
    assert done.stdout == f"btw-backup: created {made}\n"


def test_a_relative_configuration_directory(btw: Btw, src: Path, tmp_path: Path) -> None:
    result = btw(
        "--config-dir", "conf", "fs-init", "--type", "tar", src, "name", cwd=tmp_path, env=found_here()
    )
    assert result.out.startswith(f"btw_backup: created {tmp_path}/conf/name.")


def found_here() -> dict[str, str]:
    """Return an environment for runs from another directory."""
    return {"PYTHONPATH": os.getcwd()}


@pytest.mark.parametrize("flag", ["-q", "-v"])
def test_errors_are_said_in_any_volume(btw: Btw, tmp_path: Path, flag: str) -> None:
    result = btw(flag, "list", tmp_path / "missing")
    assert (result.status, result.out) == (1, "")
    assert re.fullmatch(r"btw_backup: .*missing.*\n", result.err)


def test_control_characters_in_a_name_do_not_reach_the_terminal(btw: Btw, tmp_path: Path) -> None:
    result = btw("list", f"{tmp_path}/\x1b[2J\nbtw_backup: done")
    assert result.status == 1 and result.err.count("\n") == 1 and "\x1b" not in result.err


class TestOutputThatCannotBeWritten:
    def run(self, command: str, redirection: str) -> Result:
        argv = ["bash", "-c", f"{shlex.quote(str(SCRIPT))} {command} {redirection}; exit ${{PIPESTATUS[0]}}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        return Result(done.returncode, done.stdout, done.stderr)

    @pytest.fixture
    def full(self, dst: Path) -> Path:
        """A destination whose list does not fit into a pipe's buffer."""
        for number in range(4000):
            (dst / f"2026-11-{number // 3600 + 1:02}T00:{number // 60 % 60:02}:{number % 60:02}.tbz").touch()
        return dst

    @pytest.mark.parametrize("redirection", ["| head -n 1 >/dev/null", "| true"])
    def test_a_pipe_that_is_closed(self, full: Path, redirection: str) -> None:
        result = self.run(f"list {full}", redirection)
        assert (result.status, result.err) == (141, "")

    def test_a_pipe_that_is_closed_while_something_is_restored_into_it(
        self, dst: Path, tmp_path: Path
    ) -> None:
        add_tarball(dst, "2026-11-22T22:16:17.tbz", {"large": "x" * 1_000_000})
        (tmp_path / "dump").mkdir()
        (tmp_path / "dump" / "shop.dump").write_bytes(bytes(1_000_000))
        chain = tmp_path / "shop" / "2026-11-22T22:16:17"
        chain.parent.mkdir()
        argv: list[str | Path] = [
            "rdiff-backup",
            "--current-time",
            str(BASE),
            "backup",
            tmp_path / "dump",
            chain,
        ]
        subprocess.run(argv, check=True)
        for command in (f"fs-restore --to-stdout {dst} large", f"db-restore --output - {chain.parent}"):
            result = self.run(command, "| head -c 1")
            assert (result.status, len(result.out), result.err) == (141, 1, "")

    @pytest.mark.parametrize("command", ["list {dst}", "list --json {dst}", "--version"])
    def test_a_full_disk(self, dst: Path, command: str) -> None:
        (dst / "2026-11-22T22:16:17.tbz").touch()
        result = self.run(command.format(dst=dst), ">/dev/full")
        assert (result.status, result.err) == (1, "btw-backup: standard output: No space left on device\n")

    @pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
    @pytest.mark.parametrize("names", [[], ["2026-11-22T22:16:17.tbz"]], ids=["empty", "filled"])
    def test_closed_descriptors(self, dst: Path, redirection: str, names: list[str]) -> None:
        """A daemon may start us like that. Output to a closed descriptor vanishes, and is no error."""
        for name in names:
            (dst / name).touch()
        result = self.run(f"list {dst}", redirection)
        assert "Traceback" not in result.err and "Exception" not in result.err
        if redirection in ("2>&-", "<&-"):
            assert result == Result(0, "".join(f"{name}\n" for name in names), "")
        else:
            assert result.status == 0 and result.out == ""

    @pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&-"])
    def test_a_failure_without_stderr(self, dst: Path, redirection: str) -> None:
        assert self.run(f"list {dst}/missing", redirection) == Result(1, "", "")

    def test_a_backup_with_all_descriptors_closed(self, src: Path, dst: Path, config_dir: Path) -> None:
        """No output of a program that ours runs ends up in a file of the backup."""
        prefix = f"--config-dir {config_dir}"
        assert self.run(f"{prefix} fs-init --type rdiff {src} name", "").status == 0
        for _ in range(2):
            assert self.run(f"{prefix} fs {src} {dst}", "<&- >&- 2>&-").status == 0
        [chain] = dst.glob("2*")
        names = subprocess.run(
            ["tar", "--force-local", "-tf", chain / "backup.tar"], capture_output=True, text=True
        )
        assert (names.returncode, names.stdout.split()) == (0, ["./", "./file", "./sub/", "./sub/other"])

    @pytest.mark.parametrize("redirection", ["2> >(true)", "2>/dev/full"])
    def test_a_backup_counts_where_stderr_is_broken(
        self, src: Path, dst: Path, config_dir: Path, redirection: str
    ) -> None:
        """What can't be said does not undo what is stored, and hooks are told of a success."""
        prefix = f"-v --config-dir {config_dir}"
        assert self.run(f"{prefix} fs-init --type tar {src} name", "").status == 0
        [config] = config_dir.glob("name.*/config.py")
        said = dst.with_name("said")
        with config.open("a") as file:
            file.write("BEFORE = ['sleep', '0.2']\n")  # until nobody reads any more
            file.write("AFTER = lambda run: 1 / 0\n")
            file.write(f"ON_FAILURE = lambda run: open({str(said)!r}, 'w').write(run.error)\n")
        assert self.run(f"{prefix} fs {src} {dst}", redirection).status == 0
        assert len(list(dst.glob("2*"))) == 1
        assert not said.exists()
