"""The sandbox lets a query read and nothing else, and compares answers by what they mean."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.evaluate.sql.execution import (
    MAX_ROWS,
    Answer,
    Cell,
    QueryError,
    Row,
    Sandbox,
    same_answer,
)
from modelmill.evaluate.sql.schema import parse_schema
from modelmill.evaluate.sql.tokens import tokens_of

SCHEMA = parse_schema('CREATE TABLE t (a INT, b TEXT, "the key" TEXT); CREATE TABLE u (c REAL)')
ROWS = {"t": ((1, "x", "p"), (2, "y", "q")), "u": ((0.5,),)}


def _answer(query: str) -> tuple[Row, ...]:
    with Sandbox(SCHEMA) as sandbox:
        sandbox.load(ROWS)
        return sandbox.run(tokens_of(query)).rows


@pytest.mark.parametrize(
    "query",
    [
        "ATTACH 'other.db' AS other",
        "PRAGMA table_info(t)",
        "SELECT * FROM pragma_table_info('t')",
        "SELECT sql FROM sqlite_master",
        "SELECT COUNT(*) FROM sqlite_master",
        "INSERT INTO t VALUES (3, 'z', 'r')",
        "UPDATE t SET a = 9",
        "DELETE FROM t",
        "DELETE FROM `t`",
        "DROP TABLE t",
        "CREATE TABLE v (x)",
        "CREATE TEMP VIEW v AS SELECT 1",
        "VACUUM INTO 'copy.db'",
        "BEGIN",
        "SELECT load_extension('evil')",
        "SELECT random()",
        "SELECT hex(randomblob(1000000))",
        "SELECT length(zeroblob(1000000000))",
        "SELECT * FROM json_each('[1]')",
        "SELECT a FROM t; DROP TABLE t",
        "SELECT ?",
        "SELECT 1 \0",
        "",
    ],
)
def test_anything_but_reading_is_refused(query: str) -> None:
    """Writes, settings, other files, unsafe functions and second statements do not run."""
    with Sandbox(SCHEMA) as sandbox:
        sandbox.load(ROWS)
        try:
            rows = sandbox.run(tokens_of(query)).rows
        except QueryError:
            rows = ()
        assert not rows
        assert sandbox.run(tokens_of("SELECT COUNT(*), SUM(a) FROM t")).rows == ((2, 3),)


@pytest.mark.parametrize(
    "query",
    [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n) SELECT i FROM n ORDER BY -i",
        "WITH RECURSIVE n(i) AS (SELECT 'ab' UNION ALL SELECT i || i FROM n) SELECT MAX(i) FROM n",
    ],
)
def test_endless_recursion_stops(query: str) -> None:
    """A recursive query without an end is interrupted or runs into a size limit."""
    with pytest.raises(QueryError, match=r"interrupted|too big"):
        _answer(query)


def test_recursion_with_an_end_is_allowed() -> None:
    """Recursion itself is not refused: it is a legitimate way to count."""
    query = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4)"
        " SELECT SUM(i), (SELECT COUNT(*) FROM n) FROM n"
    )
    assert _answer(query) == ((10, 4),)


def test_huge_answer_is_refused() -> None:
    """An answer of more rows than any of our databases can need is an error."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    with pytest.raises(QueryError, match=f"more than {MAX_ROWS} rows"):
        _answer(endless)


def test_next_query_after_an_interrupted_one_runs() -> None:
    """Limits count per query: one bomb does not use up the budget of the next query."""
    with Sandbox(SCHEMA) as sandbox:
        sandbox.load(ROWS)
        bomb = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT MAX(i) FROM n"
        with pytest.raises(QueryError):
            sandbox.run(tokens_of(bomb))
        assert sandbox.run(tokens_of("SELECT a FROM t")).rows == ((1,), (2,))


def test_double_quotes_never_make_a_string() -> None:
    """A double-quoted word that names nothing is an error, where plain SQLite reads a text."""
    with pytest.raises(QueryError, match="no such column: x"):
        _answer('SELECT a FROM t WHERE b = "x"')
    assert _answer('SELECT "a" FROM "t" WHERE "the key" = \'q\'') == ((2,),)
    assert _answer('SELECT a AS "my a" FROM t ORDER BY "my a" DESC') == ((2,), (1,))


@pytest.mark.parametrize(
    "query",
    ["SELECT date('now')", "SELECT CURRENT_DATE", "SELECT time()", "SELECT strftime('%Y')"],
)
def test_clock_is_refused(query: str) -> None:
    """A query whose answer changes with the time of day is refused."""
    with pytest.raises(QueryError, match="clock"):
        _answer(query)


def test_column_used_as_number_compares_as_number() -> None:
    """A VARCHAR column that the reference treats as a number orders 9 before 10."""
    schema = parse_schema("CREATE TABLE r (points VARCHAR)")
    numeric = frozenset([("r", "points")])
    query = tokens_of("SELECT COUNT(*) FROM r WHERE points > 9")
    with Sandbox(schema) as as_text, Sandbox(schema, numeric) as as_number:  # type: ignore[arg-type]
        as_text.load({"r": (("10",),)})
        as_number.load({"r": ((10,),)})
        assert as_text.run(query).rows == ((0,),)
        assert as_number.run(query).rows == ((1,),)


@pytest.mark.parametrize(
    ("left", "right", "ordered", "same"),
    [
        (((1,), (2,)), ((2,), (1,)), False, True),
        (((1,), (2,)), ((2,), (1,)), True, False),
        (((1,), (1,)), ((1,),), False, False),
        (((1,), (1,), (2,)), ((1,), (2,), (2,)), False, False),
        (((1, "x"),), (("x", 1),), False, False),
        (((1,),), ((1.0,),), False, True),
        (((1,),), (("1",),), False, False),
        (((0.1 + 0.2,),), ((0.3,),), False, True),
        (((0.3,),), ((0.3001,),), False, False),
        (((None,),), ((0,),), False, False),
        (((0.3, "b"), (0.1 + 0.2, "a")), ((0.3, "a"), (0.1 + 0.2, "b")), True, False),
    ],
)
def test_answers_compare(
    left: tuple[Row, ...], right: tuple[Row, ...], ordered: bool, same: bool
) -> None:
    """Rows count as multisets or lists, by position, with types, and numbers with a tolerance."""
    assert same_answer(Answer(left), Answer(right), ordered=ordered) is same


CELLS = st.one_of(
    st.none(), st.integers(-5, 5), st.integers(-20, 20).map(lambda n: n / 4), st.text(max_size=3)
)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=6), st.randoms(use_true_random=False))
def test_answer_equals_itself_in_any_order(rows: list[tuple[Cell, Cell]], rng: object) -> None:
    """Shuffled rows with rounding noise are the same multiset."""
    noisy = [
        tuple(
            math.nextafter(cell, math.inf) if isinstance(cell, float) and cell else cell
            for cell in row
        )
        for row in rows
    ]
    rng.shuffle(noisy)  # type: ignore[attr-defined]
    assert same_answer(Answer(tuple(rows)), Answer(tuple(noisy)), ordered=False)
