"""``btw-backup db`` with real servers of every version on this machine."""

import bz2
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .helpers.postgres_servers import ACCOUNT, AS_ROOT, MakeDatabase, Server, without_keys
from .helpers.running import Btw, Result, wait_for

PROG = "btw_backup"
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
UNCHANGED = "no change in the data to be backed up: skipping creation of new {} backup"
SILENCE = Result(0, "", "")
CONTENT = """
    CREATE SCHEMA shop;
    CREATE TABLE shop.item (id serial PRIMARY KEY, name text NOT NULL, price numeric(9, 2));
    INSERT INTO shop.item (name, price) SELECT 'item ' || n, n / 7.0 FROM generate_series(1, 20000) n;
    CREATE INDEX ON shop.item (name);
    CREATE VIEW shop.dear AS SELECT * FROM shop.item WHERE price > 100;
    CREATE SEQUENCE shop.invoice START 1000;
    SELECT nextval('shop.invoice');
    SELECT lo_from_bytea(4711, decode(repeat('00ff10', 30000), 'hex'));
    COMMENT ON LARGE OBJECT 4711 IS 'a picture';
    COMMENT ON TABLE shop.item IS E'what we sell: caf\\u00e9,\\n''quoted''';
    COMMENT ON SCHEMA shop IS 'the shop';
    CREATE FUNCTION shop.twice(integer) RETURNS integer LANGUAGE sql AS 'SELECT 2 * $1';
    GRANT SELECT ON shop.item TO PUBLIC;
"""


def listed(btw: Btw, dst: Path) -> list[str]:
    result = btw("list", dst)
    assert (result.status, result.err) == (0, "")
    return result.out.splitlines()


def log(dst: Path) -> list[str]:
    path = dst / "log.txt"
    return path.read_text().splitlines() if path.exists() else []


def visible(dst: Path) -> dict[str, bytes]:
    """Map the path of each file of a destination to its content, without the private directory."""
    files = (path for path in dst.rglob("*") if path.is_file() and ".btw-backup" not in path.parts)
    return {str(path.relative_to(dst)): path.read_bytes() for path in files}


def no_trace(dst: Path) -> bool:
    """Return whether an empty destination is still empty, and no temporary files are left."""
    prepared = dst / ".btw-backup"
    return set(os.listdir(dst)) <= {".btw-backup"} and (
        not prepared.exists() or set(os.listdir(prepared)) <= {"lock"}
    )


def older_point(dst: Path, lines: list[str], point: int, target: Path) -> Path:
    """Restore a point of the only chain with plain rdiff-backup. Returns the target."""
    at = lines[point].strip() + "Z"
    subprocess.run(["rdiff-backup", "-v2", "restore", "--at", at, dst / lines[0], target], check=True)
    return target


def restored(server: Server, dump: Path, name: str, *options: str) -> list[bytes]:
    """Restore a dump with plain pg_restore into a database. Returns the plain dump of the database."""
    copy = server.directory / "restored.dump"  # the server's account can read it there
    copy.write_bytes(dump.read_bytes())
    copy.chmod(0o644)
    server.run("pg_restore", "--exit-on-error", *options, f"--dbname={name}", copy)
    return server.plain_dump(name)


def write_config(config_dir: Path, name: str, text: str) -> Path:
    path = config_dir / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Databases


def test_points_of_a_database_restore(
    btw: Btw, dst: Path, tmp_path: Path, server: Server, make_database: MakeDatabase
) -> None:
    name = make_database(server, "shop", CONTENT)
    first = server.plain_dump(name)
    assert btw("db", name, dst, env=server.as_superuser) == SILENCE
    assert len(listed(btw, dst)) == 1
    changes = "DELETE FROM shop.item WHERE id = 7; SELECT lo_put(4711, 5, 'x'), nextval('shop.invoice')"
    server.psql(changes, name)
    second = server.plain_dump(name)
    assert btw("db", name, dst, env=server.as_superuser) == SILENCE

    lines = listed(btw, dst)
    assert len(lines) == 2
    assert re.fullmatch(MOMENT, lines[0]) and re.fullmatch(f" {MOMENT}", lines[1])
    chain = dst / lines[0]
    assert sorted(os.listdir(chain)) == ["rdiff-backup-data", "shop.dump"]
    assert log(dst) == []
    older = older_point(dst, lines, 0, tmp_path / "older")
    assert first != second
    assert restored(server, chain / "shop.dump", make_database(server, "new"), "--jobs=2") == second
    assert restored(server, older / "shop.dump", make_database(server, "old")) == first


def test_an_unchanged_database_adds_a_line_to_the_log_only(
    btw: Btw, dst: Path, server: Server, make_database: MakeDatabase
) -> None:
    name = make_database(server, "same", CONTENT)
    assert btw("db", name, dst, env=server.as_superuser) == SILENCE
    before = visible(dst)
    assert btw("db", name, dst, env=server.as_superuser) == SILENCE
    server.psql("VACUUM (ANALYZE, FREEZE)", name)
    assert btw("db", name, dst, env=server.as_superuser) == SILENCE

    assert len(log(dst)) == 2
    for line in log(dst):
        assert re.fullmatch(f"{MOMENT}: " + UNCHANGED.format("incremental"), line)
    assert {path: data for path, data in visible(dst).items() if path != "log.txt"} == before


def test_each_change_is_a_point(btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase) -> None:
    name = make_database(one_server, "changes", CONTENT)
    assert btw("db", name, dst, env=one_server.as_superuser) == SILENCE
    for number, change in enumerate(
        (
            "SELECT nextval('shop.invoice')",
            "COMMENT ON LARGE OBJECT 4711 IS 'a photograph'",
            "REVOKE SELECT ON shop.item FROM PUBLIC",
            "UPDATE shop.item SET price = 0 WHERE id = 20000",
        )
    ):
        one_server.psql(change, name)
        assert btw("db", name, dst, env=one_server.as_superuser) == SILENCE
        assert len(listed(btw, dst)) == number + 2, change
    assert log(dst) == []


def test_the_limits_of_a_chain(
    btw: Btw, config_dir: Path, dst: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    name = make_database(one_server, "limits", "CREATE SEQUENCE s")
    write_config(config_dir, "limits.py", "MAX_INCREMENTAL_COUNT = 0\n")
    for _ in range(2):
        one_server.psql("SELECT nextval('s')", name)
        assert btw("db", name, dst, env=one_server.as_superuser) == SILENCE
    assert [line[0] for line in listed(btw, dst)] == ["2", "2"]
    assert btw("db", name, dst, env=one_server.as_superuser) == SILENCE
    assert len(listed(btw, dst)) == 2
    assert len(log(dst)) == 1 and re.fullmatch(f"{MOMENT}: " + UNCHANGED.format("full"), log(dst)[0])


def test_another_database_is_refused_by_the_destination(
    btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    name, other = make_database(one_server, "one"), make_database(one_server, "other")
    assert btw("db", name, dst, env=one_server.as_superuser) == SILENCE
    before = visible(dst)
    for args in ([other], ["-g"]):
        result = btw("db", *args, dst, env=one_server.as_superuser)
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith(f"{PROG}: ") and "one.dump" in result.err
    assert visible(dst) == before


# Names


@pytest.mark.parametrize(
    "name",
    [
        "two words ",
        "UPPER",
        "-dash",
        "--dbname=postgres",
        "a=b",
        """it's "quoted" \\ $(id) %s""",
        "dbname=postgres host=elsewhere",
        "host::db",
        "new\nline",
        "naïve 名前",
        "rdiff-backup-data",
        "x" * 63,
    ],
)
def test_a_name_is_just_a_name(
    btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase, name: str
) -> None:
    make_database(one_server, name, "CREATE SEQUENCE this_is_it")
    assert btw("db", "--", name, dst, env=one_server.as_superuser) == SILENCE
    assert btw("db", "--", name, dst, env=one_server.as_superuser) == SILENCE
    (line,) = listed(btw, dst)
    assert sorted(os.listdir(dst / line)) == sorted([f"{name}.dump", "rdiff-backup-data"])
    dump = (dst / line / f"{name}.dump").read_bytes()
    assert b"this_is_it" in one_server.run("pg_restore", "--file=-", data=dump).stdout
    assert len(log(dst)) == 1


@pytest.mark.parametrize("name", ["", "a/b", "/", "..", ".hidden", "postgresql://localhost/x", "global"])
def test_a_name_that_must_not_become_a_path_is_refused(btw: Btw, dst: Path, name: str) -> None:
    result = btw("db", name, dst)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"{PROG}: ") and result.err.count("\n") == 1
    assert no_trace(dst)


# Globals


@pytest.fixture
def roles(server: Server) -> list[str]:
    """SQL that makes two roles, one a member of the other, and SQL that drops them."""
    return [
        "CREATE ROLE btw_staff; CREATE ROLE btw_clerk LOGIN PASSWORD 'sesame';"
        " GRANT btw_staff TO btw_clerk; ALTER ROLE btw_clerk SET work_mem = '8MB'",
        "DROP ROLE IF EXISTS btw_clerk; DROP ROLE IF EXISTS btw_staff",
    ]


def test_points_of_the_globals_restore(
    btw: Btw, dst: Path, tmp_path: Path, server: Server, peer_server: Server, roles: list[str]
) -> None:
    create, drop = roles
    try:
        server.psql(create)
        first = server.globals()
        assert btw("db", "-g", dst, env=server.as_superuser) == SILENCE
        server.psql("ALTER ROLE btw_clerk PASSWORD 'other'")
        second = server.globals()
        assert btw("db", "--global", dst, env=server.as_superuser) == SILENCE

        lines = listed(btw, dst)
        assert [line[0] for line in lines] == ["2", " "]
        chain = dst / lines[0]
        assert sorted(os.listdir(chain)) == ["global.sql.bz2", "rdiff-backup-data"]
        older = older_point(dst, lines, 0, tmp_path / "older")
        assert first != second
        for directory, expected in ((older, first), (chain, second)):
            packed = (directory / "global.sql.bz2").read_bytes()
            sql = subprocess.run(["bzip2", "-dc"], input=packed, capture_output=True, check=True).stdout
            assert without_keys(sql) == expected
            peer_server.run("psql", "-X", "-q", data=sql)
            assert peer_server.globals() == expected
            peer_server.psql(drop)
    finally:
        server.psql(drop)
        peer_server.psql(drop)


def test_unchanged_globals_add_a_line_to_the_log_only(btw: Btw, dst: Path, server: Server) -> None:
    assert btw("db", "-g", dst, env=server.as_superuser) == SILENCE
    before = visible(dst)
    assert btw("db", "-g", dst, env=server.as_superuser) == SILENCE
    (line,) = log(dst)
    assert re.fullmatch(f"{MOMENT}: " + UNCHANGED.format("incremental"), line)
    assert {path: data for path, data in visible(dst).items() if path != "log.txt"} == before


# Usage


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "either -g (--global) or a database name must be specified"),
        (["-g", "name"], "-g (--global) cannot be used with a database name"),
    ],
)
def test_a_name_or_the_globals(btw: Btw, dst: Path, args: list[str], text: str) -> None:
    result = btw("db", *args, dst)
    assert (result.status, result.out) == (1, "")
    assert f"{PROG}: {text}" in result.err.splitlines()
    assert os.listdir(dst) == []


# Options


def test_the_database_config_is_looked_for_under_db_only(
    btw: Btw, config_dir: Path, dst: Path, tmp_path: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    name = make_database(one_server, "config")
    ran = tmp_path / "ran"  # it would be 2 if the general file counted as the database's
    write_config(config_dir, "config.py", f"BEFORE = ['sh', '-c', 'echo once >>{ran}']\n")
    assert btw("db", name, dst, env=one_server.as_superuser) == SILENCE
    assert ran.read_text() == "once\n"
    write_config(config_dir, "db/config.py", "CONNECTION = 'host=/no/such/directory'\n")
    result = btw("db", name, dst, env=one_server.as_superuser)
    assert result.status == 1 and "/no/such/directory" in result.err


@pytest.mark.parametrize("args", [["here"], ["-g"]])
@pytest.mark.parametrize("directory", ["", "db/"])
def test_either_place_for_a_file(
    btw: Btw, config_dir: Path, dst: Path, one_server: Server, args: list[str], directory: str
) -> None:
    name = "global" if args == ["-g"] else args[0]
    write_config(config_dir, f"{directory}{name}.py", "CONNECTION = 'host=/no/such/directory'\n")
    result = btw("db", *args, dst, env=one_server.as_superuser)
    assert result.status == 1 and "/no/such/directory" in result.err


@pytest.mark.parametrize("args", [["here"], ["-g"]])
def test_a_file_in_both_places_is_an_error(btw: Btw, config_dir: Path, dst: Path, args: list[str]) -> None:
    name = "global" if args == ["-g"] else args[0]
    both = [write_config(config_dir, f"{directory}{name}.py", "") for directory in ("", "db/")]
    result = btw("db", *args, dst)
    assert result.status == 1
    assert result.err.startswith(f"{PROG}: ") and all(str(path) in result.err for path in both)
    assert no_trace(dst)


@pytest.mark.parametrize("form", ["host={0} user={1}", "postgresql://{1}@/?host={0}"])
def test_connection_is_all_that_it_takes(
    btw: Btw, config_dir: Path, dst: Path, server: Server, make_database: MakeDatabase, form: str
) -> None:
    name = make_database(server, "con nection", "CREATE SEQUENCE this_is_it")
    text = f"CONNECTION = {form.format(server.socket, server.superuser)!r}\n"
    (dst / "globals").mkdir()
    for args, file, target in (([name], name, dst), (["-g"], "global", dst / "globals")):
        write_config(config_dir, f"{file}.py", text)
        path = {"PATH": server.environment["PATH"]}
        assert btw("db", *args, target, env=path) == SILENCE
    dump = next(dst.glob("2*")) / f"{name}.dump"
    assert b"this_is_it" in server.run("pg_restore", "--file=-", data=dump.read_bytes()).stdout
    assert bz2.decompress(next(dst.glob("globals/2*/global.sql.bz2")).read_bytes())


@pytest.mark.parametrize("connection", ["dbname=elsewhere", "postgresql:///elsewhere", "elsewhere"])
def test_a_connection_to_another_database_is_an_error(
    btw: Btw, config_dir: Path, dst: Path, server: Server, make_database: MakeDatabase, connection: str
) -> None:
    name = make_database(server, "meant")
    make_database(server, "elsewhere")
    file = write_config(config_dir, "meant.py", f"CONNECTION = {connection!r}\n")
    result = btw("db", name, dst, env=server.as_superuser)
    assert result.status == 1 and result.err.startswith(f"{PROG}: ") and "elsewhere" in result.err
    assert no_trace(dst)
    file.unlink()
    assert btw("db", name, dst, env=server.as_superuser) == SILENCE
    before = visible(dst)
    write_config(config_dir, "meant.py", f"CONNECTION = {connection!r}\n")
    assert btw("db", name, dst, env=server.as_superuser).status == 1
    assert visible(dst) == before


@pytest.mark.parametrize("way", ["CONNECTION", "PGSERVICE"])
def test_a_service_that_leads_to_another_database_is_an_error(
    btw: Btw,
    config_dir: Path,
    dst: Path,
    tmp_path: Path,
    one_server: Server,
    make_database: MakeDatabase,
    way: str,
) -> None:
    name = make_database(one_server, "meant")
    make_database(one_server, "elsewhere")
    service = tmp_path / "services"
    service.write_text("[astray]\ndbname=elsewhere\n")
    env = {**one_server.as_superuser, "PGSERVICEFILE": str(service)}
    if way == "PGSERVICE":
        env["PGSERVICE"] = "astray"
    else:
        write_config(config_dir, "meant.py", "CONNECTION = 'service=astray'\n")
    result = btw("db", name, dst, env=env)
    assert result.status == 1 and "leads to the database elsewhere instead of meant" in result.err
    assert no_trace(dst)


def test_run_as_is_all_that_peer_authentication_takes(
    btw: Btw, config_dir: Path, dst: Path, tmp_path: Path, peer_server: Server, make_database: MakeDatabase
) -> None:
    private = tmp_path / "private"  # the other account has no access to it
    private.mkdir(mode=0o700)
    name = make_database(peer_server, "peer", CONTENT)
    (dst / "globals").mkdir()
    for args, file, target in (([name], name, dst), (["-g"], "global", dst / "globals")):
        if AS_ROOT:
            refused = btw("db", *args, target, env=peer_server.environment, cwd=private)
            assert refused.status == 1 and "root" in refused.err
            hint = f'btw_backup: set RUN_AS = "postgres" in {config_dir}/global.py, or'
            assert refused.err.splitlines()[-1].startswith(hint)
        write_config(config_dir, f"{file}.py", f"RUN_AS = {ACCOUNT.pw_name!r}\n")
        assert btw("db", *args, target, env=peer_server.environment, cwd=private) == SILENCE
        assert len(listed(btw, target)) == 1
    write_config(config_dir, "absent.py", f"RUN_AS = {ACCOUNT.pw_name!r}\n")
    (dst / "absent").mkdir()
    failed = btw("db", "absent", dst / "absent", env=peer_server.environment, cwd=private)
    assert failed.status == 1 and 'database "absent" does not exist' in failed.err
    assert "directory" not in failed.err  # as in "could not change directory to ..."
    dump = next(dst.glob("2*/peer.dump"))
    assert dump.stat().st_uid == os.geteuid()
    expected = peer_server.plain_dump(name)
    assert restored(peer_server, dump, make_database(peer_server, "new"), "--jobs=2") == expected


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files away")
def test_chains_are_given_to_the_owner(
    btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    name = make_database(one_server, "owned", "CREATE SEQUENCE s")
    for change in ("SELECT 1", "SELECT nextval('s')", "SELECT 1"):  # full, incremental, unchanged
        one_server.psql(change, name)
        assert btw("db", "-u", "12345:54321", name, dst, env=one_server.as_superuser) == SILENCE
        paths = [path for path in dst.rglob("*") if ".btw-backup" not in path.parts]
        owners = {path: (path.lstat().st_uid, path.lstat().st_gid) for path in paths}
        assert set(owners.values()) == {(12345, 54321)}, owners
    assert len(listed(btw, dst)) == 2 and len(log(dst)) == 1
    private = (dst / ".btw-backup").stat()
    assert (private.st_uid, private.st_mode & 0o777) == (0, 0o700)


# Failures


@pytest.mark.parametrize("args", [["no such database"], ["template0"]])
def test_a_database_that_cannot_be_reached(btw: Btw, dst: Path, server: Server, args: list[str]) -> None:
    result = btw("db", *args, dst, env=server.as_superuser)
    said, ours = result.err.splitlines()[:-1], result.err.splitlines()[-1]
    assert (result.status, result.out, ours) == (1, "", f"{PROG}: pg_dump exited with code: 1")
    assert said[0].startswith("pg_dump: error: ") and args[0] in said[0]
    assert no_trace(dst)


@pytest.mark.parametrize(("args", "program"), [(["some"], "pg_dump"), (["-g"], "pg_dumpall")])
def test_a_server_that_is_down(
    btw: Btw, dst: Path, tmp_path: Path, server: Server, args: list[str], program: str
) -> None:
    result = btw("db", *args, dst, env={**server.as_superuser, "PGHOST": str(tmp_path)})
    said, ours = result.err.splitlines()[:-1], result.err.splitlines()[-1]
    assert (result.status, result.out, ours) == (1, "", f"{PROG}: {program} exited with code: 1")
    assert said[0].startswith(f"{program}: error: ") and str(tmp_path) in said[0]
    assert no_trace(dst)


@pytest.mark.parametrize(("args", "program"), [(["some"], "pg_dump"), (["-g"], "pg_dumpall")])
def test_a_missing_program(btw: Btw, dst: Path, tmp_path: Path, args: list[str], program: str) -> None:
    result = btw("db", *args, dst, env={"PATH": str(tmp_path)})
    assert result.status == 1
    assert result.err.startswith(f"{PROG}: {program} ") and "postgresql-client" in result.err
    assert no_trace(dst)


def test_a_dump_that_fails_half_way_leaves_no_trace(
    btw: Btw, dst: Path, server: Server, make_database: MakeDatabase
) -> None:
    # pg_dump asks for an error where row security would hide rows, and reads the tables by name.
    name = make_database(
        server,
        "half",
        "CREATE ROLE btw_reader LOGIN; CREATE SEQUENCE s;"
        "CREATE TABLE a AS SELECT md5(n::text) FROM generate_series(1, 50000) n; CREATE TABLE b ();"
        "ALTER TABLE b ENABLE ROW LEVEL SECURITY; GRANT SELECT ON a, b, s TO btw_reader",
    )
    reader = {**server.environment, "PGUSER": "btw_reader"}
    try:
        for has_backup in (False, True):
            if has_backup:
                assert btw("db", name, dst, env=server.as_superuser) == SILENCE
                server.psql("SELECT nextval('s')", name)
            before = visible(dst)
            result = btw("db", name, dst, env=reader)
            assert (result.status, result.out) == (1, "")
            assert "row-level security" in result.err
            assert result.err.splitlines()[-1] == f"{PROG}: pg_dump exited with code: 1"
            assert visible(dst) == before
            assert set(os.listdir(dst / ".btw-backup")) <= {"lock", "success"}
    finally:
        server.psql("DROP OWNED BY btw_reader; DROP ROLE btw_reader", name)


class Waiting:
    """A run whose pg_dump waits for a lock that another session holds on a table."""

    def __init__(self, server: Server, name: str, config_dir: Path, dst: Path) -> None:
        self._server = server
        self._dump = f"FROM pg_stat_activity WHERE datname = '{name}' AND application_name = 'pg_dump'"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "btw_backup", "--config-dir", config_dir, "db", name, dst],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **server.as_superuser},
        )
        wait_for(lambda: server.psql(f"SELECT 1 {self._dump} AND wait_event_type = 'Lock'") == "1")

    @property
    def pg_dump(self) -> int:
        """The process ID of pg_dump."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def output(self) -> str:
        """Wait for its end. Returns what it printed."""
        return self.process.communicate(timeout=60)[0].decode()

    def disconnected(self) -> bool:
        """Return whether no pg_dump is connected to the database any more."""
        self._server.psql(f"SELECT pg_cancel_backend(pid) {self._dump}")
        return self._server.psql(f"SELECT count(*) {self._dump}") == "0"


@pytest.fixture
def waiting(
    one_server: Server, make_database: MakeDatabase, config_dir: Path, dst: Path
) -> Iterator[Waiting]:
    name = make_database(one_server, "held", "CREATE TABLE locked ()")
    with one_server.session("BEGIN; LOCK TABLE locked", name):
        run = Waiting(one_server, name, config_dir, dst)
        yield run
        run.process.kill()
        run.process.wait()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_dump_and_leaves_no_trace(
    dst: Path, waiting: Waiting, signum: signal.Signals
) -> None:
    pg_dump = waiting.pg_dump
    waiting.process.send_signal(signum)
    assert (waiting.output(), waiting.process.returncode) == ("", 128 + signum)
    assert not Path(f"/proc/{pg_dump}").exists()
    assert no_trace(dst)
    wait_for(waiting.disconnected)


def test_a_killed_run_leaves_nothing_to_repair(
    btw: Btw, dst: Path, one_server: Server, waiting: Waiting, make_database: MakeDatabase
) -> None:
    pg_dump = waiting.pg_dump
    waiting.process.kill()
    waiting.process.wait()
    wait_for(lambda: not Path(f"/proc/{pg_dump}").exists())
    assert os.listdir(dst) == [".btw-backup"]
    assert btw("db", make_database(one_server, "next"), dst, env=one_server.as_superuser) == SILENCE
    assert len(listed(btw, dst)) == 1
    assert sorted(os.listdir(dst / ".btw-backup")) == ["lock", "success"]


def test_a_killed_pg_dump_leaves_no_trace(dst: Path, waiting: Waiting) -> None:
    os.kill(waiting.pg_dump, signal.SIGKILL)
    assert waiting.output().startswith(f"{PROG}: pg_dump ")
    assert waiting.process.returncode == 1
    assert no_trace(dst)


def test_a_destination_that_somebody_works_on(
    btw: Btw, dst: Path, one_server: Server, waiting: Waiting
) -> None:
    result = btw("db", "held", dst, env=one_server.as_superuser)
    assert (result.status, result.out) == (75, "")
    assert result.err.startswith(f"{PROG}: ") and str(dst) in result.err
    assert waiting.process.poll() is None


# Size

_MEASURED = """
import sys
from btw_backup.cli import main
status = main(sys.argv[1:])
# Not getrusage(2): its maximum is inherited from the parent through exec.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
sys.exit(status)
"""


def test_memory_does_not_grow_with_the_dump(
    config_dir: Path, dst: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    noise = one_server.directory / "noise"  # what no dump can compress
    with noise.open("wb") as file:
        for _ in range(110):
            file.write(os.urandom(1 << 20))
    noise.chmod(0o644)
    name = make_database(one_server, "large", f"SELECT lo_import('{noise}', 4712)")
    noise.unlink()
    for change in ("SELECT lo_put(4712, 100 << 20, 'x')", "SELECT 1"):  # stored, then compared
        one_server.psql(change, name)
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, "--config-dir", config_dir, "db", name, dst],
            capture_output=True,
            text=True,
            env={**os.environ, **one_server.as_superuser},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert int(done.stdout) * 1024 < 50e6
    assert next(dst.glob("2*/large.dump")).stat().st_size > 100e6
    assert len(log(dst)) == 1
