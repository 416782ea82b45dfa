"""Pick the test rows that show most, always the same ones.

Knows answers and whether they are right.  The only module that lets text of the data into
the document; `samples: 0` ends here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from modelmill.evaluate.flips import Flipped
from modelmill.report.document import Answer, FlippedRow, Flips, Sample, Samples
from modelmill.report.facts import RunFacts
from modelmill.report.judge import Judgement
from modelmill.spec.infer import MetricName
from modelmill.spec.records import Prediction
from modelmill.spec.run import TUNED

Answers = Mapping[str, Mapping[int, Prediction]]
"""By model, then by row."""


def pick_samples(facts: RunFacts, judgement: Judgement) -> Samples:
    """Pick rows so that the models' differences show.

    Rows are grouped by which models are right in them; groups where models differ come
    first, the larger before the smaller, and every group gives one row before one gives a
    second.  Without a metric that judges single answers, rows are grouped by which models
    answer alike.
    """
    answers = _answers(facts, judgement)
    wanted = facts.plan.report.samples
    if not wanted or not answers:
        return Samples(rows=(), metric=None)
    rows = sorted(set.intersection(*(set(by_row) for by_row in answers.values())))
    picked = _spread([_pattern(row, answers, judgement) for row in rows], rows)[:wanted]
    return Samples(
        rows=tuple(_sample(row, answers, judgement) for row in picked),
        metric=judgement.sample_metric,
    )


def _answers(facts: RunFacts, judgement: Judgement) -> Answers:
    found = {}
    for model in judgement.models:
        stage = facts.find(model.chosen.stage) if model.chosen is not None else None
        if stage is not None and stage.predictions:
            found[model.model] = {each.row: each for each in stage.predictions}
    return found


def _pattern(row: int, answers: Answers, judgement: Judgement) -> tuple[int, ...]:
    """Write down who is right, or who says the same, as numbers in the models' order."""
    if judgement.sample_metric is not None:
        return tuple(
            int(judgement.right[model].get(row, False)) if model in judgement.right else 0
            for model in answers
        )
    outputs = [by_row[row].output for by_row in answers.values()]
    return tuple(outputs.index(output) for output in outputs)


def _spread(patterns: list[tuple[int, ...]], rows: list[int]) -> list[int]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for pattern, row in zip(patterns, rows, strict=True):
        groups.setdefault(pattern, []).append(row)
    ordered = sorted(
        groups.items(),
        key=lambda group: (len(set(group[0])) == 1, -len(group[1]), group[0]),
    )
    rounds = max((len(group) for _, group in ordered), default=0)
    return [group[turn] for turn in range(rounds) for _, group in ordered if turn < len(group)]


def _sample(row: int, answers: Answers, judgement: Judgement) -> Sample:
    known = next((answers[name] for name in TUNED if name in answers), None)
    asked = (next(iter(answers.values())) if known is None else known)[row]
    named = {each.field: each.name_of(asked.fields) for each in judgement.slicings}
    sliced = {field: name for field, name in named.items() if name is not None}
    return Sample(
        row=row,
        slice=sliced.get(next(iter(named), ""), ""),
        sliced=sliced,
        prompt=asked.prompt,
        reference=asked.reference,
        answers=tuple(
            answer_of(model, by_row[row], judgement.right.get(model, {}).get(row))
            for model, by_row in answers.items()
        ),
    )


def answer_of(model: str, prediction: Prediction, right: bool | None) -> Answer:
    """Show what a model made of a row."""
    return Answer(
        model=model,
        output=prediction.output,
        right=right,
        nll=prediction.nll,
        problem=prediction.error,
    )


@dataclass(frozen=True)
class Pair:
    """Two models that answered the same rows, and how much of that may be shown."""

    before: tuple[str, Mapping[int, Prediction]]
    """Name and answers by row."""
    after: tuple[str, Mapping[int, Prediction]]
    samples: int
    """Rows at most."""


def show_flips(metric: MetricName, found: Flipped, pair: Pair) -> Flips:
    """Count the rows that flipped, and show as many as may be."""
    return Flips(
        metric=metric,
        n=found.n,
        lost=len(found.lost),
        gained=len(found.gained),
        p_value=found.p_value,
        rows=tuple(_flipped_row(row, found, pair) for row in found.pick(pair.samples)),
    )


def _flipped_row(row: int, found: Flipped, pair: Pair) -> FlippedRow:
    (before, asked), (after, answered) = pair.before, pair.after
    was_lost = row in found.lost
    return FlippedRow(
        row=row,
        change="lost" if was_lost else "gained",
        prompt=answered[row].prompt,
        reference=answered[row].reference,
        before=answer_of(before, asked[row], was_lost),
        after=answer_of(after, answered[row], not was_lost),
    )


def gate_flips(facts: RunFacts, judgement: Judgement) -> Mapping[str, tuple[Flips, ...]]:
    """Show by gated model what became of single answers since the one it is held against."""
    if judgement.gate is None:
        return {}
    answers = _answers(facts, judgement)
    return {
        model.model: tuple(
            show_flips(
                metric,
                found,
                Pair(
                    (judgement.gate.against, answers[judgement.gate.against]),
                    (model.model, answers[model.model]),
                    facts.plan.report.samples if metric == judgement.sample_metric else 0,
                ),
            )
            for metric, found in model.flips.items()
        )
        for model in judgement.models
        if model.flips
    }
