"""The examples of the documentation: the sessions that its pages show, run as they stand there.

A literal block whose first line begins with a prompt, ``# ``, is a piece of a session. All sessions of a page
are one shell of root's, in a sandbox. ``.. not run: REASON`` above a block says that it is none, or can't be
run; ``.. setup:`` holds commands that a page needs and does not show.
"""

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from docutils import nodes
from docutils.core import publish_doctree

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
GENERATED = ROOT / "docs/reference.rst"
PROMPT = "# "
_SECONDS = 120
_SETUP, _NOT_RUN = "setup:", "not run: "
# What rdiff-backup 2.2.6 prints at each start.
_PASSING = re.compile(r"^WARNING: Server will be called with deprecated command line.*\n", re.MULTILINE)
_SKIPPED = "..."
_KINDS = {
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d",
    "date": r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}",
    "duration": r"\b(?:\d+d \d+h|\d+h \d+m|\d+[dhms]|\d+(?:\.\d+)? s)\b",
    "size": r"\b\d+(?:\.\d+)? ?[kMGT]?B\b",
    "figure": r"\b\d{4,}\b|(?<=\"age\": )\d+",
}
_TOKEN = re.compile("|".join(f"(?P<{kind}>{form})" for kind, form in _KINDS.items()) + "|(?P<space> {2,})")
_UNSHARED = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
_SANDBOX = r"""
set -e
top=$1 socket=$2; shift 2
hostname server1
number=0
for kept; do
    number=$((number + 1)); mkdir -p "$top/kept/$number"; mount --bind "$kept" "$top/kept/$number"
done
for place in /mnt /root /srv /var/backups; do
    mkdir -p "$top$place"; mount --bind "$top$place" "$place"
done
cp -a /etc "$top" || true; mount --bind "$top/etc" /etc
number=0
for kept; do
    number=$((number + 1))
    [ -e "$kept/." ] || { mkdir -p "$kept"; mount --bind "$top/kept/$number" "$kept"; }
done
mount -t tmpfs tmpfs /run
[ -z "$socket" ] || { mkdir /run/postgresql; mount --bind "$socket" /run/postgresql; }
cd /root
exec bash --norc --noprofile
"""


class Command(NamedTuple):
    """What is typed after a prompt, and what the page shows that it prints; None if it does not show it."""

    text: str
    shown: str | None


class Block(NamedTuple):
    """A literal block, and why it is not run; ``is_setup`` if readers do not see it."""

    text: str
    not_run: str | None = None
    is_setup: bool = False

    def commands(self) -> list[Command]:
        """The commands, none if this is not a session."""
        found: list[Command] = []
        lines = iter(self.text.splitlines())
        for line in lines:
            if line.startswith(PROMPT):
                found.append(Command(_typed(line, lines), None if self.is_setup else ""))
            elif found and not self.is_setup:
                found[-1] = found[-1]._replace(shown=f"{found[-1].shown}{line}\n")
        return found


def _typed(line: str, lines: Iterator[str]) -> str:
    """A command with the lines that belong to it: after a backslash, and those of a here-document."""
    typed = line.removeprefix(PROMPT)
    while typed.endswith("\\"):
        typed += f"\n{next(lines)}"
    if here := re.search(r"<<'(\w+)'", typed):
        for line in lines:
            typed += f"\n{line}"
            if line == here[1]:
                break
    return typed


def parsed(page: Path) -> tuple[nodes.document, str]:
    """A page, and what docutils complains of in it."""
    complaints = StringIO()
    settings = {"report_level": 1, "halt_level": 5, "warning_stream": complaints, "input_encoding": "utf-8"}
    return (
        publish_doctree(page.read_text(), source_path=str(page), settings_overrides=settings),
        complaints.getvalue(),
    )


def blocks(document: nodes.document) -> Iterator[Block]:
    """The literal blocks of a page, and its hidden commands."""
    reason = None
    paragraphs = 0
    for node in document.findall(
        lambda node: isinstance(node, nodes.comment | nodes.paragraph | nodes.literal_block)
    ):
        text = node.astext()
        if isinstance(node, nodes.literal_block):
            yield Block(text, not_run=reason)
            reason = None
        elif isinstance(node, nodes.paragraph):
            paragraphs += 1
            if reason is not None and paragraphs > 1:
                raise ValueError(f"nothing follows that is not run: {reason}")
        elif text.startswith(_NOT_RUN):
            reason, paragraphs = text.removeprefix(_NOT_RUN), 0
        elif text.startswith(_SETUP):
            yield Block(text.removeprefix(_SETUP).strip(), is_setup=True)


class Times(dict[str, str]):
    """The times that a page shows, and those of this run in their place."""

    def put_into(self, text: str) -> str:
        """Replace the times of the page, and days and hours that stand for them, in a command."""
        return re.sub(r"\b\d{4}-\d\d-\d\d(T\d\d(:\d\d){0,2})?", self._actual, text)

    def _actual(self, typed: re.Match[str]) -> str:
        meant = [shown for shown, actual in self.items() if shown.startswith(typed[0]) and shown != actual]
        return self[max(meant)] if meant else typed[0]

    def agree(self, shown: str, printed: str) -> bool:
        """Whether something like what the page shows was printed. Remembers the times."""
        times: list[str] = []
        lines = [_expression(line, times) for line in shown.splitlines(keepends=True)]
        found = re.fullmatch("".join(lines), _PASSING.sub("", printed))
        if found:
            for time, actual in zip(times, found.groups(), strict=True):
                self.setdefault(time, actual)
        return found is not None


def _expression(line: str, times: list[str]) -> str:
    """What matches lines like this one; ``times`` gets those in it, one for each group."""
    if line.strip() == _SKIPPED:
        return r"(?:.*\n)*"
    expression, end = "", 0
    for token in _TOKEN.finditer(line):
        kind = token.lastgroup or ""
        expression += re.escape(line[end : token.start()])
        if kind == "time":
            times.append(token[0])
            expression += f"({_KINDS[kind]})"
        else:
            expression += " +" if kind == "space" else f"(?: *{_KINDS[kind]})"
        end = token.end()
    return expression + re.escape(line[end:])


def missing() -> str:
    """Why there can be no sandbox here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root"
    done = subprocess.run([*_UNSHARED, "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"needs namespaces: {done.stderr.strip()}"


class Sandbox:
    """A shell of root's with directories of its own, on a host named server1."""

    def __init__(self, top: Path, binaries: Path | None = None, socket: Path | None = None) -> None:
        """Start it. ``top``: where its directories are; ``binaries`` and ``socket``: PostgreSQL's."""
        self._output = top / "output"
        path = [str(Path(sys.executable).parent), *([str(binaries)] if binaries else []), os.environ["PATH"]]
        environment = {"HOME": "/root", "USER": "root", "TZ": "UTC", "PATH": ":".join(path)}
        environment |= {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}
        self._shell = subprocess.Popen(
            [
                *_UNSHARED,
                *("bash", "-c", _SANDBOX, "bash", top, socket or ""),
                *(ROOT, sys.prefix, sys.base_prefix),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Unbuffered, what goes to one of the streams comes after what went to the other.
            env={**environment, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"},
            text=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        """Run a command. Returns its exit status, and what it printed to either stream."""
        assert self._shell.stdin and self._shell.stdout
        self._shell.stdin.write(
            f"{{ {command}\n}} </dev/null >{self._output} 2>&1; status=$?; echo $status; (exit $status)\n"
        )
        self._shell.stdin.flush()
        if not select.select([self._shell.stdout], [], [], _SECONDS)[0]:
            raise TimeoutError(command)
        status = self._shell.stdout.readline()
        return int(status or 255), self._output.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shell.kill()
        self._shell.communicate()
