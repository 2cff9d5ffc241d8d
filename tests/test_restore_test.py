"""``verify --restore-test`` restores a point for real, and leaves nothing behind."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from .helpers import trees
from .helpers.destinations import listed, mounted
from .helpers.postgres_servers import MakeDatabase, Server
from .helpers.running import Btw, Gate, Result, Start, ended

PROG = "btw_backup"
SILENCE = Result(0, "", "")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """A directory for TMPDIR."""
    path = tmp_path / "temporary"
    path.mkdir()
    return path


def newest_of(result: Result) -> dict[str, Any]:
    """The object of the newest point, which was restored, in what ``--json`` printed."""
    found: list[dict[str, Any]] = json.loads(result.out)
    assert all(each["restored"] is None for each in found[:-1])
    return found[-1]


# Filesystems


@pytest.mark.parametrize("kind", ["rdiff", "tar"])
def test_a_filesystem(btw: Btw, src: Path, dst: Path, temporary: Path, kind: str) -> None:
    """Whatever a tree holds: devices and setuid files, links and holes, directories without a right."""
    trees.build(src / "all")
    assert btw("fs-init", "--type", kind, src, "name").status == 0
    assert btw("fs", src, dst).status in (0, 3)
    env = {"TMPDIR": str(temporary)}
    assert btw("verify", "--restore-test", dst, env=env) == SILENCE
    files = [path for path in src.rglob("*") if path.is_symlink() or not path.is_dir()]
    found = [path.lstat() for path in files]
    sizes = {each.st_ino: each.st_size for each in found if stat.S_ISREG(each.st_mode)}
    newest = newest_of(btw("verify", "--restore-test", "--json", dst, env=env))
    assert newest["status"] == "ok"
    assert 0 < newest["restored"]["files"] <= len(files)
    assert 0 < newest["restored"]["bytes"] <= sum(sizes.values())
    assert os.listdir(temporary) == []


def test_what_was_restored_is_said(btw: Btw, two_points: Path, dst: Path, temporary: Path) -> None:
    first, second = btw("list", dst).out.split()
    env = {"TMPDIR": str(temporary)}
    owners = "" if os.geteuid() == 0 else ", owners not compared"
    said = f"{PROG}: {first}Z: ok\n{PROG}: {second}Z: ok, restored 2 files, 13 B{owners}\n"
    assert btw("-v", "verify", "--restore-test", dst, env=env) == Result(0, "", said)
    older = btw("-v", "verify", "--restore-test", "--at", first, dst, env=env)
    assert older == Result(0, "", f"{PROG}: {first}Z: ok, restored 2 files, 13 B{owners}\n")
    found = newest_of(btw("verify", "--restore-test", "--json", dst, env=env))
    assert found["restored"] == {"files": 2, "bytes": 13, "owners_compared": os.geteuid() == 0}


def test_a_source_that_is_a_file(btw: Btw, src: Path, dst: Path, temporary: Path) -> None:
    assert btw("fs-init", "--type", "rdiff", src / "file", "name").status == 0
    assert btw("fs", src / "file", dst) == SILENCE
    found = newest_of(btw("verify", "--restore-test", "--json", dst, env={"TMPDIR": str(temporary)}))
    assert (found["status"], found["restored"]["files"], found["restored"]["bytes"]) == ("ok", 1, 8)


def test_what_comes_out_differently_is_named(btw: Btw, dst: Path, tmp_path: Path, temporary: Path) -> None:
    """An archive that holds a file twice, which no backup does: the first one can't be restored."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(5):
        (tree / f"f{number}").write_text("first")
    archive = tmp_path / "archive.tar"
    subprocess.run(["tar", "-C", tree, "-cf", archive, "."], check=True)
    for number in range(5):
        (tree / f"f{number}").write_text("second, and longer")
    subprocess.run(["tar", "-C", tree, "-rf", archive, *(f"./f{n}" for n in range(5))], check=True)
    with (dst / "2025-01-01T00:00:00.tar.gz").open("wb") as packed:
        subprocess.run(["gzip", "-c", archive], stdout=packed, check=True)
    assert btw("verify", dst) == SILENCE
    result = btw("verify", "--restore-test", "--json", dst, env={"TMPDIR": str(temporary)})
    problem = "restored, these differ from the archive: f0, f1, f2, 2 more"
    assert (result.status, result.err) == (1, f"{PROG}: 2025-01-01T00:00:00Z: {problem}\n")
    found = newest_of(result)
    assert (found["status"], found["problem"], found["restored"]) == ("damaged", problem, None)
    assert os.listdir(temporary) == []


@as_root
@pytest.mark.parametrize("kind", ["rdiff", "tar"])
def test_a_disk_without_room(btw: Btw, src: Path, dst: Path, tmp_path: Path, kind: str) -> None:
    """It is known before what is in a chain; of a tarball it turns out. Neither says that it is damaged."""
    (src / "large").write_bytes(os.urandom(3_000_000))
    assert btw("fs-init", "--type", kind, src, "name").status == 0
    assert btw("fs", src, dst) == SILENCE
    [name] = listed(btw, dst)
    small = tmp_path / "small"
    small.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", small):
        result = btw("verify", "--restore-test", "--json", dst, env={"TMPDIR": str(small)})
        assert os.listdir(small) == []
    [line] = [line for line in result.err.splitlines() if line.startswith(PROG)]
    expected = "a restore test needs 3.0 MB on this disk" if kind == "rdiff" else "no space left on this disk"
    assert result.status == 1 and line.startswith(f"{PROG}: {name[:19]}Z: {small}: {expected}")
    assert newest_of(result)["status"] == "undecided"
    assert not (dst / ".btw-backup" / "verified").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_removes_the_scratch_directory(
    two_points: Path, dst: Path, temporary: Path, tmp_path: Path, start: Start, signum: signal.Signals
) -> None:
    """Which is for us alone, although what it holds has the owners and modes of the source."""
    gate = Gate(tmp_path / "gate", "tar", only="--compare")
    run = start("verify", "--restore-test", dst, env={**gate.env, "TMPDIR": str(temporary)})
    gate.reached()
    [scratch] = temporary.iterdir()
    found = scratch.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 0o700)
    assert (scratch / "tree" / "sub" / "other").read_text() == "more\n"
    run.send_signal(signum)
    assert ended(run) == (128 + signum, "")
    assert os.listdir(temporary) == []
    assert not (dst / ".btw-backup" / "verified").exists()


@as_root
def test_a_user_who_is_not_root(btw: Btw, src: Path, dst: Path, user: Path) -> None:
    """Owners can't be restored, so they are not compared; what can't be restored is no damage."""
    (src / "sub").chmod(0o500)
    os.chown(src / "file", 12345, 12345)
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    assert btw("fs", "-u", "nobody", src, dst) == SILENCE
    [name] = listed(btw, dst)

    def verify() -> tuple[int, str, list[str]]:
        shutil.copytree(dst / name, user / "dst" / name)
        (user / "tmp").mkdir()
        subprocess.run(["chown", "-R", "65534:65534", user], check=True)
        env = {**os.environ, "HOME": str(user), "TMPDIR": str(user / "tmp")}
        env["PYTHONPATH"] = f"{os.getcwd()}:{sysconfig.get_path('purelib')}"
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3"]
        argv += ["-m", "btw_backup", "-v", "verify", "--restore-test", "--json", str(user / "dst")]
        done = subprocess.run(argv, capture_output=True, text=True, env=env, cwd=user)
        left = os.listdir(user / "tmp")
        shutil.rmtree(user / "dst")
        (user / "tmp").rmdir()
        status = newest_of(Result(done.returncode, done.stdout, done.stderr))["status"]
        return done.returncode, status, [done.stderr.splitlines()[-1], *left]

    said = f"{PROG}: {name}Z: ok, restored 2 files, 13 B, owners not compared"
    assert verify() == (0, "ok", [said])
    os.mknod(src / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    shutil.rmtree(dst / name)
    assert btw("fs", "-u", "nobody", src, dst) == SILENCE
    [name] = listed(btw, dst)
    assert verify() == (1, "undecided", [f"{PROG}: {name}Z: tar exited with code: 2"])


# Databases

SHOP = '''
CREATE TABLE customers AS SELECT n AS id FROM generate_series(1, 1000) n;
CREATE SCHEMA "Odd ""schema""";
CREATE TABLE "Odd ""schema"""."a
table" AS SELECT 1 WHERE false;
CREATE TABLE sales (year int, sum int) PARTITION BY LIST (year);
CREATE TABLE sales_1 PARTITION OF sales FOR VALUES IN (1);
CREATE TABLE sales_2 PARTITION OF sales FOR VALUES IN (2);
INSERT INTO sales SELECT 1 + n % 2, n FROM generate_series(1, 20) n;
CREATE TABLE large_customers (sum int) INHERITS (customers);
INSERT INTO large_customers VALUES (1, 1), (2, 2), (3, 3);
CREATE VIEW two AS SELECT 2;
'''


def databases(server: Server) -> str:
    return server.psql("SELECT datname FROM pg_database ORDER BY 1")


def test_a_database(btw: Btw, dst: Path, server: Server, make_database: MakeDatabase) -> None:
    name = make_database(server, "My Shop", "CREATE ROLE btw_owner; CREATE TABLE t (); CREATE TABLE u ()")
    try:
        assert btw("db", name, dst, env=server.as_superuser) == SILENCE
        server.psql("ALTER TABLE u OWNER TO btw_owner", name)
        before = databases(server)
        assert btw("verify", "--restore-test", dst, env=server.as_superuser) == SILENCE
        assert databases(server) == before
        assert btw("db", name, dst, env=server.as_superuser) == SILENCE
        *_, newest = btw("list", dst).out.split()
        assert btw("verify", "--restore-test", dst, env=server.as_superuser) == SILENCE
    finally:
        server.psql("DROP OWNED BY btw_owner; DROP ROLE btw_owner", name)
    result = btw("verify", "--restore-test", dst, env=server.as_superuser)
    assert result.status == 1
    assert "btw_owner" in result.err and result.err.splitlines()[-1].startswith(f"{PROG}: {newest}Z: ")
    assert databases(server) == before
    assert btw("verify", dst, env=server.as_superuser) == SILENCE


def test_rows_are_counted_once(btw: Btw, dst: Path, server: Server, make_database: MakeDatabase) -> None:
    """Those of a partition, and of a table that inherits from another, are its own."""
    name = make_database(server, "shop", SHOP)
    assert btw("db", name, dst, env=server.as_superuser) == SILENCE
    [time] = listed(btw, dst)
    result = btw("-v", "verify", "--restore-test", "--json", dst, env=server.as_superuser)
    assert (result.status, result.err) == (0, f"{PROG}: {time}Z: ok, restored 5 tables, 1023 rows\n")
    found = newest_of(result)
    assert (found["status"], found["restored"]) == ("ok", {"tables": 5, "rows": 1023})


def test_a_server_that_is_down_is_no_damage(
    btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    name = make_database(one_server, "shop")
    assert btw("db", name, dst, env=one_server.as_superuser) == SILENCE
    elsewhere = {**one_server.as_superuser, "PGHOST": "/no/such/socket"}
    result = btw("verify", "--restore-test", "--json", dst, env=elsewhere)
    assert (result.status, newest_of(result)["status"]) == (1, "undecided")
    assert not (dst / ".btw-backup" / "verified").exists()


def test_globals_are_passed_over_beside_databases(
    btw: Btw, dst: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    make_database(one_server, "shop", "CREATE TABLE t ()")
    assert btw("db", "--all", dst, env=one_server.as_superuser) == SILENCE
    result = btw("verify", "--restore-test", "--json", dst, env=one_server.as_superuser)
    assert (result.status, result.err) == (0, "")
    found = {Path(each["destination"]).name: each["restored"] for each in json.loads(result.out)}
    assert found["global"] is None and found["shop"] == {"tables": 1, "rows": 0}
    alone = btw("verify", "--restore-test", dst / "global", env=one_server.as_superuser)
    assert alone.status == 1 and len(alone.err.splitlines()) == 1
    assert "--restore-test cannot be used with the globals" in alone.err
