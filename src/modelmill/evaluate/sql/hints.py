"""Find out from a query's text which values its databases should hold.

A query is told from its neighbours only by rows near its own borders: the literals it
compares a column with, columns it equates, counts it limits.  Knows a schema and tokens; a
wrong hint costs a useless value in a table and never a wrong verdict.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from modelmill.evaluate.sql.schema import ColumnRef, Schema
from modelmill.evaluate.sql.tokens import RESERVED, Token

Value = str | int | float
Constants = Mapping[tuple[int, int], Value]
"""Values of literals and constant arithmetic, by their span [start, stop) of tokens."""

_SEGMENT_STARTS: Final = frozenset(
    """SELECT FROM WHERE AND OR ON HAVING GROUP ORDER LIMIT OFFSET UNION INTERSECT EXCEPT WHEN
    THEN ELSE JOIN""".split()  # noqa: SIM905
)
_CONDITIONS: Final = frozenset({"WHERE", "AND", "OR", "ON", "HAVING", "WHEN"})
_TABLE_COMES_AFTER: Final = frozenset({"FROM", "JOIN"})
_NUMERIC_FUNCTIONS: Final = frozenset({"SUM", "AVG", "TOTAL", "MIN", "MAX", "ABS", "ROUND", "CAST"})


@dataclass(frozen=True, slots=True)
class Hints:
    """What the texts of one or more queries say about useful rows."""

    values: Mapping[ColumnRef, frozenset[Value]] = field(default_factory=dict)
    """Literals compared with a column."""
    loose: frozenset[Value] = frozenset()
    """Literals that stand beside no column."""
    counts: frozenset[int] = frozenset()
    """Numbers that limit or count rows."""
    numeric: frozenset[ColumnRef] = frozenset()
    """Columns used as numbers, whatever type they declare."""
    equated: frozenset[tuple[ColumnRef, ColumnRef]] = frozenset()
    """Pairs of columns that a join or a membership test equates."""
    nullable: frozenset[ColumnRef] = frozenset()
    """Columns that are asked for NULL.  Others never hold one: COUNT(x) for COUNT(*) and
    NOT EXISTS for NOT IN are the same question to everybody but SQL."""

    def widened_by(self, other: "Hints") -> "Hints":
        """Add another query's values; which columns are numbers or may be NULL stays."""
        values = {
            ref: self.values.get(ref, frozenset()) | other.values.get(ref, frozenset())
            for ref in (*self.values, *other.values)
        }
        return replace(
            self,
            values=values,
            loose=self.loose | other.loose,
            counts=self.counts | other.counts,
            equated=self.equated | other.equated,
        )


@dataclass(frozen=True, slots=True)
class Site:
    """A token that names a column, and the columns it may mean."""

    index: int
    refs: tuple[ColumnRef, ...]


@dataclass(frozen=True, slots=True)
class _Segment:
    opened_by: str
    start: int
    stop: int


def tables_of(schema: Schema, tokens: Sequence[Token]) -> dict[str, str]:
    """Map every alias and table name the query uses to the table's lower-case name.

    An alias that means different tables in different subqueries keeps its last meaning.
    """
    used: dict[str, str] = {}
    for index, token in enumerate(tokens):
        before = tokens[index - 1] if index else None
        if token.name not in schema.tables or before is None:
            continue
        if before.word not in _TABLE_COMES_AFTER and before.text != ",":
            continue
        used[token.name] = token.name
        after = index + 1
        if after < len(tokens) and tokens[after].word == "AS":
            after += 1
        if after < len(tokens) and tokens[after].name:
            used[tokens[after].name] = token.name
    return used


def column_sites(schema: Schema, tokens: Sequence[Token]) -> tuple[Site, ...]:
    """Find every token that names a column of a table the query uses."""
    used = tables_of(schema, tokens)
    columns = {
        name: {column.name.lower() for column in schema.tables[name].columns}
        for name in used.values()
    }
    sites: list[Site] = []
    for index, token in enumerate(tokens):
        before = tokens[index - 1].text if index else ""
        after = tokens[index + 1].text if index + 1 < len(tokens) else ""
        if not token.name or after in ("(", ".") or before.upper() in ("AS", "FROM", "JOIN"):
            continue
        if before == "." and index > 1:
            candidates = [used.get(tokens[index - 2].name, "")]
        else:
            candidates = list(dict.fromkeys(used.values()))
        refs = tuple(
            ColumnRef(table, token.name)
            for table in candidates
            if token.name in columns.get(table, ())
        )
        if refs:
            sites.append(Site(index, refs))
    return tuple(sites)


def read_hints(schema: Schema, tokens: Sequence[Token], constants: Constants) -> Hints:
    """Collect the hints of one query."""
    sites = column_sites(schema, tokens)
    at = {site.index: site for site in sites}
    values: defaultdict[ColumnRef, set[Value]] = defaultdict(set)
    loose: set[Value] = set()
    counts: set[int] = set()
    numeric: set[ColumnRef] = set()
    nullable: set[ColumnRef] = set()
    for segment in _segments(tokens):
        inside = range(segment.start, segment.stop)
        columns = [ref for index in inside if index in at for ref in at[index].refs]
        literals = [value for (start, _), value in constants.items() if start in inside]
        words = [tokens[index].word for index in inside]
        if "COUNT" in words or segment.opened_by in ("LIMIT", "OFFSET") or not columns:
            counts.update(value for value in literals if isinstance(value, int))
            loose.update(literals)
            continue
        for ref in columns:
            values[ref].update(literals)
        if "NULL" in words:
            nullable.update(columns)
        if segment.opened_by in _CONDITIONS and any(not isinstance(v, str) for v in literals):
            numeric.update(
                ref
                for index in inside
                if index in at and _counts_as_number(tokens, index)
                for ref in at[index].refs
            )
    for site in sites:
        if _inside_call(tokens, site.index) in ("SUM", "AVG", "TOTAL"):
            numeric.update(site.refs)
    equated = frozenset(_equated(schema, tokens, at))
    return Hints(
        {ref: frozenset(found) for ref, found in values.items() if found},
        frozenset(loose),
        frozenset(counts),
        frozenset(numeric),
        equated,
        frozenset(nullable),
    )


def constant_spans(tokens: Sequence[Token]) -> Iterator[tuple[int, int]]:
    """Find literals and constant arithmetic as [start, stop) spans of tokens.

    `score = 1-3` compares with -2, so a span is a longest run of numbers and signs.
    """
    index = 0
    while index < len(tokens):
        if tokens[index].kind == "string":
            yield index, index + 1
            index += 1
            continue
        start = index
        if tokens[index].text == "-" and not _ends_operand(tokens, index):
            index += 1
        if index == len(tokens) or tokens[index].kind != "number":
            index = start + 1
            continue
        index += 1
        while (
            index + 1 < len(tokens)
            and tokens[index].text in ("+", "-", "*", "/")
            and tokens[index + 1].kind == "number"
        ):
            index += 2
        yield start, index


def _ends_operand(tokens: Sequence[Token], index: int) -> bool:
    """Whether a sign at this place is binary."""
    if index == 0:
        return False
    before = tokens[index - 1]
    return before.kind in ("number", "string", "close") or bool(before.name)


def _segments(tokens: Sequence[Token]) -> Iterator[_Segment]:
    opened_by, start, in_between = "", 0, False
    for index, token in enumerate(tokens):
        word = token.word
        if word == "AND" and in_between:
            in_between = False
        elif word in _SEGMENT_STARTS:
            yield _Segment(opened_by, start, index)
            opened_by, start, in_between = word, index + 1, False
        elif word == "BETWEEN":
            in_between = True
    yield _Segment(opened_by, start, len(tokens))


def _inside_call(tokens: Sequence[Token], index: int) -> str:
    """Name the function whose first argument this column is, or nothing."""
    first = index - 2 if index > 1 and tokens[index - 1].text == "." else index
    if first > 1 and tokens[first - 1].word == "DISTINCT":
        first -= 1
    if first > 1 and tokens[first - 1].kind == "open":
        return tokens[first - 2].word
    return ""


def _counts_as_number(tokens: Sequence[Token], index: int) -> bool:
    call = _inside_call(tokens, index)
    return not call or call in _NUMERIC_FUNCTIONS or call in RESERVED


def _equated(
    schema: Schema, tokens: Sequence[Token], at: Mapping[int, Site]
) -> Iterator[tuple[ColumnRef, ColumnRef]]:
    for left, site in at.items():
        texts = [token.text.upper() for token in tokens[left + 1 : left + 5]]
        if texts[:1] == ["="] or texts[:1] == ["=="]:
            right = left + 2
        elif texts[:3] == ["IN", "(", "SELECT"]:
            right = left + 4
        elif texts[:4] == ["NOT", "IN", "(", "SELECT"]:
            right = left + 5
        else:
            continue
        right += right < len(tokens) and tokens[right].word == "DISTINCT"
        right += 2 * (right + 1 < len(tokens) and tokens[right + 1].text == ".")
        if right in at and site.refs[0] != at[right].refs[0]:
            yield site.refs[0], at[right].refs[0]
    words = {token.word for token in tokens}
    if words & {"USING", "NATURAL"}:
        yield from _same_names(schema, set(tables_of(schema, tokens).values()))


def _same_names(schema: Schema, tables: Iterable[str]) -> Iterator[tuple[ColumnRef, ColumnRef]]:
    homes: defaultdict[str, list[ColumnRef]] = defaultdict(list)
    for table in sorted(tables):
        for column in schema.tables[table].columns:
            name = column.name.lower()
            homes[name].append(ColumnRef(table, name))
    for refs in homes.values():
        for other in refs[1:]:
            yield refs[0], other
