"""What programs get of the environment: what they need, and nothing that would change what they do."""

import os
from pathlib import Path

import pytest

from btw_backup.programs.environment import environment

from .helpers.postgres_servers import MakeDatabase, Server
from .helpers.running import Btw, break_bubblewrap
from .helpers.trees import assert_same

GERMAN = Path("/usr/share/locale/de/LC_MESSAGES/tar.mo")

# Each of them changes what some program does, or whether it starts at all.
MEDDLING = {
    "BZIP2": "-1",
    "GZIP": "-1",
    "LD_PRELOAD": "",
    "LC_MESSAGES": "de_DE.UTF-8",
    "PERL5OPT": "-MNoSuchModule",
    "PGOPTIONS": "-c search_path=elsewhere",
    "POSIXLY_CORRECT": "1",
    "PYTHONINSPECT": "",
    "RDIFF_BACKUP_VERBOSITY": "9",
    "TAR_OPTIONS": "--exclude=*",
    "XZ_OPT": "-9",
    "ZSTD_CLEVEL": "19",
}


def spied(tmp_path: Path, *programs: str) -> tuple[dict[str, str], Path]:
    """An environment in which programs write down theirs, and where."""
    where, seen = tmp_path / "bin", tmp_path / "seen"
    where.mkdir()
    for program in programs:
        file = where / program
        file.write_text(
            f'#!/bin/sh\nPATH=/usr/bin:/bin env >>{seen}\nPATH=/usr/bin:/bin exec {program} "$@"\n'
        )
        file.chmod(0o755)
    break_bubblewrap(where)
    return {"PATH": f"{where}:{os.environ['PATH']}"}, seen


def names(seen: Path) -> set[str]:
    """The variables that programs were seen with; the shell sets PWD and others itself."""
    found = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    return found - {"PWD", "OLDPWD", "SHLVL", "_"}


@pytest.mark.parametrize("name, value", [("PYTHONOPTIMIZE", "2"), ("RDIFF_BACKUP_API_VERSION", "201")])
def test_rdiff_backup_is_what_it_is_without_the_variable(
    btw: Btw, src: Path, dst: Path, tmp_path: Path, name: str, value: str
) -> None:
    env, seen = spied(tmp_path, "rdiff-backup")
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    for content in ("first", "second"):
        (src / "file").write_text(content)
        assert btw("fs", src, dst, env={**env, name: value}) == (0, "", "")
    assert name not in names(seen)
    assert btw("fs-restore", dst, tmp_path / "restored", env={name: value}) == (0, "", "")
    assert_same(src, tmp_path / "restored")


@pytest.mark.skipif(not GERMAN.exists(), reason="tar does not speak German here")
def test_another_language_changes_nothing(btw: Btw, src: Path, dst: Path, tmp_path: Path) -> None:
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    assert btw("fs", src, dst).status == 0
    paths = ["file", "missing"]
    plain = btw("fs-restore", dst, tmp_path / "plain", *paths)
    german = btw("fs-restore", dst, tmp_path / "german", *paths, env={"LANGUAGE": "de"})
    assert german == plain
    assert sorted(os.listdir(tmp_path / "german")) == sorted(os.listdir(tmp_path / "plain"))


@pytest.mark.parametrize(
    "kind, programs, added",
    [("rdiff", ["tar", "rdiff-backup"], {"PYTHONSAFEPATH"}), ("tar", ["tar", "lbzip2"], set())],
)
def test_programs_get_a_few_variables(
    btw: Btw, src: Path, dst: Path, tmp_path: Path, kind: str, programs: list[str], added: set[str]
) -> None:
    env, seen = spied(tmp_path, *programs)
    assert btw("fs-init", "--type", kind, src, "name").status == 0
    for content in ("first", "second"):
        (src / "file").write_text(content)
        assert btw("fs", src, dst, env={**MEDDLING, **env}) == (0, "", "")
    assert btw("fs-restore", dst, tmp_path / "restored", env={**MEDDLING, **env}) == (0, "", "")
    assert names(seen) <= {"HOME", "LC_ALL", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"} | added


@pytest.mark.parametrize(
    "program, name",
    [
        ("psql", "PGPASSFILE"),
        ("pg_dump", "PGHOST"),
        ("pg_restore", "PGSSLROOTCERT"),
        ("pg_dumpall", "PGCLUSTER"),
        ("restic", "https_proxy"),
        ("restic", "XDG_CACHE_HOME"),
        ("restic", "SSL_CERT_FILE"),
    ],
)
def test_what_a_program_needs_is_for_it_alone(
    monkeypatch: pytest.MonkeyPatch, program: str, name: str
) -> None:
    monkeypatch.setenv(name, "here")
    assert environment(program)[name] == "here"
    assert name not in environment("tar")


@pytest.mark.parametrize(
    "name", ["PGDATABASE", "PGOPTIONS", "PGCLIENTENCODING", "PGTZ", "PSQLRC", "PERL5LIB", "RESTIC_REPOSITORY"]
)
def test_what_would_change_a_result_is_for_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "meddling")
    assert all(name not in environment(program) for program in ("pg_dump", "psql", "restic", "tar"))


def test_the_environment_does_not_overrule_connection(
    btw: Btw, config_dir: Path, dst: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    name = make_database(one_server, "meant", "CREATE TABLE here ()")
    config_dir.mkdir(exist_ok=True)
    connection = f"host={one_server.socket} user={one_server.superuser}"
    (config_dir / f"{name}.py").write_text(f"CONNECTION = {connection!r}\n")
    elsewhere = {"PGHOSTADDR": "127.0.0.1", "PGSERVICE": "other", "PGOPTIONS": "-c nonsense=1"}
    result = btw("db", name, dst, env={"PATH": one_server.environment["PATH"], **elsewhere})
    assert result == (0, "", "")


def test_a_hook_gets_the_whole_environment(
    btw: Btw, src: Path, dst: Path, config_dir: Path, tmp_path: Path
) -> None:
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    trace = tmp_path / "trace"
    line = f"echo $LC_ALL,$TZ,$PYTHONPATH,$MONITOR,$BTW_BACKUP_COMMAND >{trace}"
    (config_dir / "config.py").write_text(f"AFTER = ['sh', '-c', {line!r}]\n")
    env = {"LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONPATH": os.getcwd(), "MONITOR": "https://example.org"}
    assert btw("fs", src, dst, env=env) == (0, "", "")
    assert trace.read_text() == f"C,Asia/Tokyo,{os.getcwd()},https://example.org,fs\n"
