"""`report.json`: its interface, its schema, and where each figure comes from."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from pydantic import ValidationError

from modelmill.report.compose import render, report_json, report_schema
from modelmill.report.document import ReportDocument
from modelmill.report.facts import RunFacts
from modelmill.spec.records import Event

STAGE_FIELDS = {
    "stage",
    "status",
    "seconds",
    "peak_rss_bytes",
    "peak_gpu_bytes",
    "bytes_in",
    "bytes_out",
    "attempts",
    "adopted_from",
    "settings",
}
MODEL_FIELDS = {
    "model",
    "method",
    "bits",
    "size_bytes",
    "tokens_per_second",
    "metrics",
    "verdict",
}


def test_interface_that_others_rely_on(document: ReportDocument) -> None:
    """Every promised field is there under its name."""
    told = json.loads(report_json(document))
    assert told["run"] == "demo"
    assert all(stage.keys() >= STAGE_FIELDS for stage in told["stages"])
    assert all(model.keys() >= MODEL_FIELDS for model in told["models"])
    assert [model["model"] for model in told["models"]] == [
        "base",
        "merged",
        "gptq-4",
        "nf4",
        "gptq-2",
    ]
    for model in told["models"]:
        assert set(model["metrics"]) == {"nll", "exact_match", "sql_execution"}
        for score in model["metrics"].values():
            assert score["low"] <= score["value"] <= score["high"]
            assert score["n"] > 0
    assert told["gate"]["outcome"] == "undecided"


def test_json_reads_back_as_the_document(document: ReportDocument) -> None:
    """What is written is what was meant, in plain ASCII."""
    written = report_json(document)
    assert written.isascii()
    assert ReportDocument.model_validate_json(written) == document


def test_json_with_an_unknown_field_is_refused(document: ReportDocument) -> None:
    """The model is closed: a misspelt field is not read as nothing."""
    told = json.loads(report_json(document))
    told["modles"] = []
    with pytest.raises(ValidationError, match="modles"):
        ReportDocument.model_validate(told)


def test_schema_requires_the_interface() -> None:
    """The generated schema names and requires the fields, and describes them."""
    schema = json.loads(json.dumps(report_schema()))
    assert set(schema["$defs"]["StageEntry"]["required"]) >= STAGE_FIELDS
    assert set(schema["$defs"]["ModelEntry"]["required"]) >= MODEL_FIELDS
    assert schema["$defs"]["ModelEntry"]["additionalProperties"] is False
    assert schema["$defs"]["ModelEntry"]["properties"]["size_bytes"]["description"]


def test_sizes_are_compared_with_the_16_bit_merge(document: ReportDocument) -> None:
    """Bits per weight count all bytes; the share is of the merged model's size."""
    merged, gptq = document.models[1], document.models[2]
    assert merged.size_share == 1
    assert gptq.size_share == pytest.approx(110_433_280 / 269_060_552)
    assert gptq.bits_per_weight == pytest.approx(6.568, abs=1e-3)
    assert merged.bits_per_weight == pytest.approx(16.0, abs=0.01)


def test_a_model_costs_what_its_stages_cost(document: ReportDocument) -> None:
    """Merged is made by finetune and merge: their seconds add up, their peaks do not."""
    base, merged = document.models[0], document.models[1]
    assert base.made is None
    assert merged.made is not None
    assert merged.made.stages == ("finetune", "merge")
    assert merged.made.seconds == pytest.approx(250.2)
    assert merged.made.peak_rss_bytes == 3_900_000_000


def test_settings_come_from_the_manifest(small: RunFacts, change: Callable[..., RunFacts]) -> None:
    """An adopted stage may have been asked for differently; what made it is shown."""
    stage = small.find("merge")
    assert stage is not None
    assert stage.manifest is not None
    manifest = stage.manifest.model_copy(update={"settings": {"kind": "merge", "as": "made"}})
    document, _ = render(change(small, "merge", manifest=manifest))
    shown = next(each for each in document.stages if each.stage == "merge")
    assert shown.settings == {"kind": "merge", "as": "made"}


def test_every_warning_is_repeated(document: ReportDocument) -> None:
    """The model's note comes first, then each stage's warnings under its name."""
    assert document.notes[0].startswith("This base is a dequantized Q4_1")
    assert document.notes[1] == "finetune: 3 rows were longer than max_length and were dropped"


def test_speed_beside_another_stage_is_said(small: RunFacts) -> None:
    """Two stages on the same cores slow each other down, which says nothing about a model."""
    quiet, _ = render(small)
    assert not any("shared the cores" in note for note in quiet.notes)
    begun = next(e for e in small.events if (e.stage, e.event) == ("infer-merged", "started"))
    nf4 = small.plan.stage("quantize-nf4")
    again = [
        begun.model_copy(update={"stage": nf4.name, "key": nf4.key, "event": event})
        for event in ("started", "failed")
    ]
    ended = next(e for e in small.events if (e.stage, e.event) == ("infer-merged", "committed"))
    again[1] = again[1].model_copy(update={"time": ended.time, "exit_code": 71})
    crowded, _ = render(replace(small, events=(*small.events, *again)))
    assert crowded.notes[-1].startswith("infer-merged shared the cores")


def test_speed_of_shards_is_said_to_be_that_of_one(
    small: RunFacts, change: Callable[..., RunFacts]
) -> None:
    """Three pods are no faster a device, so what they did is compared with what one would."""
    alone, _ = render(small)
    stage = small.find("infer-merged")
    assert stage is not None
    measured = stage.measurements
    assert measured is not None
    figures = measured.figures.model_copy(update={"shards": 3})
    measured = measured.model_copy(update={"figures": figures})
    shared, files = render(change(small, "infer-merged", measurements=measured))
    was, now = (
        next(each for each in document.models if each.model == "merged")
        for document in (alone, shared)
    )
    assert now.tokens_per_second == was.tokens_per_second
    assert now.device == f"{was.device}, one of 3 shards"
    assert now.device.encode() in files["report.html"]


def test_attempts_become_spans(small: RunFacts) -> None:
    """A failed attempt and the one after it are two spans; another key's events are not ours."""
    stage = small.plan.stage("merge")
    times = ("09:00:00", "09:00:05", "09:00:07", "09:00:20")
    kinds = ("started", "failed", "started", "committed")
    mine = [
        Event.model_validate(
            {
                "time": f"2026-11-22T{time}.000Z",
                "event": kind,
                "stage": "merge",
                "key": stage.key,
                "exit_code": 71 if kind == "failed" else None,
            }
        )
        for time, kind in zip(times, kinds, strict=True)
    ]
    other = mine[0].model_copy(update={"key": "another plan's", "time": "2026-11-21T09:00:00Z"})
    document, _ = render(replace(small, events=(other, *mine)))
    spans = next(each for each in document.stages if each.stage == "merge").spans
    assert [(span.outcome, span.exit_code) for span in spans] == [
        ("failed", 71),
        ("committed", None),
    ]
