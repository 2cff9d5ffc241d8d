"""``btw-backup run`` makes every backup that has a DESTINATION, and other commands know where these are."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from .helpers.destinations import listed
from .helpers.postgres_servers import MakeDatabase, Server
from .helpers.running import Btw, Result

DONE = Result(0, "", "")


class Machine:
    """Two sources, each with a destination of its own in ``store``, and a configuration of both."""

    def __init__(self, top: Path, btw: Btw, config_dir: Path) -> None:
        self.btw, self.config_dir, self.store = btw, config_dir, top / "store"
        self.store.mkdir()
        self.sources = [top / name for name in ("etc", "www")]
        for source in self.sources:
            source.mkdir()
            (source / "file").write_text(f"{source.name}\n")
            assert btw("fs-init", "--type", "rdiff", source, source.name).status == 0
            (self.store / source.name).mkdir()
            self.configure(source.name)

    def configure(self, name: str, *lines: str) -> None:
        """Write the configuration of a source."""
        [path] = self.config_dir.glob(f"{name}.*/config.py")
        destination = f"DESTINATION = {str(self.store / name)!r}"
        path.write_text("\n".join(["TYPE = 'tar'", "COMPRESSION = 'none'", destination, *lines, ""]))

    def points(self, name: str) -> list[str]:
        return listed(self.btw, self.store / name)


@pytest.fixture
def machine(tmp_path: Path, btw: Btw, config_dir: Path) -> Machine:
    return Machine(tmp_path, btw, config_dir)


def test_every_backup_is_made(machine: Machine, btw: Btw) -> None:
    assert btw("run") == DONE
    assert [len(machine.points(name)) for name in ("etc", "www")] == [1, 1]
    result = btw("-v", "run")
    assert (
        result.status == 0
        and result.err.splitlines()
        == [f"btw_backup: {source}: nothing has changed: 0.0 s" for source in machine.sources]
        or result.err.count("nothing has changed") == 2
    )
    for source in machine.sources:
        target = machine.store / "restored"
        assert btw("fs-restore", machine.store / source.name, target) == DONE
        assert subprocess.run(["diff", "-r", source, target]).returncode == 0
        subprocess.run(["rm", "-r", target], check=True)


def test_only_those_that_are_named(machine: Machine, btw: Btw) -> None:
    assert btw("run", "www") == DONE
    assert [len(machine.points(name)) for name in ("etc", "www")] == [0, 1]
    assert btw("run", machine.sources[0]) == DONE
    assert [len(machine.points(name)) for name in ("etc", "www")] == [1, 1]
    unknown = "btw_backup: no backup of wwww is configured: did you mean www?\n"
    assert btw("run", "wwww") == Result(2, "", unknown)


def test_it_goes_on_after_a_failure(machine: Machine, btw: Btw) -> None:
    (machine.store / "etc").rmdir()
    result = btw("run")
    missing = f"the destination does not exist: {machine.store}/etc: create it, or mount its disk"
    assert result == Result(1, "", f"btw_backup: {machine.sources[0]}: {missing}\n")
    assert len(machine.points("www")) == 1


def test_a_broken_configuration_is_one_failure(machine: Machine, btw: Btw) -> None:
    machine.configure("etc", "KEEPS = {}")
    result = btw("run")
    assert result.status == 1 and "unknown option KEEPS: did you mean KEEP?" in result.err
    assert len(result.err.splitlines()) == 1 and len(machine.points("www")) == 1


def test_the_worst_status_is_that_of_the_run(machine: Machine, btw: Btw) -> None:
    env = {"PATH": f"{machine.store.parent}/bin:{os.environ['PATH']}"}
    unreadable = machine.store.parent / "bin"
    unreadable.mkdir()
    tar = unreadable / "tar"
    tar.write_text('#!/bin/sh\n/usr/bin/tar "$@"; echo "tar: ./gone: Cannot open" >&2; exit 2\n')
    tar.chmod(0o755)
    result = btw("run", env=env)
    assert result.status == 3 and result.err.count("Cannot open") == 2
    (machine.store / "www").rename(machine.store / "elsewhere")
    for source in machine.sources:
        (source / "file").write_text("changed\n")
    assert btw("run", env=env).status == 1


def test_keep_is_applied_when_a_backup_was_stored(machine: Machine, btw: Btw) -> None:
    machine.configure("www", "KEEP = {'last': 2}")
    source = machine.sources[1]
    for number in range(4):
        (source / "file").write_text(f"{number}\n")
        assert btw("run") == DONE
    assert len(machine.points("www")) == 2 and len(machine.points("etc")) == 1
    (source / "file").write_text("by hand\n")
    assert btw("fs", source, machine.store / "www") == DONE
    assert len(machine.points("www")) == 3
    assert btw("run") == DONE  # nothing has changed
    assert len(machine.points("www")) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_owner_gets_what_is_made(machine: Machine, btw: Btw) -> None:
    machine.configure("www", "OWNER = '12345:54321'")
    assert btw("run") == DONE
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (machine.store / "www").glob("[2-9]*")}
    assert owners == {(12345, 54321)}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("DESTINATION = 'relative'", "DESTINATION must be the absolute path of a directory, not 'relative'"),
        ("OWNER = 'no-such-user'", "OWNER there is no user 'no-such-user' on this system"),
        ("OWNER = 3", "OWNER must be a user and a group such as 'backup:', not 3"),
        ("KEEP = {'daly': 3}", "KEEP must be a dictionary such as {'daily': 14}"),
        ("DESTINATION = None; KEEP = {'last': 3}", "KEEP is set, but DESTINATION is not"),
    ],
)
def test_wrong_settings(machine: Machine, btw: Btw, line: str, text: str) -> None:
    machine.configure("www", line)
    result = btw("run", "www")
    assert result.status == 1 and text in result.err and len(result.err.splitlines()) == 1
    assert text in btw("check-config").err


def test_without_a_destination_there_is_nothing_to_run(btw: Btw, src: Path) -> None:
    nothing = "there is nothing to run: set DESTINATION in the configuration file of a backup"
    assert btw("run") == Result(1, "", f"btw_backup: {nothing}\n")
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    assert btw("run").status == 1
    assert btw("run", "name").err == f"btw_backup: {src} has no DESTINATION in its configuration file\n"


def test_other_commands_take_all_that_are_configured(machine: Machine, btw: Btw) -> None:
    assert btw("run") == DONE
    etc, www = (machine.store / name for name in ("etc", "www"))
    result = btw("list")
    assert result.status == 0 and [
        line for line in result.out.splitlines() if ":" in line[:1] or line[:1] == "/"
    ]
    assert f"{etc}:\n" in result.out and f"{www}:\n" in result.out
    assert {each["destination"] for each in json.loads(btw("list", "--json").out)} == {str(etc), str(www)}
    assert [line.split(": ")[0].split(" - ")[1] for line in btw("status").out.splitlines()] == [
        str(etc),
        str(www),
    ]
    assert btw("verify") == DONE
    assert btw("-v", "verify").err.count(": ok") == 2
    assert btw("prune", "--dry-run", "--keep-last", "1").out.count("keep ") == 2


def test_a_file_with_errors_keeps_nobody_from_the_others(machine: Machine, btw: Btw) -> None:
    assert btw("run") == DONE
    machine.configure("etc", "KEEPS = {}")
    for command, status in (("list", 1), ("status", 3), ("verify", 1)):
        result = btw("-v", command)
        assert result.status == status and "unknown option KEEPS" in result.err
        assert machine.points("www")[0][:19] in result.out + result.err


def test_a_destination_without_backups_stands_for_itself(machine: Machine, btw: Btw) -> None:
    """Even if it holds other destinations: nothing was backed up to it."""
    [config] = machine.config_dir.glob("etc.*/config.py")
    config.write_text(f"TYPE = 'tar'\nDESTINATION = {str(machine.store)!r}\n")
    assert btw("run", "www") == DONE
    result = btw("status", "--max-age", "1h")
    assert result.status == 2 and f"CRITICAL - {machine.store}: no backups yet" in result.out


def test_two_backups_need_two_destinations(machine: Machine, btw: Btw) -> None:
    [config] = machine.config_dir.glob("etc.*/config.py")
    config.write_text(f"TYPE = 'tar'\nDESTINATION = {str(machine.store / 'www')!r}\n")
    result = btw("check-config")
    assert result.status == 1 and f"several have the DESTINATION {machine.store}/www: " in result.err
    config.write_text(f"TYPE = 'tar'\nDESTINATION = {str(machine.sources[0])!r}\n")
    result = btw("check-config")
    assert result.status == 1 and "DESTINATION is the source itself" in result.err


def test_a_keep_that_keeps_nothing_is_an_error(machine: Machine, btw: Btw) -> None:
    machine.configure("www", "KEEP = {'last': 0}")
    result = btw("run", "www")
    assert result.status == 1 and "KEEP must keep something" in result.err


@pytest.mark.parametrize("command", ["list", "status", "verify", "prune --keep-last 1", "sync"])
def test_without_any_destination_the_command_line_is_wrong(btw: Btw, command: str) -> None:
    result = btw(*command.split())
    assert result.status == 2 and result.err.startswith(f"usage: btw_backup {command.split()[0]} ")
    told = "error: the following arguments are required: dst (no DESTINATION is configured)\n"
    assert result.err.endswith(told)


def test_a_destination_that_is_missing_is_a_fault_of_the_configuration(machine: Machine, btw: Btw) -> None:
    assert btw("check-config") == DONE
    (machine.store / "www").rmdir()
    result = btw("check-config")
    assert result.status == 1 and f"DESTINATION: there is no directory {machine.store}/www" in result.err


def test_databases_and_globals(
    btw: Btw, config_dir: Path, dst: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    config_dir.mkdir(mode=0o700)
    name = make_database(one_server, "shop")
    for each in (name, "global"):
        (dst / each).mkdir()
        (config_dir / f"{each}.py").write_text(f"DESTINATION = {str(dst / each)!r}\n")
    assert btw("run", env=one_server.as_superuser) == DONE
    assert [len(listed(btw, dst / each)) for each in (name, "global")] == [1, 1]
    assert btw("run", "global", env=one_server.as_superuser) == DONE
    broken = {**one_server.as_superuser, "PGHOST": "/no/such"}
    result = btw("run", env=broken)
    failures = [line for line in result.err.splitlines() if line.startswith("btw_backup: ")]
    assert result.status == 1 and failures == [
        "btw_backup: global: pg_dumpall exited with code: 1",
        f"btw_backup: {name}: pg_dump exited with code: 1",
    ]
