"""The table of contents of a dump in custom format: what it holds, and what belongs to a table."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from ..errors import Error
from . import dumps

# From these archive versions on an entry has its table access method, and the kind of its relation
# (ReadToc in pg_backup_archiver.c).
_ACCESS_METHOD, _RELATION_KIND = 14, 16
_NEWEST_VERSION = 16
# More than any name or DROP statement has, in bytes.
_LONGEST = 1 << 20

_NUMBER = re.compile(r"[0-9]{1,10}")

# What --table can name.
RELATIONS = frozenset(["TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE", "SEQUENCE"])
# What belongs to the only relation that it depends on.
_PARTS = frozenset(
    ["TABLE DATA", "MATERIALIZED VIEW DATA", "SEQUENCE SET", "SEQUENCE OWNED BY", "INDEX", "INDEX ATTACH"]
    + ["STATISTICS", "STATISTICS DATA", "ROW SECURITY", "ACL", "COMMENT", "SECURITY LABEL"]
)
# What may depend on several, and belongs to the one that its statement names.
_PARTS_OF_ONE = frozenset(
    ["CONSTRAINT", "CHECK CONSTRAINT", "FK CONSTRAINT", "DEFAULT", "RULE", "TRIGGER", "POLICY"]
)


class Entry(NamedTuple):
    """Something that a dump can make.

    ``kind`` is PostgreSQL's word for it, ``name`` its tag; ``drop`` is the statement that drops it, ``needs``
    are the numbers of the entries that it depends on.
    """

    number: int
    kind: str
    schema: str
    name: str
    drop: str
    needs: frozenset[int]

    def identifier(self) -> str:
        """The qualified name of a relation, quoted as SQL; empty if unknown."""
        start, end = f"DROP {self.kind} ", ";\n"
        is_known = self.drop.startswith(start) and self.drop.endswith(end)
        return self.drop[len(start) : -len(end)] if is_known else ""

    def is_on(self, identifier: str) -> bool:
        """Whether its statement names this relation as the one that it belongs to."""
        return f" {identifier} " in self.drop or self.drop.endswith(f" ON {identifier};\n")


def read(dump_file: int) -> list[Entry]:
    """Return what a dump holds, in the order in which it is restored. Raises Error if it can't be read."""
    start = dumps.contents_start(dump_file)
    if start is None or start.version > _NEWEST_VERSION:
        raise Error("this dump is of a version whose contents cannot be chosen from: restore all of it")
    with open(os.dup(dump_file), "rb") as file:
        file.seek(start.offset)
        fields = _Fields(file, os.fstat(dump_file).st_size)
        fields.skip_texts(2)  # the versions of the server and of pg_dump
        return [_entry(fields, start) for _ in range(fields.number())]


class _Fields:
    """Reads numbers and texts as pg_dump writes them, with a sign and four bytes for a number."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def _check(self, count: int, most: int) -> None:
        if not 0 <= count <= min(self._size - self._file.tell(), most):
            raise Error("the contents of the dump cannot be read: it is damaged")

    def skip(self, count: int) -> None:
        self._check(count, self._size)
        self._file.seek(count, os.SEEK_CUR)

    def number(self) -> int:
        self._check(5, self._size)
        sign, *digits = self._file.read(5)
        return int.from_bytes(digits, "little") * (-1 if sign else 1)

    def text(self) -> str | None:
        length = self.number()
        if length < 0:
            return None
        self._check(length, _LONGEST)
        return os.fsdecode(self._file.read(length))

    def texts(self) -> Iterator[str]:
        while (text := self.text()) is not None:
            yield text

    def skip_texts(self, count: int) -> None:
        for _ in range(count):
            self.skip(max(self.number(), 0))


def _entry(fields: _Fields, start: dumps.ContentsStart) -> Entry:
    number = fields.number()
    fields.number()  # whether it has data
    fields.skip_texts(2)  # its numbers in the catalog
    name = fields.text() or ""
    kind = fields.text() or ""
    fields.number()  # the section
    fields.skip_texts(1)  # what makes it
    drop = fields.text() or ""
    fields.skip_texts(1)  # what copies its rows
    schema = fields.text() or ""
    fields.skip_texts(2 if start.version >= _ACCESS_METHOD else 1)  # the tablespace, the access method
    if start.version >= _RELATION_KIND:
        fields.number()
    fields.skip_texts(2)  # the owner, and whether rows have OIDs
    needs = frozenset(int(each) for each in fields.texts() if _NUMBER.fullmatch(each))
    fields.skip(1 + start.offset_size)
    return Entry(number, kind, schema, name, drop, needs)


def relations(entries: Iterable[Entry]) -> list[Entry]:
    """Return what ``--table`` can name, sorted by schema and name."""
    found = [entry for entry in entries if entry.kind in RELATIONS]
    return sorted(found, key=lambda entry: (entry.schema, entry.name))


def select(entries: Sequence[Entry], tables: Sequence[str], schemas: Sequence[str]) -> list[Entry]:
    """Return the entries of these tables and schemas, with all that belongs to them, in order.

    A table is named with or without its schema, and may be a view or a sequence. Its partitions belong to
    it. Raises Error for a name that the dump does not hold.
    """
    chosen = {entry.number: entry for name in tables for entry in _named(entries, name)}
    for schema in schemas:
        inside = {
            entry.number: entry
            for entry in entries
            if entry.schema == schema and not entry.kind.startswith("PUBLICATION")
        }
        if not inside:
            raise Error(f"the dump holds nothing in a schema {schema}: --list shows what it holds")
        chosen |= inside
    _add_partitions(entries, chosen)
    # The sequences of its columns.
    chosen |= {
        entry.number: entry for entry in entries if entry.kind == "SEQUENCE" and entry.needs & chosen.keys()
    }
    identifiers = {entry.identifier() for entry in relations(chosen.values())} - {""}
    for entry in entries:
        if entry.number in chosen or not entry.needs & chosen.keys():
            continue
        if (
            entry.kind in _PARTS
            or (entry.kind in _PARTS_OF_ONE and any(map(entry.is_on, identifiers)))
            or (entry.kind == "TABLE ATTACH" and _child(entry, chosen))
        ):
            chosen[entry.number] = entry
    return _ordered([entry for entry in entries if entry.number in chosen])


def _ordered(chosen: Sequence[Entry]) -> list[Entry]:
    """Move what makes partitions, so that their keys can be dropped, and a single one be attached.

    What is restored last is dropped first: the key of a partition can't be dropped before that of its table.
    A partition that is attached with its indexes gets none from its table, which would be in their way.
    """
    partitions = {child.number for _, child in attachments(chosen)}
    first = next((at for at, entry in enumerate(chosen) if entry.kind == "CONSTRAINT"), 0)
    last = max((at for at, entry in enumerate(chosen) if entry.kind in ("CONSTRAINT", "INDEX")), default=0)

    def place(at: int) -> tuple[int, int]:
        if chosen[at].kind == "CONSTRAINT" and chosen[at].needs & partitions:
            return first, -1
        return (max(at, last), 1) if chosen[at].kind == "TABLE ATTACH" else (at, 0)

    return [chosen[at] for at in sorted(range(len(chosen)), key=place)]


def schemas_of(entries: Sequence[Entry], chosen: Iterable[Entry]) -> list[Entry]:
    """Return the entries that make the schemas of the chosen ones, and their comments and grants."""
    names = {entry.schema for entry in chosen}
    makers = {entry.number for entry in entries if entry.kind == "SCHEMA" and entry.name in names}
    outside = [entry for entry in entries if not entry.schema]
    return [
        entry
        for entry in outside
        if entry.number in makers or (entry.kind in _PARTS and entry.needs & makers)
    ]


def _named(entries: Sequence[Entry], name: str) -> list[Entry]:
    every = relations(entries)
    found = [entry for entry in every if entry.name == name]
    found = found or [entry for entry in every if f"{entry.schema}.{entry.name}" == name]
    if not found:
        raise Error(f"the dump holds no table {name}: --list shows what it holds")
    return found


def attachments(entries: Iterable[Entry]) -> list[tuple[Entry, Entry]]:
    """Return the entries that attach a partition to its table, each with that partition, if it is there."""
    every = {entry.number: entry for entry in entries}
    attached = [entry for entry in every.values() if entry.kind == "TABLE ATTACH"]
    found = [(entry, _child(entry, every)) for entry in attached]
    return [(entry, child) for entry, child in found if child is not None]


def _child(attached: Entry, every: Mapping[int, Entry]) -> Entry | None:
    for number in attached.needs & every.keys():
        table = every[number]
        if table.kind in RELATIONS and (table.schema, table.name) == (attached.schema, attached.name):
            return table
    return None


def _add_partitions(entries: Sequence[Entry], chosen: dict[int, Entry]) -> None:
    """Add the partitions of the chosen tables, and theirs."""
    attached = attachments(entries)
    before = -1
    while before != len(chosen):
        before = len(chosen)
        for entry, child in attached:
            if (entry.needs - {child.number}) & chosen.keys():
                chosen[child.number] = child
