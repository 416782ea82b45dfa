"""Set two runs side by side: what was asked differently, and what came of it.

Knows the facts of both runs.  Must not know how a comparison looks (`compare_page`,
`compare_table`).  The runs are called a and b; a difference is b minus a.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from modelmill.evaluate.plugin import Plugins
from modelmill.evaluate.scale import Scale
from modelmill.report import words
from modelmill.report.asked import failures_of, measures_of, scales_of, slice_field, slicings_of
from modelmill.report.comparison import (
    ComparedModel,
    ComparedRun,
    ComparedScore,
    ComparedStage,
    ComparisonDocument,
    StageCost,
    Training,
)
from modelmill.report.costs import unfinished_words
from modelmill.report.describe import spent
from modelmill.report.differing import differing_settings
from modelmill.report.document import MetricProblem
from modelmill.report.facts import RunFacts, StageFacts
from modelmill.report.side_by_side import Table, TwoSided, compared_model, match_rows, two_sided
from modelmill.spec.figures import Finetuned
from modelmill.spec.infer import MetricName, MetricsSpec


@dataclass(frozen=True)
class RunSide:
    """One of the two runs."""

    facts: RunFacts
    state: str
    """How it ended, or where it is, in words."""


def common_metrics(a: MetricsSpec, b: MetricsSpec) -> MetricsSpec:
    """Keep what both runs ask for with equal settings: only those scores mean the same."""
    return MetricsSpec(
        nll=a.nll if a.nll == b.nll else None,
        exact_match=a.exact_match if a.exact_match == b.exact_match else None,
        sql_execution=a.sql_execution if a.sql_execution == b.sql_execution else None,
        plugins={
            name: settings
            for name, settings in a.plugins.items()
            if b.plugins.get(name) == settings
        },
    )


def compare(a: RunSide, b: RunSide, plugins: Plugins) -> ComparisonDocument:
    """Compare two runs; equal facts give equal documents.

    Args:
        a: the first run.
        b: the second run.
        plugins: those of `common_metrics`.
    """
    one, other = a.facts.plan, b.facts.plan
    metrics = common_metrics(one.report.metrics, other.report.metrics)
    fields = dict.fromkeys([*one.report.slice_fields, *other.report.slice_fields])
    slicings = slicings_of(tuple(fields), [a.facts, b.facts])
    measures = measures_of(metrics, slicings, plugins, one.report.seed)
    rows, pairs = match_rows(a.facts, b.facts)
    shared = [name for name in one.run.models() if name in other.run.models()]
    asked = {name: two_sided(a.facts, b.facts, name, measures) for name in shared}
    scales = scales_of(measures, [each for both in asked.values() for each in both.best()])
    table = Table(
        runs=(a.facts, b.facts),
        pairs=pairs,
        seed=measures.seed,
        samples=min(one.report.samples, other.report.samples),
        sample_metric=next((name for name, scale in scales.items() if scale.is_share), None),
        slicings=slicings,
    )
    models = tuple(compared_model(name, both, table) for name, both in asked.items())
    return ComparisonDocument(
        a=_run(a),
        b=_run(b),
        headline=_headline(models, scales, (a.facts.run, b.facts.run)),
        settings=differing_settings(one, other),
        rows=rows,
        models=models,
        only_in_a=tuple(name for name in one.run.models() if name not in shared),
        only_in_b=tuple(name for name in other.run.models() if name not in shared),
        samples=table.samples,
        sample_metric=table.sample_metric,
        scales=scales,
        slice_fields=tuple(map(slice_field, slicings)),
        stages=tuple(_stages(a.facts, b.facts)),
        training=Training(a=_trained(a.facts), b=_trained(b.facts)),
        problems=(
            *measures.problems,
            *(
                each.model_copy(update={"model": f"{each.model} of {side.facts.run}"})
                for side, place in ((a, 0), (b, 1))
                for each in _failures(asked, place)
            ),
        ),
        notes=tuple(_notes(a.facts, b.facts, metrics)),
    )


def _failures(asked: Mapping[str, TwoSided], place: int) -> list[MetricProblem]:
    return failures_of({name: both.forms[place] for name, both in asked.items()})


def _run(side: RunSide) -> ComparedRun:
    facts = side.facts
    return ComparedRun(
        run=facts.run,
        state=side.state,
        created=facts.created,
        plan_sha256=facts.plan_sha256,
        samples=facts.plan.report.samples,
        unfinished=tuple(
            unfinished_words(stage)
            for stage in facts.stages
            if stage.status not in ("done", "adopted")
        ),
        spending=spent(facts),
    )


def _stages(a: RunFacts, b: RunFacts) -> Iterator[ComparedStage]:
    names = dict.fromkeys(stage.stage.name for facts in (a, b) for stage in facts.stages)
    for name in names:
        before, after = a.find(name), b.find(name)
        yield ComparedStage(
            stage=name,
            a=_cost(before),
            b=_cost(after),
            is_shared=before is not None
            and after is not None
            and before.stage.key == after.stage.key,
        )


def _cost(stage: StageFacts | None) -> StageCost | None:
    if stage is None:
        return None
    measured = stage.measurements
    if measured is None:
        return StageCost(status=stage.status)
    return StageCost(
        status=stage.status,
        seconds=measured.seconds,
        peak_rss_bytes=measured.peak_rss_bytes,
        peak_gpu_bytes=measured.peak_gpu_bytes,
    )


def _trained(facts: RunFacts) -> Finetuned | None:
    for stage in facts.stages:
        if stage.measurements is not None and isinstance(stage.measurements.figures, Finetuned):
            return stage.measurements.figures
    return None


def _notes(a: RunFacts, b: RunFacts, metrics: MetricsSpec) -> Iterator[str]:
    """Say what is left out, and why."""
    for name in dict.fromkeys([*a.plan.report.metrics.names(), *b.plan.report.metrics.names()]):
        if name in metrics.names():
            continue
        asking = [each.run for each in (a, b) if name in each.plan.report.metrics.names()]
        if len(asking) == 1:
            yield f"{name} is not compared: only {asking[0]} asks for it"
        else:
            yield f"{name} is not compared: its settings differ"
    for facts in (a, b):
        if not any(stage.predictions for stage in facts.stages):
            yield f"no model of {facts.run} has answered the test rows"
    if a.plan.facts.accelerator != b.plan.facts.accelerator:
        yield "times, speeds and memory are those of different kinds of device"


def _headline(
    models: tuple[ComparedModel, ...], scales: Mapping[MetricName, Scale], runs: tuple[str, str]
) -> str:
    """Say by the metric that speaks first which models the second run did better with."""
    for metric, scale in scales.items():
        found = [
            (model.model, score)
            for model in models
            for score in model.scores
            if score.metric == metric and score.difference is not None
        ]
        if found:
            told = [
                _told(change, [each for each in found if _change_of(each[1]) == change], scale)
                for change in ("better", "worse", "undecided", "same")
            ]
            title = words.metric_title(scale)
            said = "; ".join(part for part in told if part)
            return f"{title}, {runs[1]} against {runs[0]}: {said}."
    return "There is nothing to compare yet."


def _change_of(score: ComparedScore) -> str:
    assert score.difference is not None
    return score.difference.change


def _told(change: str, found: list[tuple[str, ComparedScore]], scale: Scale) -> str:
    if not found:
        return ""
    if change == "same":
        return f"{words.listing([model for model, _ in found])} answered the same"
    names = [
        f"{model} ({words.metric_difference(scale, score.difference.value)})"
        for model, score in found
        if score.difference is not None
    ]
    be = "is" if len(names) == 1 else "are"
    if change == "undecided":
        return f"{words.listing(names)} cannot be told apart"
    return f"{words.listing(names)} {be} {change}"
