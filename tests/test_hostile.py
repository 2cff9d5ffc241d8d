"""The owner of the destination or of the source tries to make root do what only root can do."""

import gzip
import io
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from .helpers.confinement import confined, without_confinement
from .helpers.destinations import joined
from .helpers.hostile import HOW, MARK, SECRET, USER, Land, change, fill, ids, inside, pick, put
from .helpers.running import Btw, Result, replacing

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root and another user")


@pytest.fixture
def backup(land: Land, btw: Btw) -> Callable[[], Result]:
    """Back up the source into the user's destination, and give the backup to the user."""
    return lambda: btw("fs", "-u", USER, land.src, land.dst)


OUTSIDE = ["log.txt", "source.txt", "RESTORE.txt", ".btw-backup", ".btw-backup/lock", ".btw-backup/newest"]
DATA = "rdiff-backup-data"
INSIDE = [
    "backup.tar",
    DATA,
    f"{DATA}/increments",
    f"{DATA}/increments/*",
    f"{DATA}/backup.log",
    f"{DATA}/mirror_metadata.*.snapshot.gz",
    f"{DATA}/mirror_metadata.*.diff.gz",
    f"{DATA}/current_mirror.*",
    f"{DATA}/increments.*.dir",
    f"{DATA}/chars_to_quote",
    f"{DATA}/session_statistics.*",
]


@pytest.mark.parametrize("name", [*OUTSIDE, "", *INSIDE])
def test_something_else_in_its_place(land: Land, btw: Btw, backup: Callable[[], Result], name: str) -> None:
    chain = fill(land, btw, backup, "rdiff")
    prepared = land.top / "prepared"
    subprocess.run(["cp", "-a", land.dst, prepared], check=True)
    wrong = []
    for how in HOW:
        if "hard" in how and name.startswith(".btw-backup/"):
            continue  # only root can write there
        shutil.rmtree(land.dst)
        subprocess.run(["cp", "-a", prepared, land.dst], check=True)
        put(how, pick(land, name, chain), land)
        before = land.canaries()
        commands: list[Callable[[], Result]] = [lambda: btw("list", land.dst), backup]
        for command in commands:
            try:
                result = command()
            except subprocess.TimeoutExpired:
                wrong.append(f"{how}: it hangs")
                continue
            if "Traceback" in result.err:
                wrong.append(f"{how}: a traceback: {result.err}")
            if result.status not in (0, 1) or (result.status == 1 and not result.err):
                wrong.append(f"{how}: {result}")
        refused = "link to" in how or "dangling" in how or (how in ("fifo", "socket") and name != DATA)
        if name in INSIDE and refused and result.status == 0 and not result.err:
            wrong.append(f"{how}: taken without a word")
        if land.canaries() != before:
            wrong.append(f"{how}: root's own files are not what they were")
            subprocess.run(["rm", "-rf", land.roots / "made by root"], check=True)
        if leaks := land.leaks():
            wrong.append(f"{how}: a secret is in {leaks}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("how", HOW)
def test_something_else_in_a_tarballs_place(
    land: Land, btw: Btw, backup: Callable[[], Result], how: str
) -> None:
    name = fill(land, btw, backup, "tar")
    put(how, land.dst / name, land)
    before = land.canaries()
    listing, result = btw("list", land.dst), backup()
    assert listing.status == 0
    # Whatever it is now, it does not hinder the next backup.
    assert result.status == 0
    assert "Traceback" not in listing.err + result.err
    assert land.canaries() == before
    assert land.leaks() == []


@pytest.mark.parametrize("large", [True, False])
def test_a_secret_is_not_given_away_by_a_hard_link(
    land: Land, btw: Btw, backup: Callable[[], Result], large: bool
) -> None:
    """A file of root that is linked into the chain must not become a file of the user."""
    chain = fill(land, btw, backup, "rdiff")
    os.link(land.roots / ("large" if large else "small"), land.dst / chain / DATA / "extra")
    before = land.canaries()
    result = backup()
    assert result.status == 1
    assert "refused" in result.err
    assert land.canaries() == before
    assert land.leaks() == []


# While root works


SWAPPER = """
import os, sys
path, other, aside = sys.argv[1:]
try:
    os.symlink(other, path + ".link")
except FileExistsError:
    pass
print("ready", flush=True)
while True:
    for old, new in ((path, aside), (path + ".link", path), (path, path + ".link"), (aside, path)):
        try:
            os.rename(old, new)
        except OSError:
            pass
"""


@contextmanager
def swapping(path: Path, other: Path) -> Iterator[None]:
    """Let the user replace ``path`` by a link and put it back, again and again."""
    argv = ["setpriv", f"--reuid={ids()[0]}", f"--regid={ids()[1]}", "--clear-groups", "/usr/bin/python3"]
    aside = path.with_name(path.name + ".aside")
    process = subprocess.Popen([*argv, "-c", SWAPPER, path, other, aside], stdout=subprocess.PIPE, cwd="/")
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        for left in (path, path.with_name(path.name + ".link")):
            if left.is_symlink():
                left.unlink()
        if aside.exists() and not path.exists():
            aside.rename(path)


@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="the user needs a Python")
@pytest.mark.parametrize("name", ["log.txt", ".btw-backup", "", "backup.tar", DATA, f"{DATA}/increments"])
def test_names_are_swapped_while_root_works(
    land: Land, btw: Btw, backup: Callable[[], Result], name: str
) -> None:
    chain = fill(land, btw, backup, "rdiff")
    assert backup().status == 0
    (land.dst / "log.txt").touch()
    os.chown(land.dst / "log.txt", *ids())
    path = pick(land, name, chain)
    other = land.roots / ("large" if path.is_file() else "directory")
    before = land.canaries()
    with swapping(path, other):
        for number in range(6):
            if number % 2:  # otherwise it only writes a line to log.txt
                change(land, number)
            result = backup()
            assert result.status in (0, 1), result
            assert "Traceback" not in result.err
            if result.status == 1:
                assert result.err
    assert land.canaries() == before
    assert land.leaks() == []
    # Whatever became of the destination, root can go on with it.
    for strange in (path.with_name(path.name + ".aside"), path):
        if strange.is_symlink():
            strange.unlink()
    change(land, 99)
    result = backup()
    assert result.status == 0 or "refused" in result.err or "not a private directory" in result.err, result
    assert land.canaries() == before


# Metadata that leads out of the chain


@pytest.mark.parametrize("padding", [0, 2 << 20])
@pytest.mark.parametrize("newest", [True, False])
def test_metadata_that_names_other_files(
    land: Land, btw: Btw, backup: Callable[[], Result], newest: bool, padding: int
) -> None:
    chain = fill(land, btw, backup, "rdiff")
    if not newest:
        assert backup().status == 0
        change(land, 3)
    pattern = "mirror_metadata.*.snapshot.gz" if newest else "mirror_metadata.*.diff.gz"
    path = sorted((land.dst / chain / DATA).glob(pattern))[-1]
    text = gzip.decompress(path.read_bytes())
    fields = b"  Type reg\n  Size 23\n  SHA1Digest 0\n  ModTime 1\n  Uid 0\n  Gid 0\n  Permissions 384\n"
    names = [b"../" * depth + b"roots/" + name for depth in range(1, 7) for name in (b"small", b"large")]
    text += b"  Unknown padding\n" * (padding // 18)
    path.write_bytes(gzip.compress(text + b"".join(b"File " + name + b"\n" + fields for name in names)))
    before = land.canaries()
    visible = {entry: entry.read_bytes() for entry in land.dst.rglob("*") if entry.is_file()}
    result = backup()
    assert land.canaries() == before
    assert land.leaks() == []
    # Refused, or treated as damaged, so that rdiff-backup never sees it.
    if padding and result.status == 0:
        assert "cannot add to the chain" in result.err
        assert (land.dst / "log.txt").read_text().count(chain) == 1
        return
    assert result.status == 1, result
    assert "refused" in result.err
    shown = [entry for entry in visible if ".btw-backup" not in entry.parts]
    assert {entry: entry.read_bytes() for entry in shown} == {entry: visible[entry] for entry in shown}


@pytest.mark.parametrize("suffix", ["snapshot", "diff"])
def test_metadata_that_its_owner_could_still_write(
    land: Land, btw: Btw, backup: Callable[[], Result], suffix: str
) -> None:
    """The copy that root checks shares large files with the chain; metadata must not be shared."""
    chain = fill(land, btw, backup, "rdiff")
    [path] = (land.dst / chain / DATA).glob(f"mirror_metadata.*.{suffix}.gz")
    text = gzip.decompress(path.read_bytes())
    large = path.with_suffix("")
    large.write_bytes(text + b"  Unknown padding\n" * 5000)
    os.chown(large, path.stat().st_uid, -1)
    path.unlink()
    result = backup()
    assert result.status == 1, result
    assert "refused" in result.err


# Hostile sources


def newest_archive(land: Land, btw: Btw) -> Path:
    names = [line for line in btw("list", land.dst).out.splitlines() if not line.startswith(" ")]
    return land.dst / names[-1] / "backup.tar"


@pytest.mark.parametrize("kind", ["rdiff", "tar"])
def test_names_that_look_like_options(land: Land, btw: Btw, backup: Callable[[], Result], kind: str) -> None:
    pwned = land.top / "PWNED"
    script = land.src / "x"
    script.write_text(f"#!/bin/sh\ntouch {pwned}\n")
    script.chmod(0o755)
    names = [
        "-",
        "--",
        "-C",
        "-rf",
        "--checkpoint=1",
        "--checkpoint-action=exec=sh x",
        "@x",
        "host:file",
        "a::b",
    ]
    names += ["--use-compress-program=sh x", "--to-command=sh x", "-Ish x", "--remove-files", "--exclude=*"]
    names += [
        "new\nline",
        "\x1b[2Jescape",
        "back\\slash",
        "$(sh x)",
        "`sh x`",
        "; sh x",
        "*",
        "caf\udce9",
        " ",
    ]
    for name in names:
        (land.src / name).write_text(f"in {name!r}\n")
        (land.src / f"in {name}").mkdir()
        (land.src / f"in {name}" / name).write_text("further down\n")
    (land.src / "new\nline link").symlink_to("/etc/passwd")
    os.mkfifo(land.src / "fifo")
    with socket.socket(socket.AF_UNIX) as listening, inside(land.src):
        listening.bind("socket")
    os.mknod(land.src / "device", 0o600 | 0o020000, os.makedev(1, 3))
    assert btw("fs-init", "--type", kind, land.src, "name").status == 0
    result = backup()
    assert result.status == 0
    assert not pwned.exists()
    assert "\x1b" not in result.err
    out = land.top / "out"
    out.mkdir()
    (name,) = btw("list", land.dst).out.splitlines()
    archive = land.dst / name if kind == "tar" else land.dst / name / "backup.tar"
    unpack = ["--bzip2"] if kind == "tar" else []
    subprocess.run(["tar", "--force-local", "-C", out, *unpack, "-xpf", archive], check=True)
    (land.src / "socket").unlink()  # tar stores none
    subprocess.run(["tar", "-C", land.src, "--compare", "--force-local", *unpack, "-f", archive], check=True)
    kept = sorted(os.listdir(os.fsencode(land.src)))
    assert sorted(os.listdir(os.fsencode(out))) == kept
    assert backup().status == 0
    assert len(btw("list", land.dst).out.splitlines()) <= 2


def test_a_source_named_like_an_option(land: Land, btw: Btw) -> None:
    pwned = land.top / "PWNED"
    source = land.top / "--checkpoint-action=exec=touch PWNED"
    source.mkdir()
    (source / "file").write_text("content\n")
    file = land.top / "-one file"
    file.write_text("content\n")
    for path in (source, file):
        dst = Path(tempfile.mkdtemp(dir=land.top))
        assert btw("fs-init", "--type", "rdiff", path, "name", cwd=land.top).status == 0
        assert btw("fs", path, dst, cwd=land.top) == (0, "", "")
        assert not pwned.exists()
        assert len(btw("list", dst).out.splitlines()) == 1


@pytest.mark.parametrize("kind", ["rdiff", "tar"])
def test_a_growing_file(land: Land, btw: Btw, backup: Callable[[], Result], kind: str) -> None:
    assert btw("fs-init", "--type", kind, land.src, "name").status == 0
    growing = land.src / "growing"
    growing.write_bytes(os.urandom(20_000_000))
    ending = threading.Event()

    def grow() -> None:
        with growing.open("ab") as file:
            while not ending.is_set():
                file.write(b"more\n" * 200)
                file.flush()
                time.sleep(0.001)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        result = backup()
    finally:
        ending.set()
        thread.join()
    assert result == (0, "", "")
    log = (land.dst / "log.txt").read_text()
    assert "growing" in log
    assert "chang" in log
    (name,) = btw("list", land.dst).out.splitlines()
    archive = land.dst / name if kind == "tar" else joined(land.dst / name, land.top / "whole.tar")
    unpack = ["--bzip2"] if kind == "tar" else []
    out = subprocess.run(
        ["tar", "--force-local", *unpack, "-xOf", archive, "./growing"], check=True, capture_output=True
    )
    assert growing.read_bytes()[: len(out.stdout)] == out.stdout
    assert len(out.stdout) >= 20_000_000


def test_a_directory_is_swapped_with_a_link_while_read(
    land: Land, btw: Btw, backup: Callable[[], Result]
) -> None:
    """The owner of a part of the source must not get root's files into the archive."""
    theirs = land.src / "theirs"
    theirs.mkdir()
    inner = theirs / "inner"
    inner.mkdir()
    for number in range(200):
        (inner / f"file {number}").write_text("theirs\n")
    for path in [theirs, inner, *inner.iterdir()]:
        os.chown(path, *ids())
    assert btw("fs-init", "--type", "rdiff", land.src, "name").status == 0
    before = land.canaries()
    with swapping(inner, land.roots / "directory"):
        for number in range(6):
            change(land, number)
            result = backup()
            assert result.status in (0, 3), result
            assert "Traceback" not in result.err
            assert MARK not in newest_archive(land, btw).read_bytes()
    assert land.canaries() == before
    assert land.leaks() == []


def test_five_thousand_levels(land: Land, btw: Btw, backup: Callable[[], Result]) -> None:
    levels = 5000
    fd = os.open(land.src, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    assert btw("fs-init", "--type", "rdiff", land.src, "name").status == 0
    result = backup()
    assert "Traceback" not in result.err
    if result.status == 0:
        archive = joined(newest_archive(land, btw).parent, land.top / "whole.tar")
        listing = subprocess.run(["tar", "-tf", archive], check=True, capture_output=True)
        deepest = max(line.count(b"d/") for line in listing.stdout.splitlines())
        assert deepest == levels
    else:
        assert result.status in (1, 3)
        assert result.err
    assert backup().status == result.status
    subprocess.run(["rm", "-rf", land.src], check=True)  # too deep for pytest to remove


# Metadata that lead out of the chain. rdiff-backup does what they say: it deletes, replaces and creates.


def record(path: str, kind: str = "dir", more: str = "") -> str:
    return f"File {path}\n  Type {kind}\n{more}  ModTime 1\n  Uid 0\n  Gid 0\n  Permissions 511\n"


def leading_out(levels: int, last: str) -> str:
    """Records that lead to something of root's, ``levels`` above the chain."""
    above = ["/".join([".."] * level) for level in range(1, levels + 1)]
    return "".join(map(record, [*above, f"{above[-1]}/roots"])) + last.replace("UP", above[-1])


def write_metadata(data: Path, name: str, text: str) -> None:
    path = data / name
    path.write_bytes(gzip.compress(text.encode()))
    os.chown(path, *ids())


def plant_files_to_delete(land: Land, chain: str, spelling: str) -> None:
    """Put other metadata in the place of the newest, with a stamp spelled in this way."""
    data = land.dst / chain / DATA
    [snapshot] = data.glob("mirror_metadata.*.snapshot.gz")
    text = gzip.decompress(snapshot.read_bytes()).decode()
    moment = datetime.strptime(snapshot.name.split(".")[1], "%Y-%m-%dT%H:%M:%SZ")
    snapshot.unlink()
    more = leading_out(4, record("UP/roots/large", "reg", "  Size 1\n"))
    write_metadata(data, f"mirror_metadata.{moment:%Y-%m-%d{spelling}}Z.snapshot.gz", text + more)


@pytest.mark.parametrize("spelling", ["T%H-%M-%S", "T%H:%M:%S"])
def test_metadata_that_name_files_to_delete(
    land: Land, btw: Btw, backup: Callable[[], Result], spelling: str
) -> None:
    """rdiff-backup reads stamps with dashes for colons, too."""
    plant_files_to_delete(land, fill(land, btw, backup, "rdiff"), spelling)
    before = land.canaries()
    result = backup()
    assert land.canaries() == before
    assert result.status == 1 and "refused" in result.err


@pytest.mark.parametrize("command", ["fs-restore", "verify"])
@pytest.mark.parametrize(
    "last",
    [
        record("UP/roots/planted", "sym", "  SymData /etc\n"),
        record("UP/roots/planted"),
        record("UP/roots/directory/planted", "reg", "  Size 7\n"),
    ],
    ids=["link", "directory", "file"],
)
def test_metadata_of_an_older_point_that_name_files_to_create(
    land: Land, btw: Btw, backup: Callable[[], Result], command: str, last: str
) -> None:
    chain = fill(land, btw, backup, "rdiff")
    data = land.dst / chain / DATA
    [older] = data.glob("mirror_metadata.*.diff.gz")
    stamp = older.name.split(".")[1]
    text = gzip.decompress(older.read_bytes()).decode()
    head, name, tail = text.partition("File backup.tar")  # rdiff-backup wants them in order
    write_metadata(data, older.name, head + leading_out(3, last) + name + tail)
    planted = land.dst / "roots" / "directory"  # what the same way leads to from the increments
    planted.mkdir(parents=True)
    (planted / f"planted.{stamp}.snapshot").write_text("planted")
    scratch = land.top / "tmp"
    scratch.mkdir()
    before = land.canaries()
    target = [scratch / "target"] if command == "fs-restore" else []
    result = btw(command, "--at", stamp[:-1], land.dst, *target, env={"TMPDIR": str(scratch)})
    assert land.canaries() == before
    assert "Traceback" not in result.err


ODD = {
    "special_escapes": b"DOS devices\n",
    "chars_to_quote": b"A-Z",
    "extended_attributes.STAMP.snapshot": b"# file: ../../../roots/small\nuser.x=0x31\n",
    "access_control_lists.STAMP.snapshot": b"# file: ../../../roots/small\nuser:nobody:rwx\n",
    "long_filename_data": None,
    "win_access_control_lists.STAMP.snapshot.gz": b"",
    "hash_stats": b"",
    "lock.yml": b"",
    "current_mirror.STAMP.snapshot": b"",
    "mirror_metadata.2026-13-01T00:00:00Z.diff.gz": b"",
    "mirror_metadata.2026-11-01.diff.gz": b"",
    "mirror_metadata.STAMP.diff.gz.gz": b"",
    "increments/other.STAMP.diff.gz": b"",
    "increments/backup.tar.2026-11-01T00-00-00Z.diff.gz": b"",
    "increments/backup.tar": None,
    "../second": b"",
    "../plugins": None,
}


@pytest.mark.parametrize("name", ODD)
def test_nothing_else_is_in_a_chain(land: Land, btw: Btw, backup: Callable[[], Result], name: str) -> None:
    """What no chain of ours holds is refused by its name, before rdiff-backup sees it."""
    chain = fill(land, btw, backup, "rdiff")
    data = land.dst / chain / DATA
    [marker] = data.glob("current_mirror.*")
    path = data / name.replace("STAMP", marker.name.split(".")[1])
    content = ODD[name]
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    os.chown(path, *ids())
    before = land.canaries()
    result = backup()
    assert land.canaries() == before
    assert result.status == 1 and os.path.basename(path) in result.err and "refused" in result.err


KINDS = {
    "link": "File .\n  Type sym\n  SymData /etc\n",
    "device": "File backup.tar\n  Type dev\n  DeviceNum b 8 0\n",
    "fork": "File backup.tar\n  Type reg\n  ResourceFork 00\n",
    "alternate": "File backup.tar\n  Type reg\n  AlternateMirrorName ../x\n",
    "carriage return": "File backup.tar\r\n  Type reg\n",
}


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_of_something_else_than_a_file(
    land: Land, btw: Btw, backup: Callable[[], Result], kind: str
) -> None:
    chain = fill(land, btw, backup, "rdiff")
    data = land.dst / chain / DATA
    [snapshot] = data.glob("mirror_metadata.*.snapshot.gz")
    write_metadata(data, snapshot.name, gzip.decompress(snapshot.read_bytes()).decode() + KINDS[kind])
    before = land.canaries()
    result = backup()
    assert land.canaries() == before
    assert result.status == 1 and "refused" in result.err


def doctored_tarball(land: Land, tmp_path: Path) -> Path:
    """A tarball of a file of root's and a hard link to that. Returns the file's path."""
    precious = tmp_path / "precious"
    precious.write_text("of root's\n")
    with tarfile.open(land.dst / "2026-11-01T00:00:00.tar", "w") as archive:
        entry = tarfile.TarInfo(str(precious))
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"bad\n"))
        link = tarfile.TarInfo("./f")
        link.type, link.linkname = tarfile.LNKTYPE, str(precious)
        archive.addfile(link)
    return precious


def test_a_hard_link_out_of_the_target_is_not_removed(land: Land, btw: Btw, tmp_path: Path) -> None:
    """The file that a link was stored under is unpacked with it, and removed again: only in the target."""
    precious = doctored_tarball(land, tmp_path)
    result = btw("fs-restore", land.dst, tmp_path / "target", "f")
    assert precious.read_text() == "of root's\n"
    assert result.status == 1 and "refused" in result.err and "Traceback" not in result.err


def test_a_linked_directory_on_the_way_to_a_hard_link_is_not_followed(
    land: Land, btw: Btw, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("of root's\n")
    with tarfile.open(land.dst / "2026-11-01T00:00:00.tar", "w") as archive:
        for name, kind, target in (
            ("./d", tarfile.SYMTYPE, str(outside)),
            ("./f", tarfile.LNKTYPE, "./d/precious"),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
    result = btw("fs-restore", land.dst, tmp_path / "target", "d", "f")
    assert (outside / "precious").read_text() == "of root's\n"
    assert "Traceback" not in result.err


# Each of the two walls holds alone


def test_the_checks_alone_hold(land: Land, btw: Btw, tmp_path: Path) -> None:
    """Where programs can't be confined metadata that lead out are refused."""
    unconfined = without_confinement(tmp_path / "bin")

    def run() -> Result:
        return btw("fs", "-u", USER, land.src, land.dst, env=unconfined)

    plant_files_to_delete(land, fill(land, btw, run, "rdiff"), "T%H-%M-%S")
    before = land.canaries()
    result = run()
    assert land.canaries() == before
    assert result.status == 1 and "refused" in result.err


@confined
def test_the_confinement_alone_holds(
    land: Land, btw: Btw, backup: Callable[[], Result], config_dir: Path
) -> None:
    plant_files_to_delete(land, fill(land, btw, backup, "rdiff"), "T%H-%M-%S")
    unchecked = replacing(config_dir, {"destination.allowlist.check": "lambda chain: None"})
    before = land.canaries()
    result = unchecked("fs", "-u", USER, land.src, land.dst)
    assert land.canaries() == before
    assert "refused" not in result.err


def test_nothing_is_removed_outside_the_target_though_names_are_not_checked(
    land: Land, btw: Btw, tmp_path: Path, config_dir: Path
) -> None:
    precious = doctored_tarball(land, tmp_path)
    unchecked = replacing(config_dir, {"archive.stream.check_inside": "lambda name: None"})
    unchecked("fs-restore", land.dst, tmp_path / "target", "f")
    assert precious.read_text() == "of root's\n"


@pytest.mark.parametrize("name", ["backup.log", "backup.tar"])
def test_a_file_of_roots_that_was_moved_into_a_chain_is_not_given_away(
    land: Land, btw: Btw, backup: Callable[[], Result], name: str
) -> None:
    """Who can write to the directory of a file can move it, whoever owns it."""
    chain = fill(land, btw, backup, "rdiff")
    place = land.dst / chain / (DATA if name == "backup.log" else "") / name
    place.unlink()
    place.write_bytes(SECRET)
    place.chmod(0o600)
    result = backup()
    assert result.status == 1 and "another owner" in result.err
    assert land.leaks() == []


@pytest.mark.parametrize("command", ["fs", "prune"])
def test_a_destination_that_somebody_else_leads_elsewhere(
    land: Land, btw: Btw, backup: Callable[[], Result], command: str
) -> None:
    """The user owns the directory in which the destination is, and puts a link to root's in its place."""
    fill(land, btw, backup, "tar")
    roots = land.roots / "destination"
    shutil.copytree(land.dst, roots, copy_function=shutil.copy2)
    home = land.top / "home"
    home.mkdir()
    (home / "dst").symlink_to(roots)
    for path in (home, home / "dst"):
        os.lchown(path, *ids())
    before = land.canaries()
    args = ["fs", "-u", USER, land.src] if command == "fs" else ["prune", "--keep-last", "1"]
    result = btw(*args, home / "dst")
    assert result.status == 1 and "refused" in result.err and str(roots) in result.err
    assert land.canaries() == before


# One entry that is broken does not take the others with it


def test_a_broken_chain_is_named_and_everything_else_goes_on(
    land: Land, btw: Btw, backup: Callable[[], Result], tmp_path: Path
) -> None:
    chain = fill(land, btw, backup, "rdiff")
    broken = land.dst / "2026-11-01T00:00:00"
    broken.mkdir()
    (broken / DATA).write_text("a file\n")
    word = f"2026-11-01T00:00:00/{DATA} is not a directory: refused"
    listed = btw("list", land.dst)
    assert listed.status == 1 and word in listed.err and listed.out.splitlines()[0] == chain
    made = backup()
    assert made.status == 0 and word in made.err
    assert len(btw("list", land.dst).out.splitlines()) == 3
    assert btw("fs-restore", land.dst, tmp_path / "target").status == 0
    assert btw("status", land.dst).status == 3
    verified = btw("verify", land.dst)
    assert verified.status == 1 and word in verified.err and len(verified.err.splitlines()) == 1
    assert btw("status", land.dst).status == 2
    pruned = btw("prune", "--keep-last", "1", land.dst)
    assert pruned.status == 0 and word in pruned.err
