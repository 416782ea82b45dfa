"""Score groups of rows that share the value of a data field."""

import json
from collections import defaultdict
from collections.abc import Iterable

from modelmill.evaluate.scores import MetricValue, Scores, summarize
from modelmill.spec.records import Prediction, Record


class Slice(Record):
    """The rows with one value of a field, and their score."""

    field: str
    value: str
    """As JSON writes it, texts without their quotes."""
    score: MetricValue


def summarize_by(
    field: str, predictions: Iterable[Prediction], scores: Scores, seed: int
) -> tuple[Slice, ...]:
    """Summarize a model's scores for each value of a field, sorted by value.

    Rows without the field belong to no slice.
    """
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for prediction in predictions:
        if field in prediction.fields:
            value = prediction.fields[field]
            rows[value if isinstance(value, str) else json.dumps(value)].append(prediction.row)
    return tuple(
        Slice(field=field, value=value, score=summarize(scores, seed, rows[value]))
        for value in sorted(rows)
    )
