"""What each model of a run answered, scored: every metric, every form of prompt, every slice.

Knows predictions and metrics.  Must not know the gate; `judge` holds models against each other.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelmill.evaluate.metrics import Metric, metrics_of
from modelmill.evaluate.plugin import Plugins
from modelmill.evaluate.scale import Scale, in_order
from modelmill.evaluate.scores import MetricValue, Scores, summarize
from modelmill.evaluate.slices import Slicing, slicing, summarize_by
from modelmill.report.costs import inferred_by
from modelmill.report.document import MetricProblem, PromptScores, Score, SliceField
from modelmill.report.facts import RunFacts, StageFacts
from modelmill.spec.errors import MetricFailed, SpecError
from modelmill.spec.infer import PLUGINS, MetricName, MetricsSpec


@dataclass(frozen=True)
class Measures:
    """How the answers of a run are scored."""

    metrics: tuple[Metric, ...]
    slicings: tuple[Slicing, ...]
    problems: tuple[MetricProblem, ...]
    """Plug-ins that cannot be used here."""
    seed: int


@dataclass(frozen=True)
class Asked:
    """One model asked in one form: what the report shows, and the scores behind it."""

    shown: PromptScores
    scores: Mapping[MetricName, Scores]
    problems: Mapping[MetricName, MetricFailed]
    """Metrics that failed on one of its rows."""

    def quality(self) -> tuple[float, ...]:
        """Order forms of one model: larger is better, the metric that speaks first decides."""
        return tuple(self._goodness(name) for name in in_order([*self.scores, *self.problems]))

    def _goodness(self, metric: MetricName) -> float:
        score = self.shown.metrics.get(metric)
        if score is None:
            return -math.inf
        return score.value if self.scores[metric].scale.higher_is_better else -score.value


def measures_of(
    metrics: MetricsSpec, slicings: tuple[Slicing, ...], plugins: Plugins, seed: int
) -> Measures:
    """Choose what answers are scored by.

    Args:
        metrics: what is asked for.
        slicings: how rows are grouped.
        plugins: every plug-in that is asked for, or why it cannot be used.
        seed: of resampling.
    """
    usable = [each for each in plugins.values() if not isinstance(each, SpecError)]
    return Measures(
        metrics=(*metrics_of(metrics), *usable),
        slicings=slicings,
        problems=tuple(
            MetricProblem(metric=f"{PLUGINS}{name}", message=str(each), exit_code=each.exit_code)
            for name, each in plugins.items()
            if isinstance(each, SpecError)
        ),
        seed=seed,
    )


def slicings_of(fields: Sequence[str], runs: Iterable[RunFacts]) -> tuple[Slicing, ...]:
    """Decide how test rows are grouped, the same for every model of every run."""
    rows = [
        prediction.fields
        for facts in runs
        # Every model has answered the same rows; one that did counts each row once.
        for stage in [next((each for each in facts.stages if each.predictions), None)]
        if stage is not None
        for prediction in stage.predictions
    ]
    return tuple(slicing(field, rows) for field in fields) if rows else ()


def ask(facts: RunFacts, model: str, measures: Measures) -> list[Asked]:
    """Score a model in every form it was asked in; the base has two."""
    stages = [facts.find(f"infer-{model}")]
    if model == "base":
        stages.append(facts.find("infer-base-own"))
    return [_score(stage, measures) for stage in stages if stage and stage.predictions]


def best_of(forms: Sequence[Asked]) -> Asked | None:
    """Choose the form a model does best in, the first of equals; None without any."""
    return max(forms, key=Asked.quality) if forms else None


def scales_of(measures: Measures, asked: Iterable[Asked]) -> Mapping[MetricName, Scale]:
    """Collect how every metric of a run is read, whether or not it came to a score."""
    found = {name: each.scale for forms in asked for name, each in forms.scores.items()}
    declared = {metric.name: metric.scale for metric in measures.metrics}
    every = {**declared, **found}
    return {name: every[name] for name in in_order(every)}


def _score(stage: StageFacts, measures: Measures) -> Asked:
    scores: dict[MetricName, Scores] = {}
    problems: dict[MetricName, MetricFailed] = {}
    for metric in measures.metrics:
        try:
            scores[metric.name] = metric.score(stage.predictions)
        except MetricFailed as problem:
            problems[metric.name] = problem
    sliced = {
        groups.field: _sliced(stage, groups, scores, measures.seed)
        for groups in measures.slicings
        if not groups.problem
    }
    inferred = inferred_by(stage)
    summaries = {name: shown(summarize(each, measures.seed)) for name, each in scores.items()}
    first = measures.slicings[0].field if measures.slicings else ""
    return Asked(
        shown=PromptScores(
            stage=stage.stage.name,
            form=inferred.prompt_form if inferred is not None else "contract",
            metrics={name: score for name, score in summaries.items() if score is not None},
            slices=sliced.get(first, {}),
            sliced=sliced,
            rows=len(stage.predictions),
            quarantined=sum(bool(each.error) for each in stage.predictions),
            tokens_per_second=inferred.tokens_per_second if inferred is not None else None,
        ),
        scores=scores,
        problems=problems,
    )


def _sliced(
    stage: StageFacts, groups: Slicing, scores: Mapping[MetricName, Scores], seed: int
) -> Mapping[str, Mapping[MetricName, Score]]:
    found: dict[str, dict[MetricName, Score]] = {}
    for name, each in scores.items():
        for part in summarize_by(groups, stage.predictions, each, seed):
            if (score := shown(part.score)) is not None:
                found.setdefault(part.value, {})[name] = score
    return {value: found[value] for value in groups.values if value in found}


def failures_of(asked: Mapping[str, Sequence[Asked]]) -> list[MetricProblem]:
    """List the metrics that failed on a row, by model."""
    return [
        MetricProblem(metric=name, model=model, message=str(each), exit_code=each.exit_code)
        for model, forms in asked.items()
        for form in forms
        for name, each in form.problems.items()
    ]


def slice_field(groups: Slicing) -> SliceField:
    """Put a way of grouping into the document's words."""
    return SliceField(
        field=groups.field,
        values=groups.values,
        is_binned=groups.is_binned,
        problem=groups.problem,
    )


def shown(value: MetricValue) -> Score | None:
    """Put a summary into the document's words; None where no row could be scored."""
    if value.value is None or value.low is None or value.high is None:
        return None
    return Score(
        value=value.value, low=value.low, high=value.high, n=value.n, excluded=value.excluded
    )
