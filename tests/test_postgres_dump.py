"""Comparisons of dumps, made by every version of PostgreSQL on this machine."""

import bz2
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from btw_backup.errors import Error
from btw_backup.programs import dumps, postgres
from btw_backup.programs.dumps import dumped_database, same_dump, same_globals
from btw_backup.programs.server import Server as Connection

from .helpers.postgres_servers import Installation, MakeDatabase, Server, Start

DATABASE = "compared"
CONTENT = """
    CREATE TABLE item AS SELECT n AS id, md5(n::text) AS name FROM generate_series(1, 5000) n;
    SELECT lo_from_bytea(4711, 'a picture');
"""


class Pair(NamedTuple):
    """Two dumps of one state, made in different seconds; ``time`` is the offset of the first one's time."""

    first: bytes
    second: bytes
    time: range


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    """The dumps of each version, which are made only once."""
    return {}


@pytest.fixture
def pair(
    installation: Installation, server: Server, make_database: MakeDatabase, pairs: dict[str, Pair]
) -> Pair:
    if installation.name not in pairs:
        make_database(server, DATABASE, CONTENT)
        first = server.run("pg_dump", "-Fc", database=DATABASE).stdout
        time.sleep(1)
        second = server.run("pg_dump", "-Fc", database=DATABASE).stdout
        # Magic, version, three sizes, and the compression: a byte since archive version 1.15.
        start = 12 if first[5:7] >= b"\1\17" else 16
        pairs[installation.name] = Pair(first, second, range(start, start + 7 * 5))
    return pairs[installation.name]


def test_a_dump_of_a_version_that_is_not_known(
    one_server: Server, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server is asked which database it is, where the dump does not say it."""
    names = [make_database(one_server, name) for name in ("meant", "elsewhere")]
    for name, value in one_server.as_superuser.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dumps, "_OLDEST_VERSION", 99)
    with (tmp_path / "dump").open("w+b") as output:
        for name in names:
            server = Connection("dbname=meant", None, "meant.py")
            with nullcontext() if name == "meant" else pytest.raises(Error, match="leads to"):
                postgres.dump(name, server, 0, output.fileno(), lambda count: None)


@contextmanager
def files(*contents: bytes) -> Iterator[list[int]]:
    """Yield open files with those contents."""
    opened = [tempfile.TemporaryFile() for _ in contents]
    for file, content in zip(opened, contents, strict=True):
        file.write(content)
        file.flush()
    yield [file.fileno() for file in opened]
    for file in opened:
        file.close()


def same(compare: Callable[[int, int], bool], one: bytes, other: bytes) -> bool:
    """Compare two contents, and check that their order makes no difference."""
    with files(one, other) as (first, second):
        answers = {compare(first, second), compare(second, first)}
    assert len(answers) == 1
    return answers.pop()


def flipped(content: bytes, position: int, mask: int = 0xFF) -> bytes:
    changed = bytearray(content)
    changed[position] ^= mask
    return bytes(changed)


# Databases


def test_dumps_that_differ_in_their_time_are_the_same(pair: Pair) -> None:
    assert pair.first != pair.second
    assert same(same_dump, pair.first, pair.second)
    for position in pair.time:
        assert same(same_dump, pair.first, flipped(pair.first, position)), position


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_any_other_byte_makes_a_difference(pair: Pair, mask: int) -> None:
    size = len(pair.first)
    sampled = {*range(300), *range(300, size, size // 200), *range(size - 20, size)} - set(pair.time)
    unnoticed = [
        position
        for position in sorted(sampled)
        if same(same_dump, pair.first, flipped(pair.second, position, mask))
    ]
    assert unnoticed == []


def test_a_part_of_a_dump_is_not_the_same(pair: Pair) -> None:
    size = len(pair.first)
    lengths = [*range(120), size // 2, size - 1]
    assert [n for n in lengths if same(same_dump, pair.first, pair.first[:n])] == []
    assert not same(same_dump, pair.first, pair.first + b"\0")


@pytest.mark.parametrize("content", [b"", b"PGDMP", b"\0" * 5000, b"-- SQL\n" * 1000])
def test_what_is_no_dump_is_never_the_same(content: bytes) -> None:
    assert not same(same_dump, content, content)
    with files(content) as (file,):
        assert dumped_database(file) is None


def test_a_newer_version_is_read_where_there_is_a_time(pair: Pair) -> None:
    if pair.first[5:7] < b"\1\17":
        return  # its header is that of an older version
    first, second = (dump[:5] + b"\1\21" + dump[7:] for dump in (pair.first, pair.second))
    assert same(same_dump, first, second)
    assert not same(same_dump, first, pair.first)
    with files(first) as (file,):
        assert dumped_database(file) == DATABASE
    for field in range(7):  # the high byte of each number: no time has that
        other = flipped(first, pair.time[5 * field + 4])
        assert not same(same_dump, other, other)


@pytest.mark.parametrize("version", [b"\1\13", b"\2\17"])
def test_an_unknown_version_is_never_the_same(pair: Pair, version: bytes) -> None:
    unknown = pair.first[:5] + version + pair.first[7:]
    assert not same(same_dump, unknown, unknown)
    with files(unknown) as (file,):
        assert dumped_database(file) is None


@pytest.mark.parametrize("name", [DATABASE, "naïve 'name'", "x" * 63])
def test_a_dump_tells_its_database(server: Server, make_database: MakeDatabase, name: str) -> None:
    dump = server.run("pg_dump", "-Fc", "-s", database=make_database(server, name)).stdout
    with files(dump) as (file,):
        assert dumped_database(file) == name


def test_the_database_of_a_damaged_dump_is_no_exception(pair: Pair) -> None:
    for position in range(120):
        for mask in (0x01, 0x80, 0xFF):
            with files(flipped(pair.first, position, mask)) as (file,):
                assert isinstance(dumped_database(file), str | None)


# Globals


class Globals(NamedTuple):
    """Two dumps of the same globals, with keys of their own, and one of other globals."""

    first: bytes
    second: bytes
    other: bytes


@pytest.fixture(scope="module")
def dumped_globals() -> dict[str, Globals]:
    """The dumps of each version, which are made only once."""
    return {}


@pytest.fixture
def roles(installation: Installation, start_server: Start, dumped_globals: dict[str, Globals]) -> Globals:
    if installation.name not in dumped_globals:
        server = start_server(installation)
        first, second = (server.run("pg_dumpall", "-g").stdout for _ in range(2))
        server.psql("CREATE ROLE btw_one PASSWORD 'sesame'")
        try:
            other = server.run("pg_dumpall", "-g").stdout
        finally:
            server.psql("DROP ROLE btw_one")
        dumped_globals[installation.name] = Globals(first, second, other)
    return dumped_globals[installation.name]


def same_sql(one: bytes, other: bytes) -> bool:
    return same(same_globals, bz2.compress(one), bz2.compress(other))


def test_globals_that_differ_in_their_keys_are_the_same(roles: Globals) -> None:
    assert roles.first != roles.second and b"\n\\restrict " in roles.first
    assert same_sql(roles.first, roles.second)


def test_other_globals_are_not_the_same(roles: Globals) -> None:
    assert not same_sql(roles.first, roles.other)


def test_a_name_that_looks_like_a_key_makes_a_difference(roles: Globals) -> None:
    first, second = (
        sql.replace(b"\n\nCREATE ROLE ", b'\n\nCREATE ROLE "x\n\\restrict %b\n";\nCREATE ROLE ' % word, 1)
        for sql, word in ((roles.first, b"one"), (roles.second, b"two"))
    )
    assert b"\\restrict one" in first and not same_sql(first, second)


def test_any_byte_outside_of_the_keys_makes_a_difference(roles: Globals) -> None:
    lines = roles.first.splitlines(keepends=True)
    kept = [number for number, line in enumerate(lines) if b"restrict " not in line]
    assert len(kept) == len(lines) - 2
    for number in kept:
        for changed in (flipped(lines[number], -1, 0x01), b"x" + lines[number], b""):
            sql = b"".join([*lines[:number], changed, *lines[number + 1 :]])
            assert not same_sql(sql, roles.second), lines[number]
    assert not same_sql(roles.first + b"\n", roles.second)
    assert not same_sql(roles.first[:-1], roles.second)


def test_damaged_globals_are_not_the_same(roles: Globals) -> None:
    packed = bz2.compress(roles.first)
    damaged = [packed[:n] for n in (0, 1, 4, 14, len(packed) // 2, len(packed) - 1)]
    damaged += [flipped(packed, position) for position in range(len(packed))]
    damaged += [roles.first, os.urandom(5000)]
    taken = [content for content in damaged if same(same_globals, packed, content)]
    # The bits after the end of the stream, in its last byte, mean nothing.
    assert [content for content in taken if bz2.decompress(content) != roles.first] == []
