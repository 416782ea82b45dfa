"""Run a spec on this machine from its first stage to the report on disk."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from modelmill.conduct.conductor import Conductor, Verdict
from modelmill.conduct.ending import final_code, read_document, read_report
from modelmill.conduct.history import Watcher
from modelmill.conduct.local import LocalBackend, check_metrics
from modelmill.conduct.place import Opened, opened
from modelmill.conduct.prepare import Asked, prepare
from modelmill.conduct.webhook import ended_run, tell
from modelmill.report.document import ReportDocument
from modelmill.spec.errors import DoesNotFit, Interrupted, PermissionRefused
from modelmill.spec.profile import Profile
from modelmill.spec.run import RunSpec
from modelmill.store.probe import check_conditional_writes
from modelmill.store.space import make_folder


@dataclass(frozen=True)
class LocalRun:
    """A run on this machine."""

    spec: RunSpec
    profile: Profile
    asked: Asked
    home: Path
    store_url: str | None
    report_folder: Path
    is_single_writer: bool = False
    """Nobody else writes to the store while this goes on, so it needs no conditional writes."""


@dataclass(frozen=True)
class Ended:
    """How it ended."""

    run: str
    exit_code: int
    verdict: Verdict
    report: ReportDocument | None
    report_json: str
    report_html: Path | None
    untold: str = ""
    """Why whoever asked to be told of the end was not."""
    unwritten: str = ""
    """Why the report, which is in the store, is not in the folder that was asked for."""


def run_locally(local: LocalRun, watcher: Watcher) -> Ended:
    """Run it; on Ctrl-C, SIGTERM or a lost store, stop every stage before returning.

    Raises:
        KeyboardInterrupt: asked to stop; everything that was started is gone.
        ModelmillError: the run could not be prepared, or its store was lost.
    """
    check_metrics(local.home, local.spec.infer.metrics)
    make_folder(local.report_folder)  # before hours of work, and not after them
    single = local.is_single_writer
    with (
        _terminated_like_interrupted(),
        opened(local.home, local.store_url, is_single_writer=single) as place,
    ):
        if local.store_url is not None and not single:
            check_conditional_writes(place.store)
        given = prepare(place.store, local.spec, local.profile, local.asked)
        backend = LocalBackend(local.asked.name, place.place, profile=local.profile)
        conductor = Conductor(given, backend, watcher)
        ended: Ended | None = None
        try:
            ended = _ended(local, place, conductor.drive())
        finally:
            conductor.stop()
            conductor.leave(Interrupted.exit_code if ended is None else ended.exit_code)
        if not ended.verdict.superseded:
            end = ended_run(given, ended.exit_code, ended.verdict, ended.report)
            ended = replace(ended, untold=tell(os.environ, end))
        return _with_pages(local, place, ended)


def _ended(local: LocalRun, place: Opened, verdict: Verdict) -> Ended:
    """Say how it ended by what is in the store, wherever the report will go."""
    if verdict.report is None:
        # A shell that goes on at 0 must not take a run for done that another one has begun again.
        code = Interrupted.exit_code if verdict.superseded else verdict.exit_code
        return Ended(local.asked.name, code, verdict, None, "", None)
    document, text = read_document(place.store, verdict.report)
    return Ended(local.asked.name, final_code(verdict, document), verdict, document, text, None)


def _with_pages(local: LocalRun, place: Opened, ended: Ended) -> Ended:
    """Bring the report to where it was asked for; the run has ended, whatever comes of that."""
    if ended.verdict.report is None:
        return ended
    folder = local.report_folder / ended.run
    try:
        read_report(place.store, ended.verdict.report, folder)
    except (DoesNotFit, PermissionRefused) as error:
        error.fix = f"modelmill report {ended.run} --folder ELSEWHERE; it is in the store"
        return replace(ended, exit_code=ended.exit_code or error.exit_code, unwritten=str(error))
    return replace(ended, report_html=(folder / "report.html").resolve())


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that nothing is left running."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
