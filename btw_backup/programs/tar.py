"""GNU tar: its command lines, and what its exit means."""

import os
import re
import string
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import IO, NamedTuple

from ..system.confinement import READING, UNPACKING, Confinement
from ..system.directories import Directory
from ..system.files import BLOCK, closed_at_end, write_all
from . import process

TAG = "NOBACKUP-TAG"

# Read from a pipe in large blocks: with tar's default of 10 KiB it takes twice as long.
_READING = ("--file=-", f"--blocking-factor={BLOCK // 512}", "--read-full-records")

# What tar prints about requested members that are not there, and then about its exit.
FAILED = "Exiting with failure status due to previous errors"
_PASSED_OVER = (": Not found in archive", FAILED)
# What it prints about members whose directory is now a file, or a link; it exits with 2 then.
_MISSING = (": Not a directory", ": Too many levels of symbolic links", ": No such file or directory", FAILED)


class Source(NamedTuple):
    """What to archive: everything in ``directory``, as members ``./…``, or only ``member``.

    ``left_out`` are paths relative to it, and so are ``large``, the files that were found to be larger
    than ``larger_than`` bytes; ``exclude`` are tar patterns. Of a directory that holds one of the ``tags``
    only this is archived, the first one of several; with ``caches`` a cache's tag is one, too, the last.
    """

    directory: str
    member: str
    left_out: tuple[str, ...]
    exclude: tuple[str, ...]
    one_file_system: bool
    tags: tuple[str, ...] = (TAG,)
    caches: bool = False
    larger_than: int | None = None
    large: tuple[str, ...] = ()


class LeftOut(NamedTuple):
    """Options that name what tar leaves out, and the open files that they refer to."""

    options: Sequence[str] = ()
    files: Sequence[int] = ()


NOTHING_LEFT_OUT = LeftOut()


@contextmanager
def leaving_out_large(source: Source) -> Iterator[LeftOut]:
    """Yield what has tar leave out the large files of a source, however many they are."""
    if not source.large:
        yield NOTHING_LEFT_OUT
        return
    with closed_at_end(os.memfd_create("large files")) as file:
        write_all(file, os.fsencode("".join(f"./{path}\n" for path in source.large if not is_odd(path))))
        odd = [f"--exclude=./{path}" for path in filter(is_odd, source.large)]
        yield LeftOut([f"--exclude-from=/proc/self/fd/{file}", *odd], [file])


def is_odd(path: str) -> bool:
    """Whether tar can't read a path from a file of excludes, but needs an argument for it.

    tar removes white space at the end of a line (GNU tar 1.34), and ``--null`` is not for these files.
    """
    return "\n" in path or path != path.rstrip(string.whitespace)


def tar_command(source: Source, left_out: LeftOut = NOTHING_LEFT_OUT) -> list[str]:
    """Return the command that writes the archive to standard output, to be run in the source's directory.

    Large files are among what is ``left_out``.
    The same tree gives the same archive, even if files were read meanwhile (GNU tar 1.34).
    """
    argv = ["tar", "--create", "--file=-", "--format=posix", "--blocking-factor=128"]
    argv += ["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "--sort=name"]
    # Newer formats of sparse members hold tar's process ID.
    argv += ["--acls", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"]
    if source.caches:
        argv.append("--exclude-caches")
    # tar looks for the last one first.
    argv += [f"--exclude-tag={tag}" for tag in reversed(source.tags)]
    if source.one_file_system:
        argv.append("--one-file-system")
    argv += ["--anchored", "--no-wildcards"]
    argv += [*(f"--exclude=./{path}" for path in source.left_out), *left_out.options]
    argv += ["--no-anchored", "--wildcards"]
    argv += [f"--exclude={pattern}" for pattern in source.exclude]
    return [*argv, f"./{source.member}" if source.member else "."]


def tar_command_for_names(source: Source, left_out: LeftOut = NOTHING_LEFT_OUT) -> list[str]:
    """Return the command for members whose names, each with a NUL after it, come on standard input.

    In the order of a walk with sorted names, they give what ``tar_command`` does; only a hard link is
    stored as a file if the first of its names is not among them.
    """
    # What excludes a directory also excludes what is in it only before --no-recursion.
    argv = tar_command(source, left_out)[:-1]
    return [*argv, "--no-recursion", "--null", "--verbatim-files-from", "--files-from=-"]


class Unpacking:
    """A running tar that takes an archive on its input. Made by ``unpacking`` and ``listing``."""

    def __init__(self, program: process.Program) -> None:
        self._program = program
        self._reads = True

    def write(self, block: bytes) -> None:
        """Write the next part of the archive; tar does not read what follows the archive's end."""
        if self._reads:
            try:
                self._program.stdin.write(block)
            except BrokenPipeError:
                self._reads = False

    def finish(self) -> None:
        """Wait for tar. Raises Error if it failed, except because of missing members."""
        with suppress(BrokenPipeError):
            self._program.stdin.close()
        result = self._program.wait()
        others = [line for line in result.stderr.splitlines() if not line.endswith(_PASSED_OVER)]
        result.check((0,) if others else (0, 2))


@contextmanager
def unpacking(target: Directory, members: Sequence[str], above: Sequence[str] = ()) -> Iterator[Unpacking]:
    """Unpack what is written into the open directory: everything, or those members and what is below.

    ``above`` are members to unpack without what is below; their names begin with ``./``.
    """
    argv = ["tar", "--extract", *_READING, "--preserve-permissions", "--numeric-owner"]
    argv += ["--acls", "--xattrs", "--xattrs-include=*", "--quoting-style=escape"]
    argv += ["--anchored", "--no-wildcards", "--no-unquote"]
    argv += ["--no-recursion", *above, "--recursion", "--", *members]
    confined = Confinement([target], UNPACKING)
    with process.Program(argv, stdin=process.PIPE, cwd=target, confined=confined) as program:
        process.widen(program.stdin)
        unpacked = Unpacking(program)
        yield unpacked
        unpacked.finish()


@contextmanager
def listing() -> Iterator[Unpacking]:
    """Have tar read what is written, an archive, from its first header to its last."""
    argv = ["tar", "--list", *_READING]
    with process.Program(argv, stdin=process.PIPE, confined=READING) as program:
        process.widen(program.stdin)
        listed = Unpacking(program)
        yield listed
        listed.finish()


class Aspect(Enum):
    """In what a file differs from a member, by what the end of the line that tar prints begins with.

    LINK: it is another file than the one that the member is a hard link to.
    """

    CONTENT = (b"Contents differ", b"Size differs", b"Symlink differs", b"Device number", b"File fragment at")
    MODE = (b"Mode differs",)
    OWNER = (b"Uid differs", b"Gid differs")
    TIME = (b"Mod time differs",)
    TYPE = (b"File type differs",)
    LINK = (b"Not linked to",)


_COMPARED = re.compile(rb"((?:[^\\:]|\\.)+): (.*)")
_ESCAPED = re.compile(rb"\\([0-7]{3}|.)")
_MEANT = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


class Comparing(Unpacking):
    """A running tar that compares an archive with a directory. Made by ``comparing``."""

    def __init__(self, program: process.Program, printed: IO[bytes]) -> None:
        super().__init__(program)
        self._printed = printed

    def differences(self) -> dict[bytes, set[Aspect]]:
        """Wait for tar, and return in what members differ, by their names. Missing files are not among them.

        Raises Error if it could not read something.
        """
        with suppress(BrokenPipeError):
            self._program.stdin.close()
        result = self._program.wait()
        others = [line for line in result.stderr.splitlines() if not line.endswith(_MISSING)]
        result.check((0, 1) if others else (0, 1, 2))
        self._printed.seek(0)
        found: dict[bytes, set[Aspect]] = {}
        for line in self._printed:
            if match := _COMPARED.fullmatch(line.rstrip(b"\n")):
                aspects = {aspect for aspect in Aspect if match[2].startswith(aspect.value)}
                found.setdefault(_ESCAPED.sub(_meant, match[1]).rstrip(b"/"), set()).update(aspects)
        return found


def _meant(escaped: re.Match[bytes]) -> bytes:
    """What tar's --quoting-style=escape has written like this."""
    text = escaped[1]
    return bytes([int(text, 8)]) if len(text) == 3 else _MEANT.get(text, text)


@contextmanager
def comparing(directory: Directory) -> Iterator[Comparing]:
    """Compare what is written, an archive, with an open directory, contents included."""
    argv = ["tar", "--compare", *_READING, "--quoting-style=escape"]
    with (
        tempfile.TemporaryFile() as printed,
        process.Program(argv, stdin=process.PIPE, stdout=printed, cwd=directory, confined=READING) as program,
    ):
        process.widen(program.stdin)
        yield Comparing(program, printed)
