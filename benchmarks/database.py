"""The case of a database, on a PostgreSQL server of its own."""

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tests.helpers.postgres_servers import INSTALLATIONS, Server

from .cases import Bench
from .measure import BTW_BACKUP, Task, shell
from .subjects import ENDLESS
from .table import Row, compared, counted

_DATABASE = "benchmark"
_CHANGING = "changing"
_ROW = 1000
_ROWS_AT_ONCE = 50_000
# A part that hardly compresses and a part that compresses well, below the size of TOAST.
_TABLE = "CREATE TABLE measured (number bigint PRIMARY KEY, noise text, words text);"
_INSERT = """
INSERT INTO measured
SELECT number, (SELECT string_agg(md5(number || ' ' || part), '') FROM generate_series(1, 14) AS part),
       repeat(md5((number % 100)::text) || ' and the same again; ', 9)
FROM generate_series({start} + 1, {stop}) AS number;
"""
_ITEMS = """
INSERT INTO items SELECT n, md5(n::text) || md5((n * 7)::text) || md5((n * 13)::text), n % 9973
FROM generate_series(1, {rows}) AS n;
"""


def database(bench: Bench) -> Iterator[Row]:
    """Unchanged runs of a database."""
    server = Server(INSTALLATIONS[0])
    place = bench.place("database")
    try:
        _fill(server, bench.scale.database // _ROW)
        dst, config = place / "dst", place / "config"
        dst.mkdir()
        env = server.as_superuser
        ours = Task([BTW_BACKUP, "--config-dir", config, "db", _DATABASE, dst], env=env)
        dump = Task(shell(f'pg_dump -Fc {_DATABASE} > "{place}/alone.dump"'), env=env)
        ours.run()
        mine, theirs = bench.in_turn(ours, dump)
        size = bench.scale.database // 1_000_000
        yield compared(f"db, unchanged, {size:,} MB / pg_dump -Fc", mine, theirs, 1.4)
        _expect_one_chain(dst)
        yield from _changed(bench, server, place)
    finally:
        server.stop()
        shutil.rmtree(place)


def _changed(bench: Bench, server: Server, place: Path) -> Iterator[Row]:
    """Changed runs, of a million short rows of which a thousand are updated, others each time."""
    rows = bench.scale.database // _ROW
    rests = count(7)
    server.psql(f"CREATE DATABASE {_CHANGING}")
    server.psql("CREATE TABLE items (id int PRIMARY KEY, name text, price numeric)", _CHANGING)
    server.psql(_ITEMS.format(rows=rows), _CHANGING)
    dst, config = place / "changing", place / "config"
    dst.mkdir()
    (config / f"{_CHANGING}.py").write_text(ENDLESS)
    env = server.as_superuser

    def change() -> None:
        some = f"id % {rows // 1000} = {next(rests)}"
        server.psql(f"UPDATE items SET price = price + 1 WHERE {some}", _CHANGING)

    alone = place / "alone.dump"
    ours = Task([BTW_BACKUP, "--config-dir", config, "db", _CHANGING, dst], change, env=env)
    dump = Task(shell(f'pg_dump -Fc --compress=0 {_CHANGING} > "{alone}"'), env=env)
    ours.run()
    mine, theirs = bench.in_turn(ours, dump)
    yield compared(f"db, changed, 1,000 of {rows:,} rows / pg_dump --compress=0", mine, theirs, 1.25)
    increments = [path.stat().st_size for path in dst.glob("2*/rdiff-backup-data/increments/*")]
    share = max(increments) / alone.stat().st_size
    yield counted("increment of that", "7 % of the dump", f"{100 * share:.1f} %", share < 0.07)


def programs() -> list[str]:
    """The server that is measured."""
    return [str(installation.bin / "postgres") for installation in INSTALLATIONS[:1] if installation.bin]


def _fill(server: Server, rows: int) -> None:
    server.psql(f"CREATE DATABASE {_DATABASE}")
    server.psql(_TABLE, _DATABASE)
    for start in range(0, rows, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, rows)
        server.psql(_INSERT.format(start=start, stop=stop), _DATABASE)


def _expect_one_chain(dst: Path) -> None:
    """Raise if the runs did not do what was to be measured."""
    names = [path.name for path in dst.glob("2*/rdiff-backup-data/increments.*")]
    if len(list(dst.glob("2*"))) != 1 or names:
        raise RuntimeError(f"the database was not unchanged: {names}")
