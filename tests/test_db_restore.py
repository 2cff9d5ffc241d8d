"""``btw-backup db-restore`` with real servers of every version on this machine."""

import bz2
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .helpers.postgres_servers import ACCOUNT, MakeDatabase, Server, quoted
from .helpers.running import Btw, Result

PROG = "btw_backup"
SILENCE = Result(0, "", "")
SMALL = (
    "CREATE TABLE small (id serial PRIMARY KEY, text text); INSERT INTO small (text) VALUES ('one'), ('two')"
)
CONTENT = r"""
    CREATE SCHEMA shop;
    CREATE SCHEMA "Odd ""Schema";
    COMMENT ON SCHEMA shop IS E'the shop: caf\u00e9,\n''quoted''';
    CREATE TYPE shop.colour AS ENUM ('red', 'green');
    CREATE DOMAIN shop.price AS numeric(9, 2) CHECK (VALUE >= 0);
    CREATE TABLE shop.item (
        id serial PRIMARY KEY, name text NOT NULL, price shop.price, colour shop.colour DEFAULT 'red',
        twice numeric GENERATED ALWAYS AS (price * 2) STORED
    );
    INSERT INTO shop.item (name, price) SELECT 'item ' || n, n / 7.0 FROM generate_series(1, 200000) n;
    CREATE INDEX ON shop.item (lower(name));
    CREATE TABLE shop.sale (item integer REFERENCES shop.item, day date) PARTITION BY RANGE (day);
    CREATE TABLE shop.sale_2025 PARTITION OF shop.sale FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
    INSERT INTO shop.sale SELECT n, '2025-05-05' FROM generate_series(1, 100) n;
    CREATE TABLE "Odd ""Schema"."Table; DROP
Name" ("Column" bytea, b boolean, j jsonb, a integer[]);
    INSERT INTO "Odd ""Schema"."Table; DROP
Name" VALUES ('\x00ff10', true, '{"a": [1, null]}', '{1,2,NULL}'), (NULL, NULL, NULL, NULL);
    CREATE VIEW shop.dear AS SELECT * FROM shop.item WHERE price > 100;
    CREATE MATERIALIZED VIEW shop.count AS SELECT count(*) FROM shop.item;
    CREATE SEQUENCE shop.invoice START 1000 INCREMENT 7;
    SELECT nextval('shop.invoice');
    CREATE FUNCTION shop.forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE 'no';
    END $$;
    CREATE TRIGGER forbid BEFORE DELETE ON shop.item FOR EACH ROW EXECUTE FUNCTION shop.forbid();
    CREATE AGGREGATE shop.total(numeric) (SFUNC = numeric_add, STYPE = numeric);
    SELECT lo_from_bytea(4711, decode(repeat('00ff10', 30000), 'hex')), lo_create(4712);
    COMMENT ON LARGE OBJECT 4711 IS 'a picture';
    COMMENT ON TABLE shop.item IS 'what we sell';
    GRANT SELECT ON shop.item TO PUBLIC;
    ALTER TABLE shop.item ENABLE ROW LEVEL SECURITY;
    CREATE POLICY cheap ON shop.item USING (price < 100);
"""
EXTENSIONS = ("plpgsql", "vector", "hstore", "citext", "pg_trgm", "btree_gist", "uuid-ossp")

Loaded = Callable[..., list[bytes]]


@pytest.fixture
def store(btw: Btw, dst: Path, make_database: MakeDatabase) -> Callable[..., list[bytes]]:
    """Make a database and back it up. Returns its plain dump."""

    def run(server: Server, name: str, sql: str = SMALL) -> list[bytes]:
        make_database(server, name, sql)
        assert btw("db", name, dst, env=server.as_superuser) == SILENCE
        return server.plain_dump(name)

    return run


@pytest.fixture
def dropping() -> Iterator[Callable[[Server, str], str]]:
    """Drop a database after the test, if it exists. Returns its name."""
    made: list[tuple[Server, str]] = []

    def note(server: Server, name: str) -> str:
        made.append((server, name))
        return name

    yield note
    for server, name in made:
        server.psql(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


def points(btw: Btw, dst: Path) -> list[str]:
    return [line.strip() for line in btw("list", dst).out.splitlines()]


def databases(server: Server) -> list[str]:
    return server.psql("SELECT datname FROM pg_database ORDER BY 1").splitlines()


def configure(config_dir: Path, name: str, text: str) -> None:
    config_dir.mkdir(mode=0o700, exist_ok=True)
    (config_dir / f"{name}.py").write_text(text)


def the_dump(dst: Path) -> Path:
    (path,) = [*dst.glob("2*/*.dump"), *dst.glob("2*/*.bz2")]
    return path


def everything(server: Server) -> str:
    """Return SQL for content that uses the extensions of the server."""
    found = server.psql("SELECT name FROM pg_available_extensions").splitlines()
    extensions = [name for name in EXTENSIONS if name in found]
    assert extensions
    return "".join(f'CREATE EXTENSION IF NOT EXISTS "{name}";' for name in extensions) + CONTENT


# Round trips


def test_every_point_comes_back(
    btw: Btw,
    dst: Path,
    server: Server,
    store: Loaded,
    make_database: MakeDatabase,
    dropping: Callable[[Server, str], str],
) -> None:
    first = store(server, "shop", everything(server))
    server.psql("UPDATE shop.item SET price = 0 WHERE id < 9; SELECT lo_put(4711, 5, 'x')", "shop")
    assert btw("db", "shop", dst, env=server.as_superuser) == SILENCE
    second = server.plain_dump("shop")
    assert first != second
    full, _ = points(btw, dst)
    env = server.as_superuser
    assert btw("db-restore", dst, make_database(server, "new"), env=env) == SILENCE
    assert server.plain_dump("new") == second
    jobs = make_database(server, "jobs")
    assert btw("db-restore", "--jobs", "2", "--at", full, dst, jobs, env=env) == SILENCE
    assert server.plain_dump(jobs) == first
    created = dropping(server, "Created Anew")
    assert btw("db-restore", "--create", "--jobs", "2", dst, created, env=env) == SILENCE
    assert server.plain_dump(created) == second


def test_clean_replaces_what_has_the_same_names(
    btw: Btw, dst: Path, server: Server, store: Loaded, make_database: MakeDatabase
) -> None:
    content = SMALL + "; SELECT lo_from_bytea(4711, 'picture'); CREATE VIEW v AS SELECT id FROM small"
    expected = store(server, "shop", content)
    name = make_database(server, "changed", content)
    server.psql("DELETE FROM small WHERE id = 1; INSERT INTO small (text) VALUES ('mine')", name)
    server.psql("DROP VIEW v; SELECT lo_put(4711, 0, 'x')", name)
    assert server.plain_dump(name) != expected
    assert btw("db-restore", "--clean", dst, name, env=server.as_superuser) == SILENCE
    assert server.plain_dump(name) == expected
    server.psql("CREATE TABLE of_another_name ()", name)
    changed = server.plain_dump(name)
    assert btw("db-restore", "--clean", dst, name, env=server.as_superuser) == SILENCE
    assert server.plain_dump(name) == changed
    empty = make_database(server, "empty")
    assert btw("db-restore", "--clean", dst, empty, env=server.as_superuser) == SILENCE
    assert server.plain_dump(empty) == expected


SETTINGS = "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = "


@pytest.mark.parametrize(
    "options",
    [
        "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
        "ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C.UTF-8'",
        "ENCODING 'SQL_ASCII' LC_COLLATE 'POSIX' LC_CTYPE 'POSIX'",
    ],
)
def test_create_gives_the_encoding_and_locale(
    btw: Btw, dst: Path, server: Server, dropping: Callable[[Server, str], str], options: str
) -> None:
    name = dropping(server, "Of Origin")
    server.psql(f'CREATE DATABASE "Of Origin" TEMPLATE template0 {options}')
    server.psql("CREATE TABLE caf\u00e9 AS SELECT '\u00e9' AS e", name)
    expected = server.plain_dump(name)
    assert btw("db", name, dst, env=server.as_superuser) == SILENCE
    created = dropping(server, 'New "One" é')
    assert btw("db-restore", "--create", dst, created, env=server.as_superuser) == SILENCE
    assert server.plain_dump(created) == expected
    assert server.psql(f"{SETTINGS}'{created}'") == server.psql(f"{SETTINGS}'{name}'")


NAMES = ("With Space", "UPPER", "-dash", "host=nowhere", "postgresql://nowhere/x", ":\"q\" 'q' $1", "ünïcode")


def test_a_name_is_just_a_name(
    btw: Btw, dst: Path, one_server: Server, store: Loaded, dropping: Callable[[Server, str], str]
) -> None:
    expected = store(one_server, "shop")
    for name in NAMES:
        dropping(one_server, name)
        assert btw("db-restore", "--create", "--", dst, name, env=one_server.as_superuser) == SILENCE
        assert one_server.plain_dump(name) == expected
    one_server.psql("DROP TABLE small", name)
    assert btw("db-restore", "--", dst, name, env=one_server.as_superuser) == SILENCE
    assert one_server.plain_dump(name) == expected


# Refusals


HELD = (
    "CREATE TABLE mine ()",
    "CREATE SCHEMA s; CREATE TABLE s.mine ()",
    "CREATE SCHEMA pgsomething; CREATE TABLE pgsomething.mine ()",
    "CREATE VIEW mine AS SELECT 1",
    "CREATE SEQUENCE mine",
    "SELECT lo_create(99)",
    "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
)


def test_a_database_that_holds_something_is_refused(
    btw: Btw, dst: Path, one_server: Server, store: Loaded, make_database: MakeDatabase
) -> None:
    store(one_server, "shop")
    for number, held in enumerate(HELD):
        name = make_database(one_server, f"in use {number}", held)
        before = one_server.plain_dump(name)
        jobs = ("--jobs", "2") if number % 2 else ()
        result = btw("db-restore", *jobs, dst, name, env=one_server.as_superuser)
        assert (result.status, result.out) == (1, ""), held
        assert name in result.err and "--clean" in result.err and len(result.err.splitlines()) == 1
        assert one_server.plain_dump(name) == before


def test_create_refuses_a_database_that_exists(
    btw: Btw, dst: Path, one_server: Server, store: Loaded
) -> None:
    before = store(one_server, "shop")
    result = btw("db-restore", "--create", dst, "shop", env=one_server.as_superuser)
    assert result.status == 1 and "already exists" in result.err
    assert one_server.plain_dump("shop") == before


def test_a_database_that_does_not_exist(btw: Btw, dst: Path, one_server: Server, store: Loaded) -> None:
    store(one_server, "shop")
    before = databases(one_server)
    for options in (("--clean",), ("--jobs", "2")):
        result = btw("db-restore", *options, dst, "nowhere", env=one_server.as_superuser)
        assert result.status == 1 and "nowhere" in result.err
    assert databases(one_server) == before


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["-g", "--create"],
        ["-g", "--clean"],
        ["-g", "--jobs", "2"],
        ["--output", "-", "--clean"],
        ["--output", "-", "-g"],
        ["--output", "-", "db"],
        ["-g", "db"],
        ["--create", "--clean", "db"],
        ["--clean", "--jobs", "2", "db"],
        ["--jobs", "0", "db"],
        ["--jobs", "many", "db"],
        ["--table", "t"],
        ["-g", "--table", "t"],
        ["--output", "-", "--schema", "s"],
        ["--table", "t", "--jobs", "2", "db"],
        ["--list", "db"],
        ["--list", "-g"],
        ["--list", "--table", "t"],
    ],
    ids=" ".join,
)
def test_usage(btw: Btw, dst: Path, args: list[str]) -> None:
    options, db = (args[:-1], args[-1:]) if args[-1:] == ["db"] else (args, [])
    result = btw("db-restore", *options, dst, *db)
    assert (result.status, result.out) == (2, "")
    assert PROG in result.err.splitlines()[-1]


def test_backups_of_something_else(
    btw: Btw, dst: Path, src: Path, tmp_path: Path, one_server: Server
) -> None:
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    (tmp_path / "files").mkdir()
    assert btw("fs", src, tmp_path / "files") == SILENCE
    assert btw("db", "-g", dst, env=one_server.as_superuser) == SILENCE
    before = databases(one_server)
    files = str(tmp_path / "files")
    for args in ([files, "new"], ["-g", files], ["--create", str(dst), "new"]):
        result = btw("db-restore", *args, env=one_server.as_superuser)
        assert result.status == 1 and "does not hold" in result.err
    assert databases(one_server) == before


# Failures

OWNED = f"""
    CREATE ROLE btw_owner;
    {SMALL};
    SELECT lo_from_bytea(4711, 'picture'), lo_create(4712);
    CREATE SCHEMA shop;
    CREATE TYPE shop.colour AS ENUM ('red');
    CREATE FUNCTION shop.twice(integer) RETURNS integer LANGUAGE sql AS 'SELECT 2 * $1';
    CREATE TABLE shop."Item; DROP" (c shop.colour, n integer DEFAULT shop.twice(4));
    CREATE VIEW dear AS SELECT * FROM small;
    CREATE TABLE other (id integer PRIMARY KEY, small integer REFERENCES small);
    ALTER TABLE other OWNER TO btw_owner;
    CREATE TABLE zz AS SELECT n FROM generate_series(1, 1000) n;
"""


GLOBALS_FIRST = f'{PROG}: role "btw_owner" does not exist: restore the globals first, with db-restore -g'


def without_owner(store: Loaded, server: Server, sql: str) -> None:
    """Back up a database with objects that belong to a role, and drop the role."""
    try:
        store(server, "shop", sql)
    finally:
        server.psql("DROP OWNED BY btw_owner; DROP ROLE btw_owner", "shop")


def test_a_failure_leaves_everything_as_it_was(
    btw: Btw, dst: Path, server: Server, store: Loaded, make_database: MakeDatabase
) -> None:
    without_owner(store, server, OWNED)
    empty = make_database(server, "empty")
    in_use = make_database(server, "in use", f"{SMALL}; DELETE FROM small; CREATE TABLE mine ()")
    before = {name: server.plain_dump(name) for name in (empty, in_use)}
    there = databases(server)
    for *options, name in (
        (empty,),
        ("--jobs", "2", empty),
        ("--clean", empty),
        ("--clean", in_use),
        ("--create", "new"),
        ("--create", "--jobs", "2", "new"),
    ):
        result = btw("db-restore", *options, dst, name, env=server.as_superuser)
        assert result.status == 1, options
        assert 'role "btw_owner" does not exist' in result.err, options
        assert result.err.splitlines()[-2:] == [f"{PROG}: pg_restore exited with code: 1", GLOBALS_FIRST]
        assert databases(server) == there, options
        assert {name: server.plain_dump(name) for name in before} == before, options


@pytest.mark.parametrize(
    "sql",
    [
        'CREATE TABLE t (); GRANT SELECT ON t TO "btw_owner"',
        "CREATE TABLE t (); CREATE POLICY p ON t TO btw_owner",
        "ALTER DEFAULT PRIVILEGES FOR ROLE btw_owner GRANT SELECT ON TABLES TO PUBLIC",
    ],
)
def test_whatever_needs_a_missing_role_says_so(
    btw: Btw, dst: Path, one_server: Server, store: Loaded, make_database: MakeDatabase, sql: str
) -> None:
    without_owner(store, one_server, f"CREATE ROLE btw_owner; {sql}")
    result = btw("db-restore", dst, make_database(one_server, "empty"), env=one_server.as_superuser)
    assert (result.status, result.err.splitlines()[-1]) == (1, GLOBALS_FIRST)


def test_a_failure_where_a_name_holds_a_newline(
    btw: Btw, dst: Path, one_server: Server, store: Loaded, make_database: MakeDatabase
) -> None:
    without_owner(store, one_server, OWNED.replace("Item; DROP", "Item;\nDROP"))
    name = make_database(one_server, "empty")
    before = one_server.plain_dump(name)
    result = btw("db-restore", "--jobs", "2", dst, name, env=one_server.as_superuser)
    assert result.status == 1
    assert one_server.plain_dump(name) == before
    assert 'role "btw_owner" does not exist' in result.err


def test_a_damaged_dump_touches_nothing(
    btw: Btw, dst: Path, one_server: Server, store: Loaded, make_database: MakeDatabase
) -> None:
    expected = store(one_server, "shop")
    dump = the_dump(dst)
    data = bytearray(dump.read_bytes())
    data[-20] ^= 1
    dump.write_bytes(data)
    make_database(one_server, "empty")
    before = databases(one_server)
    for *options, name in (("empty",), ("--jobs", "2", "empty"), ("--clean", "shop"), ("--create", "new")):
        result = btw("db-restore", *options, dst, name, env=one_server.as_superuser)
        assert result.status == 1 and "shop.dump" in result.err and "damaged" in result.err
        assert databases(one_server) == before
    assert one_server.plain_dump("shop") == expected
    assert b"small" not in b"".join(one_server.plain_dump("empty"))


def test_a_server_that_is_down(
    btw: Btw, dst: Path, tmp_path: Path, one_server: Server, store: Loaded
) -> None:
    store(one_server, "shop")
    for args in (["--create", str(dst), "new"], ["--clean", str(dst), "shop"]):
        result = btw("db-restore", *args, env={**one_server.as_superuser, "PGHOST": str(tmp_path)})
        assert result.status == 1 and str(tmp_path) in result.err
        assert result.err.splitlines()[-1].startswith(f"{PROG}: ")


# The globals

ROLES = """
    CREATE ROLE btw_group NOLOGIN CREATEDB;
    CREATE ROLE "Btw Member" LOGIN PASSWORD 'secret' CONNECTION LIMIT 3 VALID UNTIL '2050-01-01';
    ALTER ROLE "Btw Member" SET search_path = 'shop, public';
    COMMENT ON ROLE btw_group IS E'a\\ngroup';
    GRANT btw_group TO "Btw Member" WITH ADMIN OPTION;
"""
NO_ROLES = 'DROP ROLE IF EXISTS "Btw Member"; DROP ROLE IF EXISTS btw_group'


def test_globals_in_another_cluster(
    btw: Btw, dst: Path, config_dir: Path, server: Server, peer_server: Server
) -> None:
    try:
        server.psql(ROLES)
        assert btw("db", "-g", dst, env=server.as_superuser) == SILENCE
        expected = server.globals()
        configure(config_dir, "global", f"RUN_AS = {ACCOUNT.pw_name!r}\n")
        assert peer_server.globals() != expected
        for _ in range(2):
            assert btw("db-restore", "-g", dst, env=peer_server.environment) == SILENCE
            assert peer_server.globals() == expected
        peer_server.psql('DROP ROLE "Btw Member"')  # only what is missing comes back
        assert btw("db-restore", "-g", dst, env=peer_server.environment) == SILENCE
        assert peer_server.globals() == expected
    finally:
        server.psql(NO_ROLES)
        peer_server.psql(NO_ROLES)


ODD = (
    "O'Brien",
    'the "Boss"',
    "back\\slash\\",
    "\\! touch evil",
    "semi; colon",
    "-- no comment",
    "/* nor this",
    "two\nlines",
    "two\n\\restrict lines",
    "$$ $a$",
    "ünï cödé",
    ':"name"',
    "E'",
    "%I",
)


def test_names_of_roles_are_just_names(btw: Btw, dst: Path, server: Server) -> None:
    def drop() -> None:
        for name in ODD:
            server.psql(f"DROP ROLE IF EXISTS {quoted(name)}")

    try:
        for name in ODD:
            server.psql(f"CREATE ROLE {quoted(name)} PASSWORD {text(name)}")
            server.psql(f"COMMENT ON ROLE {quoted(name)} IS {text(name)}")
            server.psql(f"ALTER ROLE {quoted(name)} SET application_name = {text(name)}")
            server.psql(f"GRANT pg_monitor TO {quoted(name)}")
        assert btw("db", "-g", dst, env=server.as_superuser) == SILENCE
        expected = server.globals()
        drop()
        server.psql(f"CREATE ROLE {quoted(ODD[0])}")
        assert server.globals() != expected
        for _ in range(2):
            assert btw("db-restore", "-g", dst, env=server.as_superuser) == SILENCE
            assert server.globals() == expected
    finally:
        drop()


def text(value: str) -> str:
    """The text as SQL."""
    return "'" + value.replace("'", "''") + "'"


def test_globals_on_a_server_that_speaks_german(btw: Btw, dst: Path, german_server: Server) -> None:
    german_server.psql(ROLES)
    env = german_server.as_superuser
    assert btw("db", "-g", dst, env=env) == SILENCE
    assert btw("db-restore", "-g", dst, env=env) == SILENCE
    german_server.psql("DROP ROLE btw_group")
    result = btw("db-restore", "-g", dst, env={**env, "PGUSER": "Btw Member"})
    assert result.status == 1
    assert "FEHLER" in result.err and "existiert bereits" not in result.err
    assert result.err.splitlines()[-1] == f"{PROG}: some of the globals could not be restored"


def test_globals_that_cannot_be_restored(btw: Btw, dst: Path, one_server: Server) -> None:
    try:
        one_server.psql(ROLES)
        assert btw("db", "-g", dst, env=one_server.as_superuser) == SILENCE
        one_server.psql("DROP ROLE btw_group")
        result = btw("db-restore", "-g", dst, env={**one_server.as_superuser, "PGUSER": "Btw Member"})
        assert result.status == 1
        assert result.err.splitlines()[-1].startswith(f"{PROG}: ")
        dump = the_dump(dst)
        dump.write_bytes(dump.read_bytes()[:-30])
        result = btw("db-restore", "-g", dst, env=one_server.as_superuser)
        assert result.status == 1 and "damaged" in result.err
        assert "btw_group" not in one_server.psql("SELECT rolname FROM pg_roles").splitlines()
    finally:
        one_server.psql(NO_ROLES)


# --output


@pytest.mark.parametrize("what", ["database", "globals"])
def test_output(
    btw: Btw, dst: Path, tmp_path: Path, one_server: Server, make_database: MakeDatabase, what: str
) -> None:
    args = [make_database(one_server, "shop", SMALL)] if what == "database" else ["-g"]
    stored: list[bytes] = []
    try:
        for change in ("SELECT 1", "CREATE TABLE more ()", "CREATE ROLE btw_more"):
            one_server.psql(change, "shop" if what == "database" else "postgres")
            assert btw("db", *args, dst, env=one_server.as_superuser) == SILENCE
            if len(points(btw, dst)) > len(stored):
                stored.append(the_dump(dst).read_bytes())
    finally:
        one_server.psql("DROP ROLE IF EXISTS btw_more; DROP TABLE IF EXISTS more")
    names = points(btw, dst)
    assert len(names) == len(stored) == 2
    for name, content in zip(names, stored, strict=True):
        file = tmp_path / name
        assert btw("db-restore", "--at", name, "--output", file, dst) == SILENCE
        assert file.read_bytes() == content
        assert file.stat().st_mode & 0o777 == 0o600
        command: list[str | Path] = [sys.executable, "-m", "btw_backup", "db-restore", "--at", name]
        command += ["--output", "-", dst]
        assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == content


@pytest.mark.parametrize("kind", ["file", "directory", "link", "no directory"])
def test_output_to_what_is_there_already_is_refused(
    btw: Btw, dst: Path, tmp_path: Path, one_server: Server, store: Loaded, kind: str
) -> None:
    store(one_server, "shop")
    output = tmp_path / "output"
    if kind == "file":
        output.write_text("mine\n")
    elif kind == "directory":
        output.mkdir()
    elif kind == "link":
        output.symlink_to("nowhere")
    else:
        output = output / "output"
    result = btw("db-restore", "--output", output, dst)
    assert result.status == 1 and str(output) in result.err and len(result.err.splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()
    assert kind != "file" or output.read_text() == "mine\n"


def test_output_of_a_damaged_dump_does_not_stay(
    btw: Btw, dst: Path, tmp_path: Path, one_server: Server, store: Loaded
) -> None:
    store(one_server, "shop")
    os.truncate(the_dump(dst), 500)
    result = btw("db-restore", "--output", tmp_path / "output", dst)
    assert result.status == 1 and "damaged" in result.err
    assert not (tmp_path / "output").exists()


# The database that is named, and no other


@pytest.fixture(params=["CONNECTION", "a URI", "CONNECTION's service", "PGSERVICE"])
def leading_astray(
    request: pytest.FixtureRequest, config_dir: Path, tmp_path: Path, one_server: Server
) -> dict[str, str]:
    """The environment of a run whose connection leads to the database ``production``."""
    service = tmp_path / "services"
    service.write_text("[astray]\ndbname=production\n")
    env = {**one_server.as_superuser, "PGSERVICEFILE": str(service)}
    if request.param == "PGSERVICE":
        return {**env, "PGSERVICE": "astray"}
    connection = {
        "CONNECTION": "dbname=production",
        "a URI": "postgresql:///production",
        "CONNECTION's service": "service=astray",
    }[request.param]
    for name in ("production", "shop", "global"):
        configure(config_dir, name, f"CONNECTION = {connection!r}\n")
    return env


def test_nothing_is_written_into_another_database(
    btw: Btw,
    dst: Path,
    config_dir: Path,
    one_server: Server,
    make_database: MakeDatabase,
    leading_astray: dict[str, str],
) -> None:
    """Where the settings of the connection hold a database's name, that one was overwritten."""
    production = make_database(one_server, "production", f"{SMALL}; CREATE TABLE mine ()")
    make_database(one_server, "scratch")
    (dst / "globals").mkdir()
    # The connection of a database that is called like the one that the settings name is right.
    assert btw("db", production, dst, env=leading_astray) == SILENCE
    assert btw("db", "-g", dst / "globals", env=leading_astray) == SILENCE
    one_server.psql("DELETE FROM small", production)
    before, there = one_server.plain_dump(production), databases(one_server)
    commands: list[list[str | Path]] = [
        ["db-restore", "--clean", dst, "scratch"],
        ["db-restore", dst, "scratch"],
        ["db-restore", "--jobs", "2", dst, "scratch"],
        ["db-restore", "--create", dst, "new"],
        ["db-restore", "-g", dst / "globals"],
        ["verify", "--restore-test", dst],
    ]
    for args in commands:
        result = btw(*args, env=leading_astray)
        assert result.status == 1, args
        assert "leads to the database production instead of" in result.err, args
        assert len(result.err.splitlines()) == 1, args
        assert databases(one_server) == there, args
        assert one_server.plain_dump(production) == before, args
    assert b"small" not in b"".join(one_server.plain_dump("scratch"))
    assert btw("db-restore", "--clean", dst, production, env=leading_astray) == SILENCE
    assert one_server.plain_dump(production) != before


# Doctored dumps


def doctor(dst: Path, content: bytes) -> None:
    """Replace the chain by one that holds this, as rdiff-backup makes it."""
    dump = the_dump(dst)
    chain, stage = dump.parent, dst.parent / "doctored"
    stage.mkdir()
    (stage / dump.name).write_bytes(content)
    shutil.rmtree(chain)
    subprocess.run(["rdiff-backup", "-v2", "backup", stage, chain], check=True)


def test_no_command_of_a_globals_dump_is_run(btw: Btw, dst: Path, tmp_path: Path, server: Server) -> None:
    """psql runs what follows a backslash, as root."""
    assert btw("db", "-g", dst, env=server.as_superuser) == SILENCE
    evil = tmp_path / "evil"
    sql = bz2.decompress(the_dump(dst).read_bytes())
    command = rb"\! touch %b" % bytes(evil)
    lines = [b"", command, b"SELECT 1 \\; " + command, b"SELECT 'x' " + command + b"\n;", b"\\unrestrict a"]
    lines += [b"SET standard_conforming_strings = off;", b"SELECT '\\';", command + b" '", b"';", command]
    doctor(dst, bz2.compress(sql.replace(b"\n\nSET ", b"\n".join(lines) + b"\n\nSET ", 1)))
    result = btw("db-restore", "-g", dst, env=server.as_superuser)
    assert not evil.exists()
    assert result.status == 1
    assert result.err.splitlines()[-1] == f"{PROG}: some of the globals could not be restored"


def test_no_command_of_a_database_dump_is_run(
    btw: Btw,
    dst: Path,
    server: Server,
    store: Loaded,
    make_database: MakeDatabase,
    dropping: Callable[[Server, str], str],
) -> None:
    store(server, "shop", f"{SMALL}; CREATE VIEW {'v' * 63} AS SELECT '{'x' * 99}'::text AS t")
    sound = the_dump(dst).read_bytes()
    with tempfile.TemporaryDirectory() as directory:  # a short path
        evil = Path(directory) / "evil"
        command = rb"\! touch %b" % bytes(evil)
        dump = sound
        for pattern in (
            rb"()CREATE VIEW [^;]*;\n",
            rb"()DROP VIEW [^;]*;\n",
            rb"(CREATE DATABASE shop WITH TEMPLATE = template0 )[^;]*",
        ):
            found = re.search(pattern, dump)
            assert found, pattern
            new = (found[1] + command + (b"" if found[1] else b"\n")).ljust(len(found[0]))
            assert len(new) == len(found[0])
            dump = dump[: found.start()] + new + dump[found.end() :]
        doctor(dst, dump)
        make_database(server, "empty")
        dropping(server, "new")
        for *options, name in (
            ["empty"],
            ["--jobs", "2", "empty"],
            ["--clean", "shop"],
            ["--create", "new"],
        ):
            result = btw("db-restore", *options, dst, name, env=server.as_superuser)
            assert result.status == 1 and "syntax error" in result.err, options
            assert not evil.exists(), options


# Options


def test_connection_is_that_of_the_dumped_database(
    btw: Btw,
    dst: Path,
    config_dir: Path,
    server: Server,
    store: Loaded,
    dropping: Callable[[Server, str], str],
) -> None:
    expected = store(server, "shop")
    configure(config_dir, "shop", f"CONNECTION = 'host={server.socket} user={server.superuser}'\n")
    path = {"PATH": server.environment["PATH"]}
    for options in (["--create"], ["--clean"]):
        assert btw("db-restore", *options, dst, dropping(server, "new"), env=path) == SILENCE
        assert server.plain_dump("new") == expected
    assert btw("db-restore", "--create", "--jobs", "2", dst, dropping(server, "n2"), env=path) == SILENCE
    assert server.plain_dump("n2") == expected


def test_run_as_is_all_that_peer_authentication_takes(
    btw: Btw,
    dst: Path,
    config_dir: Path,
    tmp_path: Path,
    peer_server: Server,
    make_database: MakeDatabase,
    dropping: Callable[[Server, str], str],
) -> None:
    make_database(peer_server, "peer", SMALL)
    configure(config_dir, "peer", f"RUN_AS = {ACCOUNT.pw_name!r}\n")
    private = tmp_path / "private"  # the other account has no access to it
    private.mkdir(mode=0o700)
    environment = peer_server.environment
    assert btw("db", "peer", dst, env=environment, cwd=private) == SILENCE
    for *options, name in (
        ("e1",),
        ("--jobs", "2", "e2"),
        ("--create", "n1"),
        ("--create", "--jobs", "2", "n2"),
    ):
        (dropping if "--create" in options else make_database)(peer_server, name)
        assert btw("db-restore", *options, dst, name, env=environment, cwd=private) == SILENCE
        assert peer_server.plain_dump(name) == peer_server.plain_dump("peer")
