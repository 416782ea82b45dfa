"""Print rows: as columns on a terminal and in pipes, or value by value to be read aloud."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from modelmill.cli.options import output_is_plain, store_words

if TYPE_CHECKING:
    from modelmill.conduct.local_run import Ended
    from modelmill.conduct.standing import SourceRow
    from modelmill.report.comparison import ComparisonDocument

WORDS_COLUMNS = 2
"""Of the summary table; the others hold numbers and are aligned right."""


SAYS_NOTHING: Final = ("", "\N{EN DASH}")
"""Cells that are there for the columns' sake only."""

PIPE_COLUMNS: Final = 10_000
"""Elsewhere than on a terminal a line is never broken: grep reads it, or a log keeps it."""


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int | None = None
) -> None:
    """Print a table on stdout.

    Args:
        columns: the heads.
        rows: of one-line texts.
        numbers_from: columns from here on are aligned right.
    """
    if output_is_plain():
        _read_aloud(columns, rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    is_terminal = sys.stdout.isatty()
    # rich leaves out colours by itself, but nothing else.
    style = "" if os.environ.get("NO_COLOR") else "bold"
    table = Table(box=None, pad_edge=False, header_style=style)
    for index, column in enumerate(columns):
        is_number = numbers_from is not None and index >= numbers_from
        table.add_column(column, justify="right" if is_number else "left", no_wrap=not is_terminal)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    width = None if is_terminal else PIPE_COLUMNS
    Console(width=width, highlight=False, soft_wrap=not is_terminal).print(table)


def print_record(pairs: Sequence[tuple[str, str]], *, err: bool = False) -> None:
    """Print one thing, a line for each of its values that says something.

    Args:
        pairs: name and value.
        err: whether it is talk.
    """
    said = [(name, value) for name, value in pairs if value not in SAYS_NOTHING]
    width = max((len(name) for name, _ in said), default=0)
    for name, value in said:
        line = f"{name}: {value}" if output_is_plain() else f"{name:<{width}}  {value}"
        click.echo(line, err=err)


def _read_aloud(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a paragraph for each row: nothing has to be held against the head of a column."""
    if not rows:
        click.echo("There is nothing to show.", err=True)
    for index, row in enumerate(rows):
        if index:
            click.echo()
        print_record(list(zip(columns, row, strict=True)))


def print_sources(rows: Sequence["SourceRow"]) -> None:
    """Print which state of each source a plan means."""
    click.echo()
    print_table(
        ("source", "read from", "pinned"),
        [(row.source, row.address, row.pinned or "now") for row in rows],
    )


def print_summary(ended: "Ended") -> None:
    """Print how a run came out: the models, the gate, and where the report is."""
    from modelmill.report.spending_table import spending_sentence
    from modelmill.report.table import summary_table

    if ended.report is None:
        return
    if any(model.metrics for model in ended.report.models):
        table = summary_table(ended.report)
        click.echo()
        print_table(table.columns, table.rows, WORDS_COLUMNS)
        click.echo()
        click.echo(ended.report.headline)
        if ended.report.gate is not None:
            click.echo(ended.report.gate.sentence)
    for problem in ended.report.problems:
        click.echo(problem.message, err=True)
    if spent := spending_sentence(ended.report.spending):
        click.echo(spent)
    if ended.report_html is not None:
        click.echo(str(ended.report_html))


def print_comparison(document: "ComparisonDocument", html: Path) -> None:
    """Print two runs side by side: what differs, what came of it, and where the page is."""
    from modelmill.report.compare_table import comparison_table, settings_table
    from modelmill.report.spending_table import spending_sentence

    settings, table = settings_table(document), comparison_table(document)
    if settings.rows:
        print_table(settings.columns, settings.rows)
    else:
        click.echo(f"{document.a.run} and {document.b.run} ask for the same.")
    click.echo()
    print_table(table.columns, table.rows)
    click.echo()
    for run in (document.a, document.b):
        for sentence in (run.state, *run.unfinished):
            if sentence != "done":
                click.echo(f"{run.run}: {sentence}", err=True)
        if spent := spending_sentence(run.spending):
            click.echo(f"{run.run}: {spent}")
    for sentence in (*(each.message for each in document.problems), *document.notes):
        click.echo(sentence, err=True)
    click.echo(document.rows.sentence)
    click.echo(document.headline)
    click.echo(str(html))


def print_failures(ended: "Ended", command: str) -> None:
    """Say why a run did not get to its end: each cause, its log, the command that goes on.

    The last thing on the terminal, so that nobody has to look for it.
    """
    if ended.verdict.superseded:
        waiting = shlex.join(("modelmill", "wait", ended.run, *store_words()))
        click.echo(
            f"A newer conductor drives {ended.run} now.  To wait for it: {waiting}", err=True
        )
    for problem in (ended.unwritten, ended.untold):
        if problem:
            click.echo(problem, err=True)
    if not ended.verdict.failures:
        return
    for stage, ending in ended.verdict.failures.items():
        click.echo(f"\n{stage} failed with {ending.exit_code}: {ending.message}", err=True)
        if stage not in ended.verdict.broken:
            words = ("modelmill", "logs", ended.run, stage, *store_words())
            click.echo(f"  log: {shlex.join(words)}", err=True)
    click.echo(f"\nTo go on from what is committed: {command}", err=True)


def seconds_text(seconds: float | None) -> str:
    """Write a duration the way a clock does."""
    if seconds is None:
        return ""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def bytes_text(count: int) -> str:
    """Write a number of bytes with three digits."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < _ROUNDS_TO_1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError(count)


_ROUNDS_TO_1000 = 999.5
