"""Writes the man pages, the shell completions and the reference into a directory: ``generate.py OUTDIR``."""

import argparse
import os
import sys
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

sys.path.insert(0, str(Path(__file__).parent.parent))
from reference import commands_of, reference, statuses_of

from btw_backup import __version__
from btw_backup.cli import COMMANDS, build_parser
from btw_backup.errors import STATUSES

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
    write(outdir / "reference.rst", reference(PROG))
    for command in (None, *COMMANDS):
        page = man_page(command)
        write(outdir / "man" / f"{page.prog}.1", str(page))
    parser = build_parser(PROG)
    for each in (parser, *commands_of(parser).values()):
        mark_paths(each)
    for shell, name in COMPLETIONS.items():
        write(outdir / shell / name, shtab.complete(parser, shell) + "\n")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def mark_paths(parser: argparse.ArgumentParser) -> None:
    """Say which arguments shtab shall complete as paths."""
    for action in parser._actions:
        for name in (*action.option_strings, action.dest, action.metavar):
            if name in PATHS:
                action.complete = PATHS[name]  # type: ignore[attr-defined]


def man_page(command: str | None) -> Manpage:
    """The page of a command, or of the program: a new parser for each, since this changes it."""
    program = build_parser(PROG)
    commands = commands_of(program)
    parser = commands[command] if command else program
    example, parser.epilog = parser.epilog, None

    page = Manpage(parser)
    page.prog = f"{PROG}-{command}" if command else PROG
    page.synopsis[1:] = map(roff, page.synopsis[1:])
    page.source = f"{PROG} {__version__}"
    page.manual = "Backups of one server"
    page.description = COMMANDS[command] if command else "backups of file hierarchies and databases"
    if listed := exit_statuses(command):
        page.add_section("EXIT STATUS", "=", listed)
    if example:
        page.add_section("EXAMPLE", "=", f".EX\n{roff(example.removeprefix('example: '))}\n.EE")
    others = [PROG, *(f"{PROG}-{other}" for other in COMMANDS)]
    others = [f".BR {roff(other)} (1)" for other in others if other != page.prog]
    page.add_section("SEE ALSO", "=", " ,\n".join(others))
    if not command:
        commands.clear()  # they are listed, and have pages of their own
    return page


def exit_statuses(command: str | None) -> str:
    """The section on a command's exit statuses, or on the program's. Empty if it has none."""
    meanings = statuses_of(command) if command else STATUSES
    listed = "".join(f".TP\n.B {roff(status)}\n{roff(meaning)}\n" for status, meaning in meanings.items())
    return f"{listed}.P\nThe others are those of\n.BR {roff(PROG)} (1)." if command and listed else listed


def roff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


if __name__ == "__main__":
    os.environ["COLUMNS"] = "10000"  # each text on one line, whatever the terminal: roff fills them
    main(Path(sys.argv[1]))
