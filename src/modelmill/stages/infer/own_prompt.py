"""The base model's best form, chosen on rows that are neither test nor examples.

A base model asked in the form that the fine-tune was trained on looks worse than it is;
the comparison must be with what a user would get out of it today.
"""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelmill.spec.records import Prediction, Row
from modelmill.stages.infer.forms import Form

JUDGED_ROWS: Final = 16
"""Enough to tell a form that works from one that does not; costs seconds."""


@dataclass(frozen=True)
class Score:
    """How well a form does on the judged rows."""

    exact_match: float
    nll: float
    """Mean over rows, in nats per token; decides between equal matches."""
    rows: int


def choose_shots(train: Sequence[Row], shots: int, seed: int) -> tuple[Row, ...]:
    """Draw the examples of the few-shot form; the same ones for the same seed."""
    # A row that is taken twice by the weight of its source is one example.
    rows = list({row.row: row for row in train}.values())
    return tuple(random.Random(seed).sample(rows, min(shots, len(rows))))  # noqa: S311


def judged_rows(
    evaluation: Sequence[Row], train: Sequence[Row], shots: Sequence[Row]
) -> tuple[Row, ...]:
    """Take the first eval rows, or where there are none the last train rows that are no shots."""
    if evaluation:
        return tuple(evaluation[:JUDGED_ROWS])
    shown = {shot.row for shot in shots}
    return tuple([row for row in train if row.row not in shown][-JUDGED_ROWS:])


def score(predictions: Sequence[Prediction]) -> Score:
    """Score a form by what it answered; a quarantined row is a wrong one."""
    matches = [
        not each.error and _normal(each.output) == _normal(each.reference) for each in predictions
    ]
    likelihoods = [each.nll for each in predictions if each.nll is not None]
    return Score(
        exact_match=statistics.fmean(matches) if matches else 0.0,
        nll=statistics.fmean(likelihoods) if likelihoods else float("inf"),
        rows=len(matches),
    )


def choose_form(
    forms: Sequence[Form], answer: Callable[[Form], Sequence[Prediction]]
) -> tuple[Form, Mapping[str, Score]]:
    """Answer the judged rows in every form and take the best; returns all scores by name."""
    scores = {form.name: score(answer(form)) for form in forms}
    best = max(forms, key=lambda form: (scores[form.name].exact_match, -scores[form.name].nll))
    return best, scores


def _normal(text: str) -> str:
    return " ".join(text.split()).rstrip("; ").casefold()
