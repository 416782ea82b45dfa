"""The command that looks whether a store, a cluster or a project is ready for runs: doctor."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli.cluster import cluster_options
from modelmill.cli.codes import PREFLIGHT_FAILED, ClusterCommand
from modelmill.cli.options import backend_option, output_option, store_options

if TYPE_CHECKING:
    from modelmill.conduct.finding import Finding


@click.command(cls=ClusterCommand)
@click.option(
    "--profile",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What the place offers; without it only a store is looked at.",
)
@backend_option
@cluster_options
@store_options
@click.option(
    "--pods",
    is_flag=True,
    help="Also start a pod of every image for a moment; with cml a job in every Runtime.",
)
@output_option
def doctor(
    profile: Path | None,
    backend: str,
    namespace: str,
    context: str | None,
    home: Path,
    store_url: str | None,
    pods: bool,
    output: str,
) -> None:
    """Look whether a store, or the place of runs with its store, is ready; say what is missing.

    With a profile the store is the profile's unless one is named.
    """
    from modelmill.cli.show import print_table

    if profile is None:
        findings = _examine_store(home, store_url)
    elif backend == "cml":
        findings = _examine_project(profile, store_url, with_pods=pods)
    else:
        findings = _examine_cluster(profile, (namespace, context), store_url, with_pods=pods)
    if output == "json":
        click.echo(json.dumps([finding.model_dump() for finding in findings], indent=2))
    else:
        print_table(
            ("check", "state", "found", "what to do"),
            [(each.check, each.state, each.words, each.fix) for each in findings],
        )
    sys.exit(PREFLIGHT_FAILED if any(each.state == "bad" for each in findings) else 0)


def _examine_store(home: Path, store_url: str | None) -> "tuple[Finding, ...]":
    from modelmill.conduct.place import opened
    from modelmill.conduct.store_doctor import examine_store

    with opened(home, store_url) as place:
        return tuple(examine_store(place.store))


def _examine_project(
    profile: Path, store_url: str | None, *, with_pods: bool
) -> "tuple[Finding, ...]":
    from modelmill.conduct.cml_doctor import Patient, examine
    from modelmill.spec.loading import load_profile

    return examine(Patient(load_profile(profile), store_url, with_pods))


def _examine_cluster(
    profile: Path, where: tuple[str, str | None], store_url: str | None, *, with_pods: bool
) -> "tuple[Finding, ...]":
    from modelmill.conduct.doctor import Patient, examine
    from modelmill.spec.loading import load_profile

    return examine(Patient(load_profile(profile), *where, store_url, with_pods))
