"""rdiff-backup, which writes and keeps every chain.

What is known about it was found by experiment with version 2.2.2, and holds up to 2.2.7.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from ..system.confinement import At, Confinement
from ..system.directories import Directory
from . import process

# 2.2.6 and 2.2.7 print this about remote hosts at each start.
_PASSING = re.compile(r"^WARNING: Server will be called with deprecated command line.*\n?", re.MULTILINE)


# The name of an action selects the new command line, the only one of later versions.
_COMMAND = ("rdiff-backup", "-v2", "--no-fsync")


@contextmanager
def backing_up(
    stage: Directory, private: Directory, chain: str, time: datetime
) -> Iterator[Callable[[Callable[[], None]], process.Result]]:
    """Start rdiff-backup. Calling what this yields backs up the files in ``stage``, and waits.

    Its argument is called many times a second meanwhile.

    To it, a file with the size and the mtime of its mirror is unchanged, and not read. The chain of that
    name, and temporary files, are in ``private``. Starting rdiff-backup takes as long as reading 100 MB,
    so it starts early, and waits. Its exit status 0 does not mean that it stored anything.
    """
    argv: list[str | At] = [*_COMMAND, "--current-time", str(int(time.timestamp()))]
    # Nobody needs its statistics of each file. Files that it takes for unchanged may be links to one file.
    argv += ["backup", "--no-file-statistics", "--no-hard-links"]
    # It reads the list of excluded files, an empty one, from the pipe before it looks for files.
    # It takes paths that hold "::" for remote hosts; these can't.
    argv += ["--exclude-filelist-stdin", ".", At(private, chain)]
    with process.Program(
        argv,
        stdin=process.PIPE,
        cwd=stage.fileno(),
        env={"TMPDIR": At(private)},
        confined=Confinement([private]),
    ) as program:

        def back_up(meanwhile: Callable[[], None]) -> process.Result:
            program.stdin.close()
            return _shortened(program.wait(meanwhile))

        yield back_up


def remove_older(private: Directory, chain: str, time: datetime) -> process.Result:
    """Remove all points before a time from the chain of that name in ``private``."""
    argv: list[str | At] = [*_COMMAND, "--force", "remove", "increments", "--older-than"]
    argv += [str(int(time.timestamp())), At(private, chain)]
    result = process.run(argv, env={"TMPDIR": At(private)}, confined=Confinement([private]))
    return _shortened(result)


def _shortened(result: process.Result) -> process.Result:
    """The result without what it prints in passing. It prints tracebacks even for a full disk."""
    stderr = _PASSING.sub("", result.stderr)
    head, traceback, trace = stderr.partition("Traceback (most recent call last):\n")
    return result._replace(stderr=head + trace.splitlines()[-1] if traceback else stderr)
