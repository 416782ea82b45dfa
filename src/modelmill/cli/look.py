"""Commands that look at runs: status, list, logs, wait, report."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli.codes import CANCELLED, INTERRUPTED, NO_SUCH_RUN, ClusterCommand, code_of_run
from modelmill.cli.completing import complete_run, complete_stage
from modelmill.cli.options import context_option, output_option, store_options, store_words

if TYPE_CHECKING:
    from modelmill.conduct.following import Follower
    from modelmill.conduct.standing import Look, RunRow
    from modelmill.store.s3 import Store

FOLLOW_SECONDS = 1.0


@click.command(cls=ClusterCommand)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option("--exit-code", "tell_code", is_flag=True, help="Exit as RUN did; 4 until it has.")
@context_option
@store_options
@output_option
def status(
    run: str | None,
    tell_code: bool,
    context: str | None,
    home: Path,
    store_url: str | None,
    output: str,
) -> None:
    """Show where RUN and its stages are; without RUN, every run."""
    from modelmill.conduct.place import opened
    from modelmill.conduct.standing import run_row, run_rows

    with opened(home, store_url) as place:
        look = _look(context)
        rows = run_rows(place.store, look) if run is None else (run_row(place.store, run, look),)
    if output == "json":
        click.echo(json.dumps([row.model_dump() for row in rows], indent=2))
    elif run is None:
        _print_runs(rows)
    else:
        click.echo(f"Run '{run}': {rows[0].state}", err=True)
        _print_stages(rows[0])
    if tell_code and run is not None:
        sys.exit(code_of_run(rows[0].exit_code))


@click.command("list", cls=ClusterCommand)
@context_option
@store_options
@output_option
def list_(context: str | None, home: Path, store_url: str | None, output: str) -> None:
    """List every run in the store and where it is."""
    from modelmill.conduct.place import opened
    from modelmill.conduct.standing import run_rows

    with opened(home, store_url) as place:
        rows = run_rows(place.store, _look(context))
    if output == "json":
        click.echo(
            json.dumps([row.model_dump(exclude={"stages", "models"}) for row in rows], indent=2)
        )
    else:
        _print_runs(rows)


def _look(context: str | None) -> "Look":
    """Ask the cluster about runs that nobody drives, if this machine reaches it."""
    if not _has_kubernetes():
        return lambda _: ""
    from modelmill.conduct.release import look_in_cluster

    return lambda record: look_in_cluster(record, context)


def _follower(store: "Store", run: str, stage: str, context: str | None) -> "Follower":
    if not _has_kubernetes():
        from modelmill.conduct.following import Follower

        return Follower(store, run, stage)
    from modelmill.conduct.release import follower_of

    return follower_of(store, run, stage, context)


def _has_kubernetes() -> bool:
    """Whoever runs stages here only need not have it."""
    from importlib.util import find_spec

    return find_spec("kubernetes") is not None


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
    from modelmill.cli.show import print_record, print_table, seconds_text
    from modelmill.cli.watch import progress_words

    print_table(
        ("stage", "state", "time", "attempts", "key", "about"),
        [
            (
                stage.stage,
                stage.state,
                seconds_text(stage.seconds),
                str(stage.attempts),
                stage.key.rpartition(".")[2][:12],
                progress_words(stage.progress)
                if stage.progress is not None
                else f"adopted from {stage.from_run}"
                if stage.from_run
                else (stage.message.splitlines() or [""])[0],
            )
            for stage in row.stages
        ],
    )
    if row.models:
        click.echo()
        print_record([(each.model, each.uri) for each in row.models])


@click.command(cls=ClusterCommand)
@click.argument("run", shell_complete=complete_run)
@click.argument("stage", required=False, shell_complete=complete_stage)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@context_option
@store_options
def logs(
    run: str,
    stage: str | None,
    follow: bool,
    context: str | None,
    home: Path,
    store_url: str | None,
) -> None:
    """Print what the attempts of RUN, or of one STAGE of it, have printed, oldest first."""
    from modelmill.conduct.lookup import check_stage
    from modelmill.conduct.place import opened
    from modelmill.conduct.watching import is_over

    with opened(home, store_url) as place:
        if stage is not None:
            check_stage(place.store, run, stage)
        follower = _follower(place.store, run, stage or "", context)
        shown = ""
        while True:
            is_last = not follow or is_over(place.store, run)
            for printed in follower.look():
                if printed.attempt != shown:
                    click.echo(f"--- {printed.stage} {printed.attempt}", err=True)
                    shown = printed.attempt
                click.echo(printed.text.decode("utf-8", errors="replace"), nl=False)
            if is_last:
                return
            time.sleep(FOLLOW_SECONDS)


@click.command(cls=ClusterCommand)
@click.argument("run", shell_complete=complete_run)
@store_options
def wait(run: str, home: Path, store_url: str | None) -> None:
    """Show what happens to RUN until it has ended; exit as it did."""
    from modelmill.conduct.lookup import find_run
    from modelmill.conduct.place import opened

    with opened(home, store_url) as place:
        find_run(place.store, run)
        sys.exit(wait_for(place.store, run))


def wait_for(store: "Store", run: str) -> int:
    """Show what happens to a run until it has ended; it goes on if this is interrupted.

    Returns:
        What to exit with.
    """
    from modelmill.cli.watch import watcher
    from modelmill.conduct.standing import state_of
    from modelmill.conduct.watching import watch_run

    try:
        with watcher() as watching:
            record = watch_run(store, run, watching)
    except KeyboardInterrupt:
        command = shlex.join(("modelmill", "wait", run, *store_words()))
        click.echo(f"The run goes on: {command}", err=True)
        return INTERRUPTED
    if record is None:
        return NO_SUCH_RUN
    code = code_of_run(record.exit_code)
    if code == CANCELLED:
        click.echo(f"Run '{run}': {state_of(record, lambda _: '')}", err=True)
    elif record.message:
        click.echo(f"The run has failed with {record.exit_code}: {record.message}", err=True)
    return code


@click.command()
@click.argument("run", required=False, shell_complete=complete_run)
@click.option(
    "--compare",
    "compared",
    nargs=2,
    metavar="RUN_A RUN_B",
    help="Set two runs side by side instead.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("reports"),
    show_default=True,
    help="Where the report is put, in a folder named after the run, or after both.",
)
@store_options
@output_option
def report(
    run: str | None,
    compared: tuple[str, str] | None,
    folder: Path,
    home: Path,
    store_url: str | None,
    output: str,
) -> None:
    """Fetch the newest report of RUN and print its summary, or compare two runs."""
    from modelmill.conduct.place import opened

    if (run is None) == (compared is None):
        raise click.UsageError("name either a RUN, or two runs after --compare")
    with opened(home, store_url) as place:
        if compared is not None:
            _print_comparison(place.store, compared, folder, output)
        elif run is not None:
            _print_report(place.store, run, folder / run, output)


def _print_report(store: "Store", run: str, folder: Path, output: str) -> None:
    from modelmill.cli.show import WORDS_COLUMNS, print_record, print_table
    from modelmill.conduct.lookup import fetch_report
    from modelmill.report.spending_table import spending_sentence
    from modelmill.report.table import summary_table

    document, html = fetch_report(store, run, folder)
    if output == "json":
        click.echo((html.parent / "report.json").read_text(encoding="ascii"))
        return
    table = summary_table(document)
    print_table(table.columns, table.rows, WORDS_COLUMNS)
    click.echo()
    if document.places:
        print_record([*document.places.items()])
        click.echo()
    click.echo(document.headline)
    if spent := spending_sentence(document.spending):
        click.echo(spent)
    click.echo(str(html))


def _print_comparison(store: "Store", runs: tuple[str, str], folder: Path, output: str) -> None:
    from modelmill.cli.show import print_comparison
    from modelmill.conduct.compare import COMPARE_JSON, compare_runs

    document, html = compare_runs(store, runs, folder / "-vs-".join(runs))
    if output == "json":
        click.echo((html.parent / COMPARE_JSON).read_text(encoding="ascii"))
    else:
        print_comparison(document, html)
