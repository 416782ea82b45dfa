"""Make every file of a report out of what became of a run.

Knows which files there are and nothing of what stands in them.
"""

from collections.abc import Mapping

from pydantic import JsonValue

from modelmill.evaluate.plugin import Plugins
from modelmill.report.compare_page import comparison_html
from modelmill.report.comparison import ComparisonDocument
from modelmill.report.describe import report_document
from modelmill.report.document import ReportDocument
from modelmill.report.facts import RunFacts
from modelmill.report.judge import judge
from modelmill.report.markdown import report_md
from modelmill.report.openmetrics import metrics_prom
from modelmill.report.page import report_html


def render(
    facts: RunFacts, plugins: Plugins | None = None
) -> tuple[ReportDocument, Mapping[str, bytes]]:
    """Judge a run and write its report; equal facts give equal bytes.

    Args:
        facts: what became of the run.
        plugins: the metric plug-ins it asks for.

    Returns:
        The document, and by name the files `report.json`, `report.md`, `report.html` and
        `metrics.prom`, each drawn from it.
    """
    document = report_document(facts, judge(facts, plugins))
    return document, {
        "report.json": report_json(document),
        "report.md": report_md(document),
        "report.html": report_html(document),
        "metrics.prom": metrics_prom(document),
    }


def report_json(document: ReportDocument) -> bytes:
    """Write the document itself, in ASCII, so that a terminal can show it safely."""
    return (document.model_dump_json(indent=2, ensure_ascii=True) + "\n").encode("ascii")


def render_comparison(document: ComparisonDocument) -> Mapping[str, bytes]:
    """Write the files `compare.json` and `compare.html`; equal documents give equal bytes."""
    return {"compare.json": comparison_json(document), "compare.html": comparison_html(document)}


def comparison_json(document: ComparisonDocument) -> bytes:
    """Write the document itself, in ASCII, so that a terminal can show it safely."""
    return (document.model_dump_json(indent=2, ensure_ascii=True) + "\n").encode("ascii")


def comparison_schema() -> dict[str, JsonValue]:
    """Describe `compare.json` as a JSON schema."""
    return ComparisonDocument.model_json_schema(mode="serialization")


def report_schema() -> dict[str, JsonValue]:
    """Describe `report.json` as a JSON schema."""
    return ReportDocument.model_json_schema(mode="serialization")
