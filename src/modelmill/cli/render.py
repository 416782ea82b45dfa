"""The command that shows what a cluster would be given: render."""

import json
from pathlib import Path

import click

from modelmill.cli.options import file_argument


@click.command()
@file_argument
@click.option("--name", help="Name of the run; made from the file's place when absent.")
@click.option(
    "--profile",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="What the cluster offers.",
)
@click.option("-n", "--namespace", default="modelmill", show_default=True, help="Of the run.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="How to print.",
)
def render(
    file: Path,
    overrides: tuple[str, ...],
    name: str | None,
    profile: Path,
    namespace: str,
    output: str,
) -> None:
    """Show the Job of every stage of FILE; keys stand for sources nobody has looked at yet."""
    from modelmill.conduct.prepare import check_run_name, run_name
    from modelmill.conduct.render import rendered_jobs
    from modelmill.spec.loading import load_profile, load_run
    from modelmill.spec.writing import yaml_text

    run = check_run_name(name or run_name(file))
    jobs = rendered_jobs(load_run(file, overrides), load_profile(profile), run, namespace)
    shown = list(jobs.values())
    text = yaml_text(shown) if output == "yaml" else json.dumps(shown, indent=2) + "\n"
    click.echo(text, nl=False)
