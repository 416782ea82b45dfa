"""How the values of a metric are read: which way is better, in what unit, and how far they go.

Knows no rows and computes nothing, so that the command line can show a report without numpy.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from modelmill.spec.infer import MetricName
from modelmill.spec.records import Record


class Scale(Record):
    """How the values of one metric are read."""

    title: str
    unit: str = ""
    higher_is_better: bool = True
    is_share: bool = False
    """Whether every row scores 0 or 1, so that a mean is a share and rows are right or wrong."""
    low: float | None = None
    """The smallest value there can be; None where there is no such."""
    high: float | None = None
    made_by: str = ""
    """Package and version of a plug-in; empty for modelmill's own metrics."""


SCALES: Final[Mapping[MetricName, Scale]] = {
    "sql_execution": Scale(title="SQL execution", unit="share", is_share=True, low=0, high=1),
    "exact_match": Scale(title="Exact match", unit="share", is_share=True, low=0, high=1),
    "nll": Scale(title="NLL", unit="nats/token", higher_is_better=False, low=0),
}
"""Of modelmill's own metrics, in the order in which they speak."""


def in_order(names: Iterable[MetricName]) -> tuple[MetricName, ...]:
    """Sort metrics by who speaks first: those that read answers, then one of probabilities.

    Among the former a metric that runs answers comes before one that compares text, and
    plug-ins, of which nothing is known, come last.
    """
    ranks: dict[MetricName, int] = {"sql_execution": 0, "exact_match": 1, "nll": 3}
    return tuple(sorted(set(names), key=lambda name: (ranks.get(name, 2), name)))
