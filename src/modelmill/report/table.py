"""The summary table: one row per model, as text, for a terminal and for Markdown.

Knows which columns there are.  Must not know how a table is drawn.
"""

from dataclasses import dataclass
from typing import Protocol

from modelmill.evaluate.scale import in_order
from modelmill.report import words
from modelmill.report.document import ModelEntry, ReportDocument, scale_of
from modelmill.spec.infer import MetricName


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; every cell is one line of harmless characters."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summary_table(document: ReportDocument) -> Table:
    """Lay the models side by side."""
    metrics = metric_names(document)
    return Table(
        columns=(
            "model",
            "method",
            "time",
            "memory",
            "size",
            "bits/weight",
            *(words.metric_title(scale_of(document.scales, name)) for name in metrics),
            "verdict",
        ),
        rows=tuple(_row(model, metrics, document) for model in document.models),
    )


def metric_names(document: ReportDocument) -> tuple[MetricName, ...]:
    """List every metric that some model has a score for."""
    return in_order(name for model in document.models for name in model.metrics)


def verdict_words(model: ModelEntry, document: ReportDocument) -> str:
    """Say in a word or two how a model came out."""
    if document.gate is not None and model.model == document.gate.against:
        return "reference"
    if model.verdict is None:
        return "no scores" if not model.metrics else words.NOTHING
    return model.verdict if model.gated else f"{model.verdict} (not gated)"


class IsHeld(Protocol):
    """What says how a model's weights are held."""

    @property
    def method(self) -> str:
        """The quantizer's name, or `none`."""
        ...

    @property
    def bits(self) -> int | None:
        """Per weight, without embeddings."""
        ...


def method_words(model: IsHeld) -> str:
    """Say how a model's weights are held."""
    if model.bits is None:
        return words.NOTHING
    method = "" if model.method == "none" else f"{model.method} "
    return words.one_line(f"{method}{model.bits}-bit")


def _row(
    model: ModelEntry, metrics: tuple[MetricName, ...], document: ReportDocument
) -> tuple[str, ...]:
    made = model.made
    return (
        words.one_line(model.model),
        method_words(model),
        words.duration(made.seconds if made is not None else None),
        words.memory(made.peak_rss_bytes, made.peak_gpu_bytes) if made else words.NOTHING,
        words.size(model.size_bytes),
        words.NOTHING if model.bits_per_weight is None else f"{model.bits_per_weight:.2f}",
        *(
            words.metric_score(scale_of(document.scales, name), model.metrics.get(name))
            for name in metrics
        ),
        verdict_words(model, document),
    )
