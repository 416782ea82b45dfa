"""Options that several commands share, each declared once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

F = TypeVar("F", bound=Callable[..., Any])


def store_options(command: F) -> F:
    """Add the options that say which store a command works with."""
    for option in (
        click.option(
            "--home",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path(".modelmill"),
            envvar="MODELMILL_HOME",
            show_default=True,
            show_envvar=True,
            help="Folder of the environments and of the embedded store.",
        ),
        click.option(
            "--store",
            "store_url",
            metavar="S3_URL",
            envvar="MODELMILL_STORE",
            show_envvar=True,
            help="s3://bucket/prefix; the embedded store when absent.",
        ),
    ):
        command = option(command)
    return command


def context_option(command: F) -> F:
    """Add the option that says which cluster."""
    return click.option("--context", help="Of the kubeconfig; its current one when absent.")(
        command
    )


def store_words() -> tuple[str, ...]:
    """Repeat the options that chose the store, for a command we propose."""
    context = click.get_current_context()
    return tuple(
        word
        for name, option in (("home", "--home"), ("store_url", "--store"))
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for word in (option, str(context.params[name]))
    )


def output_option(command: F) -> F:
    """Add the option that says how data is printed."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="How to print.",
    )(command)


def file_argument(command: F) -> F:
    """Add the run file and what changes it."""
    command = click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Change one setting, such as finetune.r=8; may be repeated.",
    )(command)
    return click.argument("file", type=click.Path(dir_okay=False, path_type=Path))(command)


def run_options(command: F) -> F:
    """Add what a run is asked for beside its file."""
    place = click.Path(dir_okay=False, path_type=Path)
    for option in (
        click.option("--repin", is_flag=True, help="Look at s3:// and hf: sources anew."),
        click.option("--again", multiple=True, metavar="STAGE", help="Compute a stage once more."),
        click.option("--profile", type=place, help="What the place offers."),
        click.option("--name", help="Name of the run; made from the file's place when absent."),
    ):
        command = option(command)
    return command
