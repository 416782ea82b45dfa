"""Options that several commands share, each declared once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

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


def backend_option(command: F) -> F:
    """Add the option that says what kind of place is meant."""
    return click.option(
        "--backend",
        type=click.Choice(["kubernetes", "cml"]),
        default="kubernetes",
        envvar="MODELMILL_BACKEND",
        show_default=True,
        show_envvar=True,
        help="What runs the stages; cml is Cloudera AI.",
    )(command)


def store_words() -> tuple[str, ...]:
    """Repeat the options that chose the store, for a command we propose."""
    return repeated("home", "store_url")


def repeated(*names: str) -> tuple[str, ...]:
    """Repeat options as they were given on the command line, for a command we propose."""
    context = click.get_current_context()
    spelled = {option.name: option.opts[-1] for option in context.command.params}
    return tuple(
        word
        for name in names
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for word in (spelled[name], str(context.params[name]))
    )


ACCELERATORS: Final = ("l4", "a10", "a100-40", "a100-80", "h100", "cpu")
"""Spelled here too, for `--help` loads no models of data; a test compares."""


def accelerator_option(command: F) -> F:
    """Add the option that says what a plan is held against."""
    return click.option(
        "--accelerator",
        type=click.Choice(ACCELERATORS),
        help="Plan for this device, and end with 78 where a stage cannot fit it.",
    )(command)


OUTPUT_VARIABLE: Final = "MODELMILL_OUTPUT"


def output_option(command: F) -> F:
    """Add the option that says how data is printed."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "plain"]),
        default="table",
        envvar=OUTPUT_VARIABLE,
        show_default=True,
        show_envvar=True,
        help="How to print; plain: a line for each value, to be read aloud.",
    )(command)


def output_is_plain() -> bool:
    """Tell whether this command, or everything in this terminal, is to be read aloud."""
    context = click.get_current_context(silent=True)
    asked = context.params.get("output") if context is not None else None
    return (asked or os.environ.get(OUTPUT_VARIABLE)) == "plain"


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
