"""One attempt at one stage: pull and verify the inputs, do the work, publish the output.

Knows the store and paths; knows nothing about processes, signals or exit codes.
"""

import gc
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Final, cast

from modelmill.spec.errors import DoesNotFit, InputMissing, Interrupted
from modelmill.spec.figures import Measurements
from modelmill.spec.names import MEASUREMENTS, Fsdp, Kind
from modelmill.spec.plan import Plan, Stage, StageInput
from modelmill.spec.records import FileRecord, Manifest
from modelmill.spec.settings import (
    FetchAdapterSettings,
    FetchDataSettings,
    FetchModelSettings,
    FetchTestSettings,
    FetchTextSettings,
    FinetuneSettings,
    Pin,
    Settings,
)
from modelmill.stages import machine
from modelmill.stages.ahead import Ahead
from modelmill.stages.in_store import (
    MODEL,
    in_store,
    lent_headers,
    verified,
    weights_that_may_stay,
)
from modelmill.stages.ledger import Ledger
from modelmill.stages.pulse import LivePulse
from modelmill.stages.stage import Folders, Outcome, Pulse, Shard
from modelmill.stages.workplace import Workplace
from modelmill.store.artifact import (
    Committed,
    Published,
    attempt_prefix,
    check_ancestry,
    commit,
    files_of,
    pull,
    read_manifest,
    record_input,
    stage_bytes,
    stage_files,
)
from modelmill.store.checkpoint import drop_checkpoints, restore_all, restore_checkpoints
from modelmill.store.ranges import RangedFile, Ranges, reading_ranges
from modelmill.store.s3 import Store
from modelmill.store.safety import check_adapter, check_model
from modelmill.store.sources import pull_source, source_bytes
from modelmill.store.space import check_space

MODULES: Final[Mapping[Kind, str]] = {
    "fetch-model": "modelmill.stages.fetch",
    "fetch-data": "modelmill.stages.fetch",
    "fetch-test": "modelmill.stages.fetch",
    "fetch-adapter": "modelmill.stages.fetch",
    "fetch-text": "modelmill.stages.fetch",
    "finetune": "modelmill.stages.finetune",
    "merge": "modelmill.stages.merge",
    "quantize": "modelmill.stages.quantize",
    "infer": "modelmill.stages.infer",
}
"""Imported only for the stage that runs: some load torch at their top."""

StageFunction = Callable[[Settings, Folders, Pulse], Outcome | None]

SPARE_BYTES: Final = 64 * 2**20
"""Room for logs, tokenizers and rows."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """What an attempt works on, and where."""

    store: Store
    run: str
    plan: Plan
    stage: Stage
    attempt: str
    workplace: Workplace
    work_limit_bytes: int | None
    halvings: int = 0
    """How often finetune halves its micro-batch: other attempts were killed for memory."""
    shard: int = 0
    shards: int = 1
    """Among how many attempts the rows of infer are dealt out."""
    ranks: int = 0
    """Processes of a finetune; 0 for one on each device."""
    fsdp: Fsdp = "auto"
    """Whether each of them holds a part of the weights."""


def is_committed(store: Store, stage: Stage) -> bool:
    """Tell whether a stage's key is committed, with sound lineage.

    Raises:
        LineageBroken: it was made from inputs that are no longer the committed ones.
    """
    committed = read_manifest(store, stage.kind, stage.key)
    if committed is None:
        return False
    check_ancestry(store, committed)
    return True


def carry_out(given: Assignment, pulse: LivePulse) -> Published | None:
    """Do the work of one stage and publish it.

    Returns:
        None where this was a part of the work, and others are not done: the last one publishes.

    Raises:
        ModelmillError: of the class that says why it could not be done.
    """
    started = time.monotonic()
    with ExitStack() as opened:
        ranges = opened.enter_context(reading_ranges(given.store))
        with pulse.part("pull"):
            inputs = {each.role: _input_of(given.store, each) for each in given.stage.inputs}
            pulled = _pull_inputs(given, inputs, ranges, pulse)
            folders = pulled.folders
        with pulse.part("import"):
            function = _function_of(given.stage.kind)
        prefix = attempt_prefix(given.stage.kind, given.stage.key, given.attempt)
        ahead = opened.enter_context(Ahead(given.store, prefix, folders.output))
        folders = replace(folders, growing=ahead.send)
        if pulled.left:
            folders = replace(folders, in_store=in_store(pulled.left, ahead, pulled.ledger))
        outcome = function(_settings_of(given), folders, pulse)
        if outcome is None:
            return None
        with pulse.part("push"):
            files = _push(given.store, prefix, folders.output, ahead, pulse)
    published = _publish(given, inputs, _Made(outcome, files), pulse, started)
    pulse.keeper.settle()
    # It says who works on the key, beside the checkpoints: nobody does any more.
    pulse.end()
    drop_checkpoints(given.store, given.stage.key)
    if given.workplace.kept is not None:
        given.workplace.kept.drop(pulled.files)
    return published


def _resuming(given: Assignment, folders: Folders, pulse: LivePulse) -> Folders:
    """Put the newest state there, and let the stage ask for the one before.

    What infer has saved adds up: it asks for all states, and may be one of several that do.
    """
    if given.stage.kind == "infer":

        def saved() -> tuple[Path, ...]:
            pulse.commit()
            return restore_all(given.store, given.stage.key, given.workplace.own / "saved")

        return replace(folders, shard=Shard(given.shard, given.shards, saved))
    states = restore_checkpoints(given.store, given.stage.key, folders.resume)
    next(states, False)
    return replace(
        folders, fall_back=lambda: next(states, False), ranks=given.ranks, fsdp=given.fsdp
    )


def _settings_of(given: Assignment) -> Settings:
    settings = given.stage.settings
    if isinstance(settings, FinetuneSettings):
        return settings.model_copy(update={"micro_batch_halvings": given.halvings})
    return settings


def _function_of(kind: Kind) -> StageFunction:
    """Import what a stage needs; looking for garbage among what stays took a fifth of the time."""
    gc.disable()
    try:
        return cast("StageFunction", import_module(MODULES[kind]).run)
    finally:
        gc.enable()


def _input_of(store: Store, wanted: StageInput) -> Committed:
    committed = read_manifest(store, wanted.kind, wanted.key)
    if committed is None:
        raise InputMissing(
            f"The input '{wanted.role}' ({wanted.stage}) is not committed",
            at=f"{wanted.kind} {wanted.key}",
            fix="start the run again: it makes what is missing first",
        )
    check_ancestry(store, committed)
    return committed


@dataclass(frozen=True)
class _Pulled:
    """The inputs of a stage."""

    folders: Folders
    files: tuple[FileRecord, ...]
    left: tuple[RangedFile, ...]
    """Weights of the base that stay in the store."""
    ledger: Ledger
    """What is known of them, and of those that are written there."""


def _pull_inputs(
    given: Assignment, inputs: Mapping[str, Committed], ranges: Ranges, pulse: LivePulse
) -> _Pulled:
    sources, work, kept = _sources(given.stage), given.workplace.own, given.workplace.kept
    folders = Folders(
        inputs={role: work / "inputs" / role for role in (*inputs, *sources)},
        output=work / "output",
        resume=work / "resume",
    )
    for folder in (folders.output, folders.resume, *folders.inputs.values()):
        folder.mkdir(parents=True)
    files = [
        file for each in given.stage.inputs for file in files_of(inputs[each.role], each.parts)
    ]
    outside_bytes = sum(source_bytes(given.store, pin) for pin in sources.values())
    staying = _make_room(given, inputs, files, outside_bytes)
    folders = _resuming(given, folders, pulse)
    ledger = Ledger(folders.resume, ranges, pulse.save)
    count = pulse.moving(sum(file.size_bytes for file in files) + outside_bytes)
    pulled: list[FileRecord] = []
    for role, pin in sources.items():
        pulled += pull_source(given.store, pin, folders.inputs[role], count, kept)
    left: tuple[RangedFile, ...] = ()
    for wanted in given.stage.inputs:
        destination, committed = folders.inputs[wanted.role], inputs[wanted.role]
        parts = wanted.parts
        if staying and wanted.role == MODEL:
            parts = tuple(f.path for f in committed.manifest.files if f not in staying)
            left = verified(committed, staying, ledger, count)
        pulled += pull(given.store, committed, destination, parts, count, kept=kept)
        with lent_headers(left if wanted.role == MODEL else (), destination):
            _check_safety(wanted.kind, destination, pulse)
    return _Pulled(folders, tuple(pulled), left, ledger)


def _make_room(
    given: Assignment,
    inputs: Mapping[str, Committed],
    files: Sequence[FileRecord],
    outside_bytes: int,
) -> tuple[FileRecord, ...]:
    """Make sure that the volume holds the stage, and say what must stay in the store for that.

    Raises:
        DoesNotFit: it does not, and nothing can stay there.
    """
    try:
        _make_room_for(given, files, outside_bytes)
    except DoesNotFit as problem:
        staying = weights_that_may_stay(given.stage, inputs)
        if not staying:
            raise
        _make_room_for(given, [file for file in files if file not in staying], outside_bytes)
        logger.info("%s: the weights stay in the store and are read there", problem.what)
        return staying
    return ()


def _make_room_for(given: Assignment, files: Sequence[FileRecord], outside_bytes: int) -> None:
    # The output of every kind is at most about as large as its inputs; what comes from outside
    # is linked into it.
    needed_bytes = 2 * sum(file.size_bytes for file in files) + outside_bytes + SPARE_BYTES
    present_bytes = 0
    if given.workplace.kept is not None:
        present_bytes = given.workplace.kept.present_bytes(files)
        given.workplace.kept.tidy(files, needed_bytes - present_bytes)
    check_space(given.workplace.own, needed_bytes, given.work_limit_bytes, present_bytes)


def _check_safety(kind: Kind, folder: Path, pulse: LivePulse) -> None:
    """Look at what a model library is about to read, before any is imported."""
    if kind in ("finetune", "fetch-adapter") and (folder / "adapter").is_dir():
        notes = check_adapter(folder, "adapter")
    elif kind in ("fetch-model", "finetune", "merge", "quantize"):
        notes = check_model(folder)
    else:
        return
    for note in notes:
        pulse.warn(note)


def _sources(stage: Stage) -> Mapping[str, Pin]:
    """Name the outside sources of a fetch stage, by the role its function knows them by."""
    match stage.settings:
        case (
            FetchModelSettings(source=pin)
            | FetchAdapterSettings(source=pin)
            | FetchTestSettings(test=pin)
            | FetchTextSettings(source=pin)
        ):
            return {"source": pin}
        case FetchDataSettings(eval_source=other) as settings:
            train = {role: each.pin for role, each in settings.train_by_role().items()}
            return train if other is None else {**train, "eval": other}
        case _:
            return {}


def _push(
    store: Store, prefix: str, output: Path, ahead: Ahead, pulse: LivePulse
) -> tuple[FileRecord, ...]:
    """Send what has not been sent while the stage worked."""
    poured = tuple(record for record, _ in ahead.poured())
    total_bytes = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    count = pulse.moving(total_bytes)
    files = (*stage_files(store, prefix, output, count, ahead.sent(count)), *poured)
    return tuple(sorted(files, key=lambda file: file.path))


@dataclass(frozen=True)
class _Made:
    """What an attempt has made; readers do not see it yet."""

    outcome: Outcome
    files: tuple[FileRecord, ...]


def _publish(
    given: Assignment,
    inputs: Mapping[str, Committed],
    made: _Made,
    pulse: LivePulse,
    started: float,
) -> Published:
    stage, outcome = given.stage, made.outcome
    prefix = attempt_prefix(stage.kind, stage.key, given.attempt)
    measured = Measurements(
        parts=tuple(pulse.parts),
        seconds=round(time.monotonic() - started, 3),
        peak_rss_bytes=machine.peak_rss_bytes(),
        peak_gpu_bytes=max(machine.peak_gpu_bytes(), outcome.peak_gpu_bytes),
        bytes_in=sum(part.bytes for part in pulse.parts if part.name == "pull"),
        bytes_out=sum(file.size_bytes for file in made.files),
        figures=outcome.figures,
        effective=outcome.effective,
        warnings=tuple(pulse.warnings),
    )
    last = stage_bytes(given.store, prefix, MEASUREMENTS, measured.model_dump_json().encode())
    if pulse.stop.is_set:
        raise Interrupted("Asked to stop")
    return commit(
        given.store,
        Manifest(
            kind=stage.kind,
            key=stage.key,
            stage=stage.name,
            run=given.run,
            attempt=given.attempt,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            settings=json.loads(stage.settings.model_dump_json()),
            effective=outcome.effective,
            inputs={role: record_input(each) for role, each in inputs.items()},
            versions={**machine.versions(), **outcome.versions},
            device=machine.device(),
            files=(*made.files, last),
        ),
    )
