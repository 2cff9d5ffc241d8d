"""``btw-backup db --all``: every database of a real server, each in a destination of its own."""

import os
import subprocess
from pathlib import Path

import pytest

from .helpers.hostile import HOW, Land
from .helpers.postgres_servers import AS_ROOT, INSTALLATIONS, MakeDatabase, Server, Start, quoted
from .helpers.running import Btw, Result

PROG = "btw_backup"
SILENCE = Result(0, "", "")
CONTENT = "CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n"


def configure(config_dir: Path, name: str, text: str) -> None:
    config_dir.mkdir(mode=0o700, exist_ok=True)
    (config_dir / f"{name}.py").write_text(text)


def connection(server: Server) -> str:
    return f"CONNECTION = 'host={server.socket} user={server.superuser}'\n"


def dumps(dst: Path) -> list[str]:
    """The files that hold dumps or globals, as find(1) sees them, without the times."""
    argv = ["find", ".", "-name", "*.dump", "-o", "-name", "global.sql.bz2"]
    found = subprocess.check_output(argv, cwd=dst, text=True).splitlines()
    return sorted("/".join(path.split("/")[1:2] + path.split("/")[3:]) for path in found)


def others(server: Server, *names: str) -> list[str]:
    """The dumps of the databases that a server has anyway, and of these."""
    there = server.psql("SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate")
    assert set(names) <= set(there.splitlines())
    return sorted([*(f"{name}/{name}.dump" for name in there.splitlines()), "global/global.sql.bz2"])


def test_every_database_and_the_globals(
    btw: Btw, dst: Path, server: Server, make_database: MakeDatabase
) -> None:
    names = [make_database(server, name, CONTENT) for name in ("shop", "Two Words", "naïve 名前", "-dash")]
    for name, setting in (("a template", "IS_TEMPLATE true"), ("shut", "ALLOW_CONNECTIONS false")):
        make_database(server, name)
        server.psql(f"ALTER DATABASE {quoted(name)} {setting}")
    try:
        assert btw("db", "--all", dst, env=server.as_superuser) == SILENCE
        expected = others(server, *names)
        assert dumps(dst) == expected
        make_database(server, "new")
        server.psql("DELETE FROM t WHERE n > 50", "shop")
        assert btw("db", "--all", dst, env=server.as_superuser) == SILENCE
        assert dumps(dst) == sorted([*expected, "new/new.dump"])
        assert len(btw("list", dst / "shop").out.splitlines()) == 2
        assert len(btw("list", dst / "Two Words").out.splitlines()) == 1
    finally:
        server.psql('ALTER DATABASE "a template" IS_TEMPLATE false')
    dump = next((dst / "naïve 名前").glob("2*/*.dump")).read_bytes()
    assert b"CREATE TABLE public.t" in server.run("pg_restore", "--file=-", data=dump).stdout


def test_exclude(btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase) -> None:
    for name in ("test_1", "test_2", "scratch", "Test_3", "a/b"):
        make_database(one_server, name)
    options = ("--exclude", "test_*", "--exclude", "scratch", "--exclude", "a[/]b")
    assert btw("db", "--all", *options, dst, env=one_server.as_superuser) == SILENCE
    assert sorted(os.listdir(dst)) == [".btw-backup", "Test_3", "global", "postgres"]


def test_one_that_fails_does_not_keep_the_others(
    btw: Btw, dst: Path, config_dir: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    for name in ("a/b", ".hidden", "global", "in the way", "unreachable", "zebra"):
        make_database(one_server, name)
    (dst / "in the way").touch()
    configure(config_dir, "unreachable", "CONNECTION = 'host=/no/such/directory'\n")
    result = btw("db", "--all", dst, env=one_server.as_superuser)
    assert (result.status, result.out) == (1, "")
    said = [line for line in result.err.splitlines() if line.startswith(f"{PROG}: ")]
    assert said == [
        f"{PROG}: not a database name that can be backed up: '.hidden'",
        f"{PROG}: not a database name that can be backed up: 'a/b'",
        f"{PROG}: the name global is reserved for the database globals: use -g (--global)",
        f"{PROG}: the destination is not a directory: {dst}/in the way",
        f"{PROG}: {dst}/unreachable: pg_dump exited with code: 1",
    ]
    assert "/no/such/directory" in result.err
    assert dumps(dst) == ["global/global.sql.bz2", "postgres/postgres.dump", "zebra/zebra.dump"]
    assert btw("list", dst / "unreachable") == SILENCE
    # What has never been backed up is seen by a monitor.
    assert f"{dst}/unreachable: no backups yet" in btw("status", dst).out


def test_connection_and_account_are_those_of_the_globals(
    btw: Btw, dst: Path, config_dir: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    """Unless a database's own file says otherwise; it is restored to where it came from."""
    make_database(one_server, "shop", CONTENT)
    configure(config_dir, "global", connection(one_server))
    configure(config_dir, "shop", "MAX_INCREMENTAL_COUNT = 3\n")
    path = {"PATH": one_server.environment["PATH"]}
    assert btw("db", "--all", dst, env=path) == SILENCE
    assert dumps(dst) == others(one_server, "shop")
    assert btw("db", "shop", dst / "shop", env=path) == SILENCE
    expected = one_server.plain_dump("shop")
    one_server.psql("DELETE FROM t", "shop")
    assert btw("db-restore", "--clean", dst / "shop", "shop", env=path) == SILENCE
    assert one_server.plain_dump("shop") == expected
    assert btw("verify", "--restore-test", dst, env=path) == SILENCE


def test_one_that_somebody_works_on(btw: Btw, dst: Path, one_server: Server) -> None:
    (dst / "global" / ".btw-backup").mkdir(mode=0o700, parents=True)
    argv: list[str | Path] = ["flock", dst / "global/.btw-backup/lock", "sh", "-c", "echo held; cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout and holder.stdout.readline() == b"held\n"
        result = btw("db", "--all", dst, env=one_server.as_superuser)
        holder.stdin.close()
    assert result.status == 75 and f"is working on {dst}/global" in result.err
    assert dumps(dst) == ["postgres/postgres.dump"]


def test_hooks_run_for_each(
    btw: Btw, dst: Path, config_dir: Path, tmp_path: Path, one_server: Server
) -> None:
    report = f"echo $BTW_BACKUP_SOURCE,$BTW_BACKUP_DESTINATION,$BTW_BACKUP_ERROR >>{tmp_path}/ran"
    configure(config_dir, "config", f"AFTER = ['sh', '-c', '{report}']\nON_FAILURE = AFTER\n")
    assert btw("db", "--all", dst, env=one_server.as_superuser) == SILENCE
    assert (tmp_path / "ran").read_text() == f",{dst}/global,\npostgres,{dst}/postgres,\n"
    down = btw("db", "--all", dst, env={**one_server.as_superuser, "PGHOST": str(tmp_path)})
    assert down.status == 1 and str(tmp_path) in down.err
    assert (tmp_path / "ran").read_text().splitlines()[-1] == f",{dst},psql exited with code: 2"


def test_the_directory_must_exist_and_hold_no_backups(
    btw: Btw, dst: Path, tmp_path: Path, one_server: Server
) -> None:
    result = btw("db", "--all", tmp_path / "missing", env=one_server.as_superuser)
    assert result.status == 1 and "the destination does not exist" in result.err
    assert not (tmp_path / "missing").exists()
    (dst / "2026-11-23T22:16:18.tbz").touch()
    result = btw("db", "--all", dst, env=one_server.as_superuser)
    assert result.status == 1 and "holds backups itself" in result.err
    assert dumps(dst) == []


@pytest.mark.parametrize(
    "args", ["--all -g {}", "--all shop {}", "--all -g shop {}", "--exclude x shop {}", "--exclude x -g {}"]
)
def test_usage(btw: Btw, dst: Path, args: str) -> None:
    result = btw("db", *args.format(dst).split())
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"{PROG}: --") and os.listdir(dst) == []


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files away")
def test_all_is_given_to_the_owner(btw: Btw, dst: Path, one_server: Server) -> None:
    assert btw("db", "--all", "-u", "12345:54321", dst, env=one_server.as_superuser) == SILENCE
    argv: list[str | Path] = [
        "find",
        dst,
        "-mindepth",
        "1",
        "-name",
        ".btw-backup",
        "-prune",
        "-o",
        "-printf",
        "%U:%G %m %d\n",
    ]
    found = subprocess.check_output(argv, text=True).splitlines()[1:]
    assert {line.split()[0] for line in found} == {"12345:54321"}
    assert {line for line in found if line.endswith(" 1")} == {"12345:54321 700 1"}


@pytest.mark.skipif(not AS_ROOT, reason="needs root and another user")
@pytest.mark.parametrize("how", ["link to a directory", "dangling link", "fifo", "link to a file"])
def test_what_the_owner_put_there_is_refused(btw: Btw, land: Land, one_server: Server, how: str) -> None:
    HOW[how](land.dst / "postgres", land)
    before = land.canaries()
    result = btw("db", "--all", "-u", "nobody", land.dst, env=one_server.as_superuser)
    assert (result.status, result.out) == (1, "")
    assert result.err == f"{PROG}: the destination is not a directory: {land.dst}/postgres\n"
    assert land.canaries() == before
    assert dumps(land.dst) == ["global/global.sql.bz2"]


def test_check_config_warns_of_a_pg_dump_that_is_older_than_the_server(
    btw: Btw, config_dir: Path, start_server: Start
) -> None:
    known = {_major(each.bin): each for each in INSTALLATIONS if each.bin is not None}
    if len(known) < 2:
        pytest.skip("needs two versions of PostgreSQL")
    oldest, newest = min(known), max(known)
    server = start_server(known[newest])
    configure(config_dir, "global", connection(server))
    path = os.environ["PATH"]
    result = btw("check-config", env={"PATH": f"{known[oldest].bin}:{path}"})
    assert result.status == 0
    [line] = [line for line in result.err.splitlines() if "older than" in line]
    assert line.startswith(f"{PROG}: warning: the server cannot be dumped: pg_dump {oldest}.")
    assert line.endswith(f": install postgresql-client-{newest}")
    assert "older" not in btw("check-config", env={"PATH": f"{known[newest].bin}:{path}"}).err


def _major(programs: Path) -> int:
    printed = subprocess.check_output([programs / "pg_dump", "--version"], text=True)
    return int(printed.split()[2].split(".")[0])
