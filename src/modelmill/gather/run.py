"""Read what became of a run: which stages are committed, and the records they left.

Knows the store's documents; whether the numbers in them are good is the report's business.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from modelmill.report.facts import RunFacts, StageFacts
from modelmill.spec.errors import InputMissing, LineageBroken
from modelmill.spec.figures import Measurements
from modelmill.spec.names import FINGERPRINTS, MEASUREMENTS, PREDICTIONS
from modelmill.spec.plan import Plan, Stage
from modelmill.spec.records import Event, Prediction
from modelmill.store.artifact import Committed, check_ancestry, pull, read_manifest, uri_of
from modelmill.store.runs import read_events, read_run
from modelmill.store.s3 import Store


@dataclass(frozen=True)
class Planned:
    """A run and one of its plans."""

    run: str
    plan: Plan
    plan_sha256: str


def sound_commits(store: Store, plan: Plan) -> Mapping[str, Committed]:
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


def gather_run(
    store: Store, planned: Planned, commits: Mapping[str, Committed], work: Path
) -> RunFacts:
    """Read what became of every stage of a plan.

    Args:
        store: where it is.
        planned: the run and its plan.
        commits: what `sound_commits` found.
        work: a folder to pull records into, one folder per stage.

    Raises:
        InputMissing: the run has no record in this store.
        DigestMismatch: a record is not the one that was committed.
    """
    record = read_run(store, planned.run)
    if record is None:
        raise InputMissing(
            f"There is no run '{planned.run}' in this store",
            at=store.url,
            fix="modelmill run FILE",
        )
    events = read_events(store, planned.run)
    failed_inputs: set[str] = set()
    stages = []
    for stage in planned.plan.stages:
        mine = [event for event in events if (event.stage, event.key) == (stage.name, stage.key)]
        committed = commits.get(stage.name)
        if committed is None:
            facts = _failed(stage, mine)
        else:
            facts = _done(planned.run, store, stage, committed, work / stage.name)
        facts = replace(facts, attempts=sum(event.event == "started" for event in mine))
        if facts.manifest is None and any(each.stage in failed_inputs for each in stage.inputs):
            facts = StageFacts(stage, "skipped")
        if facts.manifest is None:
            failed_inputs.add(stage.name)
        stages.append(facts)
    return RunFacts(
        run=planned.run,
        plan=planned.plan,
        plan_sha256=planned.plan_sha256,
        created=record.pinned_at,
        stages=tuple(stages),
        events=events,
        foretold=record.foretold,
        prices=record.prices,
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
        uri=uri_of(store, committed),
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
