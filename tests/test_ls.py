"""``btw-backup ls`` shows what tar, find and pg_restore show."""

import _strptime  # type: ignore[import-not-found]  # noqa: F401
import json
import os
import random
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from btw_backup import cli, ls  # noqa: F401
from btw_backup.destination import points  # noqa: F401

from .helpers import trees
from .helpers.destinations import joined, listed, mounted, rdiff_backup
from .helpers.hostile import Land
from .helpers.postgres_servers import MakeDatabase, Server
from .helpers.running import Btw, Gate, Result, Start, ended, replacing
from .helpers.small_parts import REPLACED

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def found(top: Path) -> list[bytes]:
    """What find prints of a tree, in no particular order."""
    paths = subprocess.check_output(["find", ".", "-printf", r"%P\0"], cwd=top).split(b"\0")[:-1]
    return sorted(path or b"." for path in paths)


def names(result: Result) -> list[bytes]:
    """The paths in the JSON that a run printed."""
    assert (result.status, result.err) == (0, "")
    return [os.fsencode(entry["path"]) for entry in json.loads(result.out)]


def told_by_tar(archive: bytes) -> list[list[str]]:
    """What tar says of each member: mode, owner, size, date, and time without zeros at its end."""
    argv = ["tar", "-tv", "--full-time", "--utc", "--quoting-style=escape"]
    printed = subprocess.run(argv, input=archive, capture_output=True, check=True)
    lines = printed.stdout.decode(errors="surrogateescape").splitlines()
    fields = [line.split(maxsplit=5) for line in lines]
    return [[*line[:4], shortened(line[4])] for line in fields]


def shortened(time: str) -> str:
    """The time without zeros at the end of its fraction, as some versions of tar print it."""
    return time.rstrip("0").rstrip(".") if "." in time else time


def told_by_us(entry: dict[str, object], line: str) -> list[str]:
    mode, owner, size, _ = line.split(maxsplit=3)
    date, time = str(entry["modified"]).removesuffix("Z").split("T")
    return [mode, owner, size, date, shortened(time)]


@pytest.fixture(params=["rdiff", "bzip2", "none"])
def odd(request: pytest.FixtureRequest, btw: Btw, config_dir: Path, dst: Path, tmp_path: Path) -> Path:
    """A tree of everything that is hard to back up; the destination holds it."""
    top = tmp_path / "odd"
    trees.build(top)
    kind = "rdiff" if request.param == "rdiff" else "tar"
    assert btw("fs-init", "--type", kind, top, "name").status == 0
    if kind == "tar":
        [config] = config_dir.glob("*/config.py")
        config.write_text(f"TYPE = 'tar'\nCOMPRESSION = {request.param!r}\n")
    assert btw("fs", top, dst) == Result(0, "", "")
    return top


def archive(dst: Path, to: Path) -> bytes:
    [backup] = [path for path in dst.glob("2*") if path.suffix != ".sha256"]
    if backup.is_dir():
        return joined(backup, to).read_bytes()
    unpacked: list[str | Path] = ["bzip2", "-dc", backup] if backup.suffix == ".tbz" else ["cat", backup]
    return subprocess.check_output(unpacked)


def test_names_and_facts_are_those_of_the_tree(odd: Path, btw: Btw, dst: Path, tmp_path: Path) -> None:
    result = btw("ls", "--json", dst)
    assert sorted(names(result)) == found(odd)
    long = btw("ls", "-l", dst).out.splitlines()
    short = btw("ls", dst).out.splitlines()
    told = told_by_tar(archive(dst, tmp_path / "joined"))
    assert len(long) == len(short) == len(told) == len(found(odd))
    objects = json.loads(result.out)
    for ours, line, name, theirs in zip(objects, long, short, told, strict=True):
        assert told_by_us(ours, line) == theirs
        assert f" {name}" in line and line.isprintable()
    assert [line for line in long if line.endswith(" link -> plain")]
    assert [line for line in long if " hard link link to deep" in line]


@pytest.mark.parametrize("command", ["ls", "fs-restore"])
def test_a_path_that_only_another_point_of_the_chain_holds(
    btw: Btw, initialised: Path, dst: Path, tmp_path: Path, command: str
) -> None:
    """It is the point that lacks it, not the chain."""
    for make in (Path.mkdir, Path.rmdir):
        make(initialised / "now and then")
        assert btw("fs", initialised, dst).status == 0
    first, second = (line.strip() for line in listed(btw, dst))
    arguments = {"ls": [dst], "fs-restore": [dst, tmp_path / "target"]}[command]
    result = btw(command, *arguments, "now and then")
    assert result == Result(1, "", f"btw_backup: now and then is not in the point {second}Z\n")
    assert btw("ls", "--at", first, dst, "now and then").out == "now and then\n"


def test_only_these_paths(btw: Btw, initialised: Path, dst: Path) -> None:
    (initialised / "subway").touch()
    assert btw("fs", initialised, dst).status == 0
    assert btw("ls", dst, "/sub/", "file") == Result(0, "file\nsub\nsub/other\n", "")
    assert btw("ls", dst, "sub", "sub/other").out == "sub\nsub/other\n"
    assert btw("ls", dst, ".").out == ".\nfile\nsub\nsub/other\nsubway\n"
    missing = btw("ls", dst, "no\nsuch", "file")
    assert (missing.status, missing.out) == (1, "file\n")
    assert missing.err == f"btw_backup: no\\x0asuch is not in the point {listed(btw, dst)[-1].strip()}Z\n"
    outside = btw("ls", dst, "../file")
    assert (outside.status, outside.out) == (1, "") and "not a path in the backup" in outside.err


def test_an_older_point(btw: Btw, two_points: Path) -> None:
    dst = two_points.parent
    (two_points.parent.parent / "src" / "later").touch()
    assert btw("fs", two_points.parent.parent / "src", dst).status == 0
    oldest = listed(btw, dst)[0]
    assert "later\n" in btw("ls", dst).out
    assert btw("ls", "--at", oldest, dst).out == ".\nfile\nsub\nsub/other\n"


@pytest.fixture
def parts(config_dir: Path, dst: Path, tmp_path: Path) -> Path:
    """A source whose chain has three points, with many parts; its tree at each is beside it."""
    source = tmp_path / "source"
    for number in range(120):
        path = source / f"{number // 20}" / f"{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(number).randbytes(1000 + 400 * (number % 7)))
    (source / "3" / "large").write_bytes(random.Random(1).randbytes(100_000))
    small = replacing(config_dir, REPLACED)
    assert small("fs-init", "--type", "rdiff", source, "it").status == 0
    for number in range(3):
        (source / "1" / f"new {number}").write_bytes(bytes(3000))
        (source / "4" / f"{80 + number:03}").unlink()
        with (source / "3" / "large").open("r+b") as file:
            file.write(b"%d" % number)
        assert small("fs", source, dst) == Result(0, "", "")
        shutil.copytree(source, tmp_path / f"at {number}")
    return tmp_path


def test_parts_at_each_point(parts: Path, config_dir: Path, btw: Btw, dst: Path) -> None:
    small = replacing(config_dir, REPLACED)
    times = [line.strip() for line in listed(btw, dst)]
    assert len(times) == 3 and len([*dst.glob("2*/backup.tar.*")]) > 10
    for number, time in enumerate(times):
        assert sorted(names(small("ls", "--json", "--at", time, dst))) == found(parts / f"at {number}")


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_a_chain_of_the_older_form(btw: Btw, dst: Path, tmp_path: Path, form: str) -> None:
    """One ``backup.tar``, as plain tar makes it: long names, and sparse files with many holes."""
    tree = tmp_path / "tree"
    trees.build(tree)
    with (tree / "holes").open("wb") as file:
        for number in range(40):
            file.seek(number << 20)
            file.write(b"data")
    argv: list[str | Path] = [
        "tar",
        "-C",
        tree,
        f"--format={form}",
        "--sparse",
        "-cf",
        tmp_path / "plain.tar",
        ".",
    ]
    subprocess.run(argv, check=True)
    rdiff_backup(dst / "2026-11-22T22:16:17", tmp_path / "staged", 1_795_385_777)
    shutil.copy(tmp_path / "plain.tar", dst / "2026-11-22T22:16:17" / "backup.tar")
    result = btw("ls", "--json", dst)
    assert sorted(names(result)) == found(tree)
    told = told_by_tar((tmp_path / "plain.tar").read_bytes())
    lines = btw("ls", "-l", dst).out.splitlines()
    assert [told_by_us(*pair) for pair in zip(json.loads(result.out), lines, strict=True)] == told


def as_nobody(argv: list[str], out: Path) -> int:
    """Run the program as a user who owns nothing; what it prints goes to a file. Returns its status.

    That user may not even read Python's library: what the program imports late is imported here.
    """
    with out.open("w") as file:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                sys.stdout = sys.stderr = file
                status = cli.main(argv)
                file.flush()
            except Exception:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@as_root
def test_a_reader_on_a_read_only_disk(btw: Btw, two_points: Path, land: Land) -> None:
    """It is enough to be allowed to read the destination."""
    copied = land.top / "copied"
    shutil.copytree(two_points.parent, copied)
    subprocess.run(["chmod", "-R", "a+rX", copied], check=True)
    oldest = listed(btw, copied)[0]
    with mounted("--bind", "-o", "ro", copied, copied):
        out = land.top / "out"
        assert as_nobody(["ls", "--at", oldest, str(copied)], out) == 0
        assert out.read_text() == ".\nfile\nsub\nsub/other\n"


def test_while_a_backup_runs(btw: Btw, start: Start, two_points: Path, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate", "rdiff-backup", only="backup")
    running = start("fs", two_points.parent.parent / "src", two_points.parent, env=gate.env)
    gate.reached()
    assert btw("ls", two_points.parent).out == ".\nfile\nsub\nsub/other\n"
    gate.open()
    assert ended(running) == (0, "")
    assert btw("ls", two_points.parent).out == ".\nfile\nsub\nsub/other\n"


@pytest.mark.parametrize("kind", ["rdiff", "tar"])
def test_a_damaged_archive_is_an_error(btw: Btw, src: Path, dst: Path, kind: str) -> None:
    assert btw("fs-init", "--type", kind, src, "name").status == 0
    assert btw("fs", src, dst).status == 0
    [backup] = dst.glob("2*")
    path = backup / "backup.tar" if kind == "rdiff" else backup
    os.truncate(path, path.stat().st_size // 2 if kind == "tar" else 1536)
    result = btw("ls", dst)
    assert result.status == 1 and "is damaged" in result.err.splitlines()[-1]


def test_a_dump_and_the_globals(
    btw: Btw, dst: Path, tmp_path: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    name = make_database(one_server, "shop", "CREATE TABLE item (id serial PRIMARY KEY)")
    one_server.psql('CREATE ROLE "odd ""; role"')
    globals_dst = tmp_path / "globals"
    globals_dst.mkdir()
    assert btw("db", name, dst, env=one_server.as_superuser).status == 0
    assert btw("db", "-g", globals_dst, env=one_server.as_superuser).status == 0
    [dump] = dst.glob(f"2*/{name}.dump")
    environment = {**os.environ, **one_server.as_superuser}
    printed = subprocess.check_output(["pg_restore", "--list", dump], text=True, env=environment)
    assert btw("ls", dst, env=one_server.as_superuser).out == printed and "TABLE public item" in printed
    entries = [line for line in printed.splitlines() if not line.startswith(";")]
    assert [
        entry["entry"] for entry in json.loads(btw("ls", "--json", dst, env=one_server.as_superuser).out)
    ] == entries
    result = btw("ls", globals_dst)
    roles = one_server.psql("SELECT 'role ' || rolname FROM pg_roles WHERE rolname !~ '^pg_'").splitlines()
    assert sorted(result.out.splitlines()) == sorted(roles) and 'role odd "; role' in roles
    with_path = btw("ls", dst, "file")
    assert with_path.status == 1 and "backups of a database" in with_path.err
