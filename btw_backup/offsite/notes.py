"""What has been sent, noted in a directory of ours: without a note the repository is asked.

A line for each repository that has the newest state: the digests of that state, and of the address.
"""

import hashlib
import os
from contextlib import suppress

from ..errors import Error
from ..system.directories import Directory
from ..system.files import write_all

_LONGEST = 1 << 16


def note(directory: Directory, name: str, digest: str, address: str) -> None:
    """Note that the repository has a state."""
    lines = [line for line in _lines(directory, name) if line.startswith(digest)]
    with suppress(OSError, Error), directory.file(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        write_all(fd, "".join(f"{line}\n" for line in {*lines, _line(digest, address)}).encode())


def is_noted(directory: Directory, name: str, digest: str, address: str) -> bool:
    """Whether it is known that the repository has a state."""
    return _line(digest, address) in _lines(directory, name)


def _lines(directory: Directory, name: str) -> list[str]:
    with suppress(OSError, Error), directory.file(name) as fd:
        return os.read(fd, _LONGEST).decode(errors="replace").splitlines()
    return []


def _line(digest: str, address: str) -> str:
    return f"{digest} {hashlib.sha256(os.fsencode(address)).hexdigest()}"
