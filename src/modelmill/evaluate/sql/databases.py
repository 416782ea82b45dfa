"""Fill the tables of a schema with small, related, confusable values.

A value is drawn near what the queries ask for: their literals, near misses of them, and a
domain of a few fillers that columns share, so that rows repeat, join and collide.  Columns
of unrelated random strings look harmless and accept 98 % of wrong columns, because every
query then answers nothing.  Everything is decided by the given random generator.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Final

from modelmill.evaluate.sql.execution import Cell, Database, Row
from modelmill.evaluate.sql.hints import Hints, Value
from modelmill.evaluate.sql.schema import ColumnKind, ColumnRef, Schema, Table

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
_HALVES_SHARE: Final = 0.5
_PARTNER_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True)
class _Domain:
    """The values that make sense in one column, in every database of a filling."""

    name: str
    kind: ColumnKind
    exact: tuple[Cell, ...]
    near: tuple[Cell, ...]
    foreign: tuple[Cell, ...]
    nullable: bool
    parent: tuple[str, int] | None
    """Table and column position that a foreign key points to."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where one column's values come from, in one database."""

    domain: _Domain
    filler: Sequence[Cell]
    partners: Sequence[Cell]
    always_partner: bool

    def draw(self, rng: random.Random) -> Cell:
        domain = self.domain
        if domain.nullable and rng.random() < _NULL_SHARE:
            return None
        if self.partners and (self.always_partner or rng.random() < _PARTNER_SHARE):
            return rng.choice(self.partners)
        dice = rng.random()
        if domain.exact and dice < _EXACT:
            return rng.choice(domain.exact)
        if domain.near and dice < _EXACT + _NEAR:
            return rng.choice(domain.near)
        if domain.foreign and dice > 1 - _FOREIGN:
            return rng.choice(domain.foreign)
        return rng.choice(self.filler)

    def distinct(self, rng: random.Random, count: int) -> Sequence[Cell]:
        """Draw different values for a key, those that others refer to or ask for first."""
        wanted = [*dict.fromkeys((*self.partners, *self.domain.exact, *self.domain.near))]
        if self.always_partner:
            wanted = [*dict.fromkeys(self.partners)]
        rng.shuffle(wanted)
        if len(wanted) >= count or self.always_partner:
            return wanted[:count]
        others = [cell for cell in _fillers(self.domain, rng, _MOST_ROWS) if cell not in wanted]
        return [*wanted, *others][:count]


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


class Filling:
    """Makes databases of one schema for queries with the given hints."""

    def __init__(self, schema: Schema, hints: Hints) -> None:
        """Work out what is the same in all databases."""
        self._schema = schema
        self._hints = hints
        self._domains = {
            name: [self._domain(ColumnRef(name, column.name.lower())) for column in table.columns]
            for name, table in schema.tables.items()
        }
        self._groups = self._partner_groups()
        around = {size for count in hints.counts for size in (count, count + 2, 3 * count + 1)}
        fitting = sorted(size for size in around if 0 < size <= _MOST_ROWS)
        self._row_counts = (*_ROW_COUNTS, *fitting)

    def database(self, rng: random.Random) -> Database:
        """Fill all tables once.

        Keys hold, and a declared foreign key to another table points to a row that exists.
        """
        pools: dict[ColumnRef, tuple[Cell, ...]] = {}
        for kind, asked, members in self._groups:
            size = rng.choice(_POOL_SIZES)
            stem: list[Value] = [f"k{n}" if kind == "text" else n for n in range(1, size + 1)]
            pools.update(dict.fromkeys(members, _fitting(kind, [*asked, *stem])))
        database: dict[str, tuple[Row, ...]] = {}
        for table in self._schema.tables.values():
            database[table.name.lower()] = self._fill(table, pools, database, rng)
        return database

    def _fill(
        self,
        table: Table,
        pools: Mapping[ColumnRef, tuple[Cell, ...]],
        database: Database,
        rng: random.Random,
    ) -> tuple[Row, ...]:
        table_name = table.name.lower()
        sources: list[_Source] = []
        for domain in self._domains[table_name]:
            parents: list[Cell] = []
            if domain.parent is not None and domain.parent[0] in database:
                parent_table, position = domain.parent
                parents = [row[position] for row in database[parent_table]]
            partners = parents or pools.get(ColumnRef(table_name, domain.name), ())
            filler = _fillers(domain, rng, rng.choice(_VARIETIES))
            sources.append(_Source(domain, filler, partners, always_partner=bool(parents)))
        names = [source.domain.name for source in sources]
        keys = [[names.index(name) for name in key] for key in table.keys]
        taken: list[set[Row]] = [set() for _ in keys]
        count = rng.choice(self._row_counts)
        distinct = {key[0]: sources[key[0]].distinct(rng, count) for key in keys if len(key) == 1}
        rows: list[Row] = []
        for number in range(min([count, *map(len, distinct.values())])):
            row = tuple(
                distinct[index][number] if index in distinct else source.draw(rng)
                for index, source in enumerate(sources)
            )
            marks = [tuple(row[index] for index in key) for key in keys]
            if any(mark in seen for mark, seen in zip(marks, taken, strict=True)):
                continue
            for mark, seen in zip(marks, taken, strict=True):
                seen.add(mark)
            rows.append(row)
        return tuple(rows)

    def _domain(self, ref: ColumnRef) -> _Domain:
        kind = self._kind(ref)
        values = self._hints.values
        asked = sorted(values.get(ref, ()), key=repr)
        foreign = self._hints.loose.union(*(values[other] for other in values if other != ref))
        parent = self._schema.foreign_keys.get(ref)
        position = None
        if parent is not None:
            columns = self._schema.tables[parent.table].columns
            names = [column.name.lower() for column in columns]
            position = (parent.table, names.index(parent.column))
        return _Domain(
            name=ref.column,
            kind=kind,
            exact=_fitting(kind, asked),
            near=_fitting(kind, (miss for value in asked for miss in near_misses(value))),
            foreign=_fitting(kind, sorted(foreign, key=repr)),
            nullable=ref in self._hints.nullable and self._schema.column(ref).nullable,
            parent=position,
        )

    def _kind(self, ref: ColumnRef) -> ColumnKind:
        kind = self._schema.column(ref).kind
        if ref not in self._hints.numeric or kind not in ("text", "date"):
            return kind
        # Fractions where nobody asks for any would make a cast to INTEGER a mistake.
        asked = self._hints.values.get(ref, ())
        return "real" if any(isinstance(value, float) for value in asked) else "integer"

    def _partner_groups(self) -> list[tuple[ColumnKind, list[Value], list[ColumnRef]]]:
        """Group columns that are compared with each other; they share one small pool."""
        groups: dict[ColumnRef, set[ColumnRef]] = {}
        for left, right in sorted([*self._hints.equated, *self._schema.foreign_keys.items()]):
            merged = groups.get(left, {left}) | groups.get(right, {right})
            groups.update(dict.fromkeys(merged, merged))
        found: list[tuple[ColumnKind, list[Value], list[ColumnRef]]] = []
        for members in dict.fromkeys(tuple(sorted(group)) for group in groups.values()):
            is_text = all(self._kind(member) in ("text", "date") for member in members)
            asked = {value for one in members for value in self._hints.values.get(one, ())}
            kind: ColumnKind = "text" if is_text else "real"
            found.append((kind, sorted(asked, key=repr), [*members]))
        return found


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


def _fillers(domain: _Domain, rng: random.Random, variety: int) -> Sequence[Cell]:
    if domain.kind == "boolean":
        return (0, 1)
    if domain.kind == "date":
        return _days(rng.randrange(1990, 2025), variety)
    if domain.kind == "text":
        # Values of its own make a wrong column visible, shared ones make columns confusable.
        return _words(rng.choice(("v", domain.name)), variety)
    start = rng.choice((0, 1, 1, 10, 1000))
    if domain.kind == "real" and rng.random() < _HALVES_SHARE:
        return _halves(start, variety)
    return range(start, start + variety)


@lru_cache(maxsize=1024)
def _words(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}{index}" for index in range(count))


@lru_cache(maxsize=128)
def _days(year: int, count: int) -> tuple[str, ...]:
    first = date(year, 1, 15).toordinal()
    return tuple(date.fromordinal(first + 17 * index).isoformat() for index in range(count))


@lru_cache(maxsize=64)
def _halves(start: int, count: int) -> tuple[float, ...]:
    return tuple(start + index / 2 for index in range(count))
