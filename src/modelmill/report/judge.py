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
from modelmill.evaluate.flips import Flipped, flipped
from modelmill.evaluate.plugin import Plugins
from modelmill.evaluate.scale import Scale, in_order
from modelmill.evaluate.slices import Slicing
from modelmill.report import words
from modelmill.report.asked import (
    Asked,
    ask,
    best_of,
    failures_of,
    measures_of,
    scales_of,
    slicings_of,
)
from modelmill.report.document import (
    Control,
    Difference,
    GateEntry,
    MetricProblem,
    PromptScores,
    RunOutcome,
    Verdict,
    scale_of,
)
from modelmill.report.facts import RunFacts
from modelmill.spec.infer import MetricName
from modelmill.spec.settings import GateSettings

LEAST_CAUGHT: Final = 0.95
"""A metric that misses more mutations than this lets pass is not to be trusted."""


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
    flips: Mapping[MetricName, Flipped]
    """Of a gated model: what became of single answers since the one it is held against."""
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
    scales: Mapping[MetricName, Scale]
    """How each metric is read."""
    slicings: tuple[Slicing, ...]
    """How rows are grouped by data fields."""
    problems: tuple[MetricProblem, ...]
    """Metric plug-ins that could not be used, or failed."""


def judge(facts: RunFacts, plugins: Plugins | None = None) -> Judgement:
    """Score every model that answered, and hold it against the gate; deterministic.

    Args:
        facts: what became of the run.
        plugins: the metric plug-ins it asks for.
    """
    settings = facts.plan.report
    slicings = slicings_of(settings.slice_fields, [facts])
    measures = measures_of(settings.metrics, slicings, plugins or {}, settings.seed)
    names = facts.plan.run.models()
    asked = {name: ask(facts, name, measures) for name in names}
    best = {name: best_of(forms) for name, forms in asked.items()}
    chosen = {name: each for name, each in best.items() if each is not None}
    scales = scales_of(measures, chosen.values())
    verdicts = _verdicts(facts, chosen)
    gate = facts.plan.report.gate
    gate_entry = None if gate is None else _gate_entry(gate, verdicts, scales)
    computed = in_order(scales)
    readers = [name for name in computed if scales[name].is_share]
    return Judgement(
        outcome=_outcome(facts, gate_entry),
        models=tuple(
            _judged(facts, name, asked[name], chosen, verdicts.get(name)) for name in names
        ),
        gate=gate_entry,
        controls=_controls(chosen),
        deciding_metric=computed[0] if computed else None,
        tuning=_tuning(facts, chosen, computed[0]) if computed else None,
        sample_metric=readers[0] if readers else None,
        right=_right(chosen, readers[0]) if readers else {},
        scales=scales,
        slicings=measures.slicings,
        problems=(*measures.problems, *failures_of(asked)),
    )


def _verdicts(facts: RunFacts, chosen: Mapping[str, Asked]) -> dict[str, gates.Verdict]:
    gate = facts.plan.report.gate
    if gate is None:
        return {}
    scores = {
        name: asked.scores[gate.metric]
        for name, asked in chosen.items()
        if gate.metric in asked.scores
    }
    if gate.against not in scores:
        return {}
    given = gates.judge(scores, gate.against, gate.max_worse, facts.plan.report.seed)
    return {verdict.model: verdict for verdict in given}


def _tuning(facts: RunFacts, chosen: Mapping[str, Asked], metric: MetricName) -> Verdict | None:
    """Hold the tuned model against base as a gate that allows no loss at all would."""
    scores = {
        name: chosen[name].scores[metric]
        for name in ("base", facts.plan.run.quantized_from)
        if name in chosen and metric in chosen[name].scores
    }
    if len(scores) < 2:  # noqa: PLR2004 - both of them
        return None
    (verdict,) = gates.judge(scores, "base", 0.0, facts.plan.report.seed)
    return verdict.verdict


def _judged(
    facts: RunFacts,
    model: str,
    asked: Sequence[Asked],
    chosen: Mapping[str, Asked],
    verdict: gates.Verdict | None,
) -> JudgedModel:
    gate = facts.plan.report.gate
    own = chosen.get(model)
    return JudgedModel(
        model=model,
        prompts=tuple(each.shown for each in asked),
        chosen=None if own is None else own.shown,
        verdict=None if verdict is None else verdict.verdict,
        gated=gate is not None and model in gate.models,
        difference=None if verdict is None else _difference(verdict),
        flips=_flips(gate, model, chosen),
        problem="" if own is not None else _problem(facts, model),
    )


def _flips(
    gate: GateSettings | None, model: str, chosen: Mapping[str, Asked]
) -> Mapping[MetricName, Flipped]:
    """Hold a gated model's single answers against those of the model the gate names."""
    if gate is None or model not in gate.models or not {model, gate.against} <= chosen.keys():
        return {}
    before, after = chosen[gate.against].scores, chosen[model].scores
    return {
        name: flipped(before[name].right(), after[name].right())
        for name in in_order(before.keys() & after.keys())
        if before[name].scale.is_share
    }


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


def _gate_entry(
    gate: GateSettings, verdicts: Mapping[str, gates.Verdict], scales: Mapping[MetricName, Scale]
) -> GateEntry:
    scale = scale_of(scales, gate.metric)
    told = [_told(name, verdicts.get(name), scale) for name in gate.models]
    given = [verdicts[name] for name in gate.models if name in verdicts]
    if gates.gate_failed(given, gate.models):
        outcome: RunOutcome = "failed"
    elif len(given) < len(gate.models):
        outcome = "incomplete"
    else:
        outcome = "undecided" if any(each.verdict != "good" for each in given) else "passed"
    allowed = words.metric_difference(scale, gate.max_worse).removeprefix("+")
    asked = (
        f"Gate {outcome}: {words.listing(gate.models)} may be at most {allowed} worse than "
        f"{gate.against} in {words.metric_title(scale)}"
    )
    return GateEntry(
        metric=gate.metric,
        against=gate.against,
        max_worse=gate.max_worse,
        models=gate.models,
        outcome=outcome,
        sentence=f"{asked}; {words.listing(told)}.",
    )


def _told(name: str, verdict: gates.Verdict | None, scale: Scale) -> str:
    if verdict is None:
        return f"{name} could not be judged"
    if verdict.difference is None:
        return f"{name} is undecided, because no row has a score for both"
    by = words.metric_difference(scale, verdict.difference)
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


def _right(chosen: Mapping[str, Asked], metric: MetricName) -> dict[str, Mapping[int, bool]]:
    return {
        model: asked.scores[metric].right()
        for model, asked in chosen.items()
        if metric in asked.scores
    }
