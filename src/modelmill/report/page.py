"""`report.html`: one page that needs nothing but itself.

Knows how the document is told to a stranger; the words are in `templates/`.  Everything
foreign passes through two guards on its way into the page: control characters are spelled
out, and Jinja escapes the rest.  The page has no script and its policy forbids any.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import JsonValue

from modelmill.evaluate.scale import Scale
from modelmill.report import words
from modelmill.report.curve import training_curve
from modelmill.report.document import ModelEntry, ReportDocument, Score, SliceField, scale_of
from modelmill.report.lengths import row_lengths
from modelmill.report.panels import gate_panel, metric_panels, size_panel, speed_panel
from modelmill.report.spending_table import basis_notes, spending_sentence, spending_table
from modelmill.report.table import method_words, metric_names, verdict_words
from modelmill.report.timeline import PARTS, timeline
from modelmill.spec.errors import meaning_of
from modelmill.spec.figures import Merged, Quantized
from modelmill.spec.infer import MetricName

_TEMPLATE: Final = "report.html.j2"


@dataclass(frozen=True)
class SliceRow:
    """One value of the slice field: its rows, and each model's score and interval."""

    value: str
    rows: int
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SliceGroup:
    """The scores of one metric by the value of the slice field."""

    title: str
    rows: tuple[SliceRow, ...]


@dataclass(frozen=True)
class SliceTable:
    """The scores of all models by the values of one field."""

    field: SliceField
    groups: tuple[SliceGroup, ...]


@dataclass(frozen=True)
class Fact:
    """A named value in a list of facts."""

    name: str
    value: str


def report_html(document: ReportDocument) -> bytes:
    """Draw the page; equal documents give equal bytes."""
    page = page_environment().get_template(_TEMPLATE)
    scales = {name: scale_of(document.scales, name) for name in metric_names(document)}
    text = page.render(
        document=document,
        words=words,
        base=document.models[0],
        verdict_of={model.model: verdict_words(model, document) for model in document.models},
        scales={**document.scales, **scales},
        metric_names=metric_names(document),
        method_words=method_words,
        metrics=metric_panels(document),
        size=size_panel(document),
        speed=speed_panel(document),
        gate=None if document.gate is None else gate_panel(document, document.gate),
        flipped=[model for model in document.models if model.flips],
        slices=_slice_tables(document),
        unsliced=[each for each in document.slice_fields if each.problem],
        curve=training_curve(document),
        lengths=row_lengths(document),
        merge=_merge_facts(document),
        calibrated=[
            stage
            for stage in document.stages
            if isinstance(stage.figures, Quantized) and stage.figures.calibration_tokens
        ],
        timeline=timeline(document),
        parts=PARTS,
        spent=spending_table(document),
        spent_in_words=spending_sentence(document.spending),
        bases=basis_notes(document),
        failed=[stage for stage in document.stages if stage.status == "failed"],
        waiting=[stage for stage in document.stages if stage.status in ("skipped", "missing")],
        adopted=[stage for stage in document.stages if stage.status == "adopted"],
        warned=[stage for stage in document.stages if stage.warnings],
        meaning_of=meaning_of,
        excluded=_exclusions(document),
        model_note=_model_note(document),
    )
    return text.encode()


def page_environment() -> Environment:
    """Make what templates are drawn with: everything escaped, nothing undefined, no scripts."""
    environment = Environment(
        loader=PackageLoader("modelmill.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = _pretty
    return environment


def _harmless(value: object) -> object:
    """Spell out control characters in every value a template shows."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return words.visible(value)


def _pretty(value: JsonValue) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _model_note(document: ReportDocument) -> str:
    model = document.lineage.settings["model"]
    assert isinstance(model, dict)
    return str(model["note"])


def _slice_tables(document: ReportDocument) -> tuple[SliceTable, ...]:
    """Lay out one table per field, in it one group per metric: values downwards, models across."""
    return tuple(
        SliceTable(field, groups)
        for field in _slice_fields(document)
        if (groups := tuple(_slice_groups(document, field)))
    )


def _slice_fields(document: ReportDocument) -> tuple[SliceField, ...]:
    """List the fields; an older report has at most one and does not say its order."""
    if document.slice_fields or document.slice is None:
        return document.slice_fields
    values = sorted({value for model in document.models for value in model.slices})
    return (SliceField(field=document.slice, values=tuple(values)),)


def _slice_groups(document: ReportDocument, field: SliceField) -> Iterator[SliceGroup]:
    by_model = [_sliced(model, field) for model in document.models]
    for metric in metric_names(document):
        rows = tuple(
            _slice_row(
                value,
                [each.get(value, {}).get(metric) for each in by_model],
                scale_of(document.scales, metric),
            )
            for value in field.values
        )
        if rows:
            yield SliceGroup(words.metric_title(scale_of(document.scales, metric)), rows)


def _sliced(model: ModelEntry, field: SliceField) -> Mapping[str, Mapping[MetricName, Score]]:
    return model.sliced.get(field.field, model.slices if not model.sliced else {})


def _slice_row(value: str, scores: Sequence[Score | None], scale: Scale) -> SliceRow:
    return SliceRow(
        value=value,
        rows=max((score.n for score in scores if score is not None), default=0),
        cells=tuple(
            (words.NOTHING, "")
            if score is None
            else (
                words.metric_value(scale, score.value),
                words.metric_interval(scale, score.low, score.high),
            )
            for score in scores
        ),
    )


def _merge_facts(document: ReportDocument) -> tuple[Fact, ...]:
    return tuple(
        fact
        for stage in document.stages
        if isinstance(stage.figures, Merged)
        for fact in _proof(stage.figures)
    )


def _proof(figures: Merged) -> list[Fact]:
    """Tell what the merge showed about itself."""
    facts = [
        Fact("Effect of the adapter", f"{100 * figures.effect:.1f} % of the base's logits"),
        Fact(
            "Merged model differs from adapter model by",
            f"{100 * figures.difference:.2f} % of that effect "
            f"(at most {100 * figures.bound:.0f} % allowed, {figures.dtype})",
        ),
        Fact("Checked on", words.counted(figures.prompts, "prompt")),
    ]
    if figures.training_distance is not None:
        facts.append(
            Fact(
                "Distance to the model as it was trained, in 4 bits",
                f"{100 * figures.training_distance:.1f} % of that effect",
            )
        )
    return facts


def _exclusions(document: ReportDocument) -> tuple[Fact, ...]:
    """List the rows that metrics left out, for all models at once where they agree."""
    found: dict[tuple[MetricName, str, int], list[str]] = {}
    for model in document.models:
        for metric, score in model.metrics.items():
            for reason, rows in score.excluded.items():
                found.setdefault((metric, reason, rows), []).append(model.model)
    return tuple(
        Fact(
            words.metric_title(scale_of(document.scales, metric)),
            f"{words.counted(rows, 'row')} left out for "
            f"{'every model' if len(names) == len(document.models) else words.listing(names)}: "
            f"{reason}",
        )
        for (metric, reason, rows), names in found.items()
    )
