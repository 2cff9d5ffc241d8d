"""Writes the man pages and the shell completions into a directory: ``generate.py OUTDIR``."""

import argparse
import os
import sys
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

sys.path.insert(0, str(Path(__file__).parent.parent))
from btw_backup import __version__
from btw_backup.cli import COMMANDS, build_parser

PROG = "btw-backup"
COMPLETIONS = {"bash": PROG, "zsh": f"_{PROG}", "fish": f"{PROG}.fish"}

# What is a path, by the name of the argument or of its value.
PATHS = {
    "--config-dir": shtab.DIRECTORY,
    "dst": shtab.DIRECTORY,
    "target": shtab.DIRECTORY,
    "src": shtab.FILE,
    "FILE": shtab.FILE,
}


def main(outdir: Path) -> None:
    for command in (None, *COMMANDS):
        page = man_page(command)
        write(outdir / "man" / f"{page.prog}.1", str(page))
    parser = build_parser(PROG)
    for each in (parser, *subparsers(parser).values()):
        mark_paths(each)
    for shell, name in COMPLETIONS.items():
        write(outdir / shell / name, shtab.complete(parser, shell) + "\n")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands."""
    [action] = (action for action in parser._actions if isinstance(action.choices, dict))
    assert isinstance(action.choices, dict)
    return action.choices


def mark_paths(parser: argparse.ArgumentParser) -> None:
    """Say which arguments shtab shall complete as paths."""
    for action in parser._actions:
        for name in (*action.option_strings, action.dest, action.metavar):
            if name in PATHS:
                action.complete = PATHS[name]  # type: ignore[attr-defined]


def man_page(command: str | None) -> Manpage:
    """The page of a command, or of the program: a new parser for each, since this changes it."""
    program = build_parser(PROG)
    commands = subparsers(program)
    parser = commands[command] if command else program
    example, parser.epilog = parser.epilog, None

    page = Manpage(parser)
    page.prog = f"{PROG}-{command}" if command else PROG
    page.synopsis[1:] = map(roff, page.synopsis[1:])
    page.source = f"{PROG} {__version__}"
    page.manual = "Backups of one server"
    page.description = COMMANDS[command] if command else "backups of file hierarchies and databases"
    if example:
        page.add_section("EXAMPLE", "=", f".EX\n{roff(example.removeprefix('example: '))}\n.EE")
    others = [PROG, *(f"{PROG}-{other}" for other in COMMANDS)]
    others = [f".BR {roff(other)} (1)" for other in others if other != page.prog]
    page.add_section("SEE ALSO", "=", " ,\n".join(others))
    if not command:
        commands.clear()  # they are listed, and have pages of their own
    return page


def roff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


if __name__ == "__main__":
    os.environ["COLUMNS"] = "10000"  # each text on one line, whatever the terminal: roff fills them
    main(Path(sys.argv[1]))
