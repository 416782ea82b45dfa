"""Change a query in one place so that it should mean something else.

The mutations are the mistakes a model makes: another column, literal, operator, aggregate or
direction, a condition, DISTINCT, NOT or clause left out.  They are edits of tokens; those
that SQLite does not accept are nobody's mistake and are dropped by the caller.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from modelmill.evaluate.sql.hints import Constants, Site, Value, column_sites
from modelmill.evaluate.sql.schema import Schema
from modelmill.evaluate.sql.tokens import Token, canonical_text, depths_of, string_token

MutationKind = Literal[
    "column", "literal", "operator", "condition", "aggregate", "direction", "dropped", "added"
]
Tokens = tuple[Token, ...]

_COLUMNS_PER_SITE: Final = 8
_OPERATORS: Final[Mapping[str, tuple[str, ...]]] = {
    "=": ("<>", "<", ">", "<=", ">="),
    "==": ("<>", "<", ">"),
    "<>": ("=", "<", ">"),
    "!=": ("=", "<", ">"),
    "<": ("<=", ">", ">=", "="),
    "<=": ("<", ">", ">=", "="),
    ">": (">=", "<", "<=", "="),
    ">=": (">", "<", "<=", "="),
    "+": ("-",),
    "-": ("+",),
    "*": ("+",),
    "/": ("*",),
    "AND": ("OR",),
    "OR": ("AND",),
    "UNION": ("INTERSECT", "EXCEPT"),
    "INTERSECT": ("UNION", "EXCEPT"),
    "EXCEPT": ("UNION", "INTERSECT"),
    "LIKE": ("=",),
}
_AGGREGATES: Final = ("COUNT", "SUM", "AVG", "MIN", "MAX")
_DIRECTIONS: Final[Mapping[str, str]] = {"ASC": "DESC", "DESC": "ASC"}
_CLAUSES: Final = frozenset(
    """SELECT FROM WHERE GROUP HAVING ORDER LIMIT UNION INTERSECT EXCEPT JOIN LEFT INNER CROSS
    NATURAL ON WHEN THEN ELSE END""".split()  # noqa: SIM905
)
"""Words that end a condition at their own depth."""
_DROPPABLE: Final = frozenset({"WHERE", "HAVING", "ORDER", "LIMIT"})


@dataclass(frozen=True, slots=True)
class Mutation:
    """A changed query and what was changed."""

    kind: MutationKind
    query: Tokens


def mutations_of(schema: Schema, query: Tokens, constants: Constants) -> tuple[Mutation, ...]:
    """List the mutations of a query that SQLite accepts, each text once, never the query itself."""
    seen = {canonical_text(query)}
    found: list[Mutation] = []
    for mutation in _all_mutations(schema, query, constants):
        text = canonical_text(mutation.query)
        if text not in seen:
            seen.add(text)
            found.append(mutation)
    return tuple(found)


def _all_mutations(schema: Schema, query: Tokens, constants: Constants) -> Iterator[Mutation]:
    sites = column_sites(schema, query)
    for site in sites:
        for column in _other_columns(schema, site):
            yield _replaced("column", query, site.index, Token("quoted", f"`{column}`"))
    for (start, stop), value in constants.items():
        # SQLite's LIKE ignores case, so a changed case is no mutation of its pattern.
        before = query[start - 1].word if start else ""
        for other in _other_values(value, constants.values(), folds_case=before == "LIKE"):
            yield Mutation("literal", (*query[:start], other, *query[stop:]))
    # An operator inside constant arithmetic is part of a literal.
    inside = {index for start, stop in constants for index in range(start, stop)}
    depths = depths_of(query)
    for index in range(len(query)):
        if index not in inside:
            yield from _word_mutations(query, index, depths)
    yield from _condition_mutations(query)
    yield from _clause_mutations(query)


def _replaced(kind: MutationKind, query: Tokens, index: int, token: Token) -> Mutation:
    return Mutation(kind, (*query[:index], token, *query[index + 1 :]))


def _without(kind: MutationKind, query: Tokens, start: int, stop: int) -> Mutation:
    return Mutation(kind, (*query[:start], *query[stop:]))


def _with_word(kind: MutationKind, query: Tokens, index: int, word: str) -> Mutation:
    return Mutation(kind, (*query[:index], Token("word", word), *query[index:]))


def _other_columns(schema: Schema, site: Site) -> list[str]:
    own = {ref.column for ref in site.refs}
    names = [
        column.name.replace("`", "``")
        for table in dict.fromkeys(ref.table for ref in site.refs)
        for column in schema.tables[table].columns
        if column.name.lower() not in own
    ]
    return names[:_COLUMNS_PER_SITE]


def _other_values(
    value: Value, all_values: Iterable[Value], *, folds_case: bool
) -> Iterator[Token]:
    if isinstance(value, str):
        case = value if folds_case else value.swapcase()
        near = sorted({case, value + "x", "x" + value, value[:-1]} - {value})
        others = [other for other in all_values if isinstance(other, str) and other != value]
        yield from map(string_token, dict.fromkeys((*near, *others)))
    else:
        steps = (value + 1, value - 1, value * 10)
        numbers = (*steps, *(other for other in all_values if not isinstance(other, str)))
        yield from (Token("number", repr(other)) for other in numbers if other != value)


def _word_mutations(query: Tokens, index: int, depths: Sequence[int]) -> Iterator[Mutation]:
    token = query[index]
    name = token.word or token.text
    before = query[index - 1].word if index else ""
    if name in _OPERATORS and token.kind in ("operator", "word"):
        yield from _operator_mutations(query, index, depths)
    elif name in _AGGREGATES:
        yield from _aggregate_mutations(query, index, depths)
    elif name in _DIRECTIONS:
        yield _replaced("direction", query, index, Token("word", _DIRECTIONS[name]))
    elif (before, name) == ("ORDER", "BY"):
        yield from _reversed_order(query, index, depths)
    elif name in ("DISTINCT", "NOT", "LEFT", "ALL"):
        yield _without("dropped", query, index, index + 1)
    elif name == "SELECT" and index == 0 and _may_repeat_rows(query):
        yield _with_word("added", query, index + 1, "DISTINCT")
    if before != "NOT" and (name in ("IN", "LIKE", "BETWEEN") or (before, name) == ("IS", "NULL")):
        yield _with_word("operator", query, index, "NOT")


def _operator_mutations(query: Tokens, index: int, depths: Sequence[int]) -> Iterator[Mutation]:
    name = query[index].word or query[index].text
    if name == "*" and not _is_product(query, index):
        return
    if name == "AND" and _closes_between(query, index, depths):
        return
    for other in _OPERATORS[name]:
        word = Token("word" if other.isalpha() else "operator", other)
        yield _replaced("operator", query, index, word)


def _aggregate_mutations(query: Tokens, index: int, depths: Sequence[int]) -> Iterator[Mutation]:
    """Compute another aggregate of the same values, of distinct values, or none at all."""
    if index + 1 == len(query) or query[index + 1].kind != "open":
        return
    name = query[index].word
    for other in _AGGREGATES:
        if other != name:
            yield _replaced("aggregate", query, index, Token("word", other))
    close = _closing(query, index + 1, depths)
    bare = (*query[:index], *query[index + 2 : close], *query[close + 1 :])
    yield Mutation("aggregate", bare)
    # The extremes of distinct values are the extremes of all values.
    can_be_distinct = name not in ("MIN", "MAX") and query[index + 2].text != "*"
    if can_be_distinct and query[index + 2].word != "DISTINCT":
        yield _with_word("aggregate", query, index + 2, "DISTINCT")


def _may_repeat_rows(query: Tokens) -> bool:
    """Whether DISTINCT could change a plain query; groups and aggregates are distinct enough."""
    words = {token.word for token in query}
    selected = {token.word for token in itertools.takewhile(_is_before_from, query)}
    return not (
        words & {"GROUP", "UNION", "INTERSECT", "EXCEPT"} or selected & {"DISTINCT", *_AGGREGATES}
    )


def _is_before_from(token: Token) -> bool:
    return token.word != "FROM"


def _reversed_order(query: Tokens, by: int, depths: Sequence[int]) -> Iterator[Mutation]:
    """Sort the other way where no direction is written."""
    stop = _clause_end(query, by + 1, depths)
    start = by + 1
    for index in range(by + 1, stop + 1):
        if index < stop and not (query[index].text == "," and depths[index] == depths[by]):
            continue
        if query[index - 1].word not in _DIRECTIONS and index > start:
            yield _with_word("direction", query, index, "DESC")
        start = index + 1


def _condition_mutations(query: Tokens) -> Iterator[Mutation]:
    """Leave out one operand of each AND and OR, and each join's whole condition."""
    depths = depths_of(query)
    for index, token in enumerate(query):
        if token.word in ("AND", "OR") and not _closes_between(query, index, depths):
            left = index - 1
            while left >= 0 and not _bounds_operand(query, left, depths, depths[index]):
                left -= 1
            right = index + 1
            while right < len(query) and not _bounds_operand(query, right, depths, depths[index]):
                right += 1
            yield _without("condition", query, left + 1, index + 1)
            yield _without("condition", query, index, right)
        if token.word == "ON":
            stop = _clause_end(query, index + 1, depths)
            yield _without("condition", query, index, stop)


def _clause_mutations(query: Tokens) -> Iterator[Mutation]:
    depths = depths_of(query)
    for index, token in enumerate(query):
        if token.word in _DROPPABLE:
            kind: MutationKind = "condition" if token.word in ("WHERE", "HAVING") else "dropped"
            yield _without(kind, query, index, _clause_end(query, index + 1, depths))


def _bounds_operand(query: Tokens, index: int, depths: Sequence[int], depth: int) -> bool:
    token = query[index]
    if token.kind in ("open", "close") and depths[index] == depth:
        # A bracket counts as inside itself: at the connector's depth it encloses it,
        # unless it belongs to a sibling, which is one deeper.
        return True
    if depths[index] != depth:
        return False
    if token.word in ("AND", "OR"):
        return not _closes_between(query, index, depths)
    return token.word in _CLAUSES


def _clause_end(query: Tokens, start: int, depths: Sequence[int]) -> int:
    depth = depths[start - 1]
    for index in range(start, len(query)):
        if query[index].kind == "close" and depths[index] == depth and depth:
            return index
        if depths[index] == depth and query[index].word in _CLAUSES:
            return index
    return len(query)


def _closing(query: Tokens, opening: int, depths: Sequence[int]) -> int:
    for index in range(opening + 1, len(query)):
        if query[index].kind == "close" and depths[index] == depths[opening]:
            return index
    return len(query) - 1


def _closes_between(query: Tokens, index: int, depths: Sequence[int]) -> bool:
    """Whether an AND belongs to a BETWEEN."""
    for before in range(index - 1, -1, -1):
        if depths[before] != depths[index]:
            if depths[before] < depths[index]:
                return False
            continue
        word = query[before].word
        if word == "BETWEEN":
            return True
        if word in ("AND", "OR") or word in _CLAUSES:
            return False
    return False


def _is_product(query: Tokens, index: int) -> bool:
    """Whether a star multiplies, and does not stand for all columns."""
    if not 0 < index < len(query) - 1:
        return False
    before, after = query[index - 1], query[index + 1]
    starts = bool(after.name) or after.kind in ("number", "open")
    ends = bool(before.name) or before.kind in ("number", "close")
    return starts and ends and after.kind != "close"
