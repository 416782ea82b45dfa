"""Judge models by their answers: which scores, which prompt form, which verdict.

Knows predictions, metrics and the gate; how a metric or an interval is computed is
`evaluate`'s.  Must not know costs and commits: `describe` puts those beside the judgement.

The base model is asked in two forms and gets one row, the better of the two: fine-tuning
must beat the base at its best, not a base that was never told the form.  Better is decided
by the first metric that reads answers (SQL execution, then exact match), because the NLL of
a reference depends on the prompt before it and flatters the longer, few-shot one; NLL
decides only where it is the only metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelmill.evaluate import gate as gates
from modelmill.evaluate.metrics import Metric, metrics_of
from modelmill.evaluate.scores import MetricValue, Scores, summarize
from modelmill.evaluate.slices import summarize_by
from modelmill.report import words
from modelmill.report.document import (
    METRIC_ORDER,
    Control,
    Difference,
    GateEntry,
    MetricName,
    PromptScores,
    RunOutcome,
    Score,
    Verdict,
)
from modelmill.report.facts import RunFacts, StageFacts
from modelmill.spec.infer import GateSpec
from modelmill.spec.records import Inferred

LEAST_CAUGHT: Final = 0.95
"""A metric that misses more mutations than this lets pass is not to be trusted."""


@dataclass(frozen=True)
class Asked:
    """One model asked in one form: what the report shows, and the scores behind it."""

    shown: PromptScores
    scores: Mapping[MetricName, Scores]


@dataclass(frozen=True)
class JudgedModel:
    """How one row of the comparison came out."""

    model: str
    prompts: tuple[PromptScores, ...]
    chosen: PromptScores | None
    """The one its scores come from; None where no infer stage finished."""
    verdict: Verdict | None
    gated: bool
    difference: Difference | None
    problem: str
    """Why there are no scores."""


@dataclass(frozen=True)
class Judgement:
    """How a run came out."""

    outcome: RunOutcome
    """`failed` is the gate's word and ends the run with exit code 79."""
    models: tuple[JudgedModel, ...]
    gate: GateEntry | None
    controls: tuple[Control, ...]
    deciding_metric: MetricName | None
    """The first that was computed; what the headline speaks of."""
    tuning: Verdict | None
    """Whether the tuned model is better (`good`) or worse (`bad`) than base by that metric."""
    sample_metric: MetricName | None
    """What calls a single answer right or wrong."""
    right: Mapping[str, Mapping[int, bool]]
    """By model and row, for the metric of the samples."""


def judge(facts: RunFacts) -> Judgement:
    """Score every model that answered, and hold it against the gate; deterministic."""
    names = facts.plan.run.models()
    asked = {name: _ask(facts, name) for name in names}
    chosen = {
        name: max(forms, key=_quality) for name, forms in asked.items() if forms
    }  # the first of equals: the contract's form
    verdicts = _verdicts(facts, chosen)
    gate = facts.plan.report.gate
    gate_entry = None if gate is None else _gate_entry(gate, verdicts)
    computed = [name for name in METRIC_ORDER if name in facts.plan.report.metrics.names()]
    readers = [name for name in computed if name != "nll"]
    return Judgement(
        outcome=_outcome(facts, gate_entry),
        models=tuple(
            _judged(facts, name, asked[name], chosen.get(name), verdicts.get(name))
            for name in names
        ),
        gate=gate_entry,
        controls=_controls(chosen),
        deciding_metric=computed[0] if computed else None,
        tuning=_tuning(facts, chosen, computed[0]) if computed else None,
        sample_metric=readers[0] if readers else None,
        right=_right(chosen, readers[0]) if readers else {},
    )


def _ask(facts: RunFacts, model: str) -> list[Asked]:
    stages = [facts.find(f"infer-{model}")]
    if model == "base":
        stages.append(facts.find("infer-base-own"))
    metrics = metrics_of(facts.plan.report.metrics)
    return [_score(facts, stage, metrics) for stage in stages if stage and stage.predictions]


def _score(facts: RunFacts, stage: StageFacts, metrics: Sequence[Metric]) -> Asked:
    settings = facts.plan.report
    scores = {metric.name: metric.score(stage.predictions) for metric in metrics}
    slices: dict[str, dict[MetricName, Score]] = {}
    for name, each in scores.items():
        if settings.slice is None:
            break
        for part in summarize_by(settings.slice, stage.predictions, each, settings.seed):
            if (shown := _shown(part.score)) is not None:
                slices.setdefault(part.value, {})[name] = shown
    inferred = _inferred(stage)
    summaries = {name: _shown(summarize(each, settings.seed)) for name, each in scores.items()}
    return Asked(
        shown=PromptScores(
            stage=stage.stage.name,
            form=inferred.prompt_form if inferred is not None else "contract",
            metrics={name: score for name, score in summaries.items() if score is not None},
            slices=slices,
            rows=len(stage.predictions),
            quarantined=sum(bool(each.error) for each in stage.predictions),
            tokens_per_second=inferred.tokens_per_second if inferred is not None else None,
        ),
        scores=scores,
    )


def _inferred(stage: StageFacts) -> Inferred | None:
    if stage.measurements is None or not isinstance(stage.measurements.figures, Inferred):
        return None
    return stage.measurements.figures


def _shown(value: MetricValue) -> Score | None:
    if value.value is None or value.low is None or value.high is None:
        return None
    return Score(
        value=value.value, low=value.low, high=value.high, n=value.n, excluded=value.excluded
    )


def _quality(asked: Asked) -> tuple[float, ...]:
    """Order forms of one model: larger is better, the deciding metric first."""
    quality = []
    for name in METRIC_ORDER:
        score = asked.shown.metrics.get(name)
        if score is not None:
            quality.append(score.value if asked.scores[name].higher_is_better else -score.value)
    return tuple(quality)


def _verdicts(facts: RunFacts, chosen: Mapping[str, Asked]) -> dict[str, gates.Verdict]:
    gate = facts.plan.report.gate
    if gate is None or gate.against is None or gate.against not in chosen:
        return {}
    scores = {name: asked.scores[gate.metric] for name, asked in chosen.items()}
    given = gates.judge(scores, gate.against, gate.max_worse, facts.plan.report.seed)
    return {verdict.model: verdict for verdict in given}


def _tuning(facts: RunFacts, chosen: Mapping[str, Asked], metric: MetricName) -> Verdict | None:
    """Hold the tuned model against base as a gate that allows no loss at all would."""
    both = ("base", facts.plan.run.quantized_from)
    scores = {name: chosen[name].scores[metric] for name in both if name in chosen}
    if len(scores) < 2:  # noqa: PLR2004 - both of them
        return None
    (verdict,) = gates.judge(scores, "base", 0.0, facts.plan.report.seed)
    return verdict.verdict


def _judged(
    facts: RunFacts,
    model: str,
    asked: Sequence[Asked],
    chosen: Asked | None,
    verdict: gates.Verdict | None,
) -> JudgedModel:
    gate = facts.plan.report.gate
    return JudgedModel(
        model=model,
        prompts=tuple(each.shown for each in asked),
        chosen=None if chosen is None else chosen.shown,
        verdict=None if verdict is None else verdict.verdict,
        gated=gate is not None and model in gate.models,
        difference=None if verdict is None else _difference(verdict),
        problem="" if chosen is not None else _problem(facts, model),
    )


def _difference(verdict: gates.Verdict) -> Difference | None:
    if verdict.difference is None or verdict.low is None or verdict.high is None:
        return None
    return Difference(
        worse=verdict.difference,
        low=verdict.low,
        high=verdict.high,
        n=verdict.n,
        n_to_decide=verdict.rows_needed,
    )


def _problem(facts: RunFacts, model: str) -> str:
    stage = facts.find(f"infer-{model}")
    return f"infer-{model} {'missing' if stage is None else stage.status}"


def _gate_entry(gate: GateSpec, verdicts: Mapping[str, gates.Verdict]) -> GateEntry:
    told = [_told(name, verdicts.get(name), gate) for name in gate.models]
    given = [verdicts[name] for name in gate.models if name in verdicts]
    if gates.gate_failed(given, gate.models):
        outcome: RunOutcome = "failed"
    elif len(given) < len(gate.models):
        outcome = "incomplete"
    else:
        outcome = "undecided" if any(each.verdict != "good" for each in given) else "passed"
    allowed = words.metric_difference(gate.metric, gate.max_worse).removeprefix("+")
    asked = (
        f"Gate {outcome}: {words.listing(gate.models)} may be at most {allowed} worse than "
        f"{gate.against} in {words.metric_title(gate.metric)}"
    )
    return GateEntry(
        metric=gate.metric,
        against=gate.against,
        max_worse=gate.max_worse,
        models=gate.models,
        outcome=outcome,
        sentence=f"{asked}; {words.listing(told)}.",
    )


def _told(name: str, verdict: gates.Verdict | None, gate: GateSpec) -> str:
    if verdict is None:
        return f"{name} could not be judged"
    if verdict.difference is None:
        return f"{name} is undecided, because no row has a score for both"
    by = words.metric_difference(gate.metric, verdict.difference)
    if verdict.verdict != "undecided":
        return f"{name} is {verdict.verdict} ({by})"
    if verdict.rows_needed is None:
        return f"{name} is undecided ({by}), and no number of rows would decide"
    return f"{name} is undecided ({by}): about {verdict.rows_needed:,} test rows would decide"


def _outcome(facts: RunFacts, gate: GateEntry | None) -> RunOutcome:
    if gate is not None and gate.outcome == "failed":
        return "failed"
    if any(stage.status not in ("done", "adopted") for stage in facts.stages):
        return "incomplete"
    return "ungated" if gate is None else gate.outcome


def _controls(chosen: Mapping[str, Asked]) -> tuple[Control, ...]:
    """Take each metric's control once: it is about the references, equal for all models."""
    found: dict[MetricName, Control] = {}
    for asked in chosen.values():
        for name, scores in asked.scores.items():
            if scores.control is not None:
                found[name] = Control(
                    metric=name,
                    mutations=scores.control.mutations,
                    caught=scores.control.caught,
                    share=scores.control.share,
                    least=LEAST_CAUGHT,
                )
    return tuple(found.values())


def _right(chosen: Mapping[str, Asked], metric: MetricName) -> dict[str, dict[int, bool]]:
    return {
        model: {row: value > 0 for row, value in asked.scores[metric].values.items()}
        for model, asked in chosen.items()
    }
