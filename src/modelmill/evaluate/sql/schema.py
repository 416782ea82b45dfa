"""Read CREATE TABLE text into tables, columns and keys.

SQLite itself parses the text, in a scratch database where nothing but a table can be made.
Knows nothing of queries and of the values tables are filled with.
"""

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from modelmill.evaluate.sql.tokens import Token, query_text, statements_of, tokens_of

ColumnKind = Literal["integer", "real", "text", "date", "boolean"]

_KINDS: Final[tuple[tuple[str, ColumnKind], ...]] = (
    (r"BOOL", "boolean"),
    (r"DATE|TIME", "date"),
    (r"INT|SERIAL|YEAR", "integer"),
    (r"CHAR|CLOB|TEXT|STRING|ENUM", "text"),
    (r"REAL|FLOA|DOUB|NUM|DEC|MONEY", "real"),
)
"""The first pattern found in a declared type decides; anything else is text."""

_MAKES_TABLES: Final = frozenset(
    {
        sqlite3.SQLITE_CREATE_TABLE,
        sqlite3.SQLITE_CREATE_INDEX,
        sqlite3.SQLITE_REINDEX,
        sqlite3.SQLITE_INSERT,
        sqlite3.SQLITE_UPDATE,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_TRANSACTION,
    }
)
"""What SQLite asks for while it runs CREATE TABLE.  SELECT is missing, so CREATE TABLE AS
SELECT is refused; INSERT and UPDATE are those of the schema table."""


class SchemaError(ValueError):
    """The text does not declare tables that SQLite understands."""


class ColumnRef(NamedTuple):
    """A column of a table, both in lower case."""

    table: str
    column: str


@dataclass(frozen=True, slots=True)
class Column:
    """What a column may hold."""

    name: str
    kind: ColumnKind
    nullable: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table and the sets of columns whose values no two rows share."""

    name: str
    columns: tuple[Column, ...]
    keys: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Schema:
    """All tables of a text, by lower-case name, parents before children where they can be."""

    tables: Mapping[str, Table]
    foreign_keys: Mapping[ColumnRef, ColumnRef]
    """From the child's column to the parent's."""

    def column(self, ref: ColumnRef) -> Column:
        """Find a column; raises KeyError for one that is not declared."""
        for column in self.tables[ref.table].columns:
            if column.name.lower() == ref.column:
                return column
        raise KeyError(ref)


@lru_cache(maxsize=1024)
def parse_schema(text: str) -> Schema:
    """Read the CREATE TABLE statements of a text; other statements are passed over.

    Raises:
        SchemaError: a CREATE TABLE does not parse, or there is none.

    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.set_authorizer(_only_tables)
        for statement in statements_of(tokens_of(text)):
            if _makes_table(statement):
                connection.execute(query_text(statement))
        connection.set_authorizer(None)
        return _read_schema(connection)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        raise SchemaError(str(error)) from error
    finally:
        connection.close()


def _makes_table(statement: tuple[Token, ...]) -> bool:
    words = [token.word for token in statement[:3]]
    return words[:2] == ["CREATE", "TABLE"] or (
        words[0] == "CREATE" and words[1:] in (["TEMP", "TABLE"], ["TEMPORARY", "TABLE"])
    )


def _only_tables(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _MAKES_TABLES else sqlite3.SQLITE_DENY


def _read_schema(connection: sqlite3.Connection) -> Schema:
    names = [
        str(name)
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite#_%' "
            "ESCAPE '#' ORDER BY rowid"
        )
    ]
    if not names:
        raise SchemaError("no CREATE TABLE")
    tables = {name.lower(): _read_table(connection, name) for name in names}
    foreign_keys: dict[ColumnRef, ColumnRef] = {}
    for name in tables:
        for parent, child_column, parent_column in connection.execute(
            'SELECT "table", "from", "to" FROM pragma_foreign_key_list(?)', (name,)
        ):
            target = _parent_column(tables, str(parent).lower(), parent_column)
            if target:
                foreign_keys[ColumnRef(name, str(child_column).lower())] = target
    return Schema(_parents_first(tables, foreign_keys), foreign_keys)


def _read_table(connection: sqlite3.Connection, name: str) -> Table:
    columns: list[Column] = []
    primary: list[tuple[int, str]] = []
    for column, declared, not_null, position in connection.execute(
        'SELECT name, type, "notnull", pk FROM pragma_table_info(?)', (name,)
    ):
        columns.append(Column(column, _kind_of(declared), not (not_null or position)))
        if position:
            primary.append((position, column.lower()))
    keys = [tuple(column for _, column in sorted(primary))] if primary else []
    indexes = connection.execute(
        'SELECT name FROM pragma_index_list(?) WHERE "unique"', (name,)
    ).fetchall()
    for (index,) in indexes:
        found = connection.execute("SELECT name FROM pragma_index_info(?)", (index,))
        keys.append(tuple(str(column).lower() for (column,) in found))
    return Table(name, tuple(columns), tuple(dict.fromkeys(keys)))


def _kind_of(declared: str) -> ColumnKind:
    for pattern, kind in _KINDS:
        if re.search(pattern, declared.upper()):
            return kind
    return "text"


def _parent_column(
    tables: Mapping[str, Table], parent: str, column: str | None
) -> ColumnRef | None:
    if parent not in tables:
        return None
    if column is not None:
        return ColumnRef(parent, column.lower())
    keys = tables[parent].keys
    return ColumnRef(parent, keys[0][0]) if keys else None


def _parents_first(
    tables: Mapping[str, Table], foreign_keys: Mapping[ColumnRef, ColumnRef]
) -> dict[str, Table]:
    waiting = dict(tables)
    ordered: dict[str, Table] = {}
    while waiting:
        blocked = {
            child.table
            for child, parent in foreign_keys.items()
            if parent.table in waiting and parent.table != child.table
        }
        # Tables that refer to each other in a circle are taken in the order they came.
        ready = [name for name in waiting if name not in blocked] or list(waiting)[:1]
        for name in ready:
            ordered[name] = waiting.pop(name)
    return ordered
