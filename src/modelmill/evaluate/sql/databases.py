"""Fill the tables of a schema with small, related, confusable values.

A value is drawn near what the queries ask for: their literals, near misses of them, and a
domain of a few fillers that columns share, so that rows repeat, join and collide.  Columns
of unrelated random strings look harmless and accept 98 % of wrong columns, because every
query then answers nothing.  Everything is decided by the given random generator.
"""

import random
import re
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
_POOL_SIZES: Final = (2, 3, 6, 12)
"""Distinct values of columns that are compared with each other."""
_EXACT: Final = 0.45
"""Share of a column's values that are the literals it is compared with."""
_NEAR: Final = 0.3
_FOREIGN: Final = 0.1
"""Share that are literals meant for other columns."""
_YEAR: Final = re.compile(r"[12][0-9]{3}")
_SHORTEST_DATE: Final = len("2020-01")
_NULL_SHARE: Final = 0.25
_PARTNER_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True)
class _Domain:
    """Where the values of one column come from, in one database."""

    exact: tuple[Cell, ...]
    near: tuple[Cell, ...]
    filler: tuple[Cell, ...]
    foreign: tuple[Cell, ...]
    partners: tuple[Cell, ...] = ()
    parents_only: bool = False
    nullable: bool = False

    def draw(self, rng: random.Random) -> Cell:
        if self.nullable and rng.random() < _NULL_SHARE:
            return None
        if self.partners and (self.parents_only or rng.random() < _PARTNER_SHARE):
            return rng.choice(self.partners)
        dice = rng.random()
        if self.exact and dice < _EXACT:
            return rng.choice(self.exact)
        if self.near and dice < _EXACT + _NEAR:
            return rng.choice(self.near)
        if self.foreign and dice > 1 - _FOREIGN:
            return rng.choice(self.foreign)
        return rng.choice(self.filler)


def generate_database(schema: Schema, hints: Hints, rng: random.Random) -> Database:
    """Fill all tables once; keys hold, and declared foreign keys point to rows that exist."""
    return _Generator(schema, hints, rng).database()


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
    if bare and bare[-1].isascii():
        variants += [bare[:-1] + chr(ord(bare[-1]) + step) for step in (-1, 1)]
    if _YEAR.fullmatch(bare):
        variants += [f"{int(bare) + step}-03-0{step + 2}" for step in (-1, 0, 1)]
    return tuple(dict.fromkeys(variant for variant in variants if variant != value))


class _Generator:
    """The choices that hold for one whole database."""

    def __init__(self, schema: Schema, hints: Hints, rng: random.Random) -> None:
        self._schema = schema
        self._hints = hints
        self._rng = rng
        self._pools = self._partner_pools()

    def database(self) -> Database:
        database: dict[str, tuple[Row, ...]] = {}
        for name, table in self._schema.tables.items():
            database[name] = self._fill(table, database)
        return database

    def _fill(self, table: Table, database: Mapping[str, tuple[Row, ...]]) -> tuple[Row, ...]:
        names = [column.name.lower() for column in table.columns]
        domains = [self._domain(table, column, database) for column in table.columns]
        keys = [[names.index(name) for name in key] for key in table.keys]
        taken: list[set[Row]] = [set() for _ in keys]
        rows: list[Row] = []
        for _ in range(self._row_count()):
            row = tuple(domain.draw(self._rng) for domain in domains)
            marks = [tuple(row[index] for index in key) for key in keys]
            if any(mark in seen for mark, seen in zip(marks, taken, strict=True)):
                continue
            for mark, seen in zip(marks, taken, strict=True):
                seen.add(mark)
            rows.append(row)
        return tuple(rows)

    def _row_count(self) -> int:
        choices = [*_ROW_COUNTS]
        for count in sorted(self._hints.counts):
            around = (count, count + 2, 3 * count + 1)
            choices += [rows for rows in around if 0 < rows <= _MOST_ROWS]
        return self._rng.choice(choices)

    def _domain(
        self, table: Table, column: Column, database: Mapping[str, tuple[Row, ...]]
    ) -> _Domain:
        ref = ColumnRef(table.name.lower(), column.name.lower())
        kind = self._kind(ref)
        asked = sorted(self._hints.values.get(ref, ()), key=repr)
        others = {
            value
            for other, values in self._hints.values.items()
            if other != ref
            for value in values
        }
        parent = self._schema.foreign_keys.get(ref)
        parents: tuple[Cell, ...] = ()
        if parent is not None and parent.table in database:
            columns = [each.name.lower() for each in self._schema.tables[parent.table].columns]
            position = columns.index(parent.column)
            parents = tuple(row[position] for row in database[parent.table])
        return _Domain(
            exact=_fitting(kind, asked),
            near=_fitting(kind, (miss for value in asked for miss in near_misses(value))),
            filler=_fillers(kind, column.name, self._rng),
            foreign=_fitting(kind, sorted(others | self._hints.loose, key=repr)),
            partners=parents or self._pools.get(ref, ()),
            parents_only=bool(parents),
            nullable=column.nullable and ref in self._hints.nullable,
        )

    def _kind(self, ref: ColumnRef) -> ColumnKind:
        kind = self._schema.column(ref).kind
        return "real" if ref in self._hints.numeric and kind in ("text", "date") else kind

    def _partner_pools(self) -> Mapping[ColumnRef, tuple[Cell, ...]]:
        """Give columns that are compared with each other one small pool of values."""
        groups: dict[ColumnRef, set[ColumnRef]] = {}
        for left, right in sorted([*self._hints.equated, *self._schema.foreign_keys.items()]):
            merged = groups.get(left, {left}) | groups.get(right, {right})
            groups.update(dict.fromkeys(merged, merged))
        pools: dict[ColumnRef, tuple[Cell, ...]] = {}
        for ref, group in sorted(groups.items()):
            if ref in pools:
                continue
            kinds = {self._kind(member) for member in group}
            is_text = kinds <= {"text", "date"}
            stem: list[Value] = [
                f"k{index}" if is_text else index
                for index in range(1, self._rng.choice(_POOL_SIZES) + 1)
            ]
            asked = {value for one in group for value in self._hints.values.get(one, ())}
            pool = _fitting("text" if is_text else "real", [*sorted(asked, key=repr), *stem])
            pools.update(dict.fromkeys(group, pool))
        return pools


def _fitting(kind: ColumnKind, values: Iterable[Value]) -> tuple[Cell, ...]:
    """Keep the values that a column of this kind can hold; a numeric column holds numbers only."""
    cells: dict[Cell, None] = {}
    for value in values:
        if kind in ("text", "date"):
            text = str(value)
            # A part of a date, or the format that takes it out, is not a date.
            if kind == "text" or len(text) >= _SHORTEST_DATE:
                cells[text] = None
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
