"""Two runs side by side as text: what was asked differently, and what came of it.

Knows which rows there are.  Must not know how a table is drawn.
"""

import json
from collections.abc import Iterator
from typing import Final

from pydantic import JsonValue

from modelmill.report import words
from modelmill.report.comparison import (
    ComparedModel,
    ComparedScore,
    ComparisonDocument,
    Held,
    SettingDifference,
)
from modelmill.report.document import scale_of
from modelmill.report.table import Table, method_words

SHOWN_CHARACTERS: Final = 60
"""Of a setting, on a terminal; the page and the document have all of it."""
CHANGES: Final = {
    "better": "better",
    "worse": "worse",
    "undecided": "cannot tell",
    "same": "the same",
}


def settings_table(document: ComparisonDocument) -> Table:
    """List what differs between the two runs as asked."""
    return Table(
        columns=("differs", document.a.run, document.b.run),
        rows=tuple(
            (words.one_line(each.key), *map(_shortened, setting_words(each)))
            for each in document.settings
        ),
    )


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def setting_words(difference: SettingDifference) -> tuple[str, str]:
    """Write both values; a dash where a run has no such key."""
    a = words.NOTHING if difference.only_in == "b" else value_words(difference.a)
    b = words.NOTHING if difference.only_in == "a" else value_words(difference.b)
    return a, b


def value_words(value: JsonValue) -> str:
    """Write a setting on one line, texts as they are."""
    if value is None:
        return "none"
    return words.one_line(value if isinstance(value, str) else json.dumps(value))


def comparison_table(document: ComparisonDocument) -> Table:
    """Lay both runs side by side: a group of rows per model, a row per thing that is known."""
    return Table(
        columns=("model", "what", document.a.run, document.b.run, "difference", "means"),
        rows=tuple(row for model in document.models for row in _rows(model, document)),
    )


def _rows(model: ComparedModel, document: ComparisonDocument) -> Iterator[tuple[str, ...]]:
    name = words.one_line(model.model)
    for score in model.scores:
        scale = scale_of(document.scales, score.metric)
        difference, means = difference_words(score, document)
        yield (
            name,
            words.metric_title(scale),
            words.metric_score(scale, score.a),
            words.metric_score(scale, score.b),
            difference,
            means,
        )
        name = ""
    for what, a, b in cost_words(model):
        yield name, what, a, b, "", ""
        name = ""


def difference_words(score: ComparedScore, document: ComparisonDocument) -> tuple[str, str]:
    """Write how far apart two scores are, and what that means."""
    if score.difference is None:
        return words.NOTHING, ""
    scale, found = scale_of(document.scales, score.metric), score.difference
    interval = words.metric_interval(scale, found.low, found.high)
    if found.change == "same":
        return words.NOTHING, CHANGES[found.change]
    told = [CHANGES[found.change]]
    if not found.is_paired:
        told.append("unpaired")
    if score.flips is not None:
        told.append(
            f"{score.flips.lost} lost, {score.flips.gained} gained, "
            f"{words.probability(score.flips.p_value)}"
        )
    return f"{words.metric_difference(scale, found.value)} ({interval})", "; ".join(told)


def cost_words(model: ComparedModel) -> Iterator[tuple[str, str, str]]:
    """Write what a model is and took in both runs, where either run knows."""
    rows = (
        ("held as", _method(model.a), _method(model.b)),
        ("size", words.size(model.a.size_bytes), words.size(model.b.size_bytes)),
        ("bits per weight", *(_bits(each) for each in (model.a, model.b))),
        ("tokens/s", *(_speed(each) for each in (model.a, model.b))),
        ("time to make", *(_time(each) for each in (model.a, model.b))),
        ("peak memory to make", *(_memory(each) for each in (model.a, model.b))),
        ("time to answer", *(_answering(each) for each in (model.a, model.b))),
        (
            "answered on",
            *(words.one_line(each.device) or words.NOTHING for each in (model.a, model.b)),
        ),
    )
    for what, a, b in rows:
        if {a, b} != {words.NOTHING}:
            yield what, a, b


def _method(held: Held) -> str:
    return method_words(held) if held.method else held.problem or words.NOTHING


def _bits(held: Held) -> str:
    return words.NOTHING if held.bits_per_weight is None else f"{held.bits_per_weight:.2f}"


def _speed(held: Held) -> str:
    speed = held.tokens_per_second
    if speed is None:
        return words.NOTHING
    engine = words.one_line(held.speed_engine)
    return words.three_digits(speed) + (f", {engine}" if engine else "")


def _time(held: Held) -> str:
    return words.duration(held.made.seconds if held.made is not None else None)


def _answering(held: Held) -> str:
    return words.duration(held.answering.seconds if held.answering is not None else None)


def _memory(held: Held) -> str:
    if held.made is None:
        return words.NOTHING
    return words.memory(held.made.peak_rss_bytes, held.made.peak_gpu_bytes)
