"""Figures that set the models side by side: intervals and bars, as percentages.

Knows the document's models.  Must not know HTML: the template draws what stands here, and
every row carries the text that says the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from modelmill.evaluate.scale import Scale
from modelmill.report import words
from modelmill.report.axis import SHARES, Axis, axis_over, linear_axis
from modelmill.report.document import (
    Difference,
    GateEntry,
    ModelEntry,
    ReportDocument,
    Score,
    scale_of,
)
from modelmill.report.table import metric_names
from modelmill.spec.infer import MetricName
from modelmill.spec.run import TUNED


@dataclass(frozen=True)
class Tick:
    """A labelled place on a scale."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """One model's row in a figure; places in percent of the width."""

    name: str
    text: str
    at: float | None
    """None where there is no value."""
    low: float = 0.0
    high: float = 0.0
    note: str = ""
    tone: str = ""
    """A verdict, where the row has one."""
    beyond: Literal["", "left", "right"] = ""
    """On which side the value lies outside the scale."""


@dataclass(frozen=True)
class Panel:
    """One figure."""

    title: str
    hint: str
    marks: tuple[Mark, ...]
    ticks: tuple[Tick, ...] = ()
    lines: tuple[Tick, ...] = ()
    """Values that the eye should hold the marks against."""
    is_bars: bool = False


def metric_panels(document: ReportDocument) -> tuple[Panel, ...]:
    """Draw one figure with intervals per metric."""
    return tuple(_metric_panel(document, metric) for metric in metric_names(document))


def size_panel(document: ReportDocument) -> Panel:
    """Draw the weight files beside each other."""
    origin = next((each.model for each in document.models if each.model in TUNED), "base")
    return Panel(
        title="Size on disk",
        hint=f"weight files, embeddings included; share of the 16-bit {_MAKES.get(origin, origin)}",
        marks=_bars(
            document.models,
            lambda model: model.size_bytes,
            lambda model: words.size(model.size_bytes),
            lambda model: "" if model.size_share is None else f"{100 * model.size_share:.0f} %",
        ),
        is_bars=True,
    )


def speed_panel(document: ReportDocument) -> Panel:
    """Draw the generated tokens per second beside each other."""
    known = [model for model in document.models if model.engine]
    asked = dict.fromkeys(map(_measured_with, known))
    return Panel(
        title="Speed",
        hint="; ".join(["generated tokens per second", *asked]),
        marks=_bars(
            document.models,
            lambda model: model.tokens_per_second,
            lambda model: (
                words.NOTHING
                if model.tokens_per_second is None
                else f"{words.three_digits(model.tokens_per_second)} tok/s"
            ),
            lambda model: f"{model.prompt} prompt" if len(model.prompts) > 1 else "",
        ),
        is_bars=True,
    )


def _measured_with(model: ModelEntry) -> str:
    engine = model.speed_engine or model.engine
    # Another engine than the one of the answers fills its batches itself.
    batch = f", batch {model.batch_size}" if engine == model.engine else ""
    return f"{engine}, {model.dtype}{batch}, {model.device}"


def gate_panel(document: ReportDocument, gate: GateEntry) -> Panel | None:
    """Draw how much worse each model is than the one the gate names, row by row."""
    known = [(model, model.difference) for model in document.models if model.difference is not None]
    if not known:
        return None
    scale = scale_of(document.scales, gate.metric)
    rows = words.counted(max(difference.n for _, difference in known), "row")
    axis = _difference_axis(gate, [difference for model, difference in known if model.gated])
    allowed = (Tick(axis.at(gate.max_worse), "still allowed"),) if gate.max_worse else ()
    return Panel(
        title=f"Worse than {gate.against} by",
        hint=f"{words.metric_title(scale)}, paired over {rows}, with the 95 % interval",
        marks=tuple(
            Mark(
                name=model.model,
                text=words.metric_difference(scale, difference.worse),
                at=axis.at(difference.worse),
                low=axis.at(difference.low),
                high=axis.at(difference.high),
                note=_difference_note(scale, difference, gated=model.gated),
                tone=model.verdict or "",
                beyond=_beyond(axis, difference.worse),
            )
            for model, difference in known
        ),
        ticks=_ticks(axis, lambda value: difference_label(scale, value)),
        lines=(Tick(axis.at(0.0), f"as {gate.against}"), *allowed),
    )


def _metric_panel(document: ReportDocument, metric: MetricName) -> Panel:
    scale = scale_of(document.scales, metric)
    scores = {
        model.model: model.metrics[metric] for model in document.models if metric in model.metrics
    }
    axis = SHARES if scale.is_share else _score_axis(list(scores.values()))
    unit = "" if scale.is_share or not scale.unit else f", {scale.unit}"
    return Panel(
        title=words.metric_title(scale),
        hint=f"{words.direction(scale)}{unit}{', logarithmic scale' if axis.is_log else ''}",
        marks=tuple(
            _score_mark(model.model, scale, scores.get(model.model), axis)
            for model in document.models
        ),
        ticks=_ticks(axis, lambda value: _tick_label(scale, value)),
    )


def _score_axis(scores: list[Score]) -> Axis:
    return axis_over([edge for score in scores for edge in (score.low, score.high)])


def _score_mark(name: str, scale: Scale, score: Score | None, axis: Axis) -> Mark:
    if score is None:
        return Mark(name=name, text=words.NOTHING, at=None)
    return Mark(
        name=name,
        text=words.metric_value(scale, score.value),
        at=axis.at(score.value),
        low=axis.at(score.low),
        high=axis.at(score.high),
        note=words.metric_interval(scale, score.low, score.high),
    )


def _bars(
    models: tuple[ModelEntry, ...],
    value_of: Callable[[ModelEntry], float | None],
    text_of: Callable[[ModelEntry], str],
    note_of: Callable[[ModelEntry], str],
) -> tuple[Mark, ...]:
    values: Mapping[str, float | None] = {model.model: value_of(model) for model in models}
    largest = max((value for value in values.values() if value is not None), default=0.0)
    return tuple(
        Mark(
            name=model.model,
            text=text_of(model),
            at=None if (value := values[model.model]) is None else _percent(value, largest),
            note=note_of(model),
        )
        for model in models
    )


def _percent(value: float, largest: float) -> float:
    return round(100 * value / largest, 3) if largest else 0.0


def _difference_axis(gate: GateEntry, gated: list[Difference]) -> Axis:
    """Show what decides: zero, the limit and the gated models near it; others lie beyond."""
    edges = [0.0, 2 * gate.max_worse, *(edge for each in gated for edge in (each.low, each.high))]
    if gate.max_worse:
        limit = 4 * gate.max_worse
        edges = [min(limit, max(-limit, edge)) for edge in edges]
    return linear_axis(min(edges), max(edges))


def _beyond(axis: Axis, value: float) -> Literal["", "left", "right"]:
    if axis.low <= value <= axis.high:
        return ""
    return "left" if value < axis.low else "right"


def _difference_note(scale: Scale, difference: Difference, *, gated: bool) -> str:
    told = [words.metric_interval(scale, difference.low, difference.high)]
    if difference.n_to_decide is not None:
        told.append(f"about {difference.n_to_decide:,} rows would decide")
    if not gated:
        told.append("not gated")
    return "; ".join(told)


def _ticks(axis: Axis, label: Callable[[float], str]) -> tuple[Tick, ...]:
    return tuple(Tick(axis.at(value), label(value)) for value in axis.ticks)


def difference_label(scale: Scale, value: float) -> str:
    """Label a tick of a difference: with its sign, shares in percentage points."""
    if not value:
        return "0"
    return f"{100 * value:+g}" if scale.is_share else f"{value:+g}"


def _tick_label(scale: Scale, value: float) -> str:
    return f"{100 * value:.0f} %" if scale.is_share else f"{value:g}"


_MAKES: Final = {"merged": "merge", "finetuned": "fine-tune"}
