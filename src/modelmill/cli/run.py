"""Commands that start from a run file: run, plan, validate; and version."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli.options import (
    accelerator_option,
    file_argument,
    output_option,
    run_options,
    store_options,
)
from modelmill.spec.errors import Interrupted
from modelmill.spec.names import ENV_SINGLE_WRITER

if TYPE_CHECKING:
    from modelmill.conduct.local_run import Ended
    from modelmill.spec.accelerators import AcceleratorName


@click.command()
@file_argument
@run_options
@click.option(
    "--report-folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("reports"),
    show_default=True,
    help="Where the report is put, in a folder named after the run.",
)
@click.option(
    "--single-writer",
    "is_single_writer",
    is_flag=True,
    envvar=ENV_SINGLE_WRITER,
    help="Nobody else writes to the store, so it need not have conditional writes.",
)
@store_options
@output_option
def run(
    file: Path,
    overrides: tuple[str, ...],
    name: str | None,
    profile: Path | None,
    again: tuple[str, ...],
    repin: bool,
    report_folder: Path,
    is_single_writer: bool,
    home: Path,
    store_url: str | None,
    output: str,
) -> None:
    """Run FILE on this machine; what is committed already is not computed again."""
    from modelmill.cli.watch import watcher
    from modelmill.conduct.local_run import LocalRun, run_locally
    from modelmill.conduct.prepare import Asked, check_run_name, run_name
    from modelmill.spec.loading import load_profile, load_run

    spec = load_run(file, overrides)
    asked = Asked(check_run_name(name or run_name(file)), file.resolve().parent, again, repin)
    place = load_profile(profile)
    local = LocalRun(spec, place, asked, home, store_url, report_folder, is_single_writer)
    try:
        with watcher() as watching:
            ended = run_locally(local, watching)
    except KeyboardInterrupt:
        command = going_on(sys.argv[1:], ())
        click.echo(f"Interrupted.  To go on from what is committed: {command}", err=True)
        sys.exit(Interrupted.exit_code)
    _print_ended(ended, output)
    sys.exit(ended.exit_code)


def _print_ended(ended: "Ended", output: str) -> None:
    from modelmill.cli.show import print_failures, print_summary

    if output != "json":
        print_summary(ended)
    elif ended.report_json:
        click.echo(ended.report_json)
    print_failures(ended, going_on(sys.argv[1:], ended.verdict.broken))


def going_on(arguments: Sequence[str], again: Sequence[str]) -> str:
    """Write the command that goes on where this one ended.

    Args:
        arguments: of this command; a stage it asked for `--again` has been granted once.
        again: stages that only another computation mends.
    """
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--again":
            next(words, "")
        elif not word.startswith("--again="):
            kept.append(word)
    asked = [word for stage in again for word in ("--again", stage)]
    return shlex.join(["modelmill", *kept, *asked])


@click.command()
@file_argument
@output_option
def validate(file: Path, overrides: tuple[str, ...], output: str) -> None:
    """Check FILE and say everything that is wrong with it."""
    from modelmill.spec.loading import load_run

    spec = load_run(file, overrides)
    if output == "json":
        click.echo(spec.model_dump_json(indent=2))
    else:
        click.echo(f"{file}: good; models {', '.join(spec.models())}", err=True)


@click.command()
@file_argument
@run_options
@accelerator_option
@store_options
@output_option
def plan(
    file: Path,
    overrides: tuple[str, ...],
    name: str | None,
    profile: Path | None,
    again: tuple[str, ...],
    repin: bool,
    accelerator: "AcceleratorName | None",
    home: Path,
    store_url: str | None,
    output: str,
) -> None:
    """Show the stages of FILE: what is committed, what will run, and what that will take."""
    from modelmill.cli.planned import print_plan
    from modelmill.conduct.fitting import facts_on, fitting_of
    from modelmill.conduct.place import opened
    from modelmill.conduct.prepare import Asked, check_run_name, preview, run_name
    from modelmill.conduct.standing import plan_rows, source_rows
    from modelmill.spec.loading import load_profile, load_run

    spec, offered = load_run(file, overrides), load_profile(profile)
    folder, facts = file.resolve().parent, facts_on(accelerator, offered)
    asked = Asked(check_run_name(name or run_name(file)), folder, again, repin, facts)
    with opened(home, store_url) as place:
        planned = preview(place.store, spec, offered, asked)
        fitting = fitting_of(place.store, planned, folder, accelerator, offered)
        rows = plan_rows(place.store, planned)
        sources = source_rows(place.store, asked.name, planned)
    print_plan(rows, sources, fitting, output)
    fitting.check({row.stage for row in rows if row.state == "committed"})


@click.command()
@output_option
def version(output: str) -> None:
    """Print the version."""
    from importlib.metadata import version as version_of

    number = version_of("modelmill")
    click.echo(json.dumps({"modelmill": number}) if output == "json" else number)
