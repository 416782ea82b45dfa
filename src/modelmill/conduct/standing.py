"""How runs, stages and artifacts stand, read from the store as closed rows.

What `plan`, `status` and `artifacts` print; knows nothing about how.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

from modelmill.conduct.clock import is_young
from modelmill.conduct.lookup import find_run, live_plan
from modelmill.conduct.owner import command_to_go_on
from modelmill.spec.errors import Interrupted, LineageBroken
from modelmill.spec.names import Kind, kind_of
from modelmill.spec.plan import Plan, Stage, folder_of
from modelmill.spec.records import Event, Progress, Record, RunRecord
from modelmill.store.artifact import (
    Committed,
    check_ancestry,
    list_artifacts,
    read_manifest,
    uri_of,
    verify,
)
from modelmill.store.runs import (
    list_runs,
    read_events,
    read_progress,
    read_run,
)
from modelmill.store.s3 import Store

HOUR_MINUTES = 60


class PlanRow(Record):
    """What will become of one stage."""

    stage: str
    key: str
    state: Literal["committed", "will run", "lineage broken"]
    from_run: str
    inputs: tuple[str, ...]


class SourceRow(Record):
    """Which state of a source a plan uses."""

    source: str
    """As asked."""
    address: str
    """Where that state is."""
    pinned: str
    """UTC, ISO 8601; empty where it was only found out now."""


class StageRow(Record):
    """Where one stage of a run is."""

    stage: str
    key: str
    state: Literal[
        "committed", "running", "pending", "failed", "stopped", "skipped", "removed", "waiting"
    ]
    """`waiting` for other stages; `pending`: it waits for a place, and `message` says for what;
    `removed` after it was committed."""
    from_run: str = ""
    attempts: int = 0
    seconds: float | None = None
    """Since the last attempt began, or that it took."""
    progress: Progress | None = None
    message: str = ""


class ModelRow(Record):
    """One model of a run that is committed."""

    model: str
    uri: str
    """Where its files are, to be loaded in place."""


class RunRow(Record):
    """Where one run is."""

    run: str
    created: str
    heartbeat: str
    is_live: bool
    exit_code: int | None
    """Of the run; None until it has ended."""
    state: str
    """In words: who drives it, or how it ended."""
    committed: int
    stages: tuple[StageRow, ...]
    models: tuple[ModelRow, ...] = ()


class ArtifactRow(Record):
    """One committed artifact."""

    kind: Kind
    key: str
    run: str
    stage: str
    created: str
    files: int
    size_bytes: int


def plan_rows(store: Store, plan: Plan) -> tuple[PlanRow, ...]:
    """Say of each stage of a plan whether it is committed."""
    sound: set[str] = set()
    return tuple(_plan_row(store, stage, sound) for stage in plan.stages)


def _plan_row(store: Store, stage: Stage, sound: set[str]) -> PlanRow:
    committed = read_manifest(store, stage.kind, stage.key)
    state: Literal["committed", "will run", "lineage broken"] = "will run"
    if committed is not None:
        try:
            check_ancestry(store, committed, sound)
            state = "committed"
        except LineageBroken:
            state = "lineage broken"
    return PlanRow(
        stage=stage.name,
        key=stage.key,
        state=state,
        from_run="" if committed is None else committed.manifest.run,
        inputs=tuple(each.stage for each in stage.inputs),
    )


def source_rows(store: Store, run: str, plan: Plan) -> tuple[SourceRow, ...]:
    """Say of each source of a plan which state of it is meant, and since when."""
    record = read_run(store, run)
    known = {} if record is None else record.pins
    since = "" if record is None else record.pinned_at
    return tuple(
        SourceRow(
            source=source, address=pin.address, pinned=since if known.get(source) == pin else ""
        )
        for source, pin in plan.pins.items()
    )


Look = Callable[[RunRecord], str]
"""Finds out, somewhere else than in the store, why nobody drives a run; empty if it cannot."""


def run_row(store: Store, run: str, look: Look = lambda _: "") -> RunRow:
    """Say where a run and each of its stages is.

    Raises:
        NoSuchRun: there is no such run.
    """
    record = find_run(store, run)
    events = read_events(store, run)
    plan = live_plan(store, record) if record.plan_sha256 else None
    planned = () if plan is None else plan.stages
    stages = (
        *(_stage_row(store, record, stage.name, stage.key, events) for stage in planned),
        _report_row(store, record, events),
    )
    return RunRow(
        run=run,
        created=record.created,
        heartbeat=record.heartbeat,
        is_live=is_driven(record),
        exit_code=record.exit_code,
        state=state_of(record, look),
        committed=sum(row.state == "committed" for row in stages),
        stages=stages,
        models=() if plan is None else tuple(_model_rows(store, plan)),
    )


def _model_rows(store: Store, plan: Plan) -> Iterator[ModelRow]:
    for model, stage in plan.holders().items():
        committed = read_manifest(store, stage.kind, stage.key)
        if committed is not None:
            uri = f"{uri_of(store, committed)}/{folder_of(model)}".rstrip("/")
            yield ModelRow(model=model, uri=uri)


def is_driven(record: RunRecord) -> bool:
    """Tell whether a conductor works on a run, and has not been stopped in the middle."""
    return bool(record.conductor) and not record.absence and is_young(record.heartbeat)


def state_of(record: RunRecord, look: Look) -> str:
    """Say in words who drives a run, or how it ended."""
    if is_driven(record):
        return "running"
    if record.exit_code is None:
        # It was killed, evicted, or has not been started yet.
        why = look(record) or record.absence
        last = record.heartbeat or record.created
        return f"no conductor for {_duration(_age(last))}{': ' if why else ''}{why}"
    if record.cancelled and record.exit_code == Interrupted.exit_code:
        return "cancelled"
    if record.exit_code == 0:
        return "done"
    why = (record.message.splitlines() or [""])[0]
    if record.exit_code == Interrupted.exit_code:
        again = command_to_go_on(record.name, record.owner)
        return f"interrupted; to go on: {again}{': ' if why else ''}{why}"
    return f"failed with {record.exit_code}{': ' if why else ''}{why}"


def _duration(age: timedelta) -> str:
    minutes = int(age.total_seconds()) // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= HOUR_MINUTES else f"{minutes} min"


def run_rows(store: Store, look: Look = lambda _: "") -> tuple[RunRow, ...]:
    """Say where every run is."""
    return tuple(run_row(store, run, look) for run in list_runs(store))


def artifact_rows(store: Store) -> Iterator[ArtifactRow]:
    """List everything that is committed."""
    for kind, key in list_artifacts(store):
        committed = read_manifest(store, kind, key)
        if committed is not None:
            yield artifact_row(committed)


def artifact_row(committed: Committed) -> ArtifactRow:
    """Sum up one artifact."""
    manifest = committed.manifest
    return ArtifactRow(
        kind=manifest.kind,
        key=manifest.key,
        run=manifest.run,
        stage=manifest.stage,
        created=manifest.created,
        files=len(manifest.files),
        size_bytes=sum(file.size_bytes for file in manifest.files),
    )


def _stage_row(
    store: Store, record: RunRecord, stage: str, key: str, events: tuple[Event, ...]
) -> StageRow:
    mine = [event for event in events if event.stage == stage and event.key in ("", key)]
    row = StageRow(
        stage=stage,
        key=key,
        state="waiting",
        attempts=len({event.attempt for event in mine if event.attempt}),
        seconds=_seconds(mine),
    )
    committed = read_manifest(store, kind_of(stage), key) if key else None
    if committed is not None:
        origin = committed.manifest.run
        return _as(row, state="committed", from_run="" if origin == record.name else origin)
    last = mine[-1] if mine else None
    if last is None:
        return row
    if last.event in ("committed", "adopted"):
        # Whoever drives the run sees that it is missing.
        again = f"made again by: {command_to_go_on(record.name, record.owner)}"
        return row if is_driven(record) else _as(row, state="removed", message=again)
    if last.event not in _GOING_ON:
        return _as(row, state=last.event, message=last.message)
    row = _as(row, seconds=_age(last.time).total_seconds())
    progress = read_progress(store, record.name, stage)
    if last.event == "waiting" and (progress is None or progress.time < last.time):
        return _as(row, state="pending", message=last.message)
    if is_young(last.time if progress is None else max(progress.time, last.time)):
        return _as(row, state="running", progress=progress)
    return _as(row, state="stopped", message="ended without a word")


def _report_row(store: Store, record: RunRecord, events: tuple[Event, ...]) -> StageRow:
    """Say where the newest report is; its key is known once everything else has ended."""
    keys = [event.key for event in events if event.stage == "report" and event.key]
    return _stage_row(store, record, "report", keys[-1] if keys else "", events)


def _as(row: StageRow, **changes: object) -> StageRow:
    return row.model_copy(update=changes)


_GOING_ON = ("started", "waiting")


def _seconds(events: list[Event]) -> float | None:
    """Take the time from the last start to what came of it."""
    started = next((event for event in reversed(events) if event.event == "started"), None)
    ended = next((each for each in reversed(events) if each.event not in _GOING_ON), None)
    if started is None or ended is None:
        return None
    return (_parse(ended.time) - _parse(started.time)).total_seconds()


def _age(time: str) -> timedelta:
    return datetime.now(UTC) - _parse(time) if time else timedelta.max


def _parse(time: str) -> datetime:
    return datetime.fromisoformat(time)


def verify_artifact(store: Store, committed: Committed) -> tuple[str, ...]:
    """Say everything that is wrong with an artifact: its bytes and its lineage."""
    problems = verify(store, committed)
    try:
        check_ancestry(store, committed)
    except LineageBroken as error:
        return (*problems, str(error))
    return problems
