"""How long training rows are, as bars.

Knows counts by length.  Must not know HTML: coordinates run from 0 to 100 in both directions.
"""

from dataclasses import dataclass
from itertools import accumulate

from modelmill.report.axis import linear_axis
from modelmill.report.document import ReportDocument
from modelmill.report.panels import Tick
from modelmill.spec.figures import Finetuned, LengthBin


@dataclass(frozen=True)
class Bar:
    """Rows of about one length."""

    left: float
    width: float
    height: float
    is_over: bool
    """Whether they are longer than `max_length`."""


@dataclass(frozen=True)
class Lengths:
    """What is drawn, and what it says."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    limit: float | None
    """Where `max_length` lies, in percent; None where no row comes near it."""
    summary: str


def row_lengths(document: ReportDocument) -> Lengths | None:
    """Draw the lengths of a run's training rows; None where nothing was trained on."""
    for stage in document.stages:
        if isinstance(stage.figures, Finetuned) and stage.figures.lengths:
            return _drawn(stage.figures)
    return None


def _drawn(figures: Finetuned) -> Lengths:
    bins, limit = figures.lengths, figures.max_length
    axis = linear_axis(0.0, float(bins[-1].upto))
    width, most = bins[0].upto, max(each.rows for each in bins)
    return Lengths(
        bars=tuple(
            Bar(
                left=round(axis.at(each.upto - width), 3),
                width=round(axis.at(width) * 0.92, 3),
                height=round(100 * each.rows / most, 3),
                is_over=limit is not None and each.upto - width >= limit,
            )
            for each in bins
        ),
        ticks=tuple(Tick(axis.at(value), f"{value:g}") for value in axis.ticks),
        limit=None if limit is None or limit > bins[-1].upto else axis.at(limit),
        summary=_summary(bins, limit),
    )


def _summary(bins: tuple[LengthBin, ...], limit: int | None) -> str:
    total = sum(each.rows for each in bins)
    seen = list(accumulate(each.rows for each in bins))
    half, most = (
        next(each.upto for each, rows in zip(bins, seen, strict=True) if rows >= share * total)
        for share in (0.5, 0.95)
    )
    allowed = "" if limit is None else f"; max_length is {limit:,}"
    return (
        f"Half of {total:,} training rows have at most {half:,} tokens, 95 % at most {most:,}, "
        f"the longest at most {bins[-1].upto:,}{allowed}."
    )
