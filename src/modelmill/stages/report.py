"""Gather what a run left in the store, judge it, and publish the report.

The only stage that reads records instead of inputs: manifests, measurements, predictions
and events.  It runs when every other stage is committed or has finally failed.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from modelmill.gather.plugins import load_plugins
from modelmill.gather.run import Planned, gather_run, sound_commits
from modelmill.report.compose import render
from modelmill.spec.figures import Measurements, Reported
from modelmill.spec.names import MEASUREMENTS, report_key
from modelmill.spec.plan import Plan, report_digest
from modelmill.spec.records import FileRecord, Manifest
from modelmill.stages import machine
from modelmill.stages.pulse import LivePulse
from modelmill.store.artifact import attempt_prefix, commit, stage_bytes, stage_files
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
        commits = sound_commits(store, plan)
        planned = Planned(request.run, plan, request.plan_sha256)
        facts = gather_run(store, planned, commits, work)
    with pulse.part("import"):
        plugins = load_plugins(plan.report.metrics)
    with pulse.part("work"):
        document, pages = render(facts, plugins)
        for problem in document.problems:
            pulse.warn(problem.message)
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
