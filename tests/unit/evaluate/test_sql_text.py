"""Tokens, schemas, hints and mutations: what is read from SQL text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.evaluate.sql.databases import Filling
from modelmill.evaluate.sql.hints import Value, constant_spans, read_hints
from modelmill.evaluate.sql.mutations import mutations_of
from modelmill.evaluate.sql.schema import ColumnRef, SchemaError, parse_schema
from modelmill.evaluate.sql.tokens import canonical_text, statements_of, tokens_of

SHOP = """
CREATE TABLE buyers (id INTEGER PRIMARY KEY, name TEXT, since DATE);
CREATE TABLE sales (buyer_id INT REFERENCES buyers (id), amount DECIMAL(8, 2), paid BOOLEAN,
                    UNIQUE (buyer_id, amount));
"""


@given(st.text())
def test_any_text_has_tokens(text: str) -> None:
    """Tokens cover a text in order, and what they leave out is white space and comments."""
    position = 0
    for token in tokens_of(text):
        between = text[position : token.start]
        assert not between.strip() or between.lstrip().startswith(("--", "/*"))
        assert text[token.start : token.start + len(token.text)] == token.text
        position = token.start + len(token.text)


def test_statements_split_at_semicolons_outside_quotes() -> None:
    """A semicolon inside a literal or a comment ends nothing."""
    found = statements_of(tokens_of("SELECT ';' -- ;\n; ; SELECT 2"))
    assert [canonical_text(statement) for statement in found] == ["SELECT ';'", "SELECT 2"]


def test_schema_is_read_with_kinds_and_keys() -> None:
    """Tables, value kinds, keys and foreign keys come from SQLite's own reading."""
    schema = parse_schema(SHOP + "; DROP TABLE buyers;")
    buyers, sales = schema.tables["buyers"], schema.tables["sales"]
    assert [column.kind for column in (*buyers.columns, *sales.columns)] == [
        "integer", "text", "date", "integer", "real", "boolean",
    ]  # fmt: skip
    assert buyers.keys == (("id",),)
    assert sales.keys == (("buyer_id", "amount"),)
    assert schema.foreign_keys == {ColumnRef("sales", "buyer_id"): ColumnRef("buyers", "id")}


@pytest.mark.parametrize(
    "text",
    ["", "no sql", "CREATE TABLE t (", "CREATE TABLE t AS SELECT 1", "CREATE VIEW v AS SELECT 1"],
)
def test_text_without_tables_is_refused(text: str) -> None:
    """Broken text, no table, and a table made by a query are a schema error."""
    with pytest.raises(SchemaError):
        parse_schema(text)


@given(st.randoms(use_true_random=False))
def test_generated_rows_keep_keys_and_types(rng: object) -> None:
    """Keys are unique, children have parents, and numeric columns hold nothing but numbers."""
    schema = parse_schema(SHOP)
    query = tokens_of("SELECT name FROM buyers WHERE id = 'seven' OR name = 3")
    constants = {span: query[span[0]].value for span in constant_spans(query)}
    database = Filling(schema, read_hints(schema, query, constants)).database(rng)  # type: ignore[arg-type]
    ids = [row[0] for row in database["buyers"]]
    pairs = [row[:2] for row in database["sales"]]
    assert len(set(ids)) == len(ids)
    assert len(set(pairs)) == len(pairs)
    assert {buyer for buyer, _ in pairs} <= set(ids)
    assert all(isinstance(cell, int | float) for row in database["sales"] for cell in row)


def test_hints_find_values_counts_and_partners() -> None:
    """Literals belong to the column they stand beside, also through an alias and a range."""
    schema = parse_schema(SHOP)
    query = tokens_of(
        "SELECT b.name FROM buyers b JOIN sales AS s ON s.buyer_id = b.id WHERE s.amount"
        " BETWEEN 5 AND -3+10 AND b.name LIKE 'A%' GROUP BY b.name HAVING COUNT(*) > 4 LIMIT 9"
    )
    texts = {span: canonical_text(query[slice(*span)]) for span in constant_spans(query)}
    assert list(texts.values()) == ["5", "- 3 + 10", "'A%'", "4", "9"]
    computed: dict[str, Value] = {"5": 5, "- 3 + 10": 7, "'A%'": "A%", "4": 4, "9": 9}
    hints = read_hints(schema, query, {span: computed[text] for span, text in texts.items()})
    amount, name = ColumnRef("sales", "amount"), ColumnRef("buyers", "name")
    assert hints.values == {amount: {5, 7}, name: {"A%"}}
    assert hints.counts == {4, 9}
    assert hints.equated == {(ColumnRef("sales", "buyer_id"), ColumnRef("buyers", "id"))}


def test_mutations_differ_from_the_query_and_each_other() -> None:
    """No mutation repeats another or the query itself."""
    schema = parse_schema(SHOP)
    query = tokens_of("SELECT MAX(amount) FROM sales WHERE paid = 1 AND amount > 1 OR NOT paid")
    constants = {span: query[span[0]].value for span in constant_spans(query)}
    texts = [canonical_text(m.query) for m in mutations_of(schema, query, constants)]
    assert len(set(texts)) == len(texts)
    assert canonical_text(query) not in texts


def test_mutations_of_a_query_cover_every_kind() -> None:
    """Each clause gets the mistakes a model makes in it."""
    schema = parse_schema(SHOP)
    query = tokens_of(
        "SELECT DISTINCT MAX(amount) FROM sales WHERE paid = 1 AND amount BETWEEN 1 AND 2"
        " ORDER BY amount LIMIT 3"
    )
    constants = {span: query[span[0]].value for span in constant_spans(query)}
    found = {canonical_text(m.query): m.kind for m in mutations_of(schema, query, constants)}
    head = "SELECT DISTINCT MAX ( AMOUNT ) FROM SALES"
    tail = "ORDER BY AMOUNT LIMIT 3"
    between = "AMOUNT BETWEEN 1 AND 2"
    expected = {
        f"{head} WHERE `amount` = 1 AND {between} {tail}": "column",
        f"{head} WHERE PAID = 2 AND {between} {tail}": "literal",
        f"{head} WHERE PAID <> 1 AND {between} {tail}": "operator",
        f"{head} WHERE PAID = 1 OR {between} {tail}": "operator",
        f"{head} WHERE PAID = 1 AND AMOUNT NOT BETWEEN 1 AND 2 {tail}": "operator",
        f"{head} WHERE {between} {tail}": "condition",
        f"{head} WHERE PAID = 1 {tail}": "condition",
        f"{head} {tail}": "condition",
        f"{head.replace('MAX', 'SUM')} WHERE PAID = 1 AND {between} {tail}": "aggregate",
        f"{head} WHERE PAID = 1 AND {between} ORDER BY AMOUNT DESC LIMIT 3": "direction",
        f"{head.replace('DISTINCT ', '')} WHERE PAID = 1 AND {between} {tail}": "dropped",
        f"{head} WHERE PAID = 1 AND {between} ORDER BY AMOUNT": "dropped",
    }
    assert {text: found.get(text) for text in expected} == expected
    assert f"{head} WHERE PAID = 1 AND AMOUNT BETWEEN 1 OR 2 {tail}" not in found
