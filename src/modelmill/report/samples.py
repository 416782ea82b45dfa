"""Pick the test rows that show most, always the same ones.

Knows answers and whether they are right.  The only module that lets text of the data into
the document; `samples: 0` ends here.
"""

from collections.abc import Mapping

from modelmill.report.document import Answer, Sample, Samples
from modelmill.report.facts import RunFacts
from modelmill.report.judge import Judgement
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
        rows=tuple(_sample(row, answers, judgement, facts.plan.report.slice) for row in picked),
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


def _sample(row: int, answers: Answers, judgement: Judgement, field: str | None) -> Sample:
    known = next((answers[name] for name in TUNED if name in answers), None)
    asked = (next(iter(answers.values())) if known is None else known)[row]
    return Sample(
        row=row,
        slice=str(asked.fields.get(field, "")) if field is not None else "",
        prompt=asked.prompt,
        reference=asked.reference,
        answers=tuple(
            Answer(
                model=model,
                output=by_row[row].output,
                right=judgement.right[model].get(row) if model in judgement.right else None,
                nll=by_row[row].nll,
                problem=by_row[row].error,
            )
            for model, by_row in answers.items()
        ),
    )
