"""The command that looks whether a cluster is ready for runs: doctor."""

import json
import sys
from pathlib import Path

import click

from modelmill.cli.cluster import cluster_options
from modelmill.cli.codes import PREFLIGHT_FAILED, ClusterCommand
from modelmill.cli.options import output_option


@click.command(cls=ClusterCommand)
@click.option(
    "--profile",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="What the cluster offers.",
)
@cluster_options
@click.option(
    "--store",
    "store_url",
    metavar="S3_URL",
    help="As this machine reaches it; the profile's when absent.",
)
@click.option("--pods", is_flag=True, help="Also start a pod of every image for a moment.")
@output_option
def doctor(
    profile: Path,
    namespace: str,
    context: str | None,
    store_url: str | None,
    pods: bool,
    output: str,
) -> None:
    """Look whether a cluster and its store are ready for runs, and say what is missing."""
    from modelmill.cli.show import print_table
    from modelmill.conduct.doctor import Patient, examine
    from modelmill.spec.loading import load_profile

    findings = examine(Patient(load_profile(profile), namespace, context, store_url, pods))
    if output == "json":
        click.echo(json.dumps([finding.model_dump() for finding in findings], indent=2))
    else:
        print_table(
            ("check", "state", "found", "what to do"),
            [(each.check, each.state, each.words, each.fix) for each in findings],
        )
    sys.exit(PREFLIGHT_FAILED if any(each.state == "bad" for each in findings) else 0)
