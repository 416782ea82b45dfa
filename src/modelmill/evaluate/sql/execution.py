"""Run one query on one in-memory database, so that it can read and do nothing else.

Knows the limits a query runs under and when two answers are equal.  Must not know where
queries and rows come from: both are treated as hostile.
"""

import math
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from modelmill.evaluate.sql.schema import ColumnRef, Schema
from modelmill.evaluate.sql.tokens import Token, query_text

Cell = str | int | float | bytes | None
Row = tuple[Cell, ...]
Database = Mapping[str, Sequence[Row]]
"""Rows by lower-case table name, columns in the order of the schema."""

STEPS_PER_CALL: Final = 1_000
MAX_STEPS: Final = 3_000_000
"""Virtual machine instructions of one query, about 50 ms; a query on our databases
takes some thousand.  Counting them instead of seconds makes the verdict independent of the load."""
MAX_SECONDS: Final = 2.0
"""Backstop for queries whose single instructions are slow."""
MAX_ROWS: Final = 5_000
RELATIVE_TOLERANCE: Final = 1e-9
_ABSOLUTE_TOLERANCE: Final = 1e-12
"""For what cancellation leaves of a zero: 0.1 + 0.2 - 0.3 is 5.6e-17."""

_LIMITS: Final = {
    sqlite3.SQLITE_LIMIT_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 40_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
}

SAFE_FUNCTIONS: Final = frozenset(
    """abs avg cast ceil ceiling char coalesce count cume_dist date datetime dense_rank exp
    first_value floor format glob group_concat ifnull iif instr julianday lag last_value lead
    length like ln log log10 log2 lower ltrim max min mod nth_value ntile nullif percent_rank
    pow power printf rank replace round row_number rtrim sign sqrt strftime substr substring sum
    time total trim trunc typeof unicode unixepoch upper""".split()  # noqa: SIM905
)
"""Functions of their arguments alone; the clock is kept out by `reads_clock`."""

_CLOCK_WORDS: Final = frozenset({"CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP"})
_CLOCK_FUNCTIONS: Final = frozenset({"DATE", "TIME", "DATETIME", "JULIANDAY", "UNIXEPOCH"})
"""Without an argument they mean now; strftime does with nothing but a format."""
_MAY_READ_CLOCK: Final = re.compile("now|current_|date|time|julianday|epoch", re.IGNORECASE)
"""Spares most queries the look at every token."""


class QueryError(Exception):
    """A query was refused, did not run, or did not end within its limits."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of a query."""

    rows: tuple[Row, ...]

    @property
    def is_vacuous(self) -> bool:
        """Whether the answer holds nothing but NULL and zero: no evidence of anything."""
        return all(cell is None or cell == 0 for row in self.rows for cell in row)


class Sandbox:
    """One in-memory database of a schema, refilled at will, that queries can only read."""

    def __init__(self, schema: Schema, numeric: frozenset[ColumnRef] = frozenset()) -> None:
        """Make empty tables; the columns in `numeric` compare as numbers whatever they declare.

        Keys are not declared: an index would make a scan sorted by accident.
        """
        self._schema = schema
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        for limit, value in _LIMITS.items():
            self._connection.setlimit(limit, value)
        self._inserts: dict[str, str] = {}
        for name, table in schema.tables.items():
            columns = ", ".join(
                f"{_quoted(column.name)} "
                + (
                    "NUMERIC"
                    if column.kind in ("integer", "real", "boolean")
                    or ColumnRef(name, column.name.lower()) in numeric
                    else "TEXT"
                )
                for column in table.columns
            )
            self._connection.execute(f"CREATE TABLE {_quoted(table.name)} ({columns})")
            places = ", ".join("?" * len(table.columns))
            self._inserts[name] = f"INSERT INTO {_quoted(table.name)} VALUES ({places})"  # noqa: S608
        self._deadline = 0.0
        self._steps = 0
        self._connection.set_progress_handler(self._must_stop, STEPS_PER_CALL)
        self._connection.set_authorizer(self._may)

    def __enter__(self) -> Self:
        """Enter a block at whose end the database is gone."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database."""
        self._connection.close()

    def load(self, database: Database) -> None:
        """Replace all rows, stored in the order they are given."""
        self._start_clock()
        self._connection.set_authorizer(None)
        self._connection.execute("BEGIN")
        for name, insert in self._inserts.items():
            table = _quoted(self._schema.tables[name].name)
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - quoted above
            self._connection.executemany(insert, database[name])
        self._connection.execute("COMMIT")
        # Setting it again also expires what Python's statement cache prepared without it.
        self._connection.set_authorizer(self._may)

    def run(self, query: Sequence[Token]) -> Answer:
        """Answer a query.

        Raises:
            QueryError: refused, wrong, too slow or too large; the text says which.

        """
        text = query_text(query)
        if _MAY_READ_CLOCK.search(text) and reads_clock(query):
            raise QueryError("reads the clock")
        self._start_clock()
        cursor = self._connection.cursor()
        try:
            rows = cursor.execute(text).fetchmany(MAX_ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            raise QueryError(str(error)) from error
        finally:
            cursor.close()
        if len(rows) > MAX_ROWS:
            raise QueryError(f"more than {MAX_ROWS} rows")
        return Answer(tuple(rows))

    def _start_clock(self) -> None:
        self._steps = 0
        self._deadline = time.monotonic() + MAX_SECONDS

    def _must_stop(self) -> int:
        self._steps += STEPS_PER_CALL
        return self._steps > MAX_STEPS or time.monotonic() > self._deadline

    def _may(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        table = (first or "").lower()
        if action == sqlite3.SQLITE_READ and table in self._schema.tables:
            return sqlite3.SQLITE_OK
        # Counting the rows of a WITH table asks for no column of a table of that name.
        is_counted = not second and not table.startswith(("sqlite_", "pragma_"))
        if action == sqlite3.SQLITE_READ and is_counted:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in SAFE_FUNCTIONS:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY


def reads_clock(query: Sequence[Token]) -> bool:
    """Whether the answer depends on the time of day: 'now', CURRENT_DATE, or `date()`."""
    for index, token in enumerate(query):
        if token.word in _CLOCK_WORDS:
            return True
        if token.kind == "string" and token.text.lower() == "'now'":
            return True
        following = [after.kind for after in query[index + 1 : index + 4]]
        if token.word in _CLOCK_FUNCTIONS and following[:2] == ["open", "close"]:
            return True
        if token.word == "STRFTIME" and following == ["open", "string", "close"]:
            return True
    return False


def same_answer(expected: Answer, actual: Answer, *, ordered: bool) -> bool:
    """Compare by position: as lists where the order was asked for, else as multisets.

    Column names do not matter, numbers are equal within a relative 1e-9, 1 equals 1.0, and
    a number never equals a text.
    """
    if len(expected.rows) != len(actual.rows):
        return False
    if ordered:
        return all(map(_same_row, expected.rows, actual.rows))
    if Counter(expected.rows) == Counter(actual.rows):
        return True
    return all(
        map(_same_row, sorted(expected.rows, key=_sort_key), sorted(actual.rows, key=_sort_key))
    )


def _same_row(expected: Row, actual: Row) -> bool:
    return len(expected) == len(actual) and all(map(_same_cell, expected, actual))


def _same_cell(expected: Cell, actual: Cell) -> bool:
    if isinstance(expected, float) or isinstance(actual, float):
        if not isinstance(expected, int | float) or not isinstance(actual, int | float):
            return False
        return math.isclose(
            expected, actual, rel_tol=RELATIVE_TOLERANCE, abs_tol=_ABSOLUTE_TOLERANCE
        )
    return expected == actual


def _sort_key(row: Row) -> tuple[tuple[int, float, str], ...]:
    """Put rows that are equal but for rounding at the same place: six digits decide."""
    return tuple(
        (0, 0.0, "")
        if cell is None
        else (1, float(f"{cell:.6g}"), "")
        if isinstance(cell, int | float)
        else (2, 0.0, str(cell))
        for cell in row
    )


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
