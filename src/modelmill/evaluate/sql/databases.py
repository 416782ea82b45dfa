"""Fill the tables of a schema with small, related, confusable values.

A value is drawn near what the queries ask for: their literals, near misses of them, and a
domain of a few fillers that columns share, so that rows repeat, join and collide.  Columns
of unrelated random strings look harmless and accept 98 % of wrong columns, because every
query then answers nothing.  Everything is decided by the given random generator.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from modelmill.evaluate.sql.execution import Cell, Database, Row
from modelmill.evaluate.sql.hints import Hints, Value
from modelmill.evaluate.sql.schema import Column, ColumnKind, ColumnRef, Schema, Table

_ROW_COUNTS: Final = (2, 3, 5, 8, 13, 21)
_MOST_ROWS: Final = 80
_VARIETIES: Final = (2, 4, 200)
"""Distinct fillers of a column: few make groups and duplicates, many make orders unambiguous."""
_EXACT, _NEAR, _FILLER = 0.45, 0.3, 0.2
"""Shares of a hinted column's values; the rest are literals meant for other columns."""
_NULL_SHARE: Final = 0.25
_PARTNER_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True)
class _Domain:
    exact: tuple[Cell, ...]
    near: tuple[Cell, ...]
    filler: tuple[Cell, ...]
    foreign: tuple[Cell, ...]
    nullable: bool

    def draw(self, rng: random.Random) -> Cell:
        if self.nullable and rng.random() < _NULL_SHARE:
            return None
        dice = rng.random()
        if self.exact:
            if dice < _EXACT:
                return rng.choice(self.exact)
            if dice < _EXACT + _NEAR and self.near:
                return rng.choice(self.near)
            if dice < _EXACT + _NEAR + _FILLER or not self.foreign:
                return rng.choice(self.filler)
            return rng.choice(self.foreign)
        if self.foreign and dice > 1 - _FILLER:
            return rng.choice(self.foreign)
        return rng.choice(self.filler)


def generate_database(schema: Schema, hints: Hints, rng: random.Random) -> Database:
    """Fill all tables once; keys hold, and declared foreign keys point to rows that exist."""
    partners = _partner_pools(schema, hints, rng)
    database: dict[str, tuple[Row, ...]] = {}
    for name, table in schema.tables.items():
        domains = [
            _domain(ColumnRef(name, column.name.lower()), column, hints, rng)
            for column in table.columns
        ]
        database[name] = _fill(schema, table, domains, partners, database, _row_count(hints, rng), rng)
    return database


def near_misses(value: Value) -> tuple[Value, ...]:
    """List values that a careless query would confuse with this one."""
    if not isinstance(value, str):
        return (value + 1, value - 1, value + 0.5, value - 0.5, value * 10, -value)
    bare = value.strip("%_")
    variants = [
        bare,
        bare.lower(),
        bare.upper(),
        bare.title(),
        bare[:-1],
        bare[1:],
        bare + "x",
        "x" + bare,
        f"x{bare}x",
    ]
    if bare:
        variants += [bare[:-1] + chr(ord(bare[-1]) + 1), bare[:-1] + chr(max(32, ord(bare[-1]) - 1))]
    if len(bare) == 4 and bare.isdigit():
        variants += [f"{int(bare) + step}-03-0{step + 2}" for step in (-1, 0, 1)]
    return tuple(dict.fromkeys(variant for variant in variants if variant != value))


def _row_count(hints: Hints, rng: random.Random) -> int:
    choices = [*_ROW_COUNTS]
    for count in hints.counts:
        choices += [size for size in (count, count + 2, 3 * count + 1) if 0 < size <= _MOST_ROWS]
    return rng.choice(sorted(choices))


def _domain(ref: ColumnRef, column: Column, hints: Hints, rng: random.Random) -> _Domain:
    kind: ColumnKind = column.kind
    if ref in hints.numeric and kind in ("text", "date"):
        kind = "real"
    asked = sorted(hints.values.get(ref, ()), key=repr)
    foreign = {value for other, values in hints.values.items() if other != ref for value in values}
    return _Domain(
        exact=_fitting(kind, asked),
        near=_fitting(kind, (miss for value in asked for miss in near_misses(value))),
        filler=_fillers(kind, column.name, rng),
        foreign=_fitting(kind, sorted(foreign | hints.loose, key=repr)),
        nullable=column.nullable and ref in hints.nullable,
    )


def _fitting(kind: ColumnKind, values: Iterable[Value]) -> tuple[Cell, ...]:
    """Keep the values that a column of this kind can hold; a numeric column holds numbers only."""
    cells: dict[Cell, None] = {}
    for value in values:
        if kind in ("text", "date"):
            cells[value if isinstance(value, str) else f"{value}"] = None
            continue
        number = _number(value)
        if number is None or (kind != "real" and number != int(number)):
            continue
        if kind == "boolean" and number not in (0, 1):
            continue
        cells[int(number) if number == int(number) else number] = None
    return tuple(cells)


def _number(value: Value) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < 2**53 else None


def _fillers(kind: ColumnKind, name: str, rng: random.Random) -> tuple[Cell, ...]:
    variety = rng.choice(_VARIETIES)
    if kind == "boolean":
        return (0, 1)
    if kind == "date":
        year = rng.randrange(1990, 2025)
        return tuple(
            f"{year + day // 100}-{1 + day % 12:02}-{1 + (day * 5) % 28:02}"
            for day in range(min(variety, 120))
        )
    if kind == "text":
        # Values of its own make a wrong column visible, shared ones make columns confusable.
        stem = rng.choice(("v", name.lower()))
        return tuple(f"{stem}{index}" for index in range(variety))
    start = rng.choice((0, 1, 1, 10, 1000))
    step = 1 if kind == "integer" else rng.choice((1, 0.5))
    return tuple(start + index * step for index in range(variety))


def _partner_pools(
    schema: Schema, hints: Hints, rng: random.Random
) -> Mapping[ColumnRef, tuple[Cell, ...]]:
    """Give columns that are compared with each other one small pool of values."""
    group_of: dict[ColumnRef, set[ColumnRef]] = {}
    for left, right in sorted([*hints.equated, *schema.foreign_keys.items()]):
        merged = group_of.get(left, {left}) | group_of.get(right, {right})
        for ref in merged:
            group_of[ref] = merged
    pools: dict[ColumnRef, tuple[Cell, ...]] = {}
    for ref in sorted(group_of):
        if ref in pools:
            continue
        members = sorted(group_of[ref])
        kind = schema.column(members[0]).kind
        if kind in ("text", "date") and any(member in hints.numeric for member in members):
            kind = "real"
        size = rng.choice((2, 3, 6, 12))
        stem = [f"k{index}" if kind in ("text", "date") else index for index in range(1, size + 1)]
        asked = sorted(
            {value for member in members for value in hints.values.get(member, ())}, key=repr
        )
        pool = (*_fitting("text" if kind == "date" else kind, [*asked, *stem]),)
        pools.update(dict.fromkeys(members, pool))
    return pools


def _fill(
    schema: Schema,
    table: Table,
    domains: list[_Domain],
    partners: Mapping[ColumnRef, tuple[Cell, ...]],
    database: Mapping[str, tuple[Row, ...]],
    row_count: int,
    rng: random.Random,
) -> tuple[Row, ...]:
    rows: list[Row] = []
    return tuple(rows)
