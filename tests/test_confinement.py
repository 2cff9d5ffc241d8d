"""What programs can write, and where, when root runs them."""

import bz2
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from btw_backup.errors import Error
from btw_backup.programs import process, tar
from btw_backup.system import confinement
from btw_backup.system.confinement import READING, At, Confinement
from btw_backup.system.directories import Directory

from .helpers.confinement import confined, without_confinement
from .helpers.postgres_servers import MakeDatabase, Server
from .helpers.running import Btw, wait_for
from .helpers.trees import assert_same, build

# Each is tried in the directory that may be written, and outside by every way that leads there.
WRITES = """
touch {0}/new
rm {0}/victim
mv {0}/victim {0}/moved
ln {0}/victim {0}/linked
chmod 777 {0}/victim
chmod 777 {0}
chown 65534 {0}/victim
touch -d 2000-01-01 {0}/victim
setfattr -n user.x -v y {0}/victim
setfacl -m u:65534:rwx {0}/victim
mkdir {0}/directory
mknod {0}/node b 7 0
sh -c 'echo changed >>{0}/victim'
truncate -s 0 {0}/victim
"""


class Land:
    """``inside`` may be written; ``outside`` may not, and a file lies there."""

    def __init__(self, top: Path) -> None:
        self.inside, self.outside = top / "inside", top / "outside"
        for path in (self.inside, self.outside):
            path.mkdir(parents=True)
            (path / "victim").write_text("precious\n")
        (self.inside / "link").symlink_to(self.outside)
        self.fd = os.open(self.inside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def run(
        self, script: str, confined: Confinement | None = None, argv: Sequence[str | At] = ()
    ) -> process.Result:
        """Run a shell script in ``inside``; it may be written unless that is said otherwise."""
        confined = Confinement([self.fd]) if confined is None else confined
        return process.run(["sh", "-c", script, "sh", *argv], cwd=self.fd, confined=confined)


@pytest.fixture
def land(tmp_path: Path) -> Iterator[Land]:
    land = Land(tmp_path / "land")
    yield land
    os.close(land.fd)


def facts(path: Path) -> list[tuple[str, os.stat_result, bytes]]:
    """All that a write would change."""
    entries = [path, *sorted(path.iterdir())]
    seen = []
    for entry in entries:
        attributes = {name: os.getxattr(entry, name) for name in os.listxattr(entry)}
        content = entry.read_bytes() if entry.is_file() else b""
        found = os.lstat(entry)
        about = (found.st_mode, found.st_uid, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink)
        seen.append((entry.name, about, content + repr(attributes).encode()))
    return seen  # type: ignore[return-value]


WAYS = [
    "{outside}",
    "link",
    "../outside",
    "/proc/self/cwd/../outside",
    "/proc/self/root{outside}",
    "/proc/1/root{outside}",
    "/proc/1/cwd{outside}",
]


@confined
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("write", WRITES.strip().splitlines(), ids=lambda line: line.split()[0])
def test_nothing_is_written_outside(land: Land, way: str, write: str) -> None:
    before = facts(land.outside)
    result = land.run(write.format(way.format(outside=land.outside)))
    assert result.status != 0
    assert facts(land.outside) == before


@confined
@pytest.mark.parametrize("write", WRITES.strip().splitlines(), ids=lambda line: line.split()[0])
def test_what_is_to_be_written_is(land: Land, write: str) -> None:
    before = facts(land.inside)
    confined = Confinement([land.fd], confinement.UNPACKING)
    assert land.run(write.format("."), confined).check().status == 0
    assert facts(land.inside) != before


@confined
def test_the_reason_is_a_read_only_file_system(land: Land) -> None:
    for write in ("touch {0}/new", "rm {0}/victim", "chmod 777 {0}/victim", "chown 65534 {0}/victim"):
        said = land.run(write.format(land.outside)).stderr
        assert os.strerror(30) in said, said


@confined
def test_no_descriptor_leads_outside(land: Land) -> None:
    """Those of other processes can't be seen, and our own are none of directories."""
    with open(land.outside / "victim", "ab"):
        script = """
        set -e
        for fd in /proc/*/fd/*; do
            target=$(readlink "$fd") || continue
            case $target in
                /dev/null | pipe:* | /memfd:* | anon_inode:* | /proc/*) ;;
                *) echo "$fd $target" >&2 ;;
            esac
        done
        """
        assert land.run(script, argv=[At(land.fd)]) == ("sh", 0, "")
    assert land.run(f"ls -d /proc/{os.getpid()}/root").status != 0


@confined
def test_a_directory_is_reached_by_its_path_inside(land: Land, tmp_path: Path) -> None:
    other = os.open(land.outside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        result = land.run(
            'cat "$1" && ! touch "$1" && touch "$2"', argv=[At(other, "victim"), At(land.fd, "new")]
        )
        assert result.status == 0
    finally:
        os.close(other)
    assert (land.inside / "new").exists()


@confined
def test_other_mounts_are_read_only(land: Land, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
    try:
        (disk / "victim").write_text("precious\n")
        for path in (disk, Path("/dev/shm"), Path("/sys"), Path("/run"), Path("/tmp"), Path("/dev")):
            assert land.run(f"touch {path}/btw-backup-test").status != 0
            assert not (path / "btw-backup-test").exists()
        assert land.run(f"rm {disk}/victim || umount {disk} || mount -o remount,rw {disk}").status != 0
        assert (disk / "victim").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


@confined
def test_devices_cannot_be_opened(land: Land) -> None:
    assert land.run("mknod disk b 7 0").status != 0
    device = Confinement([land.fd], confinement.UNPACKING)
    assert land.run("mknod null c 1 3 && ! cat null", device).status == 0
    assert land.run("echo >/dev/null && head -c1 /dev/urandom && ! ls /dev/loop0 /dev/sd*").status == 0


@confined
def test_there_is_no_network_and_no_socket_in_run(land: Land) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)"
        argv = [sys.executable, "-c", script]
        assert process.run(argv, confined=READING).status == 1
        assert process.run(argv, confined=Confinement(network=True)).status == 0
    assert land.run('test -z "$(ls /run)"').status == 0


@confined
def test_it_has_few_capabilities(land: Land) -> None:
    script = "grep -q 'CapEff:\t000000000000001f' /proc/self/status"
    assert land.run(script).status == 0


@confined
def test_a_capability_that_we_do_not_have_is_not_asked_for(tmp_path: Path) -> None:
    """bwrap would leave the program all that we have."""
    script = (
        "from btw_backup.programs import process; from btw_backup.system.confinement import *;"
        "assert process.unconfined() is None, process.unconfined();"
        "argv = ['sh', '-c', 'grep CapEff /proc/self/status >&2'];"
        "print(process.run(argv, confined=Confinement((), UNPACKING)).stderr)"
    )
    lack = ["setpriv", "--bounding-set=-mknod,-net_admin", "--inh-caps=-mknod,-net_admin"]
    done = subprocess.check_output([*lack, sys.executable, "-c", script], text=True)
    assert done.split() == ["CapEff:", f"{0x1F | 1 << 21 | 1 << 31:016x}"]


@confined
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_that_ends_it_is_said(land: Land, signum: signal.Signals) -> None:
    ended = land.run(f"kill -{signum} $$").ending()
    assert ended == f"sh was killed by {signum.name}"


@confined
@pytest.mark.parametrize("status", [0, 1, 2, 3, 42, 127])
def test_its_exit_status_is_what_it_was(land: Land, status: int) -> None:
    assert land.run(f"echo said >&2; exit {status}") == ("sh", status, "said\n")


@confined
def test_what_goes_through_pipes(land: Land) -> None:
    data = os.urandom(1 << 20)
    argv = ["sh", "-c", "head -c 1048576 >copy; cat copy"]
    with process.Program(
        argv, stdin=process.PIPE, stdout=process.PIPE, cwd=land.fd, confined=Confinement([land.fd])
    ) as program:
        program.stdin.write(data)
        program.stdin.close()
        assert program.stdout.read() == data
        program.wait().check()


@confined
def test_it_is_gone_when_the_block_ends(land: Land) -> None:
    """Otherwise it could still write into what is removed then."""
    writer = "import os, itertools\nfor n in itertools.count(): open('count', 'w').write(str(n))"
    for _ in range(10):
        argv = [sys.executable, "-c", writer]
        with process.Program(argv, cwd=land.fd, confined=Confinement([land.fd])):
            wait_for((land.inside / "count").exists)
        (land.inside / "count").unlink()
        time.sleep(0.005)
        assert not (land.inside / "count").exists()


@confined
def test_it_is_gone_however_early_it_is_killed(land: Land) -> None:
    """Also while bwrap still mounts, when killing it would leave the rest of it behind."""
    before = children()  # servers of other tests
    for number in range(60):
        argv = ["sh", "-c", "touch started; sleep 60"]
        with process.Program(argv, cwd=land.fd, confined=Confinement([land.fd])):
            time.sleep(number * 0.0005)
    (land.inside / "started").unlink(missing_ok=True)
    time.sleep(0.1)
    assert not (land.inside / "started").exists()
    assert children() == before


def children() -> list[str]:
    """All processes below this one."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


@confined
@pytest.mark.parametrize("delay", [0.0, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02])
def test_it_dies_with_us_however_early(land: Land, delay: float) -> None:
    """Nothing holds the pipe any more, and nothing was begun afterwards."""
    script = (
        "import os, sys; from btw_backup.programs import process;"
        "from btw_backup.system.confinement import *; process.unconfined();"
        f"fd = os.open({str(land.inside)!r}, os.O_RDONLY);"
        "print(end='x', flush=True);"
        "process.run(['sh', '-c', 'sleep 0.1; touch late; sleep 60'], cwd=fd, stdout=1,"
        " confined=Confinement([fd]))"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            assert parent.stdout.read(1) == b"x"
            time.sleep(delay)
            parent.kill()
            assert parent.stdout.read() == b""
        assert not (land.inside / "late").exists()


@confined
def test_it_dies_with_us(land: Land) -> None:
    script = (
        "import os; from btw_backup.programs import process; from btw_backup.system.confinement import *;"
        f"fd = os.open({str(land.inside)!r}, os.O_RDONLY);"
        "process.run(['sh', '-c', 'echo started >&2; touch started; sleep 3; touch late'], cwd=fd,"
        " confined=Confinement([fd]))"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        wait_for((land.inside / "started").exists)
        parent.kill()
    time.sleep(3.5)
    assert not (land.inside / "late").exists()


@confined
def test_a_directory_that_was_moved_away_is_not_followed(land: Land) -> None:
    """Its path now names another one: bwrap compares what it has mounted with the descriptor."""
    land.inside.rename(land.inside.with_name("moved"))
    land.inside.symlink_to(land.outside)
    before = facts(land.outside)
    result = land.run("touch new")
    assert result.status == 0 or "bwrap: " in result.stderr
    assert facts(land.outside) == before


ESCAPING = """#!/bin/sh
for directory in "$OUTSIDE" {outside}; do
    touch "$directory/written" 2>/dev/null
done
PATH=/usr/bin:/bin exec {program} "$@"
"""


@confined
@pytest.mark.parametrize("program", ["rdiff-backup", "tar"])
def test_commands_confine_their_programs(
    btw: Btw, src: Path, dst: Path, tmp_path: Path, program: str
) -> None:
    """A program that also writes somewhere else can't, and does its work all the same."""
    outside, programs = tmp_path / "outside", tmp_path / "bin"
    outside.mkdir()
    programs.mkdir()
    fake = programs / program
    fake.write_text(ESCAPING.format(outside=outside, program=program))
    fake.chmod(0o755)
    env = {"PATH": f"{programs}:{os.environ['PATH']}"}
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    for content in ("first", "second"):
        (src / "file").write_text(content)
        assert btw("fs", src, dst, env=env if program == "rdiff-backup" else None) == (0, "", "")
    assert btw("verify", dst, env=env) == (0, "", "")
    oldest = btw("list", dst).out.split()[0]
    for at in ([], ["--at", oldest]):
        assert btw("fs-restore", *at, dst, tmp_path / f"restored{len(at)}", env=env) == (0, "", "")
    assert_same(src, tmp_path / "restored0")
    assert not (outside / "written").exists()
    off = without_confinement(tmp_path / "off")
    env = {"PATH": f"{off['PATH'].partition(':')[0]}:{env['PATH']}"}
    (src / "file").write_text("third, and longer")
    command: list[str | Path] = ["fs", src, dst]
    if program == "tar":
        command = ["fs-restore", dst, tmp_path / "unconfined"]
    assert btw(*command, env=env) == (0, "", "")
    assert (outside / "written").exists()


@confined
def test_a_dump_writes_nothing_here(
    btw: Btw, dst: Path, tmp_path: Path, one_server: Server, make_database: MakeDatabase
) -> None:
    """A command for psql's shell in a dump of globals; and a real dump is restored, by parallel jobs too."""
    pwned = tmp_path / "pwned"
    env = one_server.as_superuser
    name = make_database(one_server, "source", "CREATE TABLE here AS SELECT generate_series(1, 10) n")
    assert btw("db", name, dst, env=env) == (0, "", "")
    for jobs in (1, 2):
        target = make_database(one_server, f"target{jobs}")
        assert btw("db-restore", f"--jobs={jobs}", dst, target, env=env) == (0, "", "")
        assert one_server.psql("SELECT count(*) FROM here", target) == "10"
    assert btw("verify", dst, env=env) == (0, "", "")
    (tmp_path / "globals").mkdir()
    assert btw("db", "-g", tmp_path / "globals", env=env) == (0, "", "")
    [packed] = (tmp_path / "globals").glob("2*/global.sql.bz2")
    text = bz2.decompress(packed.read_bytes())
    script = tmp_path / "script"
    script.write_bytes(f"\\! touch {pwned}\n".encode() + text)
    argv = ["psql", "--no-psqlrc", "--quiet", "--dbname=postgres", f"--file={script}"]
    environ = {**os.environ, **env}
    result = process.run(argv, surroundings=environ, confined=Confinement(network=True))
    assert os.strerror(30) in result.stderr
    assert not pwned.exists()


@confined
def test_a_tree_with_everything_comes_back(btw: Btw, dst: Path, tmp_path: Path) -> None:
    src = tmp_path / "everything"
    build(src)
    os.mknod(src / "device", 0o600 | 0o020000, os.makedev(1, 3))
    os.setxattr(src / "plain", "trusted.colour", b"blue")
    os.setxattr(src / "plain", "security.colour", b"red")
    assert btw("fs-init", "--type", "tar", src, "name").status == 0
    assert btw("fs", src, dst) == (0, "", "")
    assert btw("fs-restore", dst, tmp_path / "restored") == (0, "", "")
    assert_same(src, tmp_path / "restored")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_where_it_cannot_be_had_programs_run_without(btw: Btw, src: Path, dst: Path, tmp_path: Path) -> None:
    env = without_confinement(tmp_path / "off")
    assert btw("fs-init", "--type", "rdiff", src, "name").status == 0
    for content in ("first", "second"):
        (src / "file").write_text(content)
        assert btw("fs", src, dst, env=env) == (0, "", "")
    assert btw("fs-restore", dst, tmp_path / "restored", env=env) == (0, "", "")
    assert_same(src, tmp_path / "restored")
    warning = "btw_backup: warning: rdiff-backup and tar are not confined here: bwrap: switched off\n"
    assert btw("check-config", env=env) == (0, "", warning)


@confined
def test_a_failing_program_is_not_tried_again(land: Land) -> None:
    assert land.run("echo once >>tries; exit 1").status == 1
    assert (land.inside / "tries").read_text() == "once\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root and another user")
def test_a_user_gets_everything_back(user: Path) -> None:
    """In a user namespace, ACLs for other users could not be restored."""
    env = {**os.environ, "HOME": str(user), "PYTHONPATH": f"{os.getcwd()}:{sysconfig.get_path('purelib')}"}

    def run(*argv: str | Path) -> None:
        as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        subprocess.run([*as_user, *argv], check=True, env=env, cwd=user)

    run("mkdir", "src", "dst")
    run("sh", "-c", "echo content >src/file")
    run("setfacl", "-m", "u:12345:rw", "src/file")
    run("setfattr", "-n", "user.colour", "-v", "blue", "src/file")
    btw = ["/usr/bin/python3", "-m", "btw_backup"]
    run(*btw, "fs-init", "--type", "rdiff", user / "src", "name")
    run(*btw, "fs", user / "src", "dst")
    run(*btw, "fs-restore", "dst", "restored")
    assert_same(user / "src", user / "restored")


def test_the_command_line_is_what_was_asked_for() -> None:
    found = confinement.places([5, 7, 5])
    assert found == {5: "/dev/btw-backup/0", 7: "/dev/btw-backup/1"}
    held = frozenset(["CAP_CHOWN", "CAP_NET_ADMIN"])
    argv = confinement.command(["true"], Confinement([7]), found, "/", held)
    text = " ".join(argv)
    assert "--ro-bind-fd 5 /dev/btw-backup/0 --bind-fd 7 /dev/btw-backup/1 --remount-ro /dev" in text
    assert text.endswith("--cap-drop ALL --cap-add CAP_CHOWN -- true")
    assert "--unshare-net" in argv
    assert "--unshare-net" not in confinement.command(["true"], READING, {}, "/", frozenset())


def test_errors_of_tar_are_still_told(tmp_path: Path) -> None:
    with (
        Directory.at(str(tmp_path)) as target,
        pytest.raises(Error, match="tar exited with code: 2"),
        tar.unpacking(target, ()) as unpacked,
    ):
        unpacked.write(b"no archive" * 1000)
