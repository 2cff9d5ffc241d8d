"""The programs that compress tarballs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from ..errors import Error
from ..system.confinement import READING
from . import packages, process

_COMPRESSORS = {
    # lbzip2, pbzip2 and bzip2 read each other's files; the first two use all cores.
    "bzip2": (("lbzip2", "-c"), ("pbzip2", "-c"), ("bzip2", "-c")),
    "zstd": (("zstd", "-q", "-c", "-T0"),),
    "gzip": (("pigz", "-n", "-c"), ("gzip", "-n", "-c")),
    "xz": (("xz", "-q", "-c", "-T0"),),
    "none": (("cat",),),
}


def compressor(compression: str) -> list[str]:
    """Return the fastest installed command that compresses standard input to standard output."""
    commands = _COMPRESSORS[compression]
    return list(next((c for c in commands if packages.available(c[0])), commands[-1]))


@contextmanager
def compressing(output: int, compression: str) -> Iterator[IO[bytes]]:
    """Yield a stream; what is written to it is stored compressed in the open file ``output``."""
    with process.Program(compressor(compression), stdin=process.PIPE, stdout=output) as program:
        try:
            yield program.stdin
            program.stdin.close()
        except BrokenPipeError as error:  # it ended early, and its stderr tells why
            program.wait().check()
            raise Error(f"{program.name} did not read all of its input") from error
        program.wait().check()


def check_ending(file: int, compression: str, size: int) -> None:
    """Raise Error unless the compression of ``size`` bytes ends as its format must.

    A compressor may exit with 0 and not have succeeded. Reading everything again would take about as
    long as compressing it.
    """
    length = os.fstat(file).st_size
    tail = os.pread(file, 11, max(length - 11, 0))
    if compression == "bzip2":  # a mark of 48 bits, 32 bits of checksum, and up to 7 to fill the byte
        bits = int.from_bytes(tail)
        whole = any(bits >> 32 + fill & 0xFFFFFFFFFFFF == 0x177245385090 for fill in range(8))
    elif compression == "gzip":  # the size (RFC 1952)
        whole = int.from_bytes(tail[-4:], "little") == size % 2**32
    elif compression == "xz":
        whole = tail.endswith(b"YZ")
    else:  # zstd's frames end in a checksum of what they hold
        whole = length == size if compression == "none" else length > 0
    if not whole:
        raise Error(f"{compressor(compression)[0]} exited with code: 0, but did not store all")


class Stream:
    """The uncompressed content of an open tarball. Made by ``decompressed``."""

    def __init__(self, stream: IO[bytes], program: process.Program | None) -> None:
        self.read = stream.read
        self._program = program

    def sound(self) -> bool:
        """Whether the tarball was whole. Call it when everything has been read."""
        return self._program is None or self._program.wait().status == 0

    def errors(self) -> str:
        """Return what the decompressor wrote to stderr."""
        return self._program.wait().stderr if self._program is not None else ""


@contextmanager
def decompressed(file: int, compression: str) -> Iterator[Stream]:
    """Yield the content of an open tarball from its start; if it is damaged, it may end early."""
    os.lseek(file, 0, os.SEEK_SET)
    if compression == "none":
        with open(os.dup(file), "rb") as plain:
            yield Stream(plain, None)
        return
    argv = [*compressor(compression), "-d"]
    with process.Program(argv, stdin=file, stdout=process.PIPE, confined=READING) as program:
        process.widen(program.stdout)
        yield Stream(program.stdout, program)
