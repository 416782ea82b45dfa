"""Score groups of rows that share the value of a data field.

Numbers that take many values are put into ranges with about equally many rows; texts that do
are refused in words, because a group per row says nothing and would carry the data out.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from pydantic import JsonValue

from modelmill.evaluate.scores import MetricValue, Scores, summarize
from modelmill.spec.records import Prediction, Record

MOST_NUMBERS: Final = 12
"""More different numbers than this are put into ranges."""
RANGES: Final = 5
MOST_VALUES: Final = 50
"""More different values than this are no groups."""


class Slice(Record):
    """The rows with one value of a field, and their score."""

    field: str
    value: str
    """As JSON writes it, texts without their quotes; of a range the first and last number."""
    score: MetricValue


@dataclass(frozen=True)
class Slicing:
    """How the values of one field are grouped, the same for all models."""

    field: str
    names: Mapping[str, str]
    """The name of the group of each value, by the value's JSON; groups in their order."""
    problem: str = ""
    """Why there are no groups."""
    is_binned: bool = False
    """Whether groups are ranges of numbers."""

    @property
    def values(self) -> tuple[str, ...]:
        """List the names of the groups in their order."""
        return tuple(dict.fromkeys(self.names.values()))

    def name_of(self, fields: Mapping[str, JsonValue]) -> str | None:
        """Name the group of a row; None where the row has no such field."""
        return self.names.get(_written(fields[self.field])) if self.field in fields else None


def slicing(field: str, rows: Iterable[Mapping[str, JsonValue]]) -> Slicing:
    """Decide how rows are grouped by a field.

    Args:
        field: the field.
        rows: the fields of all rows that will be grouped, whatever their order.
    """
    found = Counter(_written(fields[field]) for fields in rows if field in fields)
    if not found:
        return Slicing(field, {}, f"no test row has a field '{field}'")
    values: dict[str, JsonValue] = {text: json.loads(text) for text in found}
    numbers = {
        text: value
        for text, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    if len(numbers) == len(values):
        ordered = sorted(numbers, key=lambda text: (numbers[text], text))
        if len(ordered) > MOST_NUMBERS:
            return Slicing(field, _ranges(ordered, found), is_binned=True)
    elif len(values) > MOST_VALUES:
        problem = f"the field '{field}' has {len(values):,} different values, too many for groups"
        return Slicing(field, {}, problem)
    else:
        ordered = sorted(values, key=lambda text: (_name(values[text]), text))
    return Slicing(field, {text: _name(values[text]) for text in ordered})


def summarize_by(
    groups: Slicing, predictions: Iterable[Prediction], scores: Scores, seed: int
) -> tuple[Slice, ...]:
    """Summarize a model's scores for each group, in the order of the groups.

    Rows without the field belong to no group.
    """
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for prediction in predictions:
        name = groups.name_of(prediction.fields)
        if name is not None:
            rows[name].append(prediction.row)
    return tuple(
        Slice(field=groups.field, value=name, score=summarize(scores, seed, rows[name]))
        for name in groups.values
        if name in rows
    )


def _written(value: JsonValue) -> str:
    """Write a value as JSON, equal numbers alike: 3.0 is 3."""
    if isinstance(value, float) and value.is_integer():
        return json.dumps(int(value))
    return json.dumps(value)


def _name(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _ranges(ordered: Sequence[str], counts: Mapping[str, int]) -> Mapping[str, str]:
    """Cut sorted numbers into ranges of about equally many rows; equal numbers stay together."""
    total, seen = sum(counts.values()), 0
    cuts, edge = [0], 1
    for index, text in enumerate(ordered):
        seen += counts[text]
        if seen >= edge * total / RANGES and index + 1 < len(ordered):
            cuts.append(index + 1)
            edge = math.floor(seen * RANGES / total) + 1
    groups = [ordered[start:stop] for start, stop in pairwise([*cuts, len(ordered)])]
    return {
        text: group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}"
        for group in groups
        for text in group
    }
