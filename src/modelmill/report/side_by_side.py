"""Hold the answers of one run against those of another, model by model and row by row.

Knows scores of both runs and which row is which.  A difference is the second run minus the
first; what is better follows from the metric's scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelmill.evaluate.flips import flipped
from modelmill.evaluate.pairing import changes, fingerprint, pair_rows
from modelmill.evaluate.scale import in_order
from modelmill.evaluate.scores import Scores
from modelmill.evaluate.slices import Slicing
from modelmill.evaluate.statistics import (
    FEWEST_ROWS,
    Interval,
    difference_interval,
    independent_difference,
)
from modelmill.report.asked import Asked, Measures, ask, best_of
from modelmill.report.comparison import (
    Change,
    ComparedModel,
    ComparedScore,
    Held,
    RowMatch,
    ScoreDifference,
    SlicedScore,
)
from modelmill.report.costs import (
    bits_per_weight,
    cost_of,
    inferred_by,
    made_by,
    quantized_by,
    unfinished_words,
)
from modelmill.report.document import Flips, Score
from modelmill.report.facts import RunFacts
from modelmill.report.samples import Pair, show_flips
from modelmill.spec.infer import MetricName
from modelmill.spec.records import Prediction


@dataclass(frozen=True)
class TwoSided:
    """One model in both runs, in every form it was asked in there."""

    forms: tuple[Sequence[Asked], Sequence[Asked]]

    @property
    def a(self) -> Asked | None:
        """The form the first run's report shows."""
        return best_of(self.forms[0])

    @property
    def b(self) -> Asked | None:
        """The form the second run's report shows."""
        return best_of(self.forms[1])

    def best(self) -> tuple[Asked, ...]:
        """List what there is of both."""
        return tuple(each for each in (self.a, self.b) if each is not None)


@dataclass(frozen=True)
class Table:
    """What is the same for every model that is compared."""

    runs: tuple[RunFacts, RunFacts]
    pairs: Mapping[int, int] | None
    """Rows of the first run by rows of the second; None where they are not the same."""
    seed: int
    samples: int
    """Rows that may be shown per model."""
    sample_metric: MetricName | None
    """The metric by which rows are shown."""
    slicings: tuple[Slicing, ...]


def two_sided(a: RunFacts, b: RunFacts, model: str, measures: Measures) -> TwoSided:
    """Score a model in both runs by the same measures."""
    return TwoSided((ask(a, model, measures), ask(b, model, measures)))


def match_rows(a: RunFacts, b: RunFacts) -> tuple[RowMatch, Mapping[int, int] | None]:
    """Tell whether both runs were asked the same rows, and which row is which.

    Rows are the same where the same fetch-test made them, or where references and fields are
    equal: then another template is a difference between the runs and not between the rows.
    """
    before, after = _rows(a), _rows(b)
    counts = {"a": len(before), "b": len(after)}
    if not before or not after:
        return RowMatch(same_by=None, **counts, sentence="No rows were answered in both."), None
    keys = [
        next(stage.stage.key for stage in each.stages if stage.stage.name == "fetch-test")
        for each in (a, b)
    ]
    if keys[0] == keys[1] and before.keys() == after.keys():
        told = f"Both answered the same {len(before):,} test rows, so they are compared row by row."
        return RowMatch(same_by="key", **counts, sentence=told), {row: row for row in before}
    pairs = pair_rows(before, after)
    if pairs is not None:
        told = (
            f"Both answered {len(before):,} test rows that hold the same, though they were fetched "
            "apart, so they are compared row by row."
        )
        return RowMatch(same_by="content", **counts, sentence=told), pairs
    told = (
        f"The test rows are not the same ({len(before):,} and {len(after):,}): scores are compared "
        "as those of two samples, which takes larger differences to tell, and no row is held "
        "against another."
    )
    return RowMatch(same_by=None, **counts, sentence=told), None


def _rows(facts: RunFacts) -> Mapping[int, str]:
    answered = next((stage.predictions for stage in facts.stages if stage.predictions), ())
    return {prediction.row: fingerprint(prediction) for prediction in answered}


def compared_model(name: str, both: TwoSided, table: Table) -> ComparedModel:
    """Hold a model's scores, size and costs of one run against those of the other."""
    a, b = both.a, both.b
    metrics = in_order(name for each in both.best() for name in each.scores)
    return ComparedModel(
        model=name,
        a=_held(table.runs[0], name, a),
        b=_held(table.runs[1], name, b),
        scores=tuple(_score(metric, a, b, table) for metric in metrics),
        sliced={
            groups.field: {
                value: tuple(
                    SlicedScore(
                        metric=metric,
                        a=_sliced(a, groups.field, value, metric),
                        b=_sliced(b, groups.field, value, metric),
                    )
                    for metric in metrics
                )
                for value in groups.values
            }
            for groups in table.slicings
            if not groups.problem
        },
    )


def _sliced(asked: Asked | None, field: str, value: str, metric: MetricName) -> Score | None:
    if asked is None:
        return None
    return asked.shown.sliced.get(field, {}).get(value, {}).get(metric)


def _held(facts: RunFacts, model: str, asked: Asked | None) -> Held:
    stage = None if asked is None else facts.find(asked.shown.stage)
    inferred, made = inferred_by(stage), made_by(facts, model)
    known = inferred or quantized_by(made)
    infer = facts.find(f"infer-{model}")
    return Held(
        method=known.method if known is not None else "",
        bits=known.bits if known is not None else None,
        size_bytes=known.size_bytes if known is not None else None,
        bits_per_weight=bits_per_weight(made, inferred),
        tokens_per_second=inferred.tokens_per_second if inferred is not None else None,
        speed_engine=inferred.speed.engine if inferred is not None and inferred.speed else "",
        made=cost_of(made),
        answering=cost_of([stage] if stage is not None else []),
        device=inferred.place if inferred is not None else "",
        prompt=asked.shown.form if asked is not None else "",
        problem=unfinished_words(infer) if asked is None and infer is not None else "",
    )


def _score(metric: MetricName, a: Asked | None, b: Asked | None, table: Table) -> ComparedScore:
    before = a.scores.get(metric) if a is not None else None
    after = b.scores.get(metric) if b is not None else None
    shown = tuple(None if each is None else each.shown.metrics.get(metric) for each in (a, b))
    difference, flips = None, None
    if a is not None and b is not None and before is not None and after is not None:
        if table.pairs is None:
            difference = _unpaired(before, shown)
        else:
            after = after.renumbered(table.pairs)
            difference = _paired(before, after, table.seed)
            if difference is not None and _is_shared((a, b), table):
                difference = difference.model_copy(update={"change": "same"})
            flips = _flips(before, after, (a, b), table)
    return ComparedScore(metric=metric, a=shown[0], b=shown[1], difference=difference, flips=flips)


def _is_shared(asked: tuple[Asked, Asked], table: Table) -> bool:
    """Whether one infer stage made the answers of both runs."""
    stages = [facts.find(form.shown.stage) for facts, form in zip(table.runs, asked, strict=True)]
    return len({stage.stage.key for stage in stages if stage is not None}) == 1


def _paired(before: Scores, after: Scores, seed: int) -> ScoreDifference | None:
    found = changes(before, after)
    if not len(found):
        return None
    interval = difference_interval(found, seed, of_shares=before.scale.is_share)
    return _difference(interval, before, len(found), is_paired=True)


def _unpaired(scores: Scores, shown: Sequence[Score | None]) -> ScoreDifference | None:
    a, b = shown
    if a is None or b is None:
        return None
    one, other = (Interval(value=each.value, low=each.low, high=each.high) for each in (a, b))
    return _difference(independent_difference(one, other), scores, min(a.n, b.n), is_paired=False)


def _difference(interval: Interval, scores: Scores, n: int, *, is_paired: bool) -> ScoreDifference:
    change: Change = "undecided"
    if n >= FEWEST_ROWS and (interval.low > 0 or interval.high < 0):
        is_better = (interval.low > 0) == scores.scale.higher_is_better
        change = "better" if is_better else "worse"
    return ScoreDifference(
        value=interval.value,
        low=interval.low,
        high=interval.high,
        is_paired=is_paired,
        n=n,
        change=change,
    )


def _flips(before: Scores, after: Scores, asked: tuple[Asked, Asked], table: Table) -> Flips | None:
    if not before.scale.is_share or table.pairs is None:
        return None
    one, other = (
        (facts.run, {each.row: each for each in _answers(facts, form)})
        for facts, form in zip(table.runs, asked, strict=True)
    )
    renumbered = {table.pairs[row]: each for row, each in other[1].items() if row in table.pairs}
    return show_flips(
        before.metric,
        flipped(before.right(), after.right()),
        Pair(
            one,
            (other[0], renumbered),
            table.samples if before.metric == table.sample_metric else 0,
        ),
    )


def _answers(facts: RunFacts, form: Asked) -> tuple[Prediction, ...]:
    stage = facts.find(form.shown.stage)
    return () if stage is None else stage.predictions
