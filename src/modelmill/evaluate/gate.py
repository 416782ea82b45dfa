"""Decide from paired rows whether a model is measurably worse than another.

Knows scores and one bound.  Which models matter for the run's end is the caller's choice:
every model gets a verdict.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import numpy as np

from modelmill.evaluate.scores import Scores
from modelmill.evaluate.statistics import (
    FEWEST_ROWS,
    Floats,
    Interval,
    difference_interval,
    rows_needed,
)
from modelmill.spec.errors import InputMissing
from modelmill.spec.records import Record

Outcome = Literal["good", "bad", "undecided"]


class Verdict(Record):
    """What the gate says about one model.

    Differences are signed so that positive is worse, in the metric's own unit.
    """

    model: str
    against: str
    verdict: Outcome
    max_worse: float
    n: int
    """Rows that both models have a score for."""
    difference: float | None = None
    """None where no row is shared."""
    low: float | None = None
    high: float | None = None
    rows_needed: int | None = None
    """Of an undecided verdict: the n that would decide, if rows go on like these.  None where
    no number of rows would, because the difference is the bound itself."""


def judge(
    scores: Mapping[str, Scores], against: str, max_worse: float, seed: int
) -> tuple[Verdict, ...]:
    """Give every other model a verdict against one of them, in the order of `scores`.

    Good: the whole 95 % interval of the paired difference is at most `max_worse`; bad: the
    whole interval is above it; undecided: anything else, or fewer than 10 shared rows.

    Raises:
        InputMissing: the model to compare with has no scores.

    """
    if against not in scores:
        raise InputMissing(
            f"the gate compares with '{against}', which has no predictions",
            fix="look why its infer stage failed, then resume the run",
        )
    return tuple(
        _verdict((model, against), scores, max_worse, seed) for model in scores if model != against
    )


def gate_failed(verdicts: Iterable[Verdict], gated: Collection[str]) -> bool:
    """Whether a gated model is bad; an undecided one does not fail a run."""
    return any(verdict.model in gated and verdict.verdict == "bad" for verdict in verdicts)


def paired_differences(candidate: Scores, against: Scores) -> Floats:
    """Subtract row by row over the shared rows, signed so that positive is worse."""
    shared = sorted(candidate.values.keys() & against.values.keys())
    sign = -1.0 if candidate.scale.higher_is_better else 1.0
    return np.array([sign * (candidate.values[row] - against.values[row]) for row in shared])


def _verdict(
    pair: tuple[str, str], scores: Mapping[str, Scores], max_worse: float, seed: int
) -> Verdict:
    model, against = pair
    differences = paired_differences(scores[model], scores[against])
    n = len(differences)
    blank = Verdict(
        model=model,
        against=against,
        verdict="undecided",
        max_worse=max_worse,
        n=n,
        rows_needed=FEWEST_ROWS,
    )
    if not n:
        return blank
    of_shares = scores[model].scale.is_share
    interval = difference_interval(differences, seed, of_shares=of_shares)
    outcome = _outcome(interval, max_worse) if n >= FEWEST_ROWS else "undecided"
    needed = rows_needed(differences, max_worse, of_shares=of_shares)
    return blank.model_copy(
        update={
            "verdict": outcome,
            "difference": interval.value,
            "low": interval.low,
            "high": interval.high,
            "rows_needed": needed if outcome == "undecided" else None,
        }
    )


def _outcome(interval: Interval, max_worse: float) -> Outcome:
    if interval.high <= max_worse:
        return "good"
    return "bad" if interval.low > max_worse else "undecided"
