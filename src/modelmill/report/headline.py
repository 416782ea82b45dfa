"""Say in one sentence what came out of a run.

Knows the judged models.  Must not know stages: a report without scores says just that.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from modelmill.report import words
from modelmill.report.document import ModelEntry, Verdict, scale_of
from modelmill.report.judge import Judgement
from modelmill.spec.infer import MetricName
from modelmill.spec.run import TUNED

_TUNED: Final[Mapping[Verdict, str]] = {
    "good": "Fine-tuning improved {metric} from {before} to {after}",
    "bad": "Fine-tuning made {metric} worse, from {before} to {after}",
    "undecided": (
        "{metric} went from {before} to {after} by fine-tuning, "
        "which the test rows cannot tell from chance"
    ),
}
_TOLD: Final[Mapping[Verdict | None, tuple[str, str]]] = {
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
        "" if metric is None else _tuning(judgement, metric, by_name),
        _verdicts(by_name, judgement),
    ]
    told = [part for part in parts if part]
    if not told:
        return "There is nothing to compare yet."
    return f"{'; '.join(told)}."


def _tuning(judgement: Judgement, metric: MetricName, by_name: Mapping[str, ModelEntry]) -> str:
    before = by_name["base"].metrics.get(metric)
    if before is None:
        return ""
    scale = scale_of(judgement.scales, metric)
    name, value = words.metric_title(scale), words.metric_value(scale, before.value)
    tuned = next((by_name[name] for name in TUNED if name in by_name), None)
    after = None if tuned is None else tuned.metrics.get(metric)
    if after is None or judgement.tuning is None:
        return f"{name} of the base is {value}"
    return _TUNED[judgement.tuning].format(
        metric=name, before=value, after=words.metric_value(scale, after.value)
    )


def _verdicts(by_name: Mapping[str, ModelEntry], judgement: Judgement) -> str:
    if judgement.gate is None:
        return ""
    told: dict[Verdict | None, list[str]] = {}
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
    if model.size_share is None or model.model in ("base", *TUNED):
        return model.model
    return f"{model.model} (at {100 * model.size_share:.0f} % of the size)"
