"""Gather what a run left in the store, judge it, and publish the report.

The only stage that reads records instead of inputs: manifests, measurements, predictions
and events.  It runs when every other stage is committed or has finally failed.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter

from modelmill.report.compose import render
from modelmill.report.facts import RunFacts, StageFacts
from modelmill.spec.errors import InputMissing, LineageBroken
from modelmill.spec.names import FINGERPRINTS, MEASUREMENTS, PREDICTIONS, report_key
from modelmill.spec.plan import Plan, Stage, report_digest
from modelmill.spec.records import (
    Event,
    FileRecord,
    Manifest,
    Measurements,
    Prediction,
    Reported,
)
from modelmill.stages import machine
from modelmill.stages.pulse import LivePulse
from modelmill.store.artifact import (
    Committed,
    attempt_prefix,
    check_ancestry,
    commit,
    pull,
    read_manifest,
    stage_bytes,
    stage_files,
)
from modelmill.store.runs import read_events, read_run
from modelmill.store.s3 import Store


class ReportRequest(Protocol):
    """What of the entrypoint's request this stage needs."""

    @property
    def run(self) -> str:
        """The run's name."""
        ...

    @property
    def plan_sha256(self) -> str:
        """The plan's digest."""
        ...

    @property
    def attempt(self) -> str:
        """The attempt's id."""
        ...


def carry_out_report(
    request: ReportRequest, store: Store, plan: Plan, work: Path, pulse: LivePulse
) -> str:
    """Make and publish the report; say whether it was this attempt's.

    Raises:
        InputMissing: the run has no record in this store.
    """
    started = time.monotonic()
    with pulse.part("pull"):
        commits = _sound_commits(store, plan)
        facts = _gather(request, store, plan, commits, work)
    with pulse.part("work"):
        document, pages = render(facts)
    output = work / "output"
    with pulse.part("save"):
        output.mkdir()
        for name, body in pages.items():
            (output / name).write_bytes(body)
    key = report_key(
        request.run,
        report_digest(request.plan_sha256, {name: each.sha256 for name, each in commits.items()}),
    )
    prefix = attempt_prefix("report", key, request.attempt)
    with pulse.part("push"):
        files = stage_files(store, prefix, output)
    measured = Measurements(
        parts=tuple(pulse.parts),
        seconds=round(time.monotonic() - started, 3),
        peak_rss_bytes=machine.peak_rss_bytes(),
        bytes_in=0,
        bytes_out=sum(file.size_bytes for file in files),
        figures=Reported(models=len(document.models)),
    )
    last = stage_bytes(store, prefix, MEASUREMENTS, measured.model_dump_json().encode())
    published = commit(store, _manifest(request, plan, key, (*files, last)))
    return "committed" if published.state == "won" else "adopted what another had committed"


def _sound_commits(store: Store, plan: Plan) -> Mapping[str, Committed]:
    """Read what counts: a commit whose inputs have been replaced since does not."""
    commits: dict[str, Committed] = {}
    sound: set[str] = set()
    for stage in plan.stages:
        committed = read_manifest(store, stage.kind, stage.key)
        with contextlib.suppress(LineageBroken):
            if committed is not None:
                check_ancestry(store, committed, sound)
                commits[stage.name] = committed
    return commits


def _manifest(
    request: ReportRequest, plan: Plan, key: str, files: tuple[FileRecord, ...]
) -> Manifest:
    return Manifest(
        kind="report",
        key=key,
        stage="report",
        run=request.run,
        attempt=request.attempt,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=plan.report.model_dump(mode="json"),
        inputs={},
        versions=machine.versions(),
        device=machine.device(),
        files=files,
    )


def _gather(
    request: ReportRequest,
    store: Store,
    plan: Plan,
    commits: Mapping[str, Committed],
    work: Path,
) -> RunFacts:
    record = read_run(store, request.run)
    if record is None:
        raise InputMissing(
            f"There is no run '{request.run}' in this store",
            at=store.url,
            fix="modelmill run FILE",
        )
    events = read_events(store, request.run)
    failed_inputs: set[str] = set()
    stages = []
    for stage in plan.stages:
        mine = [event for event in events if (event.stage, event.key) == (stage.name, stage.key)]
        committed = commits.get(stage.name)
        if committed is None:
            facts = _failed(stage, mine)
        else:
            facts = _done(request.run, store, stage, committed, work / stage.name)
        facts = replace(facts, attempts=sum(event.event == "started" for event in mine))
        if facts.manifest is None and any(each.stage in failed_inputs for each in stage.inputs):
            facts = StageFacts(stage, "skipped")
        if facts.manifest is None:
            failed_inputs.add(stage.name)
        stages.append(facts)
    return RunFacts(
        run=request.run,
        plan=plan,
        plan_sha256=request.plan_sha256,
        created=record.pinned_at,
        stages=tuple(stages),
        events=events,
    )


def _failed(stage: Stage, events: Sequence[Event]) -> StageFacts:
    last = next((event for event in reversed(events) if event.event == "failed"), None)
    if last is None:
        return StageFacts(stage, "missing")
    return StageFacts(stage, "failed", exit_code=last.exit_code, message=last.message)


def _done(run: str, store: Store, stage: Stage, committed: Committed, folder: Path) -> StageFacts:
    more = {"infer": PREDICTIONS, "fetch-data": FINGERPRINTS, "fetch-test": FINGERPRINTS}
    extra = more.get(stage.kind)
    pull(store, committed, folder, (MEASUREMENTS,) if extra is None else (MEASUREMENTS, extra))
    origin = committed.manifest.run
    return StageFacts(
        stage,
        "done" if origin == run else "adopted",
        manifest=committed.manifest,
        manifest_sha256=committed.sha256,
        measurements=Measurements.model_validate_json((folder / MEASUREMENTS).read_bytes()),
        predictions=tuple(_predictions(folder / PREDICTIONS)) if extra == PREDICTIONS else (),
        fingerprints=_fingerprints(folder / FINGERPRINTS) if extra == FINGERPRINTS else {},
        adopted_from="" if origin == run else origin,
    )


def _fingerprints(path: Path) -> Mapping[str, frozenset[str]]:
    return TypeAdapter(dict[str, frozenset[str]]).validate_json(path.read_bytes())


def _predictions(path: Path) -> Iterator[Prediction]:
    with path.open("rb") as lines:
        for line in lines:
            yield Prediction.model_validate_json(line)
