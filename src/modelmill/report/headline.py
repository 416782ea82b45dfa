"""Say in one sentence what came out of a run.

Knows the judged models.  Must not know stages: a report without scores says just that.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from modelmill.evaluate.gate import Outcome
from modelmill.evaluate.scores import MetricName
from modelmill.report import words
from modelmill.report.document import ModelEntry, Score
from modelmill.report.judge import Judgement

HIGHER_IS_BETTER: Final[Mapping[MetricName, bool]] = {
    "nll": False,
    "exact_match": True,
    "sql_execution": True,
}
_TOLD: Final[Mapping[Outcome | None, tuple[str, str]]] = {
    "good": ("passes the gate", "pass the gate"),
    "bad": ("fails the gate", "fail the gate"),
    "undecided": ("is undecided", "are undecided"),
    None: ("could not be judged", "could not be judged"),
}
"""For one model and for several."""


def headline(judgement: Judgement, models: Sequence[ModelEntry]) -> str:
    """Say whether tuning helped, and how the models held up that were made from it."""
    by_name = {model.model: model for model in models}
    metric = judgement.deciding_metric
    parts = [
        "" if metric is None else _tuning(metric, by_name["base"], by_name.get("merged")),
        _verdicts(by_name, judgement),
    ]
    told = [part for part in parts if part]
    if not told:
        return "There is nothing to compare yet."
    return f"{'; '.join(told)}."


def _tuning(metric: MetricName, base: ModelEntry, merged: ModelEntry | None) -> str:
    before = base.metrics.get(metric)
    if before is None:
        return ""
    name = words.metric_title(metric)
    if merged is None:
        return f"{name} of the base is {words.metric_value(metric, before.value)}"
    after = merged.metrics.get(metric)
    if after is None:
        return ""
    change = _change(metric, before, after)
    return (
        f"Fine-tuning {change} {name} from {words.metric_value(metric, before.value)} "
        f"to {words.metric_value(metric, after.value)}"
    )


def _change(metric: MetricName, before: Score, after: Score) -> str:
    """Choose the verb; a change within both intervals is not called one."""
    overlap = after.low <= before.high and before.low <= after.high
    if overlap:
        return "did not clearly move"
    up = after.value > before.value
    verb = "raised" if up else "lowered"
    return verb if up == HIGHER_IS_BETTER[metric] else f"made things worse: it {verb}"


def _verdicts(by_name: Mapping[str, ModelEntry], judgement: Judgement) -> str:
    if judgement.gate is None:
        return ""
    told: dict[Outcome | None, list[str]] = {}
    for name in judgement.gate.models:
        model = by_name[name]
        told.setdefault(model.verdict, []).append(_with_size(model))
    return words.listing(
        [
            f"{words.listing(names)} {_TOLD[verdict][len(names) > 1]}"
            for verdict, names in told.items()
        ]
    )


def _with_size(model: ModelEntry) -> str:
    if model.size_share is None or model.model in ("base", "merged"):
        return model.model
    return f"{model.model} (at {100 * model.size_share:.0f} % of the size)"
