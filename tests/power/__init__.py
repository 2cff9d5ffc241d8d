"""Power cuts, at every moment: none may cost a point that a command had reported as made.

    python -m tests.power [--most N] [--sample N] [--seed N] [--jobs N] [--only WHAT]...
        [--without-syncs] [--verbose]

The destination and the configuration are on a file system of their own, in an image on a reflinking XFS. A
run is stopped after each system call that syncs, renames or removes, and at random; the image as it is then
is what a power cut leaves. The source lies elsewhere: the run may sync it.

The kernel has little reason to write anything of so short a run unless it is told to. So it is also made to
write names before contents, or some of both (``habits``).

Each image is mounted, so that its journal replays. Then

- every point whose command had exited with 0 is listed, verifies, and gives back the bytes that the source
  held, read by rdiff-backup, decompressors and tar;
- the next run succeeds and leaves nothing behind.

What the disk has confirmed is in the image: a disk that loses it is not tried. With ``--without-syncs`` no
sync takes place, and points must be lost.

All this happens on a tmpfs, in namespaces of its own: however it ends, the kernel removes all mounts and loop
devices.
"""
