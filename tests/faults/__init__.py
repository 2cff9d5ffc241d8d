"""Kills, full disks and failing programs, at every place: none may cost a point that was listed.

    python -m tests.faults [--quick] [--seed N] [--jobs N] [--only WHAT]... [--verbose]

Each operation is prepared once. Each fault hits a run of the program on a copy of what was prepared.
Afterwards:

- ``list`` prints what it printed before, or that and the new point;
- every listed point gives back the bytes it held, read by rdiff-backup, bzip2 and tar;
- the next run succeeds and leaves nothing behind, and the newest point holds what the source holds.

strace counts system calls to find the place where a fault hits, so it is the same in every run.
"""
