"""How a run ended, once its report is there."""

from pathlib import Path

from modelmill.conduct.conductor import Verdict
from modelmill.report.document import ReportDocument
from modelmill.spec.errors import GateFailed
from modelmill.store.artifact import Committed, pull
from modelmill.store.s3 import Store

REPORT_JSON = "report.json"


def read_report(
    store: Store, committed: Committed, folder: Path, parts: tuple[str, ...] = ()
) -> tuple[ReportDocument, str]:
    """Pull a report, or the parts of it that are wanted, and parse it.

    Returns:
        The document, and its text.
    """
    pull(store, committed, folder, parts)
    text = (folder / REPORT_JSON).read_text(encoding="ascii")
    return ReportDocument.model_validate_json(text), text


def final_code(verdict: Verdict, document: ReportDocument) -> int:
    """Fold what the report found into the exit code of a run.

    A stage that failed comes first, then a failed gate: what is known to be bad outweighs
    what is not known, a metric that could not be computed.
    """
    if verdict.exit_code:
        return verdict.exit_code
    if document.gate is not None and document.gate.outcome == "failed":
        return GateFailed.exit_code
    return next((problem.exit_code for problem in document.problems), 0)
