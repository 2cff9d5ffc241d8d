"""Limits where a program that root runs can write: to a few directories, by bubblewrap.

Inside, every mount is read-only except those directories. They are at ``/dev/btw-backup/N``, below a
``/dev`` of its own: a place that exists everywhere and hides nothing. There are no devices, no other
processes, no network, no sockets in /run, and few capabilities. A descriptor opened outside would lead
around this, so there is none: bwrap closes those of the directories once it has mounted them, and fails
if the path of one has become something else by then. Confined are

- rdiff-backup, to the directory that it works in,
- tar when it unpacks, to the target; decompressors, and tar when it lists an archive, to nothing,
- pg_restore and psql, to nothing, but with the network: scripts come from a dump. Under RUN_AS they have
  the rights of that account, and no more.

Programs that gain nothing by it are not confined: tar when it makes an archive, compressors, pg_dump and
pg_dumpall write only to their output. Nor is restic: its repository is encrypted and authenticated, and
its cache, local repositories and the files of ssh and rclone can be anywhere. Hooks are the user's own.
Programs of a user who is not root have that user's rights: in the user namespace that bwrap would need
for them, ACLs for others can't be restored.

What is known about bubblewrap here was found by experiment with version 0.8.0.
"""

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

PROGRAM = "bwrap"

_PLACES = "/dev/btw-backup"

# Every program has these: it works in directories of other users, and gives files to them.
_CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID")

# Further ones, with which tar restores devices, capabilities of files, and the extended attributes
# security.* and trusted.* (xattr(7)). With CAP_SYS_ADMIN it could mount something: this confines what an
# archive makes tar do, not foreign code.
UNPACKING = ("CAP_MKNOD", "CAP_SETFCAP", "CAP_SYS_ADMIN")

# Their numbers in capability sets (linux/capability.h).
_NUMBERS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
    "CAP_SETFCAP": 31,
}


class Open(Protocol):
    """An open directory."""

    def fileno(self) -> int:
        """Its descriptor."""


class At(NamedTuple):
    """A path in an open directory, in a program's arguments or variables; without a name, the directory.

    The program gets the path by which it can reach it.
    """

    directory: int | Open
    name: str = ""

    def below(self, place: str) -> str:
        """Return the path if the directory is at ``place``."""
        return f"{place}/{self.name}" if self.name else place


def descriptor(directory: int | Open) -> int:
    """The descriptor of an open directory."""
    return directory if isinstance(directory, int) else directory.fileno()


class Confinement(NamedTuple):
    """What a program may do beyond reading.

    ``writable``: the open directories in which it can write. ``capabilities``: those that it has in
    addition. ``network``: it reaches servers, and sockets in /run, and can ask for a password.
    """

    writable: Sequence[int | Open] = ()
    capabilities: Sequence[str] = ()
    network: bool = False


READING = Confinement()


def places(directories: Iterable[int]) -> dict[int, str]:
    """Return where open directories are inside, by their descriptors."""
    return {fd: f"{_PLACES}/{number}" for number, fd in enumerate(dict.fromkeys(directories))}


def held(status: str) -> frozenset[str]:
    """Return which of these capabilities a process has; ``status`` is its ``/proc/PID/status``."""
    line = next(line for line in status.splitlines() if line.startswith("CapPrm:"))
    bits = int(line.split()[1], 16)
    return frozenset(name for name, number in _NUMBERS.items() if bits >> number & 1)


def command(
    argv: Sequence[str],
    confinement: Confinement,
    found: Mapping[int, str],
    cwd: str,
    capabilities: frozenset[str],
) -> list[str]:
    """Return the command line that runs another one confined.

    ``found``: where directories are inside, by descriptors to pass on. ``cwd``: a directory inside.
    ``capabilities``: those that we have; asked for any other, bwrap would leave it all of them.
    """
    options = [PROGRAM, "--die-with-parent", "--unshare-pid", "--unshare-ipc"]
    if not confinement.network:
        options += ["--new-session"]
        # bwrap must be able to bring up the loopback device, or it fails.
        options += ["--unshare-net"] if "CAP_NET_ADMIN" in capabilities else []
    # Read-only, with everything mounted below. Devices can be opened only in its own /dev.
    options += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--remount-ro", "/proc"]
    if not confinement.network:
        options += ["--tmpfs", "/run", "--remount-ro", "/run"]
    writable = {descriptor(directory) for directory in confinement.writable}
    for fd, place in found.items():
        options += ["--bind-fd" if fd in writable else "--ro-bind-fd", str(fd), place]
    options += ["--remount-ro", "/dev", "--chdir", cwd, "--cap-drop", "ALL"]
    for name in (*_CAPABILITIES, *confinement.capabilities):
        options += ["--cap-add", name] if name in capabilities else []
    return [*options, "--", *argv]


def status(code: int) -> int:
    """Convert bwrap's exit status to that of the program: negative if a signal ended it.

    bwrap returns 128 + N for signal N, and no program that is confined here exits with such a status.
    """
    return 128 - code if code - 128 in set(signal.Signals) else code


def wanted() -> bool:
    """Whether to confine the programs that we run: if we are root."""
    return os.geteuid() == 0
