"""rdiff-backup, which writes and keeps every chain.

What is known about it was found by experiment with version 2.2.2, and holds up to 2.2.7.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from ..system.confinement import At, Confinement
from ..system.directories import Directory
from . import process

# 2.2.6 and 2.2.7 print this about remote hosts at each start.
_PASSING = re.compile(r"^WARNING: Server will be called with deprecated command line.*\n?", re.MULTILINE)


@contextmanager
def backing_up(
    stage: Directory, name: str, private: Directory, chain: str, time: datetime
) -> Iterator[Callable[[], process.Result]]:
    """Start rdiff-backup. Calling what this yields backs up the one file in ``stage``, and waits.

    The chain of that name, and temporary files, are in ``private``. Starting rdiff-backup takes as long as
    reading 100 MB, so it starts early, and waits. Its exit status 0 does not mean that it stored
    anything.
    """
    # The name of the action selects the new command line, the only one of later versions.
    argv: list[str | At] = ["rdiff-backup", "-v2", "--no-fsync"]
    argv += ["--current-time", str(int(time.timestamp()))]
    # It reads the list of excluded files, an empty one, from the pipe before it looks for files.
    # It takes paths that hold "::" for remote hosts; these can't.
    argv += ["backup", "--exclude-filelist-stdin", ".", At(private, chain)]
    confined = Confinement([private])
    env = {"TMPDIR": At(private)}
    with process.Program(argv, stdin=process.PIPE, cwd=stage.fileno(), env=env, confined=confined) as program:

        def back_up() -> process.Result:
            # To it, a file with the same size and mtime is unchanged; no earlier point has this mtime.
            moment = (time.timestamp(), time.timestamp())
            os.utime(name, moment, dir_fd=stage.fileno(), follow_symlinks=False)
            program.stdin.close()
            result = program.wait()
            # It prints tracebacks even for a full disk: the last line is enough.
            stderr = _PASSING.sub("", result.stderr)
            head, traceback, trace = stderr.partition("Traceback (most recent call last):\n")
            return result._replace(stderr=head + trace.splitlines()[-1] if traceback else stderr)

        yield back_up
