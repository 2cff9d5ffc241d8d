"""Kills, full disks and failing programs, at every place: no point that was listed may be lost by any.

    python -m tests.faults [--quick] [--seed N] [--jobs N] [--only WHAT]... [--verbose]

Each operation is prepared once. For each fault what was prepared is copied, the program is run on the
copy and hit by the fault, and then:

- ``list`` prints what it printed before, or that and the new point;
- every listed point gives back the bytes it held, which rdiff-backup, bzip2 and tar tell;
- the next run succeeds, leaves nothing behind, and then the newest point is what the source holds.

Where a fault hits is told by system calls that strace counts, so it is the same in every run.
"""
