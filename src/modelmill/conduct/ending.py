"""How a run ended, once its report is there."""

import contextlib
import logging
import os
import tempfile
from pathlib import Path

from modelmill.conduct.clock import now
from modelmill.conduct.conductor import LAST_WORDS_SECONDS, Conductor, Verdict
from modelmill.conduct.webhook import ended_run, tell
from modelmill.report.document import ReportDocument
from modelmill.spec.errors import GateFailed, ModelmillError
from modelmill.spec.records import RunRecord
from modelmill.store.address import open_store
from modelmill.store.artifact import Committed, pull
from modelmill.store.runs import update_run
from modelmill.store.s3 import Store

REPORT_JSON = "report.json"

logger = logging.getLogger("modelmill")


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


def read_document(store: Store, committed: Committed) -> tuple[ReportDocument, str]:
    """Read a report's document, and its text, and leave its pages where they are."""
    with tempfile.TemporaryDirectory(prefix="modelmill-") as folder:
        return read_report(store, committed, Path(folder), (REPORT_JSON,))


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


def conclude(conductor: Conductor, verdict: Verdict) -> int:
    """Log how a run ended, write it down, tell whoever asks, and return its exit code.

    For a conductor that nobody watches; the store is all it leaves.
    """
    given, document = conductor.given, None
    for stage, ending in verdict.failures.items():
        logger.error("%s failed with %d: %s", stage, ending.exit_code, ending.message)
    if verdict.report is not None:
        document, _ = read_document(given.store, verdict.report)
        for problem in document.problems:
            logger.error("%s", problem.message)
    code = verdict.exit_code if document is None else final_code(verdict, document)
    conductor.leave(code)
    if untold := tell(os.environ, ended_run(given, code, verdict, document)):
        logger.warning("%s", untold)
    logger.info("the run has ended with %d; `modelmill report %s` shows it", code, given.run)
    return code


def give_up(store_url: str, run: str, owner: str, code: int, words: str) -> None:
    """Write down why a conductor could not drive a run, where `modelmill status` reads it."""

    def left(present: RunRecord | None) -> RunRecord:
        record = present or RunRecord(name=run, created=now(), owner=owner)
        if record.owner not in ("", owner):
            return record
        return record.model_copy(update={"conductor": "", "exit_code": code, "message": words})

    with contextlib.suppress(ModelmillError):
        store = open_store(store_url, retry_budget_seconds=LAST_WORDS_SECONDS)
        update_run(store, run, left)
