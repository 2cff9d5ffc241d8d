"""``btw-backup db-restore`` of some tables: they come back whole, and nothing else is touched."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from btw_backup.errors import Error
from btw_backup.programs import toc

from .helpers.postgres_servers import ACCOUNT, MakeDatabase, Server, quoted, without_keys
from .helpers.running import Btw, Result

PROG = "btw_backup"
SILENCE = Result(0, "", "")
CONTENT = """
    CREATE SCHEMA shop;
    COMMENT ON SCHEMA shop IS 'the shop';
    GRANT USAGE ON SCHEMA shop TO PUBLIC;
    CREATE FUNCTION shop.forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
    CREATE TABLE shop.item (
        id serial PRIMARY KEY, code integer GENERATED ALWAYS AS IDENTITY, name text NOT NULL DEFAULT 'it',
        price numeric CHECK (price >= 0)
    );
    INSERT INTO shop.item (name, price) SELECT 'item ' || n, n FROM generate_series(1, 100) n;
    CREATE INDEX ON shop.item (lower(name));
    CREATE STATISTICS shop.stats ON name, price FROM shop.item;
    CREATE TRIGGER forbid BEFORE TRUNCATE ON shop.item EXECUTE FUNCTION shop.forbid();
    CREATE RULE quiet AS ON DELETE TO shop.item WHERE OLD.id < 0 DO INSTEAD NOTHING;
    COMMENT ON TABLE shop.item IS 'what we sell';
    COMMENT ON COLUMN shop.item.name IS 'its name';
    COMMENT ON INDEX shop.item_lower_idx IS 'fast';
    GRANT SELECT ON shop.item TO PUBLIC;
    ALTER TABLE shop.item ENABLE ROW LEVEL SECURITY;
    CREATE POLICY cheap ON shop.item USING (price < 50);
    CREATE TABLE shop.note (id integer PRIMARY KEY, text text);
    INSERT INTO shop.note VALUES (1, 'one'), (2, 'two');
    CREATE TABLE other (id integer);
    INSERT INTO other VALUES (1), (2);
    CREATE VIEW numbers AS SELECT id FROM other;
"""
# What comes after the backup.
CHANGES = """
    DELETE FROM shop.item WHERE id > 5;
    DROP INDEX shop.item_lower_idx;
    ALTER TABLE shop.item DROP COLUMN code, ADD COLUMN extra text;
    REVOKE SELECT ON shop.item FROM PUBLIC;
    DELETE FROM other WHERE id = 1;
    UPDATE shop.note SET text = 'mine';
    CREATE TABLE shop.later (id serial);
"""
REFERRING = """
    CREATE TABLE item (id integer PRIMARY KEY, name text);
    INSERT INTO item VALUES (1, 'one'), (2, 'two');
    CREATE TABLE sale (item integer REFERENCES item);
    INSERT INTO sale VALUES (1);
    CREATE VIEW dear AS SELECT name FROM item;
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM item;
    CREATE TABLE aside (id integer);
    CREATE POLICY known ON aside USING (id IN (SELECT id FROM item));
"""


def dumped(server: Server, database: str, *options: str) -> list[bytes]:
    """A plain dump by pg_dump with these options."""
    return without_keys(server.run("pg_dump", *options, database=database).stdout)


@pytest.fixture
def shop(btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase) -> Iterator[Server]:
    """The server of a database that has been backed up."""
    make_database(one_server, "shop", CONTENT)
    assert btw("db", "shop", dst, env=one_server.as_superuser) == SILENCE
    yield one_server


def test_only_this_table_is_replaced(
    btw: Btw, dst: Path, server: Server, make_database: MakeDatabase
) -> None:
    make_database(server, "shop", CONTENT)
    assert btw("db", "shop", dst, env=server.as_superuser) == SILENCE
    item = dumped(server, "shop", "--table=shop.item*")
    server.psql(CHANGES, "shop")
    rest = dumped(server, "shop", "--exclude-table=shop.item*")
    assert (
        btw("db-restore", "--clean", "--table", "shop.item", dst, "shop", env=server.as_superuser) == SILENCE
    )
    assert dumped(server, "shop", "--table=shop.item*") == item
    assert dumped(server, "shop", "--exclude-table=shop.item*") == rest
    assert server.psql("INSERT INTO shop.item DEFAULT VALUES RETURNING id, code", "shop") == "101|101"


def test_a_table_that_was_dropped_comes_back(btw: Btw, dst: Path, shop: Server) -> None:
    before = dumped(shop, "shop")
    shop.psql("DROP TABLE shop.item", "shop")
    assert btw("db-restore", "--table", "item", dst, "shop", env=shop.as_superuser) == SILENCE
    assert dumped(shop, "shop") == before
    for name in ("item", "shop.item"):  # it is there now
        result = btw("db-restore", "--table", name, dst, "shop", env=shop.as_superuser)
        assert result.status == 1 and "shop holds shop.item" in result.err and "--clean" in result.err
        assert len(result.err.splitlines()) == 1
    assert dumped(shop, "shop") == before


def test_what_depends_on_it_is_named(
    btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    env = one_server.as_superuser
    make_database(one_server, "shop", REFERRING)
    expected = dumped(one_server, "shop")
    assert btw("db", "shop", dst, env=env) == SILENCE
    one_server.psql("UPDATE item SET name = 'mine'", "shop")
    before = dumped(one_server, "shop")
    result = btw("db-restore", "--clean", "--table", "item", dst, "shop", env=env)
    assert result.status == 1 and len(result.err.splitlines()) == 1
    for named in (
        "constraint sale_item_fkey on table public.sale",
        "materialized view public.counted",
        "policy known on table public.aside",
        "view public.dear",
    ):
        assert named in result.err
    assert "--table" in result.err and dumped(one_server, "shop") == before
    tables = [word for name in ("item", "sale", "dear", "counted", "aside") for word in ("--table", name)]
    assert btw("db-restore", "--clean", *tables, dst, "shop", env=env) == SILENCE
    assert dumped(one_server, "shop") == expected


def test_partitions_belong_to_their_table(
    btw: Btw, dst: Path, server: Server, make_database: MakeDatabase
) -> None:
    env = server.as_superuser
    partition = "CREATE TABLE sale_{0} PARTITION OF sale FOR VALUES FROM ('{0}-01-01') TO ('{1}-01-01');"
    sql = "CREATE TABLE sale (day date, n integer) PARTITION BY RANGE (day);"
    sql += partition.format(2024, 2025) + partition.format(2025, 2026)
    sql += "CREATE INDEX ON sale (n); ALTER TABLE sale ADD PRIMARY KEY (day, n);"
    make_database(server, "shop", f"{sql} INSERT INTO sale VALUES ('2024-05-05', 1), ('2025-05-05', 2)")
    expected = dumped(server, "shop")
    assert btw("db", "shop", dst, env=env) == SILENCE
    server.psql("DELETE FROM sale", "shop")
    assert btw("db-restore", "--clean", "--table", "sale", dst, "shop", env=env) == SILENCE
    assert dumped(server, "shop") == expected
    server.psql("DROP TABLE sale_2025", "shop")
    assert btw("db-restore", "--table", "sale_2025", dst, "shop", env=env) == SILENCE
    assert dumped(server, "shop") == expected
    # One that the dump does not hold would be gone with its table.
    server.psql(partition.format(2026, 2027) + "INSERT INTO sale VALUES ('2026-05-05', 3)", "shop")
    before = dumped(server, "shop")
    for name, said in (("sale", "table public.sale_2026 depends on"), ("sale_2024", "is a partition")):
        result = btw("db-restore", "--clean", "--table", name, dst, "shop", env=env)
        assert result.status == 1 and said in result.err and len(result.err.splitlines()) == 1
    assert dumped(server, "shop") == before


def test_a_schema(btw: Btw, dst: Path, shop: Server, make_database: MakeDatabase) -> None:
    env = shop.as_superuser
    expected = dumped(shop, "shop", "--schema=shop")
    shop.psql("DELETE FROM shop.item; UPDATE shop.note SET text = 'mine'; DELETE FROM other", "shop")
    rest = dumped(shop, "shop", "--exclude-schema=shop")
    assert btw("db-restore", "--clean", "--schema", "shop", dst, "shop", env=env) == SILENCE
    assert dumped(shop, "shop", "--schema=shop") == expected
    assert dumped(shop, "shop", "--exclude-schema=shop") == rest
    empty = make_database(shop, "empty")
    assert btw("db-restore", "--schema", "shop", dst, empty, env=env) == SILENCE
    assert dumped(shop, empty, "--schema=shop") == expected


def test_tables_in_a_new_database(btw: Btw, dst: Path, shop: Server) -> None:
    tables = ("--table=shop.note", "--table=public.other")
    expected = dumped(shop, "shop", *tables)
    options = ("--create", "--jobs", "2", "--table", "note", "--table", "public.other")
    try:
        assert btw("db-restore", *options, dst, "new", env=shop.as_superuser) == SILENCE
        assert dumped(shop, "new", *tables) == expected
        relations = "SELECT relname FROM pg_class WHERE relkind IN ('r', 'v') AND oid >= 16384 ORDER BY 1"
        assert shop.psql(relations, "new").split() == ["note", "other"]
        result = btw("db-restore", "--create", "--table", "none", dst, "newer", env=shop.as_superuser)
        assert result.status == 1 and "holds no table none" in result.err
    finally:
        shop.psql("DROP DATABASE IF EXISTS new")
    assert "newer" not in shop.psql("SELECT datname FROM pg_database").splitlines()


def test_list(btw: Btw, dst: Path, shop: Server) -> None:
    relations = shop.psql(
        "SELECT CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE 'sequence' END, nspname, relname"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE nspname IN ('public', 'shop') AND relkind IN ('r', 'v', 'S') ORDER BY 2, 3",
        "shop",
    )
    expected = [line.split("|") for line in relations.splitlines()]
    result = btw("db-restore", "--list", dst)
    assert (result.status, result.err) == (0, "")
    assert [line.split() for line in result.out.splitlines()] == [
        [kind, f"{schema}.{name}"] for kind, schema, name in expected
    ]


ODD = {"t": "a", "Table; DROP\nName": "a.b", "a": "pu blic", "a b": "pu blic", 'q"uote': "q", "with.dot": "q"}


def test_names_are_just_names(btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase) -> None:
    env = one_server.as_superuser
    sql = "".join(f"CREATE SCHEMA {quoted(schema)};" for schema in sorted(set(ODD.values())))
    for name, schema in ODD.items():
        sql += f"CREATE TABLE {quoted(schema)}.{quoted(name)} (id serial PRIMARY KEY, n integer);"
    sql += 'ALTER TABLE "pu blic"."a b" ADD FOREIGN KEY (n) REFERENCES "a.b"."Table; DROP\nName";'
    make_database(one_server, "odd", sql)
    before = dumped(one_server, "odd")
    assert btw("db", "odd", dst, env=env) == SILENCE
    for name, schema in ODD.items():
        if not name.startswith("Table"):
            one_server.psql(f"INSERT INTO {quoted(schema)}.{quoted(name)} VALUES (7)", "odd")
            argv = ("--clean", "--table", f"{schema}.{name}", "--", dst, "odd")
            assert btw("db-restore", *argv, env=env) == SILENCE
            assert dumped(one_server, "odd") == before
    result = btw("db-restore", "--clean", "--table", "Table; DROP\nName", dst, "odd", env=env)
    assert result.status == 1 and 'on table "pu blic"."a b"' in result.err
    assert dumped(one_server, "odd") == before


def test_what_the_dump_does_not_hold(btw: Btw, dst: Path, shop: Server) -> None:
    before = dumped(shop, "shop")
    for options in (("--table", "shop.none"), ("--table", "item", "--table", "Item"), ("--schema", "none")):
        result = btw("db-restore", "--clean", *options, dst, "shop", env=shop.as_superuser)
        assert result.status == 1 and "--list" in result.err and len(result.err.splitlines()) == 1
    assert dumped(shop, "shop") == before


def test_as_another_account(
    btw: Btw, dst: Path, config_dir: Path, peer_server: Server, make_database: MakeDatabase
) -> None:
    make_database(peer_server, "peer", CONTENT)
    config_dir.mkdir(mode=0o700)
    (config_dir / "global.py").write_text(f"RUN_AS = {ACCOUNT.pw_name!r}\n")
    assert btw("db", "peer", dst, env=peer_server.environment) == SILENCE
    before = dumped(peer_server, "peer")
    peer_server.psql("DELETE FROM shop.item", "peer")
    argv = ("db-restore", "--clean", "--table", "item", dst, "peer")
    assert btw(*argv, env=peer_server.environment) == SILENCE
    assert dumped(peer_server, "peer") == before


def test_contents_that_end_too_early(tmp_path: Path, one_server: Server, make_database: MakeDatabase) -> None:
    dump = one_server.run("pg_dump", "-Fc", database=make_database(one_server, "shop", CONTENT)).stdout
    end = dump.index(b"what we sell")
    for size in range(100, end, 97):
        path = tmp_path / "dump"
        path.write_bytes(dump[:size])
        with path.open("rb") as file, pytest.raises(Error):
            toc.read(file.fileno())
