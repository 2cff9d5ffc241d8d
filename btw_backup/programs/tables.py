"""Some tables of a dump, or schemas: what of it is restored, and what of a database stands against that."""

import os
from collections.abc import Sequence
from typing import NamedTuple, Self

from ..errors import Error
from . import toc
from .server import Server, literal

_EXISTING = """
SELECT pg_catalog.string_agg(name, ', ') FROM pg_catalog.unnest({names}) name
WHERE pg_catalog.to_regclass(name) IS NOT NULL;
"""
_SCHEMAS = """
SELECT pg_catalog.encode(pg_catalog.textsend(name), 'hex') FROM pg_catalog.unnest({names}) name
WHERE name NOT IN (SELECT nspname::text FROM pg_catalog.pg_namespace);
"""
# A rule, a constraint and the like depend on a table for the sake of another one, if they are on that. A
# partition goes with its table, silently, and so does a table's place in a publication.
_NEEDING = """
WITH chosen AS (
    SELECT pg_catalog.to_regclass(name)::oid AS oid FROM pg_catalog.unnest({names}) name
), needing AS (
    SELECT d.classid, d.objid, d.objsubid, d.refobjid, r.ev_class,
        COALESCE(r.ev_class, c.conrelid, p.polrelid, t.tgrelid, a.adrelid,
            CASE WHEN d.classid = 'pg_catalog.pg_class'::regclass THEN d.objid END) AS relation
    FROM pg_catalog.pg_depend d
    JOIN chosen ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = chosen.oid
    LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = d.objid
    LEFT JOIN pg_catalog.pg_constraint c
        ON d.classid = 'pg_catalog.pg_constraint'::regclass AND c.oid = d.objid AND c.conrelid <> 0
    LEFT JOIN pg_catalog.pg_policy p ON d.classid = 'pg_catalog.pg_policy'::regclass AND p.oid = d.objid
    LEFT JOIN pg_catalog.pg_trigger t ON d.classid = 'pg_catalog.pg_trigger'::regclass AND t.oid = d.objid
    LEFT JOIN pg_catalog.pg_attrdef a ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND a.oid = d.objid
    WHERE d.deptype = 'n'
        OR d.classid = 'pg_catalog.pg_publication_rel'::regclass
        OR (d.classid = 'pg_catalog.pg_class'::regclass AND EXISTS (
            SELECT FROM pg_catalog.pg_inherits i
            JOIN pg_catalog.pg_class child ON child.oid = i.inhrelid AND child.relkind IN ('r', 'p', 'f')
            WHERE i.inhrelid = d.objid AND i.inhparent = d.refobjid))
)
SELECT pg_catalog.string_agg(DISTINCT CASE
    WHEN ev_class IS NULL THEN pg_catalog.pg_describe_object(classid, objid, objsubid)
    ELSE pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, ev_class, 0) END
    || ' depends on ' || pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, refobjid, 0), '; ')
FROM needing
WHERE relation IS NULL OR relation NOT IN (SELECT oid FROM chosen WHERE oid IS NOT NULL);
"""


class Tables(NamedTuple):
    """Some tables of a dump, with all that belongs to them: entries in the order in which they are restored.

    ``schemas`` are the entries that make the schemas which they are in, with their comments and grants.
    """

    entries: list[toc.Entry]
    schemas: list[toc.Entry]

    @classmethod
    def of(cls, dump_file: int, tables: Sequence[str], schemas: Sequence[str]) -> Self:
        """Raises Error for a name that the dump does not hold, and if its contents can't be read."""
        every = toc.read(dump_file)
        chosen = toc.select(every, tables, schemas)
        return cls(chosen, toc.schemas_of(every, chosen))

    def check(self, database: str, server: Server, *, clean: bool) -> None:
        """Raise Error if a database holds one of them, or with ``clean``, something else that needs one."""
        # That of an identity column is part of its table, and has no such name.
        names = [name for entry in toc.relations(self.entries) if (name := entry.identifier())]
        if not clean:
            if existing := _ask(database, server, _EXISTING, names):
                raise Error(f"the database {database} holds {existing}: use --clean to replace what it holds")
            return
        numbers = {entry.number for entry in self.entries}
        for attached, partition in toc.attachments(self.entries):
            if not attached.needs <= numbers:
                raise Error(
                    f"{partition.identifier()} is a partition: with --clean, name its table, or drop it first"
                )
        if needing := _ask(database, server, _NEEDING, names):
            raise Error(
                f"nothing was replaced: {needing}: restore what depends on it with --table, too,"
                " or drop it first"
            )

    def numbers(self, database: str, server: Server) -> list[int]:
        """The numbers of the entries to restore: theirs, and those of schemas that the database lacks."""
        made = {entry.name: entry.number for entry in self.schemas if entry.kind == "SCHEMA"}
        printed = _ask(database, server, _SCHEMAS, list(made))
        missing = {made[os.fsdecode(bytes.fromhex(line))] for line in printed.split()}
        first = [entry for entry in self.schemas if entry.number in missing or entry.needs & missing]
        return [entry.number for entry in (*first, *self.entries)]


def _ask(database: str, server: Server, statement: str, names: Sequence[str]) -> str:
    """Return what a statement about names finds, without the line's end."""
    array = ", ".join(literal(os.fsencode(name)) for name in names)
    text = statement.format(names=f"ARRAY[{array}]::pg_catalog.text[]")
    return server.ask(database, [text.encode()]).check().printed.removesuffix("\n")
