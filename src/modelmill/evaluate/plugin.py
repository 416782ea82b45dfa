"""What a metric of another package is: a function over one answered row, and what it promises.

The author's side is `TextMetric` and `Answered`; docs/metrics.md shows how they are used.
Knows nothing about how plug-ins are found.
"""

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeAlias

from pydantic import BaseModel, JsonValue

from modelmill.evaluate.answers import extract_answer
from modelmill.evaluate.scale import Scale
from modelmill.evaluate.scores import Scores
from modelmill.spec.errors import MetricFailed, SpecError
from modelmill.spec.infer import PLUGINS, MetricName
from modelmill.spec.records import Prediction


@dataclass(frozen=True)
class Answered:
    """One test row and what a model made of it."""

    prompt: str
    reference: str
    answer: str
    """The answer inside the output, found by the same rule for every model."""
    output: str
    """All that the model wrote."""
    fields: Mapping[str, JsonValue]
    """The test row as it was in the data."""


@dataclass(frozen=True)
class TextMetric:
    """A metric as its author declares it; what an entry point in `modelmill.metrics` names.

    Raises:
        ValueError: the promises contradict each other.
    """

    score: Callable[[Answered, Any], float]
    """Given a row and the settings; must be deterministic and stay within `low` and `high`."""
    settings: type[BaseModel] | None = None
    """What checks the settings in `run.yaml`; without it they are passed on as a mapping."""
    higher_is_better: bool = True
    is_binary: bool = False
    """Whether every score is 0 or 1; then rows are right or wrong, and can flip."""
    low: float | None = 0.0
    """The smallest score; None where there is no such."""
    high: float | None = 1.0
    title: str = ""
    """As a column head; the plug-in's name when empty."""
    unit: str = ""

    def __post_init__(self) -> None:
        """Refuse promises that cannot be kept."""
        if self.is_binary and (self.low, self.high) != (0.0, 1.0):
            raise ValueError("a binary metric goes from 0 to 1")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")


@dataclass(frozen=True)
class PluginMetric:
    """A declared metric with the settings of one run."""

    plugin: str
    """Its name in the spec, without `plugins.`."""
    declared: TextMetric
    settings: BaseModel | Mapping[str, JsonValue]
    made_by: str
    """The package that brought it, and its version."""

    @property
    def name(self) -> MetricName:
        """What the gate and reports call it."""
        return f"{PLUGINS}{self.plugin}"

    @property
    def scale(self) -> Scale:
        """How its values are read."""
        declared = self.declared
        return Scale(
            title=declared.title or self.plugin,
            unit=declared.unit,
            higher_is_better=declared.higher_is_better,
            is_share=declared.is_binary,
            low=declared.low,
            high=declared.high,
            made_by=self.made_by,
        )

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """Score every row; a row the model could not be run on gets the worst score there is.

        Where there is no worst score such a row is excluded.

        Raises:
            MetricFailed: the plug-in raised, or broke a promise, on a row.
        """
        worst = self.declared.low if self.declared.higher_is_better else self.declared.high
        values: dict[int, float] = {}
        excluded: dict[int, str] = {}
        for prediction in predictions:
            if not prediction.error:
                values[prediction.row] = self._value(prediction)
            elif worst is not None:
                values[prediction.row] = worst
            else:
                excluded[prediction.row] = "the model could not be run on the row"
        return Scores(metric=self.name, scale=self.scale, values=values, excluded=excluded)

    def _value(self, prediction: Prediction) -> float:
        row = Answered(
            prompt=prediction.prompt,
            reference=prediction.reference,
            answer=extract_answer(prediction.output, prediction.reference),
            output=prediction.output,
            fields=prediction.fields,
        )
        try:
            value = float(self.declared.score(row, self.settings))
        except (Exception, SystemExit) as error:
            raise self._failure(prediction.row, f"raised {_where(error)}") from error
        broken = self._broken_promise(value)
        if broken:
            raise self._failure(prediction.row, f"returned {value:g}, but {broken}")
        # A score of -0.0 is one of 0.
        return value + 0.0

    def _broken_promise(self, value: float) -> str:
        low, high = self.declared.low, self.declared.high
        if not math.isfinite(value):
            return "a score is a finite number"
        if low is not None and value < low:
            return f"declares that no score is below {low:g}"
        if high is not None and value > high:
            return f"declares that no score is above {high:g}"
        if self.declared.is_binary and value not in (0.0, 1.0):
            return "declares that every score is 0 or 1"
        return ""

    def _failure(self, row: int, what: str) -> MetricFailed:
        return MetricFailed(
            f"The metric plug-in '{self.plugin}' ({self.made_by}) {what}",
            at=f"test row {row}",
            fix="mend the plug-in, install it again, and run again with --again report",
        )


Plugins: TypeAlias = Mapping[str, PluginMetric | SpecError]
"""By name in the spec: the metric, or why it cannot be used here."""


def _where(error: BaseException) -> str:
    """Name an error and its place, but not its words: they may quote the data."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {PurePath(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
