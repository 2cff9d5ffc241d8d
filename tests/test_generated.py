"""Man pages, completions and help, generated from the parser."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from btw_backup import __version__
from btw_backup.cli import COMMANDS, build_parser

ROOT = Path(__file__).parent.parent
PROG = "btw-backup"
PAGES = {PROG: "", **{f"{PROG}-{command}": command for command in COMMANDS}}
SHELLS = {"bash": PROG, "zsh": f"_{PROG}", "fish": f"{PROG}.fish"}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generated")
    subprocess.run([sys.executable, ROOT / "tools/generate.py", path], check=True, timeout=60)
    return path


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command; that of the program is named ''."""
    program = build_parser(PROG)
    [commands] = (action for action in program._actions if isinstance(action.choices, dict))
    assert isinstance(commands.choices, dict)
    return {"": program, **commands.choices}


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            yield from action.option_strings


def test_a_page_for_the_program_and_each_command(generated: Path) -> None:
    assert {path.name for path in (generated / "man").iterdir()} == {f"{page}.1" for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_complete(generated: Path, parsers: dict[str, argparse.ArgumentParser], page: str) -> None:
    text = (generated / "man" / f"{page}.1").read_text().replace("\\-", "-")
    assert text.startswith(f".TH {page.upper()} ") and f"{PROG} {__version__}" in text
    assert re.search(rf"^\.SH NAME\n{page} - \w", text, re.MULTILINE)
    for option in options(parsers[PAGES[page]]):
        if option not in ("-h", "--help"):
            assert f"\\fB{option}\\fR" in text, option
    others = set(re.findall(r"^\.BR (\S+) \(1\)", text, re.MULTILINE))
    assert others == set(PAGES) - {page}
    assert ".SH EXAMPLE\n" in text


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_pages_have_no_warnings(generated: Path) -> None:
    pages = sorted((generated / "man").iterdir())
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-z", *pages], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_completions_name_every_command_and_option(
    generated: Path, parsers: dict[str, argparse.ArgumentParser], shell: str
) -> None:
    text = (generated / shell / SHELLS[shell]).read_text()
    for command, parser in parsers.items():
        assert re.search(rf"(?<![\w-]){command}(?![\w-])", text)
        for option in options(parser):
            if shell == "fish":  # -s u -l uid
                option = option.replace("--", "-l ") if option.startswith("--") else f"-s {option[1:]}"
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), (command, option)


@pytest.mark.parametrize("shell", SHELLS)
def test_completions_are_valid(generated: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    done = subprocess.run(
        [shell, "-n", generated / shell / SHELLS[shell]], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_choices_and_directories(generated: Path, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    (tmp_path / "file").touch()
    script = generated / "bash" / PROG

    def complete(*words: str | Path) -> list[str]:
        code = (
            'source "$1"; COMP_WORDS=("${@:2}"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n'
            '_shtab_btw_backup; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", code, "bash", script, PROG, *words], capture_output=True, text=True, timeout=60
        )
        return done.stdout.split()

    assert complete("") == [*COMMANDS]
    assert complete("fs-init", "--type", "") == ["rdiff", "tar"]
    assert complete("list", f"{tmp_path}/") == [f"{tmp_path}/backups"]
    assert complete("fs", f"{tmp_path}/f") == [f"{tmp_path}/file"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_and_ends_with_an_example(
    parsers: dict[str, argparse.ArgumentParser], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setitem(os.environ, "COLUMNS", "80")
    lines = parsers[command].format_help().splitlines()
    assert [line for line in lines if len(line) > 80] == []
    example = " ".join(lines[lines.index("", -3) + 1 :])
    assert example.startswith(f"example: {PROG} ") and f" {command}" in example


def test_the_program_imports_no_generator() -> None:
    code = f"import sys; from btw_backup.cli import build_parser; build_parser({PROG!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"shtab", "argparse_manpage"} & set(done.stdout.split())


def test_the_package_has_the_version_of_the_program() -> None:
    assert (ROOT / "debian/changelog").read_text().startswith(f"{PROG} ({__version__}) ")
