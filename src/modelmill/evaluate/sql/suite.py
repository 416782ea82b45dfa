"""Build the databases on which a reference query can be told from wrong ones.

Follows the idea of distilled test suites (Zhong, Yu, Klein 2020, arXiv:2010.02840): random
databases are kept when they tell the reference from a query near it, until all neighbours
are told apart.  Deterministic: the same schema and reference make the same suite.

Why a surviving prediction is believed.  A wrong prediction differs from the reference by an
edit, and the suite is made so that every single edit of the kinds in `mutations` changes the
answer somewhere.  What the reference's own text cannot foresee - a literal, or a literal
beside a column, that only the prediction has - is looked for on further databases made from
the hints of both (`is_equivalent`).  No suite can prove equality; the share of mutations
caught says how far this one goes.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from modelmill.evaluate.sql.databases import Filling
from modelmill.evaluate.sql.execution import (
    Answer,
    Database,
    QueryError,
    Sandbox,
    reads_clock,
    same_answer,
)
from modelmill.evaluate.sql.hints import Constants, Hints, Value, constant_spans, read_hints
from modelmill.evaluate.sql.mutations import Mutation, mutations_of
from modelmill.evaluate.sql.schema import Schema, SchemaError, parse_schema
from modelmill.evaluate.sql.tokens import (
    Token,
    canonical_text,
    depths_of,
    statements_of,
    tokens_of,
)

_CANDIDATES: Final = 200
"""Databases tried for one reference."""
_FRUITLESS: Final = 40
"""Usable databases in a row without a new mutation caught after which the search ends."""
_SMALLEST_SUITE: Final = 4
_FRESH_DATABASES: Final = 20
"""Databases of both queries' hints that a surviving prediction must also pass."""
_FRESH_CANDIDATES: Final = 60


class _UnusableError(Exception):
    """Carries the reason of an `Unusable` out of the search."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A reference that no prediction can be judged by."""

    reason: str
    """Countable: says nothing of the single row."""


@dataclass(frozen=True, slots=True)
class Case:
    """One database and the reference's answer on it, whatever order its rows are stored in."""

    database: Database
    answer: Answer


@dataclass(frozen=True, slots=True)
class Suite:
    """What a prediction is judged on."""

    schema: Schema
    reference: tuple[Token, ...]
    hints: Hints
    ordered: bool
    """Whether the order of the answer's rows counts: the reference has an outer ORDER BY."""
    cases: tuple[Case, ...]
    mutations: int
    """Mutations of the reference that run."""
    missed: tuple[Mutation, ...]
    """Those no case tells from the reference, most of them because they mean the same."""

    @property
    def caught(self) -> int:
        """How many mutations give another answer on at least one case."""
        return self.mutations - len(self.missed)

    def sandbox(self) -> Sandbox:
        """Open an empty database of the suite's schema."""
        return Sandbox(self.schema, self.hints.numeric)


@lru_cache(maxsize=4096)
def suite_for(schema_text: str, reference_text: str) -> Suite | Unusable:
    """Search for databases that together catch all mutations of the reference.

    The outcome is kept, so that the models of a run share one search for each reference.
    """
    try:
        return _build_suite(schema_text, reference_text)
    except _UnusableError as error:
        return Unusable(str(error))


def is_equivalent(suite: Suite, prediction: Sequence[Token]) -> bool:
    """Whether a query answers like the reference on the suite and on databases made for both.

    The suite's rows are stored in several orders, so that a query without an order of its own,
    or with a LIMIT, is not right by luck.

    Raises:
        QueryError: the prediction is refused, does not run, or breaks a limit.

    """
    query = tuple(prediction)
    if canonical_text(query) == canonical_text(suite.reference):
        return True
    with suite.sandbox() as sandbox:
        for case in suite.cases:
            if not _agrees(sandbox, suite, case, query):
                return False
        constants = constants_of(sandbox, query)
        hints = suite.hints.widened_by(read_hints(suite.schema, query, constants))
        return not _differs_on_fresh_databases(suite, query, Filling(suite.schema, hints), sandbox)


def constants_of(sandbox: Sandbox, query: Sequence[Token]) -> Constants:
    """Find the constants of a query; SQLite computes those that are more than a literal."""
    constants: dict[tuple[int, int], Value] = {}
    for start, stop in constant_spans(query):
        if stop == start + 1:
            constants[start, stop] = query[start].value
            continue
        try:
            ((value,),) = sandbox.run((Token("word", "SELECT"), *query[start:stop])).rows
        except QueryError:
            continue
        if isinstance(value, int | float):
            constants[start, stop] = value
    return constants


def _build_suite(schema_text: str, reference_text: str) -> Suite:
    try:
        schema = parse_schema(schema_text)
    except SchemaError as error:
        raise _UnusableError("the schema does not parse") from error
    reference = _only_statement(reference_text)
    with Sandbox(schema) as plain:
        try:
            plain.run(reference)
        except QueryError as error:
            raise _UnusableError("the reference does not run on its schema") from error
        constants = constants_of(plain, reference)
    hints = read_hints(schema, reference, constants)
    mutations = mutations_of(schema, reference, constants)
    rng = random.Random(f"{schema_text}\0{reference_text}")  # noqa: S311 - no secret
    with Sandbox(schema, hints.numeric) as sandbox:
        return _Search(schema, reference, hints, sandbox).suite(mutations, rng)


def _only_statement(text: str) -> tuple[Token, ...]:
    statements = list(statements_of(tokens_of(text)))
    if len(statements) != 1 or statements[0][0].word not in ("SELECT", "WITH", "VALUES"):
        raise _UnusableError("the reference is not one query")
    (reference,) = statements
    if reads_clock(reference):
        raise _UnusableError("the reference reads the clock")
    if _limits_unordered(reference):
        raise _UnusableError("the reference has LIMIT without ORDER BY")
    return reference


def _limits_unordered(query: Sequence[Token]) -> bool:
    depths = depths_of(query)
    for index, token in enumerate(query):
        if token.word != "LIMIT":
            continue
        for before in range(index - 1, -1, -1):
            if query[before].word == "ORDER" and depths[before] == depths[index]:
                break
            if depths[before] < depths[index] or query[before].word == "LIMIT":
                return True
        else:
            return True
    return False


def _orders_rows(query: Sequence[Token]) -> bool:
    return any(
        token.word == "ORDER" and depth == 0
        for token, depth in zip(query, depths_of(query), strict=True)
    )


class _Search:
    """The search for one reference's suite."""

    def __init__(
        self, schema: Schema, reference: tuple[Token, ...], hints: Hints, sandbox: Sandbox
    ) -> None:
        self._schema = schema
        self._reference = reference
        self._hints = hints
        self._sandbox = sandbox
        self._filling = Filling(schema, hints)
        self._ordered = _orders_rows(reference)

    def suite(self, candidates: Sequence[Mutation], rng: random.Random) -> Suite:
        """Keep databases while they catch a mutation that no earlier one caught."""
        mutations = self._runnable(candidates, rng)
        alive = list(mutations)
        cases: list[Case] = []
        fruitless = 0
        for _ in range(_CANDIDATES):
            if fruitless > _FRUITLESS or (not alive and len(cases) >= _SMALLEST_SUITE):
                break
            database = self._filling.database(rng)
            answer = stable_answer(self._sandbox, self._reference, database, ordered=self._ordered)
            if answer is None:
                continue
            is_small = len(cases) < _SMALLEST_SUITE
            self._sandbox.load(database)
            told = [m for m in (mutations if is_small else alive) if self._tells(answer, m)]
            fruitless += 1
            if told:
                cases.append(Case(database, answer))
            if any(mutation in told for mutation in alive):
                fruitless = 0
                alive = [mutation for mutation in alive if mutation not in told]
        if not cases:
            raise _UnusableError("no database tells the reference from its mutations")
        return Suite(
            schema=self._schema,
            reference=self._reference,
            hints=self._hints,
            ordered=self._ordered,
            cases=tuple(cases),
            mutations=len(mutations),
            missed=tuple(alive),
        )

    def _runnable(self, candidates: Sequence[Mutation], rng: random.Random) -> list[Mutation]:
        self._sandbox.load(self._filling.database(rng))
        return [mutation for mutation in candidates if self._runs(mutation)]

    def _runs(self, mutation: Mutation) -> bool:
        try:
            self._sandbox.run(mutation.query)
        except QueryError:
            return False
        return True

    def _tells(self, answer: Answer, mutation: Mutation) -> bool:
        try:
            other = self._sandbox.run(mutation.query)
        except QueryError:
            return True
        return not same_answer(answer, other, ordered=self._ordered)


def stable_answer(
    sandbox: Sandbox, query: Sequence[Token], database: Database, *, ordered: bool
) -> Answer | None:
    """Answer the reference, or nothing where its answer is vacuous or depends on storage order.

    Ties under ORDER BY ... LIMIT, and columns beside an aggregate, have more than one right
    answer; a database that shows one of them would judge by luck.
    """
    first: Answer | None = None
    for stored in _storage_orders(database):
        sandbox.load(stored)
        try:
            answer = sandbox.run(query)
        except QueryError:
            return None
        if answer.is_vacuous or (
            first is not None and not same_answer(first, answer, ordered=ordered)
        ):
            return None
        first = first or answer
    return first


def _agrees(sandbox: Sandbox, suite: Suite, case: Case, query: Sequence[Token]) -> bool:
    for stored in _storage_orders(case.database):
        sandbox.load(stored)
        if not same_answer(case.answer, sandbox.run(query), ordered=suite.ordered):
            return False
    return True


def _storage_orders(database: Database) -> Iterator[Database]:
    """Store the same rows as made, backwards, and every other row first."""
    yield database
    yield {name: rows[::-1] for name, rows in database.items()}
    yield {name: [*rows[1::2], *rows[::2]] for name, rows in database.items()}


def _differs_on_fresh_databases(
    suite: Suite, query: Sequence[Token], filling: Filling, sandbox: Sandbox
) -> bool:
    rng = random.Random(canonical_text((*suite.reference, *query)))  # noqa: S311 - no secret
    usable = 0
    for _ in range(_FRESH_CANDIDATES):
        if usable == _FRESH_DATABASES:
            break
        database = filling.database(rng)
        sandbox.load(database)
        try:
            expected = sandbox.run(suite.reference)
        except QueryError:
            continue
        if expected.is_vacuous:
            continue
        usable += 1
        if same_answer(expected, sandbox.run(query), ordered=suite.ordered):
            continue
        # Only now, because it is rare: is the difference one of meaning, or of row order?
        if stable_answer(sandbox, suite.reference, database, ordered=suite.ordered):
            return True
    return False
