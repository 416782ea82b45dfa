"""Commands that look at runs: status, logs, report."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli.options import output_option, store_options

if TYPE_CHECKING:
    from modelmill.conduct.standing import RunRow


@click.command()
@click.argument("run", required=False)
@store_options
@output_option
def status(run: str | None, home: Path, store_url: str | None, output: str) -> None:
    """Show where RUN and its stages are; without RUN, every run."""
    from modelmill.conduct.place import opened
    from modelmill.conduct.standing import run_row, run_rows

    with opened(home, store_url) as place:
        rows = run_rows(place.store) if run is None else (run_row(place.store, run),)
    if output == "json":
        click.echo(json.dumps([row.model_dump() for row in rows], indent=2))
    elif run is None:
        _print_runs(rows)
    else:
        click.echo(f"Run '{run}': {rows[0].state}", err=True)
        _print_stages(rows[0])


def _print_runs(rows: tuple["RunRow", ...]) -> None:
    from modelmill.cli.show import print_table

    print_table(
        ("run", "state", "committed", "created", "last seen"),
        [
            (
                row.run,
                row.state,
                f"{row.committed}/{len(row.stages)}",
                row.created[:19],
                row.heartbeat[:19],
            )
            for row in rows
        ],
    )


def _print_stages(row: "RunRow") -> None:
    from modelmill.cli.show import print_table, seconds_text
    from modelmill.cli.watch import progress_words

    print_table(
        ("stage", "state", "time", "attempts", "key", "about"),
        [
            (
                stage.stage,
                stage.state,
                seconds_text(stage.seconds),
                str(stage.attempts),
                stage.key[:12],
                progress_words(stage.progress)
                if stage.progress is not None
                else f"adopted from {stage.from_run}"
                if stage.from_run
                else (stage.message.splitlines() or [""])[0],
            )
            for stage in row.stages
        ],
    )


@click.command()
@click.argument("run")
@click.argument("stage", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is no longer live.")
@store_options
def logs(run: str, stage: str | None, follow: bool, home: Path, store_url: str | None) -> None:
    """Print the logs of RUN, or of one STAGE of it, oldest attempt first."""
    from modelmill.conduct.place import opened
    from modelmill.conduct.standing import find_run, log_texts, run_row

    with opened(home, store_url) as place:
        find_run(place.store, run)
        shown: dict[str, int] = {}
        while True:
            is_live = follow and run_row(place.store, run).is_live
            for name, text in log_texts(place.store, run, stage or ""):
                if name not in shown:
                    click.echo(f"--- {name}", err=True)
                click.echo(text[shown.get(name, 0) :], nl=False)
                shown[name] = len(text)
            if not is_live:
                return
            time.sleep(2)


@click.command()
@click.argument("run")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("reports"),
    show_default=True,
    help="Where the report is put, in a folder named after the run.",
)
@store_options
@output_option
def report(run: str, folder: Path, home: Path, store_url: str | None, output: str) -> None:
    """Fetch the newest report of RUN and print its summary."""
    from modelmill.cli.show import WORDS_COLUMNS, print_table
    from modelmill.conduct.place import opened
    from modelmill.conduct.standing import fetch_report
    from modelmill.report.table import summary_table

    with opened(home, store_url) as place:
        document, html = fetch_report(place.store, run, folder / run)
    if output == "json":
        click.echo((html.parent / "report.json").read_text(encoding="ascii"))
        return
    table = summary_table(document)
    print_table(table.columns, table.rows, WORDS_COLUMNS)
    click.echo()
    click.echo(document.headline)
    click.echo(str(html))
