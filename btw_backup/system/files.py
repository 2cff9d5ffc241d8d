"""Reading, writing and comparing open files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Writing to a file in larger blocks takes more CPU time, not less.
BLOCK = 1 << 18


@contextmanager
def closed_at_end(fd: int) -> Iterator[int]:
    """Yield the descriptor, and close it at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it: write(2) may write less, such as on a disk that is nearly full."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def copy_all(source: int, target: int) -> None:
    """Append the whole content of an open file to another."""
    offset = 0
    while sent := os.sendfile(target, source, offset, BLOCK):
        offset += sent


def same_content(one: int, other: int, offset: int = 0) -> bool:
    """Whether two regular files hold the same bytes from ``offset`` on."""
    size = os.fstat(one).st_size
    if size != os.fstat(other).st_size:
        return False
    while (block := os.pread(one, BLOCK, offset)) and block == os.pread(other, len(block), offset):
        offset += len(block)
    return offset == size
