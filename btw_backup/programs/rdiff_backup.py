"""rdiff-backup, which writes and keeps every chain.

What is known of it was found by experiment with version 2.2.2, and holds up to 2.2.7.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from ..system.confinement import At, Confinement
from ..system.directories import Directory
from . import process

# What 2.2.6 and 2.2.7 print about remote hosts, at each start.
_PASSING = re.compile(r"^WARNING: Server will be called with deprecated command line.*\n?", re.MULTILINE)


@contextmanager
def backing_up(
    stage: Directory, name: str, private: Directory, chain: str, time: datetime
) -> Iterator[Callable[[], process.Result]]:
    """Start rdiff-backup; what this yields has it back up the one file in ``stage``, and waits for its end.

    It keeps the chain of that name in ``private``, where its temporary files lie, too. To start takes
    it as long as to read 100 MB; so it does that at once, and waits. Its exit status 0 does not mean
    that it stored anything.
    """
    # The action's name alone selects the command line that later versions have, too.
    argv: list[str | At] = ["rdiff-backup", "-v2", "--no-fsync"]
    argv += ["--current-time", str(int(time.timestamp()))]
    # What to leave out, nothing, is read from the pipe before it looks for files.
    # Paths that hold "::" are remote hosts to it; these can't.
    argv += ["backup", "--exclude-filelist-stdin", ".", At(private, chain)]
    confined = Confinement([private])
    env = {"TMPDIR": At(private)}
    with process.Program(argv, stdin=process.PIPE, cwd=stage.fileno(), env=env, confined=confined) as program:

        def back_up() -> process.Result:
            # It takes a file whose size and mtime are unchanged for unchanged; no earlier point has this.
            moment = (time.timestamp(), time.timestamp())
            os.utime(name, moment, dir_fd=stage.fileno(), follow_symlinks=False)
            program.stdin.close()
            result = program.wait()
            # It shows its own tracebacks, as on a full disk: their last line tells all.
            said = _PASSING.sub("", result.said)
            head, traceback, trace = said.partition("Traceback (most recent call last):\n")
            return result._replace(said=head + trace.splitlines()[-1] if traceback else said)

        yield back_up
