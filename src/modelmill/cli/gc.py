"""The command that clears a store of what nobody needs: gc."""

import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli.options import output_option, repeated, store_options, store_words

if TYPE_CHECKING:
    from modelmill.conduct.collecting import Due


@click.command()
@click.option("--yes", "is_agreed", is_flag=True, help="Do it; else only show what is due.")
@click.option(
    "--keep-days",
    type=click.IntRange(0),
    default=7,
    show_default=True,
    help="How long an artifact or source stays that no run needs.",
)
@store_options
@output_option
def gc(is_agreed: bool, keep_days: int, home: Path, store_url: str | None, output: str) -> None:
    """Remove what dead attempts left, and what no run needs any more.

    What could still be read goes in two steps: it is withdrawn first, and removed by a gc that
    runs at least a day later.  What a run needs in between comes back.
    """
    from modelmill.conduct.collecting import collect, find_due
    from modelmill.conduct.place import opened

    with opened(home, store_url) as place:
        due = find_due(place.store, datetime.now(UTC), timedelta(days=keep_days))
        if is_agreed:
            due = collect(place.store, due)
    _print_due(due, output)


def _print_due(due: "Due", output: str) -> None:
    from modelmill.cli.show import bytes_text, print_table

    if output == "json":
        click.echo(due.model_dump_json(indent=2))
        return
    if not due.garbage:
        click.echo("Nothing is due", err=True)
        return
    print_table(
        ("what", "step", "at", "why", "files", "size"),
        [
            (row.what, row.step, row.at, row.reason, str(row.files), bytes_text(row.size_bytes))
            for row in due.garbage
        ],
        numbers_from=4,
    )
    freed = sum(row.size_bytes for row in due.garbage if row.step == "remove")
    amount = f"{len(due.garbage)} steps, {bytes_text(freed)} to remove"
    if due.is_done:
        click.echo(f"{amount}: done", err=True)
        return
    command = shlex.join(["modelmill", "gc", *store_words(), *repeated("keep_days"), "--yes"])
    click.echo(f"{amount}: nothing is changed yet; to do it: {command}", err=True)
