"""``RESTORE.txt``: what it says is done, to the letter, by a shell."""

import os
import subprocess
from pathlib import Path

import pytest

from .helpers import trees
from .helpers.postgres_servers import MakeDatabase, Server
from .helpers.repositories import configure
from .helpers.running import Btw, Result

SILENCE = Result(0, "", "")
NAME = "RESTORE.txt"


def said(dst: Path) -> list[list[str]]:
    """The commands in the text, in blocks."""
    blocks: list[list[str]] = [[]]
    for line in (dst / NAME).read_text().splitlines():
        if line.startswith("    "):
            blocks[-1].append(line.strip())
        elif blocks[-1]:
            blocks.append([])
    return blocks


def follow(dst: Path, commands: list[str], top: Path, env: dict[str, str] | None = None) -> str:
    """Have a shell run them in the destination, with ``top`` for /root. Returns what it prints."""
    script = "\n".join(["set -e", *commands]).replace("/root/", f"{top}/")
    return subprocess.check_output(
        ["sh", "-c", script], cwd=dst, env={**os.environ, **(env or {})}, text=True
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_files(btw: Btw, config_dir: Path, dst: Path, tmp_path: Path) -> None:
    """Each kind that the destination holds, on another machine: btw-backup is not used."""
    source = tmp_path / "source"
    trees.build(source)
    older = tmp_path / "older"
    assert btw("fs-init", "--type", "tar", source, "name").status == 0
    assert btw("fs", source, dst) == SILENCE
    (config_file,) = config_dir.glob("*/config.py")
    config_file.write_text("TYPE = 'rdiff'\n")
    assert btw("fs", source, dst) == SILENCE
    subprocess.run(["cp", "-a", source, older], check=True)
    (source / "plain").write_text("changed\n")
    assert btw("fs", source, dst) == SILENCE
    text = (dst / NAME).read_text()
    assert f"Backups of {source}, made by btw-backup on {os.uname().nodename}." in text
    assert len(text.splitlines()) <= 24
    for number, (commands, expected) in enumerate(zip(said(dst), (older, source, older), strict=True)):
        top = tmp_path / str(number)
        top.mkdir()
        follow(dst, commands, top)
        trees.assert_same(expected, top / "restored")


def test_a_database_and_the_globals(
    btw: Btw, config_dir: Path, dst: Path, one_server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    name = "it's"
    make_database(one_server, name, "CREATE TABLE t AS SELECT 1 AS n")
    env = one_server.as_superuser
    assert btw("db", name, dst, env=env) == SILENCE
    one_server.psql("UPDATE t SET n = 2", name)
    assert btw("db", name, dst, env=env) == SILENCE
    newest, oldest = said(dst)
    for number, commands in ((2, newest), (1, oldest)):
        one_server.psql(f'DROP DATABASE "{name}"')
        follow(dst, commands, tmp_path, env)
        assert one_server.psql("SELECT n FROM t", name) == str(number)
    roles = tmp_path / "globals"
    roles.mkdir()
    one_server.psql("CREATE ROLE explained")
    try:
        assert btw("db", "-g", roles, env=env) == SILENCE
    finally:
        one_server.psql("DROP ROLE explained")
    try:
        follow(roles, said(roles)[0], tmp_path, env)
        assert one_server.psql("SELECT 1 FROM pg_roles WHERE rolname = 'explained'") == "1"
    finally:
        one_server.psql("DROP ROLE IF EXISTS explained")


def test_it_is_rewritten_when_it_has_something_else_to_say(btw: Btw, initialised: Path, dst: Path) -> None:
    assert btw("fs", initialised, dst) == SILENCE
    path = dst / NAME
    first = path.stat()
    assert btw("fs", initialised, dst) == SILENCE
    assert path.stat().st_ino == first.st_ino
    (initialised / "file").write_text("changed\n")
    assert btw("fs", initialised, dst) == SILENCE
    text = path.read_text()
    assert path.stat().st_ino != first.st_ino and "An older point" in text
    path.write_text("torn")
    assert btw("fs", initialised, dst) == SILENCE
    assert path.read_text() == text


def test_it_goes_off_site(btw: Btw, config_dir: Path, initialised: Path, dst: Path, tmp_path: Path) -> None:
    assert btw("fs", initialised, dst) == SILENCE
    configure(config_dir, tmp_path / "repository")
    assert btw("sync", "--init", dst).status == 0
    fetched = tmp_path / "fetched"
    assert btw("fetch", dst, fetched) == SILENCE
    assert (fetched / NAME).read_bytes() == (dst / NAME).read_bytes()
