"""Metrics score one model's predictions row by row, by the same rules for every model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.evaluate.answers import extract_answer, extract_query
from modelmill.evaluate.metrics import ExactMatch, Nll, metrics_of, normal_form
from modelmill.evaluate.sql_execution import SqlExecution
from modelmill.spec.infer import MetricsSpec
from modelmill.spec.records import Prediction

SCHEMA = "CREATE TABLE films (title VARCHAR, director VARCHAR, year VARCHAR)"
REFERENCE = "SELECT director FROM films WHERE title = 'Tango Bar' AND year > 1930"


def _prediction(
    output: str, *, row: int = 0, reference: str = REFERENCE, **more: object
) -> Prediction:
    return Prediction.model_validate(
        {
            "row": row,
            "prompt": "",
            "reference": reference,
            "fields": {"context": SCHEMA},
            "output": output,
            **more,
        }
    )


def _executed(output: str, reference: str = REFERENCE) -> float:
    return SqlExecution("context").score([_prediction(output, reference=reference)]).values[0]


@pytest.mark.parametrize(
    "output",
    [
        "SELECT a FROM t",
        "SELECT a FROM t;",
        "  SELECT a FROM t ; SELECT b FROM t",
        "SELECT a FROM t\n\nThis selects a from t.",
        "SELECT a FROM t\n### Question\nAnother",
        "SELECT a FROM t ### Question",
        "```sql\nSELECT a FROM t;\n```",
        "Sure! Here is the query:\n```sql\nSELECT a FROM t\n```\nIt uses SELECT.",
        "```\nSELECT a FROM t",
        "To select a from t, use this: SELECT a FROM t",
        "The query is `SELECT a FROM t`.",
        "I select this:\nSELECT a FROM t",
    ],
)
def test_query_is_found_in_talk(output: str) -> None:
    """The first query is taken out of fences, sentences and repeated prompts."""
    assert extract_query(output) == "SELECT a FROM t"


@pytest.mark.parametrize(
    ("output", "query"),
    [
        ("SELECT a FROM t WHERE b = 'x;y'; more", "SELECT a FROM t WHERE b = 'x;y'"),
        ("WITH q AS (SELECT 1) SELECT * FROM q;", "WITH q AS (SELECT 1) SELECT * FROM q"),
        ("select a\nfrom t\nwhere b = 1", "select a\nfrom t\nwhere b = 1"),
        ("I do not know.", "I do not know."),
        ("", ""),
    ],
)
def test_query_ends_where_it_ends(output: str, query: str) -> None:
    """Quotes protect semicolons, lines go on, and an output without a query stays as it is."""
    assert extract_query(output) == query


def test_answer_that_is_no_query_is_only_trimmed() -> None:
    """A reference in plain text makes the answer plain text, paragraphs included."""
    assert extract_answer(" yes;\n\nselect one ", "yes; select one") == "yes;\n\nselect one"
    assert extract_answer("```\nyes\n```", "yes") == "yes"


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("SELECT a FROM t", "select  A\nfrom T ;", True),
        ("SELECT a FROM t WHERE b='x'", "SELECT a FROM t WHERE b = 'x'", True),
        ("SELECT a FROM t WHERE b = 'x'", "SELECT a FROM t WHERE b = 'X'", False),
        ("SELECT a FROM t WHERE b = 'x  y'", "SELECT a FROM t WHERE b = 'x y'", False),
        ('SELECT "a" FROM t', 'SELECT "A" FROM t', False),
        ("Yes  sir", "Yes sir", True),
        ("Yes", "yes", False),
    ],
)
def test_normal_form(left: str, right: str, same: bool) -> None:
    """White space and the case of unquoted SQL words do not count; literals do."""
    assert (normal_form(left) == normal_form(right)) is same


def test_exact_match_counts_quarantined_rows_as_wrong() -> None:
    """A row the model could not answer is a wrong answer."""
    predictions = [
        _prediction(f"```sql\n{REFERENCE.lower().replace('tango bar', 'Tango Bar')};\n```"),
        _prediction("", row=1, reference="", error="too long"),
        _prediction("SELECT director FROM films", row=2),
    ]
    scores = ExactMatch().score(predictions)
    assert scores.values == {0: 1.0, 1: 0.0, 2: 0.0}
    assert not scores.excluded


def test_nll_excludes_quarantined_rows() -> None:
    """A row without a likelihood cannot enter a mean; it is counted instead."""
    predictions = [
        _prediction("", nll=0.5, nll_tokens=100),
        _prediction("", row=1, error="not finite"),
        _prediction("", row=2),
    ]
    scores = Nll().score(predictions)
    assert scores.values == {0: 0.5}
    assert set(scores.excluded) == {1, 2}
    assert not scores.scale.higher_is_better


@pytest.mark.parametrize(
    ("output", "score"),
    [
        (REFERENCE, 1),
        ("SELECT f.director FROM films f WHERE f.year > 1930 AND f.title = 'Tango Bar'", 1),
        ("SELECT director FROM films WHERE title = 'Tango Bar' AND year > '1930'", 1),
        ("SELECT director FROM films WHERE title = 'Tango Bar' AND CAST(year AS INT) > 1930", 1),
        ("SELECT director FROM films WHERE title = 'tango bar' AND year > 1930", 0),
        ("SELECT director FROM films WHERE title = 'Tango Bar' AND year >= 1930", 0),
        ("SELECT director FROM films WHERE title = 'Tango Bar' AND year > 1931", 0),
        ("SELECT director FROM films WHERE title = 'Tango Bar'", 0),
        ("SELECT title FROM films WHERE title = 'Tango Bar' AND year > 1930", 0),
        ("SELECT director FROM films WHERE director = 'Tango Bar' AND year > 1930", 0),
        ("SELECT DISTINCT director FROM films WHERE title = 'Tango Bar' AND year > 1930", 0),
        ("SELECT director, title FROM films WHERE title = 'Tango Bar' AND year > 1930", 0),
        (f"{REFERENCE} OR title = 'Unforeseen'", 0),
        (f"{REFERENCE} AND director <> 'Unforeseen'", 0),
        (f"{REFERENCE} AND year <> 1977", 0),
        (f"{REFERENCE} LIMIT 1", 0),
        (f"{REFERENCE} LIMIT 1000", 1),
        ('SELECT director FROM films WHERE title = "Tango Bar" AND year > 1930', 0),
        ("SELECT nothing FROM nowhere", 0),
        ("DROP TABLE films", 0),
        ("", 0),
    ],
)
def test_untyped_schema_is_judged_by_meaning(output: str, score: float) -> None:
    """In WikiSQL's style, all VARCHAR, only queries that mean the same are right."""
    assert _executed(output) == score


@pytest.mark.parametrize(
    ("reference", "schema", "reason"),
    [
        ("SELECT title FROM films LIMIT 3", SCHEMA, "the reference has LIMIT without ORDER BY"),
        (
            "SELECT title FROM films WHERE year = (SELECT year FROM films LIMIT 1) ORDER BY title",
            SCHEMA,
            "the reference has LIMIT without ORDER BY",
        ),
        (
            'SELECT title FROM films WHERE title = "x"',
            SCHEMA,
            "the reference does not run on its schema",
        ),
        ("SELECT date('now')", SCHEMA, "the reference reads the clock"),
        ("DELETE FROM films", SCHEMA, "the reference is not one query"),
        ("SELECT 1; SELECT 2", SCHEMA, "the reference is not one query"),
        (
            "SELECT title FROM films WHERE 1 = 2",
            SCHEMA,
            "no database tells the reference from its mutations",
        ),
        (REFERENCE, "CREATE TABLE films (", "the schema does not parse"),
        (REFERENCE, None, "the row has no schema in 'context'"),
    ],
)
def test_row_that_cannot_judge_is_excluded(reference: str, schema: str | None, reason: str) -> None:
    """Whatever the model answers, the row is excluded with the same countable reason."""
    for output, error in ((reference, ""), ("nonsense", ""), ("", "too long")):
        prediction = _prediction(
            output, reference=reference, error=error, fields={"context": schema}
        )
        scores = SqlExecution("context").score([prediction])
        assert scores.values == {}
        assert scores.excluded == {0: reason}


def test_control_counts_mutations_of_scored_rows() -> None:
    """The negative control comes with the scores and does not depend on the answers."""
    controls = [
        SqlExecution("context").score([_prediction(output)]).control
        for output in (REFERENCE, "nonsense")
    ]
    assert controls[0] is not None
    assert controls[0] == controls[1]
    assert controls[0].mutations > 10
    assert controls[0].share >= 0.95


WORDS = st.sampled_from(["red", "O'Neil", "Größe", "50%", "a_b", 'say "hi"', "x;y", "--", "9"])
COLUMNS = st.sampled_from(["title", "director", "year"])
OPERATORS = st.sampled_from(["=", ">", "<", "<>", ">=", "<="])


@settings(max_examples=25, deadline=None)
@given(COLUMNS, COLUMNS, OPERATORS, st.one_of(WORDS, st.integers(-50, 3000)))
def test_reference_itself_is_always_right(
    selected: str, compared: str, operator: str, value: str | int
) -> None:
    """Whatever the literals hold, an equal query scores 1, and one with another text too."""
    literal = str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
    reference = f"SELECT {selected} FROM films WHERE {compared} {operator} {literal}"  # noqa: S608
    same = f"SELECT f.{selected} FROM films AS f WHERE (f.{compared} {operator} {literal});"  # noqa: S608
    assert _executed(reference, reference) == 1
    assert _executed(same, reference) == 1


def test_spec_decides_which_metrics_are_made() -> None:
    """Metrics come in the spec's order, with their parameters."""
    spec = MetricsSpec.model_validate({"exact_match": {}, "sql_execution": {"schema": "ddl"}})
    assert metrics_of(spec) == (Nll(), ExactMatch(), SqlExecution("ddl"))
