"""Commands that change a run on a cluster: submit, resume, cancel."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from modelmill.cli.options import file_argument, output_option, run_options, store_options

if TYPE_CHECKING:
    from modelmill.conduct.standing import PlanRow
    from modelmill.conduct.submit import Submitted
    from modelmill.store.s3 import Store

RUN_FAILED: Final = 3
NOT_FINISHED: Final = 4
CANCELLED: Final = 6
GATE_FAILED: Final = 79
INTERRUPTED: Final = 75
LOOK_SECONDS: Final = 5.0

F = TypeVar("F", bound=Callable[..., Any])


def cluster_options(command: F) -> F:
    """Add the options that say which cluster, and what of it."""
    for option in (
        click.option("--context", help="Of the kubeconfig; its current one when absent."),
        click.option(
            "-n",
            "--namespace",
            default="modelmill",
            envvar="MODELMILL_NAMESPACE",
            show_default=True,
            show_envvar=True,
            help="Of the run.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@file_argument
@run_options
@cluster_options
@click.option(
    "--store",
    "store_url",
    metavar="S3_URL",
    help="As this machine reaches it; the profile's when absent.",
)
@click.option("--dry-run", is_flag=True, help="Show what would run, and change nothing.")
@click.option("--wait", is_flag=True, help="Go on until the run has ended; exit as it did.")
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
    dry_run: bool,
    wait: bool,
    take_over: bool,
    output: str,
) -> None:
    """Start FILE on a cluster, or go on with it there; the laptop may be switched off then."""
    from modelmill.conduct.helm import find_helm
    from modelmill.conduct.kubernetes import from_kubeconfig
    from modelmill.conduct.place import opened_as_pods_see_it
    from modelmill.conduct.prepare import Asked, check_run_name, run_name
    from modelmill.conduct.submit import Submission, rows_of
    from modelmill.conduct.submit import submit as submit_run
    from modelmill.spec.loading import load_profile, load_run
    from modelmill.spec.profile import check_cluster, cluster_facts

    spec, place = load_run(file, overrides), load_profile(profile)
    check_cluster(place, str(profile or "--profile"))
    run = check_run_name(name or run_name(file))
    helm = find_helm(namespace, context)
    asked = Asked(
        run,
        file.resolve().parent,
        again,
        repin,
        facts=cluster_facts(place),
        owner=from_kubeconfig(context, namespace).owner_of(run),
        take_over=take_over,
    )
    submission = Submission(spec, place, asked)
    with opened_as_pods_see_it(place, store_url) as store:
        if dry_run:
            _print_plan(rows_of(store, submission), output)
            return
        _print_submitted(submit_run(store, submission, helm), output)
        if wait:
            sys.exit(_wait(store, run))


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
    _print_plan(submitted.rows, output)
    click.echo(
        f"Run '{submitted.run}' is in namespace {submitted.namespace}.\n"
        f"  where it is  modelmill status {submitted.run}\n"
        f"  its logs     modelmill logs -f {submitted.run}\n"
        f"  stop it      modelmill cancel {submitted.run}",
        err=True,
    )


def _wait(store: "Store", run: str) -> int:
    """Wait for a conductor to leave; the run goes on if this is interrupted."""
    from modelmill.store.runs import read_run

    try:
        while True:
            record = read_run(store, run)
            if record is not None and not record.conductor and record.exit_code is not None:
                return code_for_clusters(record.exit_code)
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        click.echo(f"The run goes on: modelmill status {run}", err=True)
        return 130


def code_for_clusters(exit_code: int) -> int:
    """Fold how a run ended into what scripts around a cluster tell apart."""
    return {0: 0, INTERRUPTED: CANCELLED, GATE_FAILED: GATE_FAILED}.get(exit_code, RUN_FAILED)


@click.command()
@click.argument("run")
@cluster_options
@store_options
@click.option("--again", multiple=True, metavar="STAGE", help="Compute a stage once more.")
@click.option("--repin", is_flag=True, help="Look at s3:// sources anew.")
def resume(
    run: str,
    namespace: str,
    context: str | None,
    home: Path,
    store_url: str | None,
    again: tuple[str, ...],
    repin: bool,
) -> None:
    """Go on with RUN on its cluster, from what is committed."""
    from modelmill.conduct.helm import find_helm
    from modelmill.conduct.kubernetes import from_kubeconfig
    from modelmill.conduct.place import opened
    from modelmill.conduct.prepare import Asked
    from modelmill.conduct.submit import resume as resume_run

    helm = find_helm(namespace, context)
    owner = from_kubeconfig(context, namespace).owner_of(run)
    with opened(home, store_url) as place:
        resume_run(place.store, Asked(run, None, again, repin, owner=owner), helm)
    click.echo(f"Going on: modelmill status {run}", err=True)


@click.command()
@click.argument("run")
@store_options
def cancel(run: str, home: Path, store_url: str | None) -> None:
    """Stop every stage of RUN, wherever it is driven; what is committed stays."""
    from modelmill.conduct.place import opened
    from modelmill.conduct.submit import cancel as cancel_run

    with opened(home, store_url) as place:
        is_done = cancel_run(place.store, run)
    words = "is cancelled" if is_done else "has been asked to stop, and has not answered yet"
    click.echo(f"Run '{run}' {words}", err=True)
    sys.exit(0 if is_done else NOT_FINISHED)
