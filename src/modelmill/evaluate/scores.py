"""What a metric says about one model: a score per row, and their summary.

Knows rows by number and nothing of what was asked or answered.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from modelmill.evaluate.scale import Scale
from modelmill.evaluate.statistics import mean_interval, wilson_interval
from modelmill.spec.infer import MetricName
from modelmill.spec.records import Record


class Control(Record):
    """How well the metric tells wrong answers: its own negative control.

    Counted over the references of all scored rows, each once per row.
    """

    mutations: int
    """References changed in one place so that they mean something else."""
    caught: int
    """Those the metric scored as wrong."""

    @property
    def share(self) -> float:
        """The share of mutations caught; nothing to catch is nothing shown, so 0."""
        return self.caught / self.mutations if self.mutations else 0.0


@dataclass(frozen=True, slots=True)
class Scores:
    """One model's score on each row; every row is either scored or excluded."""

    metric: MetricName
    scale: Scale
    values: Mapping[int, float]
    excluded: Mapping[int, str] = field(default_factory=dict)
    """Why a row has no score, by row."""
    control: Control | None = None

    def right(self) -> Mapping[int, bool]:
        """Tell by row whether the answer is right; nothing where the scale does not say."""
        if not self.scale.is_share:
            return {}
        best = float(self.scale.higher_is_better)
        return {row: value == best for row, value in self.values.items()}

    def renumbered(self, rows: Mapping[int, int]) -> "Scores":
        """Give rows the numbers they have elsewhere; those that have none are dropped."""
        return replace(
            self,
            values={rows[row]: value for row, value in self.values.items() if row in rows},
            excluded={rows[row]: why for row, why in self.excluded.items() if row in rows},
        )


class MetricValue(Record):
    """A metric of one model, as the report shows it."""

    value: float | None
    """None where no row could be scored."""
    low: float | None
    high: float | None
    n: int
    excluded: Mapping[str, int] = {}
    """Rows without a score, by reason."""


def summarize(scores: Scores, seed: int, rows: Collection[int] | None = None) -> MetricValue:
    """Average a model's scores, of all rows or of some, with a 95 % interval.

    Shares get Wilson's interval, other means the percentile bootstrap over rows.
    """
    chosen = {*scores.values, *scores.excluded} if rows is None else set(rows)
    # Sorted, so that the seeded resampling does not depend on the order rows were scored in.
    values = np.array([scores.values[row] for row in sorted(chosen & scores.values.keys())])
    reasons = Counter(reason for row, reason in scores.excluded.items() if row in chosen)
    excluded = dict(sorted(reasons.items()))
    if not len(values):
        return MetricValue(value=None, low=None, high=None, n=0, excluded=excluded)
    interval = (
        wilson_interval(float(values.sum()), len(values))
        if scores.scale.is_share
        else mean_interval(values, seed)
    )
    return MetricValue(
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=len(values),
        excluded=excluded,
    )
