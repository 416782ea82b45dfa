"""The command that looks whether a store or a cluster is ready for runs: doctor."""

import json
import sys
from pathlib import Path

import click

from modelmill.cli.cluster import cluster_options
from modelmill.cli.codes import PREFLIGHT_FAILED, ClusterCommand
from modelmill.cli.options import output_option, store_options


@click.command(cls=ClusterCommand)
@click.option(
    "--profile",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What a cluster offers; without it only a store is looked at.",
)
@cluster_options
@store_options
@click.option("--pods", is_flag=True, help="Also start a pod of every image for a moment.")
@output_option
def doctor(
    profile: Path | None,
    namespace: str,
    context: str | None,
    home: Path,
    store_url: str | None,
    pods: bool,
    output: str,
) -> None:
    """Look whether a store, or a cluster and its store, are ready for runs; say what is missing.

    With a profile the store is the profile's unless one is named.
    """
    from modelmill.cli.show import print_table
    from modelmill.conduct.doctor import Patient, examine
    from modelmill.conduct.place import opened
    from modelmill.conduct.store_doctor import examine_store
    from modelmill.spec.loading import load_profile

    if profile is None:
        with opened(home, store_url) as place:
            findings = tuple(examine_store(place.store))
    else:
        findings = examine(Patient(load_profile(profile), namespace, context, store_url, pods))
    if output == "json":
        click.echo(json.dumps([finding.model_dump() for finding in findings], indent=2))
    else:
        print_table(
            ("check", "state", "found", "what to do"),
            [(each.check, each.state, each.words, each.fix) for each in findings],
        )
    sys.exit(PREFLIGHT_FAILED if any(each.state == "bad" for each in findings) else 0)
