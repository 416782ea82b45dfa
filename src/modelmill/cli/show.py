"""Print rows as tables: boxed on a terminal, plain columns elsewhere."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from modelmill.cli.options import store_words

if TYPE_CHECKING:
    from modelmill.conduct.local_run import Ended
    from modelmill.conduct.standing import SourceRow

WORDS_COLUMNS = 2
"""Of the summary table; the others hold numbers and are aligned right."""


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int | None = None
) -> None:
    """Print a table on stdout.

    Args:
        columns: the heads.
        rows: of one-line texts.
        numbers_from: columns from here on are aligned right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    is_terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        is_number = numbers_from is not None and index >= numbers_from
        table.add_column(column, justify="right" if is_number else "left", no_wrap=not is_terminal)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Elsewhere a line is never broken: it is read by grep or kept in a log.
    console = Console(
        width=None if is_terminal else 400, highlight=False, soft_wrap=not is_terminal
    )
    console.print(table)


def print_sources(rows: Sequence["SourceRow"]) -> None:
    """Print which state of each source a plan means."""
    click.echo()
    print_table(
        ("source", "read from", "pinned"),
        [(row.source, row.address, row.pinned or "now") for row in rows],
    )


def print_summary(ended: "Ended") -> None:
    """Print how a run came out: the models, the gate, and where the report is."""
    from modelmill.report.table import summary_table

    if ended.report is None or ended.report_html is None:
        return
    if any(model.metrics for model in ended.report.models):
        table = summary_table(ended.report)
        click.echo()
        print_table(table.columns, table.rows, WORDS_COLUMNS)
        click.echo()
        click.echo(ended.report.headline)
        if ended.report.gate is not None:
            click.echo(ended.report.gate.sentence)
    click.echo(str(ended.report_html))


def print_failures(ended: "Ended", command: str) -> None:
    """Say why a run did not get to its end: each cause, its log, the command that goes on.

    The last thing on the terminal, so that nobody has to look for it.
    """
    if ended.verdict.superseded:
        click.echo(f"A newer conductor drives {ended.run} now.", err=True)
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
