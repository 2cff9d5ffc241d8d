"""What the program prints: errors and warnings, and the closing line of a backup."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from .errors import Error

TYPE_CHECKING = False  # typing takes milliseconds to import
if TYPE_CHECKING:
    from typing import Any

    from tqdm import tqdm

# What shows how far something is: what is done, and how many bytes are expected, if that is known.
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]

# What a terminal of 80 columns has room for beside numbers of bytes, the rate and the time left.
_LONGEST = 30
# A newline or an escape sequence in a file name must not forge or hide a line.
_CONTROL = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)] if code != 0x09}


def one_line(text: str) -> str:
    """The text with its control characters spelled out."""
    return text.translate(_CONTROL)


def show(text: str) -> None:
    """Print a line that may hold the name of any file."""
    if text.isascii() and text.isprintable():  # as most are
        print(text)
        return
    encoding = sys.stdout.encoding
    print(one_line(text).encode(encoding, "backslashreplace").decode(encoding))


def show_json(objects: "Iterable[Any]") -> int:
    """Print an array of objects, one a line. Returns their number.

    A byte that is not UTF-8 becomes the surrogate that Python's surrogateescape has for it: ``\\udcff``.
    """
    import json  # what prints no JSON does not wait for it

    number = 0
    for each in objects:
        print(",\n" if number else "[\n", json.dumps(each), sep="", end="")
        number += 1
    print("\n]" if number else "[]")
    return number


def _say(line: str) -> None:
    """Write a line to stderr. If that is broken, the rest is dropped, and the work goes on."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        devnull = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(devnull, sys.stderr.fileno())
        os.close(devnull)


def size(count: int) -> str:
    """A number of bytes in decimal units: ``999 B``, ``3.1 MB``, ``286 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.1f} {unit}" if unit != "B" and value < 9.95 else f"{value:.0f} {unit}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """What to add to a message about an unknown word: a question if it resembles a known one, or nothing."""
    import difflib  # needed only here, on the way to an error

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.65)
    return f": did you mean {near[0]}?" if near else ""


class Messages:
    """Writes to stderr for one run. ``verbose``: -v was given; ``quiet``: -q was given.

    ``subject``: what every line is about, if that must be said.
    """

    def __init__(
        self, prog: str, *, verbose: bool = False, quiet: bool = False, subject: str | None = None
    ) -> None:
        self.prog = prog
        self._subject = subject
        self._verbose = verbose
        terminal = sys.stderr.isatty() and not quiet
        self._shows_summary = verbose or terminal
        self._bar = terminal and os.environ.get("TERM", "dumb") != "dumb"
        self._quiet = quiet
        self._shown: tqdm[Any] | None = None

    def about(self, subject: str) -> "Messages":
        """Return messages of the same run, in which every line names its subject."""
        return Messages(self.prog, verbose=self._verbose, quiet=self._quiet, subject=subject)

    def _named(self, text: str) -> str:
        return text if self._subject is None or self._subject in text else f"{self._subject}: {text}"

    def report(self, error: Error) -> None:
        """Print what an outside program wrote to its stderr, and then what failed."""
        self.passed_on(error.stderr)
        for line in error.lines:
            self.error(line)

    def error(self, text: str) -> None:
        """Print what failed."""
        self._print(self._named(text))

    def _print(self, text: str) -> None:
        _say(f"{self.prog}: {one_line(text)}")

    def passed_on(self, text: str) -> None:
        """Pass on what an outside program wrote to its stderr."""
        for line in text.splitlines():
            _say(one_line(line))

    def warning(self, text: str) -> None:
        """Print what the administrator should know, although the run goes on."""
        if not self._quiet:
            self._print(f"warning: {self._named(text)}")

    def summary(self, text: str) -> None:
        """Print what was made: on a terminal, or with -v."""
        if self._shows_summary:
            self.error(text)

    def show(self, text: str) -> None:
        """Print a line of the result above the progress bar, if there is one."""
        if self._shown is not None:
            self._shown.clear()
        show(text)

    @contextmanager
    def progress(
        self, what: str, total: int | None = None, unit: str = "B"
    ) -> Iterator[Callable[[int], None]]:
        """Show a bar on a terminal that can. What this yields is to be called with each number of bytes done.

        ``what`` is being done, such as "verifying"; ``total``: how many bytes, or other units, are expected,
        None if that is not known.
        """
        if not self._bar:
            yield lambda count: None
            return
        from tqdm import tqdm  # only a terminal is worth the time that this takes

        with tqdm(
            desc=_shortened(one_line(what if self._subject is None else f"{self._subject}: {what}")),
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            leave=False,
            delay=0.5,
            file=sys.stderr,
        ) as bar:
            self._shown = bar
            try:
                yield lambda count: _advance(bar, count)
            finally:
                self._shown = None


def _shortened(text: str) -> str:
    """The end of a text, if it would leave no room for the bar."""
    return text if len(text) <= _LONGEST else "…" + text[1 - _LONGEST :]


def _advance(bar: "tqdm[Any]", count: int) -> None:
    """Advance the bar; drop an estimate that proves too small."""
    if bar.total is not None and bar.n + count > bar.total:
        bar.total = None
    bar.update(count)
