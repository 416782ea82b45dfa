"""The summary in text: the Markdown file and the terminal's table."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from modelmill.report import words
from modelmill.report.compose import render
from modelmill.report.document import ReportDocument
from modelmill.report.facts import RunFacts
from modelmill.report.markdown import report_md
from modelmill.report.table import summary_table


def test_table_of_the_invented_run(document: ReportDocument) -> None:
    """One row per model, in the shape of the tables the project grew from."""
    table = summary_table(document)
    assert table.columns == (
        "model",
        "method",
        "time",
        "memory",
        "size",
        "bits/weight",
        "SQL execution",
        "Exact match",
        "NLL",
        "verdict",
    )
    rows = {row[0]: row for row in table.rows}
    assert rows["gptq-4"][1:6] == ("gptq 4-bit", "1 min 14 s", "1.40 GB", "110 MB", "6.57")
    assert rows["merged"][-1] == "reference"
    assert rows["gptq-2"][-1] == "bad (not gated)"
    assert rows["base"][2:4] == (words.NOTHING, words.NOTHING)


def test_markdown_has_the_table_and_the_gate(document: ReportDocument) -> None:
    """Every row has as many cells as the head, and the gate's sentence follows."""
    text = report_md(document).decode()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(document.models)
    assert {line.count(" | ") for line in rows} == {9}
    assert "Gate undecided: gptq-4 and nf4 may be at most 0.050 worse than merged in NLL" in text


def test_markdown_shows_markup_as_text(small: RunFacts, fail: Callable[..., RunFacts]) -> None:
    """Pipes, links, markup and terminal codes in a message stay a message on one line."""
    message = "a | b\n# head <script>x</script> [link](x) `code` \x1b[31m"
    facts = replace(fail(small, "merge", message), run="<b>")
    text = render(facts)[1]["report.md"].decode()
    (line,) = [each for each in text.splitlines() if each.startswith("- **merge**")]
    assert (
        "a \\| b \\# head \\<script\\>x\\</script\\> \\[link\\](x) \\`code\\` \\\\x1b\\[31m" in line
    )
    assert "\x1b" not in text
    assert text.startswith("# modelmill: run \\<b\\>\n")


def test_pages_say_where_models_are(small: RunFacts, change: Callable[..., RunFacts]) -> None:
    """Of each that is committed, the adapter too, in Markdown and the page; else nothing."""
    merge, finetune = "s3://models/merge/k/attempts/a", "s3://models/finetune/k/attempts/b"
    facts = change(change(small, "merge", uri=merge), "finetune", uri=finetune)
    document, pages = render(facts)
    assert document.places == {"merged": merge, "adapter": f"{finetune}/adapter"}
    for model, uri in document.places.items():
        assert f"- {model}: {uri}" in pages["report.md"].decode()
        assert f"<code>{uri}</code>" in pages["report.html"].decode()
    assert "Where the models are" not in render(small)[1]["report.md"].decode()


def test_markdown_names_what_is_missing(small: RunFacts, fail: Callable[..., RunFacts]) -> None:
    """The failed stage with its cause, and what was skipped because of it."""
    text = render(fail(small, "quantize-nf4", "needs 9 GB, has 5"))[1]["report.md"].decode()
    assert "- **quantize-nf4** failed with 78: Memory, GPU memory or disk is too small" in text
    assert "needs 9 GB, has 5" in text
    assert "- infer-nf4: skipped" in text


def test_the_table_needs_no_numbers_library() -> None:
    """The command line prints a stored report where neither numpy nor jinja2 is installed."""
    code = (
        "import sys; sys.modules.update(numpy=None, jinja2=None);"
        "import modelmill.report.document, modelmill.report.table"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
