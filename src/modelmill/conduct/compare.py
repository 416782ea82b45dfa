"""Read two runs from the store and set them side by side on disk."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from modelmill.conduct.lookup import find_run, live_plan
from modelmill.conduct.standing import Look, state_of
from modelmill.report.comparison import ComparisonDocument
from modelmill.spec.errors import InputMissing, Problem, SpecError
from modelmill.spec.records import RunRecord
from modelmill.store.s3 import Store

if TYPE_CHECKING:
    from modelmill.report.compare import RunSide

COMPARE_JSON = "compare.json"
COMPARE_HTML = "compare.html"


def compare_runs(
    store: Store, runs: tuple[str, str], folder: Path, look: Look = lambda _: ""
) -> tuple[ComparisonDocument, Path]:
    """Compare two runs by what they have committed so far, and write the result.

    Args:
        store: where both are.
        runs: their names.
        folder: for `compare.json` and `compare.html`.
        look: finds out why nobody drives a run.

    Returns:
        The document and the path of its page.

    Raises:
        NoSuchRun: one of them is not in the store.
        InputMissing: one of them has no plan, or this Python cannot compute reports.
        SpecError: they are one and the same.
    """
    if runs[0] == runs[1]:
        problem = Problem("", f"'{runs[0]}' cannot be compared with itself")
        raise SpecError("--compare", [problem])
    records = [find_run(store, run) for run in runs]
    try:
        from modelmill.gather.plugins import load_plugins
        from modelmill.report.compare import common_metrics, compare
        from modelmill.report.compose import render_comparison
    except ModuleNotFoundError as error:
        raise InputMissing(
            f"Comparing runs needs {error.name}, which this Python lacks",
            fix="pip install 'modelmill[report]'",
        ) from error
    a, b = (_side(store, record, state_of(record, look)) for record in records)
    metrics = common_metrics(a.facts.plan.report.metrics, b.facts.plan.report.metrics)
    document = compare(a, b, load_plugins(metrics))
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in render_comparison(document).items():
        (folder / name).write_bytes(body)
    return document, (folder / COMPARE_HTML).resolve()


def _side(store: Store, record: RunRecord, state: str) -> "RunSide":
    from modelmill.gather.run import Planned, gather_run, sound_commits
    from modelmill.report.compare import RunSide

    plan = live_plan(store, record)
    with tempfile.TemporaryDirectory(prefix="modelmill-") as work:
        planned = Planned(record.name, plan, record.plan_sha256)
        facts = gather_run(store, planned, sound_commits(store, plan), Path(work))
    return RunSide(facts, state)
