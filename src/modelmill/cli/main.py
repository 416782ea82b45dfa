"""The `modelmill` command: parse, call one function of the layer below, print.

stdout is data, stderr is talk.  Command bodies import what they need, so that `--help`
loads neither S3 nor a model library.
"""

import sys

import click

from modelmill.cli.artifacts import artifacts
from modelmill.cli.cluster import cancel, resume, rm, submit
from modelmill.cli.completing import completion
from modelmill.cli.doctor import doctor
from modelmill.cli.explain import explain
from modelmill.cli.export import export
from modelmill.cli.gc import gc
from modelmill.cli.init import init
from modelmill.cli.look import list_, logs, report, status, wait
from modelmill.cli.render import render
from modelmill.cli.run import plan, run, validate, version
from modelmill.spec.errors import Interrupted, ModelmillError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Fine-tune, merge, quantize and test a language model, and see what came out."""


for command in (
    *(init, explain, run, validate, plan, report, export, artifacts, completion, version),
    *(submit, status, list_, logs, wait, cancel, resume, rm, render, doctor, gc),
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every known error ends here as words and an exit code."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(Interrupted.exit_code)
    except ModelmillError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
