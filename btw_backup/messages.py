"""What the program says: errors and warnings, and the closing line of a backup."""

import sys

# A newline or an escape sequence in a file name must not forge or hide a line.
_CONTROL = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)] if code != 0x09}


def one_line(text: str) -> str:
    """The text with its control characters spelled out."""
    return text.translate(_CONTROL)


def size(count: int) -> str:
    """A number of bytes in decimal units: ``999 B``, ``3.1 MB``, ``286 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.1f} {unit}" if unit != "B" and value < 9.95 else f"{value:.0f} {unit}"


class Messages:
    """Writes to stderr for one run. ``verbose``: -v was given; ``quiet``: -q was given."""

    def __init__(self, prog: str, *, verbose: bool = False, quiet: bool = False) -> None:
        self.prog = prog
        self._closing = verbose or (sys.stderr.isatty() and not quiet)
        self._quiet = quiet

    def error(self, text: str) -> None:
        """Say what failed."""
        print(f"{self.prog}: {one_line(text)}", file=sys.stderr, flush=True)

    def said(self, text: str) -> None:
        """Pass on what an outside program wrote to its stderr."""
        for line in text.splitlines():
            print(one_line(line), file=sys.stderr, flush=True)

    def warning(self, text: str) -> None:
        """Say what the administrator should know, although the run goes on."""
        if not self._quiet:
            self.error(f"warning: {text}")

    def closing(self, text: str) -> None:
        """Say what was made: on a terminal, or with -v."""
        if self._closing:
            self.error(text)
