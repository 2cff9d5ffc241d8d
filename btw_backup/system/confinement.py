"""Where a program that root runs can write: in a few directories, by bubblewrap.

Inside, every mount is read-only but those directories, which lie at ``/dev/btw-backup/N``, below a
``/dev`` of its own: a place that exists everywhere and hides nothing. There are no devices, no other
processes, no network, no sockets in /run, and few capabilities. A descriptor opened outside would lead
around this, so there is none: bwrap closes those of the directories once it has mounted what they are,
and fails where the path of one is by then something else. Confined are

- rdiff-backup, to the directory that it works in,
- tar where it unpacks, to the target; where it lists an archive, and decompressors, to nothing,
- pg_restore and psql, to nothing, with the network: scripts come from a dump. Under RUN_AS they are what
  that account is, and no more.

Not confined are programs that gain nothing by it: tar where it makes an archive, compressors, pg_dump and
pg_dumpall, which write to nothing but their output, and restic, whose repository is encrypted and
authenticated, while its cache, local repositories and the files of ssh and rclone lie anywhere. Hooks
are the user's own. Programs of a user who is not root have that user's rights: in the user namespace
that bwrap would need for them, ACLs for others can't be restored.

What is known of bubblewrap here was found by experiment with version 0.8.0.
"""

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

PROGRAM = "bwrap"

_PLACES = "/dev/btw-backup"

# Each program has these: it works in directories of others, and gives files to them.
_CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID")

# Further ones, with which tar restores devices, capabilities of files, and the extended attributes
# security.* and trusted.* (xattr(7)). CAP_SYS_ADMIN could mount something: it keeps in what an archive
# leads tar to, not foreign code.
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
    """A path in an open directory, among a program's arguments or variables: that itself without a name.

    The program gets the path by which it can reach it.
    """

    directory: int | Open
    name: str = ""

    def below(self, place: str) -> str:
        """The path, where the directory is to be found at ``place``."""
        return f"{place}/{self.name}" if self.name else place


def descriptor(directory: int | Open) -> int:
    """The descriptor of an open directory."""
    return directory if isinstance(directory, int) else directory.fileno()


class Confinement(NamedTuple):
    """What a program may do beyond reading.

    ``writable``: the open directories in which it can write. ``capabilities``: those that it has beyond
    the usual. ``network``: it reaches servers, and sockets in /run, and can ask for a password.
    """

    writable: Sequence[int | Open] = ()
    capabilities: Sequence[str] = ()
    network: bool = False


READING = Confinement()


def places(directories: Iterable[int]) -> dict[int, str]:
    """Where open directories are found inside."""
    return {fd: f"{_PLACES}/{number}" for number, fd in enumerate(dict.fromkeys(directories))}


def held(status: str) -> frozenset[str]:
    """Which of the capabilities named here a process has, of which this is ``/proc/PID/status``."""
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
    """The command line that runs another one confined.

    ``found``: where directories lie, by descriptors that are to be passed on. ``cwd``: a directory
    inside. ``capabilities``: those that we hold; asked for another one, bwrap leaves it all of them.
    """
    options = [PROGRAM, "--die-with-parent", "--unshare-pid", "--unshare-ipc"]
    if not confinement.network:
        options += ["--new-session"]
        # Its loopback device is brought up, or bwrap fails.
        options += ["--unshare-net"] if "CAP_NET_ADMIN" in capabilities else []
    # Read-only with all that is mounted below. Devices can be opened in their own /dev alone.
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
    """How the program ended of which bwrap returned this: negative where a signal ended it.

    bwrap returns 128 + N for signal N, and no program that is confined here ends with that itself.
    """
    return 128 - code if code - 128 in set(signal.Signals) else code


def wanted() -> bool:
    """Whether the programs that we run are to be confined: root's are."""
    return os.geteuid() == 0
