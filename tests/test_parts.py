"""An archive in parts: where it is cut, what is found again, and what the parts are called."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btw_backup.archive import division
from btw_backup.archive.members import members
from btw_backup.archive.parts import Made, Part, Start
from btw_backup.archive.selection import select
from btw_backup.destination import labels
from btw_backup.errors import Error

from .helpers.archives import CHANGES, Store, apply, archived, write
from .helpers.small_parts import SMALL, SMALL_FULL


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(st.tuples(CHANGES, st.booleans()), min_size=2, max_size=6), seed=st.integers(0, 1000))
def test_parts_are_the_archive(
    tmp_path_factory: pytest.TempPathFactory,
    rounds: list[tuple[list[tuple[str, str, str, int]], bool]],
    seed: int,
) -> None:
    top = tmp_path_factory.mktemp("parts")
    source = top / "source"
    for number in range(30):
        write(source / f"many/{number:02}", 1500, seed + number)
    store = Store(top)
    for number, (changes, is_full) in enumerate(rounds):
        for place, change in enumerate(changes):
            apply(source, change, seed + 100 * number + place)
        archive = archived(source)
        before = dict(zip([part.name for part in store.parts], store.contents(), strict=True))
        made = store.add(archive, SMALL_FULL if is_full else SMALL)
        names = [part.name for part in store.parts]
        assert names == sorted(names) and names[0] == "backup.tar" and all(map(labels.is_part, names))
        assert b"".join(store.contents()) == archive
        assert store.examined() == store.parts
        for part, content in zip(store.parts, store.contents(), strict=True):
            assert part.size == len(content)
            assert part.name in made or before[part.name] == content
            # The end of the archive may be a part of its own.
            assert part.start.left or content[257:262] == b"ustar" or not content.strip(b"\0")
        assert store.add(archive, SMALL) == []
    shutil.rmtree(top)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(200):
        write(tmp_path / "source" / f"{number:03}", 1000, number)
    return tmp_path / "source"


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Store:
    made = Store(tmp_path / "store")
    made.add(archived(source), SMALL)
    assert len(made.parts) > 20
    return made


def _grow(source: Path) -> None:
    write(source / "100", 1200, 0)


def _add(source: Path) -> None:
    write(source / "1005", 1000, 0)
    os.utime(source, (1, 1))


def _remove(source: Path) -> None:
    (source / "100").unlink()
    os.utime(source, (1, 1))


@pytest.mark.parametrize(("change", "most"), [(_grow, 2), (_add, 3), (_remove, 2)])
def test_one_change_costs_the_parts_that_it_is_in(
    source: Path, store: Store, change: Callable[[Path], None], most: int
) -> None:
    """One may become two. The first part has changed, too, if the directory's time has."""
    before = store.parts
    change(source)
    assert 0 < len(store.add(archived(source), SMALL)) <= most
    assert len({*store.parts} & {*before}) >= len(before) - 2


@pytest.mark.parametrize("above", ["short", "d" * 60 + "/" + "e" * 60])
def test_long_paths_are_found_again(tmp_path: Path, above: str) -> None:
    """tar cuts names short in the header that a part begins with."""
    source = tmp_path / "source"
    for number in range(200):
        write(source / above / f"{number:03}", 1000, number)
    write(source / above / "100large", 40_000, 0)
    store = Store(tmp_path / "store")
    store.add(archived(source), SMALL)
    assert store.examined() == store.parts
    write(source / above / "0105", 500, 0)
    assert len(store.add(archived(source), SMALL)) <= 4
    assert store.examined() == store.parts


def test_a_new_part_takes_the_name_of_one_that_is_gone(source: Path, store: Store) -> None:
    before = [part.name for part in store.parts]
    for number in range(50, 100):
        (source / f"{number:03}").rename(source / f"{number:03}x")
    store.add(archived(source), SMALL)
    assert abs(len(before) - len(store.parts)) <= 2
    assert {*[part.name for part in store.parts][:-3]} <= {*before}


def test_a_full_backup_joins_what_has_become_small(source: Path, store: Store) -> None:
    firsts = {part.start.name.rpartition(b"/")[2].decode() for part in store.parts}
    for number in range(200):
        if f"{number:03}" not in firsts:
            (source / f"{number:03}").unlink()
    count = len(store.parts)
    store.add(archived(source), SMALL)
    assert len(store.parts) == count
    store.add(archived(source), SMALL_FULL._replace(small=4096))
    assert len(store.parts) <= count // 2
    assert b"".join(store.contents()) == archived(source)


def test_data_that_looks_like_headers(tmp_path: Path) -> None:
    """A member may hold an archive, and be cut before each of its headers."""
    source = tmp_path / "source"
    for number in range(100):
        write(tmp_path / "inner" / f"{number}", 512 * 15, number)
    source.mkdir()
    (source / "inner.tar").write_bytes(archived(tmp_path / "inner"))
    store = Store(tmp_path / "store")
    store.add(archived(source), SMALL)
    assert store.examined() == store.parts
    with open(source / "inner.tar", "ab") as file:
        file.write(archived(tmp_path / "inner"))
    store.add(archived(source), SMALL)
    assert b"".join(store.contents()) == archived(source)
    assert store.examined() == store.parts


def test_headers_in_the_data_of_a_file_do_not_lead_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner could otherwise have root restore it in the place of another file."""
    monkeypatch.setattr("btw_backup.archive.selection.FULL", SMALL_FULL)
    fake = tarfile.TarInfo("./bigger")
    fake.size = 100
    source = tmp_path / "source"
    for number in range(30):
        write(source / f"many{number:02}", 1500, number)
    (source / "big").write_bytes((fake.tobuf(tarfile.PAX_FORMAT) + b"false".ljust(512)) * 40)
    write(source / "bigger", 100, 0)
    store = Store(tmp_path / "store")
    data = archived(source)
    store.add(data, SMALL)
    sizes = [part.size for part in store.parts]
    assert sizes.count(SMALL.cut) > 3

    def read(at: int, length: int) -> bytes:
        return data[at : at + length]

    for name in ("bigger", "big", "many05", "many29"):
        [(start, end)] = select(read, sizes, [f"./{name}"]).ranges
        assert data[start : start + 512].startswith(b"./PaxHeaders/" + name.encode() + b"\0")
        assert data[start:end].rstrip(b"\0").endswith((source / name).read_bytes().rstrip(b"\0"))
    assert select(read, sizes, ["./nothing"]).ranges == []


@pytest.mark.parametrize("where", ["name", "attribute"])
def test_a_size_in_the_value_of_another_record(tmp_path: Path, where: str) -> None:
    """Anybody could otherwise have the backup fail."""
    source = tmp_path / "source"
    for number in range(30):
        write(source / f"many{number:02}", 1500, number)
    name = "é\n14 size=77777\nx" if where == "name" else "file"
    write(source / name, 3000, 1)
    if where == "attribute":
        os.setxattr(source / name, "user.c", b"\n14 size=77777\n")
    store = Store(tmp_path / "store")
    store.add(archived(source), SMALL)
    assert b"".join(store.contents()) == archived(source)
    assert store.examined() == store.parts


@pytest.mark.parametrize(
    "record",
    [
        b"9" * 5000 + b" path=a\n",
        b"99 path=a\n",
        b"12 size=" + b"9" * 5000 + b"\n",
        b"99 size=" + b"9" * 91 + b"\n",
        b"30 size=9999999999999999999999\n",
        b"0 path=a\n",
    ],
)
def test_a_doctored_pax_header(record: bytes) -> None:
    header = tarfile.TarInfo("./PaxHeaders/file")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    file = tarfile.TarInfo("./file").tobuf(tarfile.USTAR_FORMAT)
    data = header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(-(-len(record) // 512) * 512, b"\0")
    data += file + bytes(1024)
    with suppress(Error):
        assert [member.name for member in members(lambda at, length: data[at : at + length])] == [b"./file"]


def test_pax_headers_that_together_are_too_large() -> None:
    """Each may be as large as any that is real."""
    header = tarfile.TarInfo("./PaxHeaders/file")
    header.type, header.size = tarfile.XHDTYPE, 200 << 20
    before, most = header.tobuf(tarfile.USTAR_FORMAT), 0

    def read(at: int, length: int) -> bytes:
        nonlocal most
        most = max(most, length)
        data = bytearray(length)
        for position in range(-at % (header.size + 512), length, header.size + 512):
            data[position : position + 512] = before
        return bytes(data)

    with pytest.raises(Error, match="not an archive"):
        next(members(read))
    assert most < 300 << 20


def test_a_size_that_only_a_pax_header_tells(tmp_path: Path) -> None:
    """A member of more than 8 GiB, all of which is a hole here."""
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "huge", "wb") as file:
        file.truncate(9 << 30)
    write(source / "small", 100, 0)
    data = archived(source)
    # The end of what tar stores of the hole, with a size in the pax header that is beyond octal digits.
    assert [member.name for member in members(lambda at, length: data[at : at + length])] == [
        b".",
        b"./huge",
        b"./small",
    ]


@pytest.mark.parametrize("kind", ["no archive", "cut short", "goes on", "empty"])
def test_what_is_not_an_archive(source: Path, store: Store, kind: str) -> None:
    archive = archived(source)
    broken = {
        "no archive": b"x" * 30720,
        "cut short": archive[:-1024],
        "goes on": archive + archive,
        "empty": b"",
    }[kind]
    with pytest.raises(Error):
        store.add(broken, SMALL)


def test_a_stored_part_that_changes_while_it_is_read(
    source: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archived(source)
    victim = store.top / "parts" / store.parts[5].name
    opened = store.open

    @contextmanager
    def changing(name: str) -> Iterator[int]:
        with opened(name) as file:
            yield file
        if name == victim.name:
            victim.write_bytes(b"")

    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(division, "BEGINNING", 512)  # so that blocks are small
    store.open = changing  # type: ignore[method-assign]
    with pytest.raises(Error, match="changed while it was read"):
        store.add(archive, SMALL)


def test_labels_between_others() -> None:
    """However often a part comes between two others, there is a name for it."""
    made = Made("new", 1, Start(b""), None)
    stored = [Part(name, 1, Start(b"")) for name in labels.names([made] * 3, [])]
    assert [part.name for part in stored] == ["backup.tar", "backup.tar.0001", "backup.tar.0002"]
    for _ in range(100):
        found: list[Part | Made] = [stored[0], made, made, *stored[1:]]
        names = labels.names(found, stored)
        assert names == sorted({*names}) and [part.name for part in stored[1:]] == names[3:]
        stored = [Part(name, 1, Start(b"")) for name in names]
    assert max(len(part.name) for part in stored) < 140


def test_labels_come_to_an_end() -> None:
    made = Made("new", 1, Start(b""), None)
    stored = [Part(name, 1, Start(b"")) for name in labels.names([made] * 2, [])]
    with pytest.raises(labels.Exhausted):
        for _ in range(1000):
            names = labels.names([stored[0], made, *stored[1:]], stored)
            stored = [Part(name, 1, Start(b"")) for name in names[:2] + names[-1:]]


def test_members_are_those_that_tar_lists(source: Path, tmp_path: Path) -> None:
    (source / ("d" * 150)).mkdir()
    write(source / ("d" * 150) / ("ü" * 90), 700, 0)
    (source / "link").symlink_to("x" * 180)
    os.link(source / "005", source / "hard")
    data = archived(source)
    (tmp_path / "a.tar").write_bytes(data)
    listed = subprocess.run(
        ["tar", "-tf", tmp_path / "a.tar", "--quoting-style=literal"], capture_output=True, check=True
    ).stdout
    found = [*members(lambda at, length: data[at : at + length])]
    assert [member.name for member in found] == [line.rstrip(b"/") for line in listed.splitlines()]
    assert found[0].start == 0 and found[-1].end == len(data) - 1024
    assert all(one.end == other.start for one, other in zip(found, found[1:], strict=False))
    selection = select(lambda at, length: data[at : at + length], [len(data)], ["./hard"])
    assert selection.extra == {"./005"}
    assert len(selection.ranges) == 2
