"""The page ``docs/reference.rst``, from the parser and from the options of configuration files."""

import argparse
import importlib
import re
from collections.abc import Iterator, Sequence, Set

from btw_backup.cli import COMMANDS, build_parser
from btw_backup.errors import STATUSES
from btw_backup.options import DB_OPTIONS, FS_OPTIONS, GENERAL_OPTIONS

# Where a page explains a command.
PAGES = {
    "fs": ("How a run works", "files.rst#how-a-run-works"),
    "fs-init": ("The first backup", "files.rst#the-first-backup"),
    "list": ("What there is", "files.rst#what-there-is"),
    "db": ("Backing up databases", "databases.rst"),
    "run": ("Everything at once", "configuration.rst#everything-at-once"),
    "fs-restore": ("Getting things back", "restoring.rst"),
    "db-restore": ("Restoring databases", "databases.rst#restoring"),
    "ls": ("What a point holds", "restoring.rst#what-a-point-holds"),
    "find": ("When was it good", "restoring.rst#when-was-it-good"),
    "diff": ("What has changed", "restoring.rst#what-has-changed"),
    "verify": ("Verifying", "monitoring.rst#verifying"),
    "prune": ("Retention", "configuration.rst#retention"),
    "status": ("The age of the backups", "monitoring.rst#the-age-of-the-backups"),
    "sync": ("Sending off-site", "offsite.rst#sending"),
    "fetch": ("Getting it back", "offsite.rst#getting-it-back"),
    "check-config": ("Checking", "configuration.rst#checking"),
}
WIDTH = 100
OPTIONS = {option.name: option for option in (*FS_OPTIONS, *DB_OPTIONS, *GENERAL_OPTIONS)}
GENERAL, FS, DB = ({option.name for option in file} for file in (GENERAL_OPTIONS, FS_OPTIONS, DB_OPTIONS))
INTRODUCTION = """\
=========
Reference
=========

.. ``make docs`` writes this page: change the help of the commands, or btw_backup/options.py.

Every command with its options, and every option of the configuration files. The `other pages`_ explain them.

.. _other pages: ../README.rst#documentation
"""


def reference(prog: str) -> str:
    """Return the text of the page."""
    program = build_parser(prog)
    parsers = commands_of(program)
    parts = [
        INTRODUCTION,
        heading("The program", "="),
        *of_parser(program),
        table([(f"`{name}`_", quoted(about)) for name, about in COMMANDS.items()], ("Command", "Meaning")),
        f"``python -m {prog.replace('-', '_')}`` is the same program. ``-h`` shows its help or, after a"
        " command, that of the command.\n",
        heading("Exit statuses", "-"),
        statuses(STATUSES),
        "Some commands say more about them below.\n",
        heading("Commands", "="),
    ]
    for name, parser in parsers.items():
        parts += of_command(name, parser)
    parts += [
        heading("Options of configuration files", "="),
        "`Configuration <configuration.rst>`__ says where these files are and how to write them.\n",
        heading("In every file", "-"),
        options_table(GENERAL & FS),
        heading("In the general file", "-"),
        options_table(GENERAL - FS),
        heading("In the file of a backup", "-"),
        options_table(FS & DB - GENERAL),
        heading("In the file of a filesystem backup", "-"),
        options_table(FS - DB),
        heading("In the file of a database, or of the globals", "-"),
        options_table(DB - FS),
    ]
    return "\n".join(parts)


def commands_of(program: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands."""
    [action] = (action for action in program._actions if isinstance(action.choices, dict))
    assert isinstance(action.choices, dict)
    return action.choices


def arguments_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments that are not hidden."""
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


def statuses_of(command: str) -> dict[str, str]:
    """What a command says of its exit statuses."""
    module = importlib.import_module(f"btw_backup.{command.replace('-', '_')}")
    found: dict[str, str] = getattr(module, "STATUSES", {})
    return found


def of_command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield heading(name, "-")
    yield from of_parser(parser)
    if own := statuses_of(name):
        yield "Exit statuses:\n"
        yield statuses(own)
    assert parser.epilog
    yield f"Example::\n\n    # {parser.epilog.removeprefix('example: ')}\n"
    yield "Explained in `{} <{}>`__.\n".format(*PAGES[name])


def of_parser(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What a parser says: how it is called, what it does, and its arguments."""
    yield f"{parser.description}\n"
    yield f"::\n\n{synopsis(parser)}\n"
    for action in arguments_of(parser):
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            yield f"{term(action)}\n    {text_of(parser, action)}\n"


def term(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {value_of(action)}"
    names = [f"``{name}{value}``" for name in action.option_strings]
    return ", ".join(names) or f"``{value_of(action)}``"


def text_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An argument's help, as the program shows it, as text of the page."""
    return quoted(parser._get_formatter()._expand_help(action))


def quoted(text: str) -> str:
    """Plain text, for a page in which some characters are markup."""
    return re.sub(r"([\\*`|_])", r"\\\1", text)


def value_of(action: argparse.Action) -> str:
    if action.metavar is None and action.choices:
        return "{" + ",".join(action.choices) + "}"
    return str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))


def synopsis(parser: argparse.ArgumentParser) -> str:
    """How it is called: argparse's own form differs between versions of Python."""
    words = [parser.prog]
    group_of = {
        action.dest: group for group in parser._mutually_exclusive_groups for action in group._group_actions
    }
    for action in arguments_of(parser):
        group = group_of.get(action.dest)
        if not action.option_strings:
            continue
        if group is None:
            words.append(option_word(action) if action.required else f"[{option_word(action)}]")
        elif action is group._group_actions[0]:
            words.append("[" + " | ".join(map(option_word, group._group_actions)) + "]")
    for action in arguments_of(parser):
        if not action.option_strings:
            words.append(positional(action))
    return wrapped(words)


def option_word(action: argparse.Action) -> str:
    name = action.option_strings[0]
    return name if action.nargs == 0 else f"{name} {value_of(action)}"


def positional(action: argparse.Action) -> str:
    value = value_of(action)
    forms = {"?": f"[{value}]", "*": f"[{value} ...]", "+": f"{value} [{value} ...]", "A...": f"{value} ..."}
    return forms.get(str(action.nargs), value)


def wrapped(words: Sequence[str]) -> str:
    """The words, indented, in lines that are not too long."""
    lines = ["   "]
    for word in words:
        if len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append(" " * (4 + len(words[0])))
        lines[-1] += f" {word}"
    return "\n".join(lines)


def statuses(meanings: dict[str, str]) -> str:
    return "\n".join(f"``{status}``\n    {quoted(meaning)}\n" for status, meaning in meanings.items())


def options_table(names: Set[str]) -> str:
    options = [option for option in OPTIONS.values() if option.name in names]
    rows = [(literal(each.name), literal(shown(each.default)), quoted(each.about)) for each in options]
    return table(rows, ("Option", "Default", "Meaning"))


def literal(text: str) -> str:
    return f"``{text}``"


def shown(default: object) -> str:
    return repr(default).replace("'", '"')


def heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """A table, each column as wide as it needs to be."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])
