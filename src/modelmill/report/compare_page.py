"""`compare.html`: two runs on one page that needs nothing but itself.

Knows how a comparison is told to a stranger; the words are in `templates/`.  Foreign text
passes the same two guards as in `page`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from modelmill.report import words
from modelmill.report.axis import linear_axis
from modelmill.report.compare_table import (
    CHANGES,
    cost_words,
    difference_words,
    setting_words,
)
from modelmill.report.comparison import (
    ComparedModel,
    ComparedScore,
    ComparisonDocument,
    StageCost,
)
from modelmill.report.curve import SharedCurve, shared_curve
from modelmill.report.document import SliceField, scale_of
from modelmill.report.page import page_environment
from modelmill.report.panels import Mark, Panel, Tick, difference_label
from modelmill.report.spending_table import spending_sentence
from modelmill.spec.infer import MetricName

_TEMPLATE: Final = "compare.html.j2"
_TONES: Final = {"better": "good", "worse": "bad", "undecided": "undecided", "same": "quiet"}


@dataclass(frozen=True)
class ScoreRow:
    """One model's scores by one metric."""

    model: str
    a: tuple[str, str]
    """Value and interval."""
    b: tuple[str, str]
    difference: str
    tone: str
    """A verdict's colour."""
    means: str
    flips: str


@dataclass(frozen=True)
class ScoreGroup:
    """All models by one metric, and the same as a drawing."""

    title: str
    hint: str
    rows: tuple[ScoreRow, ...]
    panel: Panel | None


@dataclass(frozen=True)
class SliceRow:
    """One group of rows: its name, how many rows each run has of it, and scores by model."""

    value: str
    rows: str
    cells: tuple[tuple[str, str], ...]
    """Of both runs, model by model."""


@dataclass(frozen=True)
class SliceTable:
    """The scores by one field, metric by metric."""

    field: SliceField
    groups: tuple[tuple[str, tuple[SliceRow, ...]], ...]


@dataclass(frozen=True)
class StageRow:
    """What a stage took in both runs."""

    stage: str
    a: tuple[str, str]
    """Time and peak memory."""
    b: tuple[str, str]
    note: str


def comparison_html(document: ComparisonDocument) -> bytes:
    """Draw the page; equal documents give equal bytes."""
    text = (
        page_environment()
        .get_template(_TEMPLATE)
        .render(
            document=document,
            words=words,
            scales={name: scale_of(document.scales, name) for name in document.scales},
            held=[spending_sentence(run.spending) for run in (document.a, document.b)],
            settings=[(each.key, *setting_words(each)) for each in document.settings],
            scores=tuple(_score_groups(document)),
            costs=[(model.model, tuple(cost_words(model))) for model in document.models],
            flipped=[
                (model, score.flips)
                for model in document.models
                for score in model.scores
                if score.flips is not None and score.flips.rows
            ],
            has_flipped=any(
                score.flips is not None and score.flips.lost + score.flips.gained
                for model in document.models
                for score in model.scores
            ),
            slices=tuple(_slice_tables(document)),
            unsliced=[each for each in document.slice_fields if each.problem],
            stages=tuple(_stage_rows(document)),
            curve=_curve(document),
        )
    )
    return text.encode()


def _score_groups(document: ComparisonDocument) -> Iterator[ScoreGroup]:
    for metric, scale in document.scales.items():
        found = [
            (model, score)
            for model in document.models
            for score in model.scores
            if score.metric == metric
        ]
        if found:
            unit = "" if scale.is_share or not scale.unit else f", {scale.unit}"
            yield ScoreGroup(
                title=words.metric_title(scale),
                hint=f"{words.direction(scale)}{unit}",
                rows=tuple(_score_row(model, score, document) for model, score in found),
                panel=_panel(document, metric, found),
            )


def _score_row(
    model: ComparedModel, score: ComparedScore, document: ComparisonDocument
) -> ScoreRow:
    scale = scale_of(document.scales, score.metric)
    a, b = (
        (words.NOTHING, "no answers" if held.problem else "")
        if each is None
        else (
            words.metric_value(scale, each.value),
            words.metric_interval(scale, each.low, each.high),
        )
        for each, held in ((score.a, model.a), (score.b, model.b))
    )
    change = None if score.difference is None else score.difference.change
    flips = score.flips
    return ScoreRow(
        model=model.model,
        a=a,
        b=b,
        difference=difference_words(score, document)[0],
        tone="quiet" if change is None else _TONES[change],
        means=words.NOTHING if change is None else CHANGES[change],
        flips=words.NOTHING
        if flips is None or change == "same"
        else f"{flips.lost:,} lost, {flips.gained:,} gained; {words.probability(flips.p_value)}",
    )


def _panel(
    document: ComparisonDocument,
    metric: MetricName,
    found: Sequence[tuple[ComparedModel, ComparedScore]],
) -> Panel | None:
    scale = scale_of(document.scales, metric)
    known = [
        (model.model, score.difference)
        for model, score in found
        if score.difference is not None and score.difference.change != "same"
    ]
    if not known:
        return None
    edges = [0.0, *(edge for _, each in known for edge in (each.low, each.high))]
    axis = linear_axis(min(edges), max(edges))
    side = "right" if scale.higher_is_better else "left"
    paired = "paired" if known[0][1].is_paired else "unpaired"
    return Panel(
        title=f"{words.metric_title(scale)}: {document.b.run} minus {document.a.run}",
        hint=f"{paired}, with the 95 % interval; to the {side} is better",
        marks=tuple(
            Mark(
                name=model,
                text=words.metric_difference(scale, each.value),
                at=axis.at(each.value),
                low=axis.at(each.low),
                high=axis.at(each.high),
                note=words.metric_interval(scale, each.low, each.high),
                tone=_TONES[each.change],
            )
            for model, each in known
        ),
        ticks=tuple(Tick(axis.at(tick), difference_label(scale, tick)) for tick in axis.ticks),
        lines=(Tick(axis.at(0.0), "no difference"),),
    )


def _slice_tables(document: ComparisonDocument) -> Iterator[SliceTable]:
    for field in document.slice_fields:
        groups = []
        for metric, scale in document.scales.items():
            rows = tuple(_slice_row(document, field, value, metric) for value in field.values)
            if rows:
                groups.append((words.metric_title(scale), rows))
        if groups:
            yield SliceTable(field, tuple(groups))


def _slice_row(
    document: ComparisonDocument, field: SliceField, value: str, metric: MetricName
) -> SliceRow:
    scale = scale_of(document.scales, metric)
    scores = [
        score
        for model in document.models
        for each in model.sliced.get(field.field, {}).get(value, ())
        if each.metric == metric
        for score in (each.a, each.b)
    ]
    sizes = [
        max((score.n for score in scores[place::2] if score is not None), default=0)
        for place in (0, 1)
    ]
    return SliceRow(
        value=value,
        rows=words.counted(sizes[0], "row")
        if sizes[0] == sizes[1]
        else "{:,} and {:,} rows".format(*sizes),
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


def _stage_rows(document: ComparisonDocument) -> Iterator[StageRow]:
    for stage in document.stages:
        yield StageRow(
            stage=stage.stage,
            a=_stage_cost(stage.a),
            b=_stage_cost(stage.b),
            note="the same, computed once" if stage.is_shared else "",
        )


def _stage_cost(cost: StageCost | None) -> tuple[str, str]:
    if cost is None:
        return words.NOTHING, "no such stage"
    if cost.seconds is None:
        return words.NOTHING, cost.status
    return words.duration(cost.seconds), words.memory(cost.peak_rss_bytes, cost.peak_gpu_bytes)


def _curve(document: ComparisonDocument) -> SharedCurve | None:
    runs = ((document.a.run, document.training.a), (document.b.run, document.training.b))
    return shared_curve([(run, figures) for run, figures in runs if figures is not None])
