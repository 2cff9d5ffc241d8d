"""The command line: the parser, and how errors and signals become exit statuses."""

import argparse
import gc
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from . import __version__
from .errors import FAILED, Error, Terminated, end_on_signals
from .messages import Messages, suggestion

COMMANDS = {
    "fs": "backs up a filesystem hierarchy",
    "fs-init": "initializes the working directory for backups",
    "list": "lists backups",
    "db": "makes a database backup",
    "run": "makes all backups that are configured",
    "fs-restore": "restores a filesystem hierarchy",
    "db-restore": "restores a database or the database globals",
    "ls": "lists what a point holds",
    "find": "finds files by their names in every point",
    "diff": "shows what has changed between two points, or since one",
    "verify": "reads backups to the last byte and reports damage",
    "prune": "removes backups that a retention policy does not keep",
    "status": "reports the age and the size of backups",
    "sync": "sends backups to the off-site repository",
    "fetch": "retrieves destinations, or the configuration, from off-site",
    "check-config": "reports everything that is wrong with the configuration",
}


_VOLUME = {
    ("-q", "--quiet"): "prints only errors, even on a terminal",
    ("-v", "--verbose"): "prints what was done, even when not on a terminal",
}
# What people type who know other programs.
_MEANT = {
    "backup": "fs or db",
    "restore": "fs-restore or db-restore",
    "init": "fs-init",
    "snapshots": "list",
    "check": "verify",
    "forget": "prune",
    "config-check": "check-config",
    "help": "--help",
    "version": "--version",
}
# What argparse takes for an argument although it begins with a dash.
_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


class _Parser(argparse.ArgumentParser):
    """A parser that blames an unknown option or command itself, not what is missing beside it."""

    def check_options(self, args: Sequence[str]) -> None:
        """Exit with a usage error if one of the arguments is an option that does not exist."""
        known = self._option_string_actions
        for arg in args:
            if arg == "--":
                return
            if not arg.startswith("-") or arg == "-" or " " in arg or _NUMBER.fullmatch(arg):
                continue
            name = arg.partition("=")[0] if arg.startswith("--") else arg[:2]
            if not any(option.startswith(name) for option in known):
                self.error(f"unknown option {name}{suggestion(name, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.dest == "command" and value not in COMMANDS:
            meant = f": did you mean {_MEANT[value]}?" if value in _MEANT else suggestion(value, COMMANDS)
            self.error(f"no such command: {value}{meant}")
        super()._check_value(action, value)


class _CommandParser(_Parser):
    """The parser of one command. Its module is imported when the command line names it."""

    command = ""
    is_filled = False

    def fill(self) -> None:
        """Add the command's arguments."""
        if self.is_filled or not self.command:
            return
        module = importlib.import_module("." + self.command.replace("-", "_"), __package__)
        for option in _VOLUME:  # as before the command
            self.add_argument(*option, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        module.add_arguments(self)
        self.epilog = f"example: {module.EXAMPLE}"
        self.set_defaults(run=module.run)
        self.is_filled = True

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.fill()
        self.check_options(args)
        return super().parse_known_args(args, namespace)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of all commands."""
    parser, commands = _lazy_parser(prog)
    for command in commands:
        command.fill()
    return parser


def _lazy_parser(prog: str) -> tuple[_Parser, list[_CommandParser]]:
    """Return the parser, and those of the commands, which are filled when they are needed."""
    parser = _Parser(
        prog=prog,
        description="Backs up a server's file hierarchies and PostgreSQL databases.",
        epilog="example: btw-backup fs /etc /var/backups/etc",
    )
    volume = parser.add_mutually_exclusive_group()
    for option, about in _VOLUME.items():
        volume.add_argument(*option, action="store_true", help=about)
    parser.add_argument(
        "--config-dir",
        default="~/.btw-backup",
        help="sets the general configuration directory (default: %(default)s)",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}", help="shows the version"
    )
    subparsers = parser.add_subparsers(
        title="subcommands", dest="command", metavar="COMMAND", required=True, parser_class=_CommandParser
    )
    parsers = []
    for command, about in COMMANDS.items():
        subparser = subparsers.add_parser(command, help=about, description=f"{about.capitalize()}.")
        subparser.command = command
        parsers.append(subparser)
    return parser, parsers


def main(argv: Sequence[str] | None = None, prog: str = "btw-backup") -> int:
    """Run one command. Returns the exit status; argparse itself exits for usage errors and help."""
    argv = sys.argv[1:] if argv is None else argv
    os.umask(0o077)
    _open_standard_streams()
    end_on_signals()
    messages = Messages(prog)
    try:
        if list(argv) == [
            "--version"
        ]:  # scripts ask for it, and making the parser takes longer than the rest
            print(f"{prog} {__version__}", flush=True)
            return 0
        args = _parsed(argv, prog)
        args.messages = messages = Messages(prog, verbose=args.verbose, quiet=args.quiet)
        args.config_dir = os.path.abspath(os.path.expanduser(args.config_dir))
        status: int = args.run(args)
        sys.stdout.flush()
        gc.freeze()  # otherwise Python looks through all objects before it ends: 15 ms
    except Terminated as end:
        return 128 + end.signum
    except BrokenPipeError:  # our standard output, as in `list DST | head -1`
        _drop_output()
        return 128 + signal.SIGPIPE
    except Error as error:
        messages.report(error)
        return error.status
    except OSError as error:
        messages.error(f"{error.filename or 'standard output'}: {error.strerror or error}")
        _drop_output()
        return FAILED
    return status


def _parsed(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser, _ = _lazy_parser(prog)
    parser.check_options([*takewhile(lambda arg: arg.startswith("-"), argv)])
    args = parser.parse_args(argv)
    if args.quiet and args.verbose:
        parser.error("argument -v/--verbose: not allowed with argument -q/--quiet")
    return args


def _drop_output() -> None:
    """Drop what standard output does not take: Python 3.13 would try again and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """Open missing standard streams, or a file of a backup could become a program's standard error."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:  # the lowest free descriptor is this one (open(2))
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if fd == 0 else "w"))
