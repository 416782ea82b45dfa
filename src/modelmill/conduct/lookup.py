"""What a name means that somebody has typed: a run, its plan, a stage, an artifact, a report."""

from pathlib import Path

from modelmill.conduct.decide import REPORT
from modelmill.conduct.ending import read_report
from modelmill.report.document import ReportDocument
from modelmill.spec.errors import InputMissing, NoSuchRun, Problem, SpecError
from modelmill.spec.names import COMMITTED, RUN_NAME, report_key, run_prefix
from modelmill.spec.plan import Plan
from modelmill.spec.records import RunRecord
from modelmill.store.artifact import Committed, list_artifacts, read_manifest
from modelmill.store.runs import get_plan, list_logs, list_runs, read_run
from modelmill.store.s3 import Store


def find_run(store: Store, run: str) -> RunRecord:
    """Read a run's record.

    Raises:
        NoSuchRun: there is no such run; the message lists those that are.
    """
    # A mistyped name is no unsafe artifact, which is what a key that holds it would be called.
    record = read_run(store, run) if RUN_NAME.fullmatch(run) else None
    if record is None:
        known = ", ".join(list_runs(store))
        raise NoSuchRun(
            f"There is no run '{run}'",
            at=store.url,
            fix=f"choose from: {known}" if known else "name another store: this one has no run",
        )
    return record


def live_plan(store: Store, record: RunRecord) -> Plan:
    """Read the plan that a run follows now.

    Raises:
        InputMissing: it never came to have one.
    """
    if not record.plan_sha256:
        raise InputMissing(
            f"Run '{record.name}' has no plan", at=store.url, fix=f"modelmill status {record.name}"
        )
    return Plan.model_validate_json(get_plan(store, record.name, record.plan_sha256))


def check_stage(store: Store, run: str, stage: str) -> None:
    """Accept a stage that a run has now, or has had an attempt at under another plan.

    Raises:
        NoSuchRun: there is no such run.
        SpecError: it has no such stage; the message lists those that it has.
    """
    record = find_run(store, run)
    if not record.plan_sha256:
        return
    known = [*(each.name for each in live_plan(store, record).stages), REPORT]
    if stage not in {*known, *(name for name, _ in list_logs(store, run))}:
        problem = Problem(stage, "no such stage", suggestion=f"known: {', '.join(known)}")
        raise SpecError(f"run {run}", [problem])


def find_artifact(store: Store, beginning: str) -> Committed:
    """Find an artifact by its key or the beginning of it.

    Raises:
        InputMissing: none, or more than one, begins like that.
    """
    found = [(kind, key) for kind, key in list_artifacts(store) if key.startswith(beginning)]
    committed = read_manifest(store, *found[0]) if len(found) == 1 else None
    if committed is None:
        what = "No artifact" if not found else f"More than one artifact ({len(found)})"
        raise InputMissing(
            f"{what} has a key that begins with '{beginning}'",
            at=store.url,
            fix="modelmill artifacts ls",
        )
    return committed


def fetch_report(store: Store, run: str, folder: Path) -> tuple[ReportDocument, Path]:
    """Download the newest report of a run.

    Returns:
        The document and the path of its page.

    Raises:
        InputMissing: the run has none yet.
    """
    find_run(store, run)
    prefix = f"{run_prefix(run)}/reports/"
    found = {}
    for item in store.list(prefix):
        match item.key.removeprefix(prefix).split("/"):
            case [digest, name] if name == COMMITTED:
                found[digest] = item.last_modified
            case _:
                continue
    committed = None
    if found:
        newest = max(found, key=lambda digest: found[digest])
        committed = read_manifest(store, "report", report_key(run, newest))
    if committed is None:
        raise InputMissing(
            f"Run '{run}' has no report yet", at=store.url, fix=f"modelmill status {run}"
        )
    document, _ = read_report(store, committed, folder)
    return document, (folder / "report.html").resolve()
