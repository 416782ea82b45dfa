"""`report.md`: the summary for a place that shows text.

Knows Markdown's special characters.  Everything it says is in the document already.
"""

import re
from collections.abc import Sequence
from typing import Final

from modelmill.report import words
from modelmill.report.document import ReportDocument, StageEntry
from modelmill.report.spending_table import basis_notes, spending_sentence, spending_table
from modelmill.report.table import summary_table
from modelmill.spec.errors import meaning_of

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>|#~&!])")
_LEGEND: Final = (
    "Time and memory are those of the stages that made the model; intervals are 95 %; bits per "
    "weight count every byte of the weight files, embeddings included."
)
_WORDY_COLUMNS: Final = frozenset({"model", "method", "verdict"})


def report_md(document: ReportDocument) -> bytes:
    """Write the headline, the table of models, the gate's sentence and what failed."""
    table = summary_table(document)
    lines = [
        f"# modelmill: run {escaped(document.run)}",
        "",
        escaped(document.headline),
        "",
        table_row(table.columns),
        table_row(["---" if name in _WORDY_COLUMNS else "---:" for name in table.columns]),
        *(table_row([escaped(cell) for cell in row]) for row in table.rows),
        "",
        _LEGEND,
    ]
    if document.gate is not None:
        lines += ["", escaped(document.gate.sentence)]
    failures = [stage for stage in document.stages if stage.status == "failed"]
    waiting = [stage for stage in document.stages if stage.status in ("skipped", "missing")]
    if failures or waiting:
        lines += ["", "## Not done", ""]
        lines += [_failure(stage) for stage in failures]
        lines += [f"- {escaped(stage.stage)}: {stage.status}" for stage in waiting]
    if places := document.places:
        lines += ["", "## Where the models are", ""]
        lines += [f"- {escaped(model)}: {escaped(uri)}" for model, uri in places.items()]
    if (spent := spending_table(document)) is not None:
        lines += ["", "## Hours of devices", "", escaped(spending_sentence(document.spending)), ""]
        lines += [table_row(spent.columns)]
        lines += [table_row(["---", "---", *["---:"] * (len(spent.columns) - 2)])]
        lines += [table_row([escaped(cell) for cell in row]) for row in spent.rows]
        lines += ["", *(f"- {escaped(note)}" for note in basis_notes(document))]
    if document.notes:
        lines += ["", "## Notes", "", *(f"- {escaped(note)}" for note in document.notes)]
    return "\n".join([*lines, ""]).encode()


def _failure(stage: StageEntry) -> str:
    told = f"- **{escaped(stage.stage)}** failed"
    if stage.exit_code is not None:
        told += f" with {stage.exit_code}: {escaped(meaning_of(stage.exit_code))}"
    return f"{told} {escaped(stage.message)}".rstrip()


def table_row(cells: Sequence[str]) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Show foreign text as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", words.one_line(text))
