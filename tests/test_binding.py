"""A destination is bound to its source: another one is refused, and the source is shown."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .helpers import repositories
from .helpers.destinations import at_rest, tree, visible
from .helpers.postgres_servers import INSTALLATIONS, MakeDatabase, Server, Start
from .helpers.repositories import configure
from .helpers.running import Btw, Result, replacing

SILENCE = Result(0, "", "")
NOTE = "source.txt"
STRANGE = "a\nb\x1b[2J\udcff%"


@pytest.fixture
def other(btw: Btw, tmp_path: Path) -> Path:
    """Another source that can be backed up."""
    path = tmp_path / "other"
    path.mkdir()
    (path / "theirs").write_text("theirs\n")
    assert btw("fs-init", "--type", "rdiff", path, "other").status == 0
    return path


@pytest.fixture
def backed_up(btw: Btw, initialised: Path, dst: Path) -> Path:
    """A destination with a backup. Returns the source."""
    assert btw("fs", initialised, dst) == SILENCE
    return initialised


def sources(btw: Btw, *dsts: Path) -> list[str | None]:
    """The sources that ``status`` shows."""
    return [found["source"] for found in json.loads(btw("status", "--json", *dsts).out)]


def assert_refused(result: Result, *named: str) -> None:
    assert (result.status, result.out) == (1, "")
    assert result.err.count("\n") == 1 and all(name in result.err for name in named), result.err


def test_another_source_is_refused(btw: Btw, backed_up: Path, dst: Path, other: Path) -> None:
    before = tree(dst)
    assert_refused(btw("fs", other, dst), f"of {backed_up}, not of {other}", "--adopt")
    after = tree(dst)
    assert after.pop(".btw-backup/lock") != before.pop(".btw-backup/lock")  # the number of the process
    assert after == before
    assert btw("fs", backed_up, dst) == SILENCE
    assert btw("fs", f"{backed_up}/", dst) == SILENCE  # the same source


def test_a_source_that_has_moved(btw: Btw, backed_up: Path, dst: Path, other: Path) -> None:
    assert btw("fs", "--adopt", other, dst) == SILENCE
    assert sources(btw, dst) == [str(other)]
    assert_refused(btw("fs", backed_up, dst), str(other), str(backed_up))
    assert btw("fs", other, dst) == SILENCE


def test_an_adoption_that_fails_changes_nothing(
    btw: Btw, config_dir: Path, backed_up: Path, dst: Path, other: Path
) -> None:
    (config_file,) = config_dir.glob("other.*/config.py")
    config_file.write_text("TYPE = 'rdiff'\nBEFORE = ['false']\n")
    before = visible(dst)
    assert btw("fs", "--adopt", other, dst).status == 1
    assert visible(dst) == before and sources(btw, dst) == [str(backed_up)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda note: note.unlink(),
        lambda note: note.write_bytes(b""),
        lambda note: note.write_bytes(bytes(note.stat().st_size)),
        lambda note: note.write_bytes(note.read_bytes().replace(b"src", b"sRc")),
        lambda note: note.write_bytes(note.read_bytes()[:-2]),
        lambda note: note.write_bytes(b"x" * 100_000),
    ],
    ids=["missing, as in older versions", "empty", "zeroed", "flipped", "torn", "large"],
)
def test_a_destination_without_a_note(
    btw: Btw, backed_up: Path, dst: Path, other: Path, damage: Callable[[Path], object]
) -> None:
    """The next run binds it, even if it stores nothing."""
    good = (dst / NOTE).read_bytes()
    damage(dst / NOTE)
    assert sources(btw, dst) == [None]
    assert btw("fs", backed_up, dst) == SILENCE
    assert (dst / NOTE).read_bytes() == good and at_rest(dst)
    assert_refused(btw("fs", other, dst), str(other))


def test_a_link_in_place_of_the_note(btw: Btw, backed_up: Path, dst: Path, tmp_path: Path) -> None:
    """A link is neither read nor written through."""
    aside = tmp_path / "aside"
    (dst / NOTE).rename(aside)
    (dst / NOTE).symlink_to(aside)
    held = aside.read_bytes()
    aside.chmod(0o400)
    assert sources(btw, dst) == [None]
    assert btw("fs", backed_up, dst) == SILENCE
    assert not (dst / NOTE).is_symlink() and (dst / NOTE).read_bytes() == held
    assert aside.stat().st_mode & 0o777 == 0o400 and aside.read_bytes() == held


def test_a_note_that_cannot_be_written(btw: Btw, initialised: Path, dst: Path) -> None:
    """The backup counts nevertheless."""
    (dst / NOTE).mkdir()
    result = btw("fs", initialised, dst)
    assert result.status == 0 and NOTE in result.err and result.err.count("\n") == 1
    assert len(btw("list", dst).out.splitlines()) == 1


def test_a_kill_before_the_note(btw: Btw, config_dir: Path, initialised: Path, dst: Path) -> None:
    """What was stored stays, and the next run binds the destination."""
    kill = f"lambda *args: os.kill(os.getpid(), {int(signal.SIGKILL)})"
    killed = replacing(config_dir, {"destination.binding.bind": kill.replace("os.", "module.os.")})
    assert killed("fs", initialised, dst).status == -signal.SIGKILL
    assert not (dst / NOTE).exists() and len(btw("list", dst).out.splitlines()) == 1
    assert btw("fs", initialised, dst) == SILENCE
    assert sources(btw, dst) == [str(initialised)] and at_rest(dst)


def test_an_emptied_destination_is_free(btw: Btw, backed_up: Path, dst: Path, other: Path) -> None:
    shutil.rmtree(next(dst.glob("2*")))
    assert btw("fs", other, dst) == SILENCE
    assert sources(btw, dst) == [str(other)]


def test_the_source_is_shown(btw: Btw, backed_up: Path, dst: Path, tmp_path: Path) -> None:
    plain = btw("list", dst)
    assert btw("list", "--long", dst).out.splitlines()[0] == f"source: {backed_up}"
    assert [point["source"] for point in json.loads(btw("list", "--json", dst).out)] == [str(backed_up)]
    assert f", source {backed_up} |" in btw("status", dst).out
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", dst, copy], check=True)
    assert sources(btw, dst, copy) == [str(backed_up)] * 2
    (dst / NOTE).unlink()
    assert btw("list", dst) == plain
    assert "source: " not in btw("list", "--long", dst).out
    assert ", source " not in btw("status", dst).out
    assert [point["source"] for point in json.loads(btw("list", "--json", dst).out)] == [None]


def test_a_strange_name_is_shown_safely(btw: Btw, dst: Path, tmp_path: Path, other: Path) -> None:
    source = tmp_path / STRANGE
    source.mkdir()
    assert btw("fs-init", "--type", "tar", source, "name").status == 0
    assert btw("fs", source, dst) == SILENCE and btw("fs", source, dst) == SILENCE
    for shown in (btw("status", dst).out, btw("fs", other, dst).err):
        assert shown.count("\n") == 1 and "\x1b" not in shown and "a\\x0ab\\x1b[2J" in shown
    assert "\x1b" not in btw("list", "--long", dst).out
    assert sources(btw, dst) == [str(source)]


def test_the_off_site_copy_carries_it(
    btw: Btw, config_dir: Path, backed_up: Path, dst: Path, tmp_path: Path
) -> None:
    configure(config_dir, tmp_path / "repository")
    assert btw("sync", "--init", dst).status == 0
    name, source = btw("fetch", "--list").out.split()[1:]
    assert name.endswith(f":{dst}") and source == f"({backed_up})"
    fetched = tmp_path / "fetched"
    assert btw("fetch", name, fetched) == SILENCE
    assert (fetched / NOTE).read_bytes() == (dst / NOTE).read_bytes()
    (dst / NOTE).unlink()  # an older destination: no reason to send it again
    assert btw("verify", "--offsite", dst) == SILENCE
    snapshots = repositories.restic(tmp_path / "repository", "snapshots", "--json")
    assert btw("fs", backed_up, dst) == SILENCE and btw("sync", dst) == SILENCE
    assert repositories.restic(tmp_path / "repository", "snapshots", "--json") == snapshots


def server_file(config_dir: Path, name: str, server: Server, host: Path | None = None) -> None:
    config_dir.mkdir(mode=0o700, exist_ok=True)
    connection = f"host={host or server.socket} user={server.superuser}"
    (config_dir / f"{name}.py").write_text(f"CONNECTION = {connection!r}\n")


def test_databases(
    btw: Btw, config_dir: Path, dst: Path, server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """The same server by another path to its socket is the same; its port is the one that it tells."""
    make_database(server, "bound", "CREATE TABLE t AS SELECT 1")
    server_file(config_dir, "global", server)
    port = server.psql("SHOW port")
    env = server.environment
    assert btw("db", "bound", dst, env=env) == SILENCE
    assert sources(btw, dst) == [f"database bound of {server.socket}:{port}"]
    link = tmp_path / "link"
    link.symlink_to(server.socket)
    server_file(config_dir, "global", server, link)
    assert btw("db", "bound", dst, env=env) == SILENCE
    assert_refused(btw("db", "other", dst, env=env), "database bound", "other.dump")
    assert_refused(btw("db", "--adopt", "other", dst, env=env), "database bound", "other.dump")


def test_globals_of_another_server(btw: Btw, config_dir: Path, dst: Path, start_server: Start) -> None:
    first, second = start_server(INSTALLATIONS[0]), start_server(INSTALLATIONS[0], peer=True)
    server_file(config_dir, "global", first)
    assert btw("db", "-g", dst, env=first.environment) == SILENCE
    before = visible(dst)
    server_file(config_dir, "global", second)
    with (config_dir / "global.py").open("a") as file:
        file.write(f"RUN_AS = {second.superuser!r}\n" if os.geteuid() == 0 else "")
    result = btw("db", "-g", dst, env=second.environment)
    assert_refused(result, f"globals of {first.socket}:", f"globals of {second.socket}:")
    assert visible(dst) == before
    assert btw("db", "--adopt", "-g", dst, env=second.environment) == SILENCE
    assert sources(btw, dst) == [f"globals of {second.socket}:{second.psql('SHOW port')}"]


def test_all_databases(
    btw: Btw, config_dir: Path, dst: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    """Each directory is bound."""
    make_database(one_server, "bound")
    server_file(config_dir, "global", one_server)
    assert btw("db", "--all", "--exclude", "[!b]*", dst, env=one_server.environment) == SILENCE
    place = f"{one_server.socket}:{one_server.psql('SHOW port')}"
    expected = [f"database bound of {place}", f"globals of {place}"]
    assert sources(btw, dst / "bound", dst / "global") == expected
    assert not (dst / NOTE).exists()
