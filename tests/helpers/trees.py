"""A tree of everything that is hard to back up, and comparisons of trees by programs other than ours."""

import os
import shutil
import subprocess
from pathlib import Path

NEWLINE = "new\nline"
NOT_UTF8 = os.fsdecode(b"latin-1 \xe9\xff")
LONG = "/".join(["deep" * 20] * 5)  # longer than a name may be, and too long for an old tar header


def build(top: Path) -> None:
    """Make the tree in a new directory. If root makes it, it also holds what only root can make."""
    top.mkdir()
    for name in ("plain", NEWLINE, NOT_UTF8, "-rf", "--exclude=plain", "::", " ", "*"):
        (top / name).write_text(f"in {name!r}\n")
    (top / "empty file").touch()
    (top / "empty directory").mkdir()
    (top / LONG).mkdir(parents=True)
    (top / LONG / "file").write_text("far down\n")
    (top / ("n" * 255)).write_text("a name as long as names can be\n")
    os.link(top / "plain", top / "hard link")
    os.link(top / "plain", top / LONG / "hard link")
    for name, target in (
        ("link", "plain"),
        ("dangling", "no/such/file"),
        ("to directory", LONG),
        ("loop", "loop"),
    ):
        (top / name).symlink_to(target)
    (top / "absolute").symlink_to("/etc/hostname")
    os.mkfifo(top / "fifo", 0o640)
    with open(top / "sparse", "wb") as file:
        file.seek(3 << 20)
        file.write(b"in the middle")
        file.truncate(8 << 20)
    (top / "large").write_bytes(bytes(range(256)) * 1024)
    for mode in (0o000, 0o444, 0o755, 0o1777, 0o2755, 0o4755, 0o6711):
        (top / f"mode {mode:o}").write_text("mode\n")
        (top / f"mode {mode:o}").chmod(mode)
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o3777)
    _attributes(top)
    if os.geteuid() == 0:
        _privileged(top)
    for number, name in enumerate(sorted(os.listdir(top))):
        seconds = 1_000_000_000 + number * 86400
        os.utime(top / name, ns=(0, seconds * 10**9 + 123_456_789 + number), follow_symlinks=False)
    os.utime(top, ns=(0, 987_654_321_012_345_678))


def _attributes(top: Path) -> None:
    _run("setfattr", "-n", "user.colour", "-v", "0x00ff10", top / "large")
    _run("setfattr", "-n", "user.empty", top / "empty directory")
    _run("setfacl", "-m", "u:12345:rw,g:54321:r", top / "large")
    _run("setfacl", "-d", "-m", "u:12345:rwx", top / "empty directory")


def _privileged(top: Path) -> None:
    shutil.copy("/bin/true", top / "capable")
    (top / "owned").write_text("by nobody here\n")
    os.chown(top / "owned", 12345, 54321)
    os.chown(top / "dangling", 23456, 0, follow_symlinks=False)
    os.chown(top / "sticky", 0, 54321)
    (top / "sticky").chmod(0o3777)
    _run("setcap", "cap_net_raw+ep", top / "capable")


def _run(*argv: str | Path, cwd: Path | None = None) -> bytes:
    return subprocess.run(argv, cwd=cwd, check=True, stdout=subprocess.PIPE).stdout


def facts(top: Path) -> list[bytes]:
    """Return what find, getfattr and getcap print about every entry, with nanoseconds."""
    common = "%P|%y|%m|%U:%G|%T@"
    found = _run(
        "find",
        ".",
        "-type",
        "d",
        "-printf",
        rf"{common}\0",
        "-o",
        "-printf",
        rf"{common}|%s|%n|%l\0",
        cwd=top,
    )
    attributes = _run("getfattr", "-R", "-h", "-d", "-m", "-", "-e", "hex", ".", cwd=top)
    capabilities = _run("getcap", "-r", ".", cwd=top)
    return sorted(found.split(b"\0")) + sorted(attributes.split(b"\n\n")) + sorted(capabilities.split(b"\n"))


def assert_same(one: Path, other: Path) -> None:
    """Fail unless both trees hold the same, down to hard links, attributes and nanoseconds."""
    flags = ["-n", "-8", "-aHAX", "--checksum", "--delete", "--itemize-changes"]
    assert _run("rsync", *flags, f"{one}/", f"{other}/") == b""
    assert facts(one) == facts(other)


def untar(tarball: Path, into: Path) -> Path:
    """Extract with plain tar, as an administrator does by hand. Returns ``into``."""
    into.mkdir()
    argv: list[str | Path] = [
        "tar",
        "--force-local",
        "-xp",
        "--acls",
        "--xattrs",
        "--xattrs-include=*",
        "-f",
        tarball,
        "-C",
        into,
    ]
    _run(*argv)
    return into


def restore_point(chain: Path, at: str, into: Path) -> Path:
    """Restore one point of a chain with plain rdiff-backup and tar. Returns ``into``."""
    older = into.with_name(f"{into.name}.chain")
    _run("rdiff-backup", "-v2", "restore", "--at", f"{at}Z", chain, older)
    return untar(older / "backup.tar", into)


def members(tarball: Path) -> list[str]:
    """Return the names in an archive, quoted as tar does."""
    return _run("tar", "--force-local", "-tf", tarball).decode().splitlines()
