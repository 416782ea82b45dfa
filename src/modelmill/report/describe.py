"""Put facts and judgement together into the document.

Knows which record answers which field.  Must not judge (that is `judge`) and must not
format (that is `words` and the views).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from pydantic import JsonValue, TypeAdapter

from modelmill.report.asked import slice_field
from modelmill.report.costs import (
    bits_per_weight,
    cost_of,
    inferred_by,
    made_by,
    quantized_by,
    size_share,
)
from modelmill.report.document import (
    Flips,
    Lineage,
    ModelEntry,
    ReportDocument,
    SourceEntry,
    Span,
    StageEntry,
)
from modelmill.report.facts import RunFacts, StageFacts
from modelmill.report.headline import headline
from modelmill.report.judge import JudgedModel, Judgement
from modelmill.report.leaks import data_entries, leak_notes
from modelmill.report.samples import gate_flips, pick_samples
from modelmill.report.spending import (
    Attempted,
    RunSpending,
    StageSpending,
    spent_by_run,
    spent_by_stage,
)
from modelmill.spec.plan import Stage
from modelmill.spec.records import Event

_SETTINGS: Final = TypeAdapter(dict[str, JsonValue])
_ENDS: Final = frozenset({"committed", "failed", "stopped"})


def report_document(facts: RunFacts, judgement: Judgement) -> ReportDocument:
    """Put everything together that the report says; equal facts give equal documents."""
    flips = gate_flips(facts, judgement)
    models = tuple(
        _model(facts, judged, flips.get(judged.model, ())) for judged in judgement.models
    )
    stages = tuple(_stage(facts, stage) for stage in facts.stages)
    settings = facts.plan.report
    return ReportDocument(
        run=facts.run,
        created=facts.created,
        outcome=judgement.outcome,
        headline=headline(judgement, models),
        stages=stages,
        models=models,
        gate=judgement.gate,
        slice=next(iter(settings.slice_fields), None),
        slice_fields=tuple(map(slice_field, judgement.slicings)),
        scales=judgement.scales,
        problems=judgement.problems,
        data=data_entries(facts),
        samples=pick_samples(facts, judgement),
        controls=judgement.controls,
        lineage=_lineage(facts),
        spending=spent(facts),
        notes=(*_notes(facts), *_told_by(judgement), *_crowded(stages)),
        adapter_uri=facts.uri_of("adapter"),
    )


def spent(facts: RunFacts) -> RunSpending | None:
    """Add up what all stages held that ran here; None where nothing is known of that."""
    held = [_spending(facts, stage, _spans(facts.events, stage.stage)) for stage in facts.stages]
    return spent_by_run([each for each in held if each is not None], facts.prices.currency)


def _told_by(judgement: Judgement) -> tuple[str, ...]:
    """Say what of the asked slices and metrics is not there."""
    sliced = [f"not scored apart: {each.problem}" for each in judgement.slicings if each.problem]
    failed = [
        " ".join([f"{each.model}:" if each.model else "", *each.message.split()]).strip()
        for each in judgement.problems
    ]
    return (*failed, *sliced)


def _model(facts: RunFacts, judged: JudgedModel, flips: tuple[Flips, ...]) -> ModelEntry:
    chosen = judged.chosen
    inferred = inferred_by(facts.find(chosen.stage)) if chosen is not None else None
    speed = inferred.speed if inferred is not None else None
    made = made_by(facts, judged.model)
    held = inferred or quantized_by(made)
    size_bytes = held.size_bytes if held is not None else None
    return ModelEntry(
        model=judged.model,
        method=held.method if held is not None else "",
        bits=held.bits if held is not None else None,
        size_bytes=size_bytes,
        tokens_per_second=inferred.tokens_per_second if inferred is not None else None,
        metrics=chosen.metrics if chosen is not None else {},
        verdict=judged.verdict,
        gated=judged.gated,
        difference=judged.difference,
        prompt=chosen.form if chosen is not None else "",
        prompts={scores.form: scores for scores in judged.prompts},
        slices=chosen.slices if chosen is not None else {},
        sliced=chosen.sliced if chosen is not None else {},
        flips=flips,
        bits_per_weight=bits_per_weight(made, inferred),
        parameters=held.parameters if held is not None else None,
        size_share=size_share(facts, size_bytes),
        made=cost_of(made),
        answering=cost_of([stage] if (stage := _answering(facts, judged)) is not None else []),
        engine=inferred.engine if inferred is not None else "",
        speed_engine=speed.engine if speed is not None else "",
        speed_why=speed.why if speed is not None else "",
        dtype=inferred.dtype if inferred is not None else "",
        device=inferred.place if inferred is not None else "",
        batch_size=inferred.batch_size if inferred is not None else None,
        problem=judged.problem,
        uri=facts.uri_of(judged.model),
    )


def _answering(facts: RunFacts, judged: JudgedModel) -> StageFacts | None:
    return None if judged.chosen is None else facts.find(judged.chosen.stage)


def _stage(facts: RunFacts, stage: StageFacts) -> StageEntry:
    measured, manifest = stage.measurements, stage.manifest
    asked = manifest.settings if manifest is not None else _asked(stage)
    spans = _spans(facts.events, stage.stage)
    return StageEntry(
        stage=stage.stage.name,
        status=stage.status,
        seconds=measured.seconds if measured is not None else None,
        peak_rss_bytes=measured.peak_rss_bytes if measured is not None else None,
        peak_gpu_bytes=measured.peak_gpu_bytes if measured is not None else None,
        bytes_in=measured.bytes_in if measured is not None else None,
        bytes_out=measured.bytes_out if measured is not None else None,
        attempts=stage.attempts,
        adopted_from=stage.adopted_from,
        settings=asked,
        kind=stage.stage.kind,
        key=stage.stage.key,
        parts=measured.parts if measured is not None else (),
        spans=spans,
        figures=measured.figures if measured is not None else None,
        warnings=measured.warnings if measured is not None else (),
        exit_code=stage.exit_code,
        message=stage.message,
        manifest_sha256=stage.manifest_sha256,
        created=manifest.created if manifest is not None else "",
        made_by=manifest.run if manifest is not None else "",
        inputs=manifest.inputs if manifest is not None else {},
        effective=manifest.effective if manifest is not None else {},
        versions=manifest.versions if manifest is not None else {},
        device=manifest.device if manifest is not None else None,
        spending=_spending(facts, stage, spans),
    )


def _spending(facts: RunFacts, stage: StageFacts, spans: Sequence[Span]) -> StageSpending | None:
    foretold = facts.foretold.get(stage.stage.key)
    if foretold is None or not spans:
        return None
    attempts = [
        Attempted(seconds=_seconds(each), is_lost=each.outcome != "committed") for each in spans
    ]
    return spent_by_stage(foretold, attempts, facts.prices)


def _seconds(span: Span) -> float | None:
    if not span.ended:
        return None
    started, ended = map(datetime.fromisoformat, (span.started, span.ended))
    return (ended - started).total_seconds()


def _asked(stage: StageFacts) -> dict[str, JsonValue]:
    return _SETTINGS.validate_python(stage.stage.settings.model_dump(mode="json"))


def _spans(events: tuple[Event, ...], stage: Stage) -> tuple[Span, ...]:
    """Pair the start of every attempt with its end; an end without a start is dropped.

    Pods that were replaced among those that share an attempt end without a start of their own.
    What an earlier plan of the run did under the same name has another key and is left out.
    """
    spans: list[Span] = []
    begun: dict[str, Event] = {}
    mine = [each for each in events if (each.stage, each.key) == (stage.name, stage.key)]
    for event in sorted(mine, key=lambda each: each.time):
        if event.event == "started":
            begun.setdefault(event.attempt, event)
        elif event.event in _ENDS and event.attempt in begun:
            spans.append(_span(begun.pop(event.attempt), event))
    spans += (_span(start, None) for start in begun.values())
    return tuple(sorted(spans, key=lambda each: each.started))


def _span(start: Event, end: Event | None) -> Span:
    if end is None:
        return Span(attempt=start.attempt, started=start.time, ended="", outcome="unknown")
    assert end.event in ("committed", "failed", "stopped")
    return Span(
        attempt=start.attempt,
        started=start.time,
        ended=end.time,
        outcome=end.event,
        exit_code=end.exit_code,
    )


def _lineage(facts: RunFacts) -> Lineage:
    return Lineage(
        plan_sha256=facts.plan_sha256,
        created=facts.created,
        accelerator=facts.plan.facts.accelerator,
        dtype=facts.plan.facts.dtype,
        sources=tuple(
            SourceEntry(asked=asked, pin=pin) for asked, pin in sorted(facts.plan.pins.items())
        ),
        settings=_SETTINGS.validate_python(facts.plan.run.model_dump(mode="json")),
    )


def _crowded(stages: Sequence[StageEntry]) -> tuple[str, ...]:
    """Say whose speed was measured while another stage used the same cores."""
    spans = [(entry, span) for entry in stages for span in entry.spans if span.ended]
    names = [
        entry.stage
        for entry, span in spans
        if entry.kind == "infer"
        and entry.device is not None
        and entry.device.accelerator == "cpu"
        and span.outcome == "committed"
        and any(
            other is not entry and each.started < span.ended and span.started < each.ended
            for other, each in spans
        )
    ]
    if not names:
        return ()
    note = (
        f"{', '.join(names)} shared the cores with other stages, so their speeds say little; "
        "a profile with `max_parallel: 1` measures them alone"
    )
    return (note,)


def _notes(facts: RunFacts) -> tuple[str, ...]:
    note = facts.plan.report.model_note
    warnings = [
        f"{stage.stage.name}: {warning}"
        for stage in facts.stages
        if stage.measurements is not None
        for warning in stage.measurements.warnings
    ]
    return (*((note,) if note else ()), *warnings, *leak_notes(facts))
