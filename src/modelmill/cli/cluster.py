"""Commands that change a run on a cluster or in a project: submit, resume, cancel, rm."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelmill.cli.codes import NOT_FINISHED, ClusterCommand
from modelmill.cli.completing import complete_run, complete_stage
from modelmill.cli.look import wait_for
from modelmill.cli.options import (
    backend_option,
    context_option,
    file_argument,
    output_option,
    run_options,
    store_options,
)

if TYPE_CHECKING:
    from modelmill.conduct.launching import Launch
    from modelmill.conduct.standing import PlanRow
    from modelmill.conduct.submit import Submission, Submitted
    from modelmill.spec.records import RunRecord
    from modelmill.store.s3 import Store

F = TypeVar("F", bound=Callable[..., Any])


def cluster_options(command: F) -> F:
    """Add the options that say which cluster, and what of it."""
    return context_option(
        click.option(
            "-n",
            "--namespace",
            default="modelmill",
            envvar="MODELMILL_NAMESPACE",
            show_default=True,
            show_envvar=True,
            help="Of the run.",
        )(command)
    )


@click.command(cls=ClusterCommand)
@file_argument
@run_options
@cluster_options
@click.option(
    "--store",
    "store_url",
    metavar="S3_URL",
    help="As this machine reaches it; the profile's when absent.",
)
@backend_option
@click.option("--dry-run", is_flag=True, help="Show what would run, and change nothing.")
@click.option("--wait", is_flag=True, help="Go on until the run has ended; exit as it did.")
@click.option("--here", is_flag=True, help="Drive it from this machine; only with cml.")
@click.option("--take-over", is_flag=True, help="Take the name of a run that belongs elsewhere.")
@output_option
def submit(
    file: Path,
    overrides: tuple[str, ...],
    name: str | None,
    profile: Path | None,
    again: tuple[str, ...],
    repin: bool,
    namespace: str,
    context: str | None,
    store_url: str | None,
    backend: str,
    dry_run: bool,
    wait: bool,
    here: bool,
    take_over: bool,
    output: str,
) -> None:
    """Start FILE elsewhere, or go on with it there; the laptop may be switched off then."""
    from modelmill.conduct.place import opened_as_pods_see_it

    if here and backend != "cml":
        raise click.UsageError("--here is for --backend cml")
    submission = _submission(file, overrides, name, profile, backend)
    asked = replace(submission.asked, again=again, repin=repin, take_over=take_over)
    submission = replace(submission, asked=asked)
    with opened_as_pods_see_it(submission.profile, store_url) as store:
        if backend == "cml":
            _submit_to_project(store, submission, output, dry_run=dry_run, here=here)
        else:
            where = (namespace, context)
            _submit_to_namespace(store, submission, output, where, dry_run=dry_run)
        if (wait or here) and not dry_run:
            sys.exit(wait_for(store, asked.name))


def _submit_to_namespace(
    store: "Store",
    submission: "Submission",
    output: str,
    where: tuple[str, str | None],
    *,
    dry_run: bool,
) -> None:
    from modelmill.conduct.launching import Namespace, launch_in_namespace

    launch = launch_in_namespace(Namespace(*where), submission.asked.name)
    _submit(store, submission, launch, output, dry_run=dry_run)


def _submit_to_project(
    store: "Store", submission: "Submission", output: str, *, dry_run: bool, here: bool
) -> None:
    from modelmill.conduct.in_project import drive, log_to_stderr
    from modelmill.conduct.launching import launch_in_project

    launch, project = launch_in_project(store, submission.profile, is_driven_here=here)
    _submit(store, submission, launch, output, dry_run=dry_run)
    if here and not dry_run:
        log_to_stderr()
        drive(store, submission.asked.name, project)


def _submit(
    store: "Store", submission: "Submission", launch: "Launch", output: str, *, dry_run: bool
) -> None:
    from modelmill.conduct.submit import rows_of
    from modelmill.conduct.submit import submit as submit_run

    submission = replace(submission, asked=replace(submission.asked, owner=launch.owner))
    if dry_run:
        _print_plan(rows_of(store, submission), output)
    else:
        _print_submitted(submit_run(store, submission, launch.launcher), output)


def _submission(
    file: Path, overrides: tuple[str, ...], name: str | None, profile: Path | None, backend: str
) -> "Submission":
    from modelmill.conduct.prepare import Asked, check_run_name, run_name
    from modelmill.conduct.submit import Submission
    from modelmill.spec.loading import load_profile, load_run
    from modelmill.spec.profile import check_cluster, check_project, cluster_facts

    spec, place = load_run(file, overrides), load_profile(profile)
    check = check_project if backend == "cml" else check_cluster
    check(place, str(profile or "--profile"))
    run = check_run_name(name or run_name(file))
    return Submission(spec, place, Asked(run, file.resolve().parent, facts=cluster_facts(place)))


def _print_plan(rows: tuple["PlanRow", ...], output: str) -> None:
    import json

    from modelmill.cli.show import print_table

    if output == "json":
        click.echo(json.dumps([row.model_dump() for row in rows], indent=2))
        return
    print_table(
        ("stage", "key", "state", "from run"),
        [(row.stage, row.key[:12], row.state, row.from_run) for row in rows],
    )


def _print_submitted(submitted: "Submitted", output: str) -> None:
    from modelmill.cli.show import print_record

    if submitted.rows:
        _print_plan(submitted.rows, output)
    else:
        click.echo("Its conductor will ask the hub which state of the sources it is.", err=True)
    click.echo(f"Run '{submitted.run}' is in {submitted.place}.", err=True)
    next_commands = (
        ("where it is", f"modelmill status {submitted.run}"),
        ("its logs", f"modelmill logs -f {submitted.run}"),
        ("its end", f"modelmill wait {submitted.run}"),
        ("stop it", f"modelmill cancel {submitted.run}"),
    )
    print_record(next_commands, err=True)


@click.command(cls=ClusterCommand)
@click.argument("run", shell_complete=complete_run)
@cluster_options
@store_options
@click.option(
    "--again",
    multiple=True,
    metavar="STAGE",
    shell_complete=complete_stage,
    help="Compute a stage once more.",
)
@click.option("--repin", is_flag=True, help="Look at s3:// and hf: sources anew.")
def resume(
    run: str,
    namespace: str,
    context: str | None,
    home: Path,
    store_url: str | None,
    again: tuple[str, ...],
    repin: bool,
) -> None:
    """Go on with RUN on its cluster or in its project, from what is committed."""
    from modelmill.conduct.launching import Namespace, launch_again
    from modelmill.conduct.place import opened
    from modelmill.conduct.prepare import Asked
    from modelmill.conduct.submit import resume as resume_run

    with opened(home, store_url) as place:
        launch = launch_again(place.store, run, Namespace(namespace, context))
        asked = Asked(run, None, again, repin, owner=launch.owner)
        resume_run(place.store, asked, launch.launcher)
    click.echo(f"Going on: modelmill status {run}", err=True)


@click.command(cls=ClusterCommand)
@click.argument("run", shell_complete=complete_run)
@click.option(
    "--timeout",
    "patience_seconds",
    type=click.FloatRange(0),
    default=600,
    show_default=True,
    help="Seconds to wait for the stages to save and end.",
)
@store_options
def cancel(run: str, patience_seconds: float, home: Path, store_url: str | None) -> None:
    """Stop every stage of RUN, wherever it is driven; what is committed stays."""
    from modelmill.conduct.place import opened
    from modelmill.conduct.submit import cancel as cancel_run

    with opened(home, store_url) as place:
        is_done = cancel_run(place.store, run, patience_seconds)
    words = "is cancelled" if is_done else "has been asked to stop, and has not answered yet"
    click.echo(f"Run '{run}' {words}", err=True)
    sys.exit(0 if is_done else NOT_FINISHED)


@click.command(cls=ClusterCommand)
@click.argument("run", shell_complete=complete_run)
@click.option("--force", is_flag=True, help="Forget it although its place cannot be asked.")
@context_option
@store_options
def rm(run: str, force: bool, context: str | None, home: Path, store_url: str | None) -> None:
    """Forget RUN: its release or jobs, record, logs and reports; what its stages made stays."""
    from modelmill.conduct.place import opened
    from modelmill.conduct.submit import remove

    def uninstall(record: "RunRecord") -> None:
        if record.owner:
            from modelmill.conduct.launching import uninstall_run

            uninstall_run(record, context, is_forced=force)

    with opened(home, store_url) as place:
        remove(place.store, run, uninstall)
    click.echo(f"Run '{run}' is forgotten; modelmill artifacts ls shows what it made", err=True)
