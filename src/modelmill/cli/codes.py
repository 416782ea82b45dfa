"""What commands about runs on a cluster end with.

A run's own code says what went wrong inside it; these say how the command itself went, so
that a script can tell "it failed" from "I could not ask".
"""

import sys
from typing import Final

import click

from modelmill.spec.errors import (
    GateFailed,
    InternalError,
    Interrupted,
    ModelmillError,
    NoSuchRun,
    StoreUnfit,
    StoreUnreachable,
)

OUR_FAULT: Final = 1
RUN_FAILED: Final = 3
NOT_FINISHED: Final = 4
NO_SUCH_RUN: Final = 5
CANCELLED: Final = 6
PREFLIGHT_FAILED: Final = 7
UNREACHABLE: Final = 8
INTERRUPTED: Final = 130


class ClusterCommand(click.Command):
    """A command whose known errors end with a code from this module."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; say what went wrong in words."""
        try:
            return super().invoke(ctx)
        except ModelmillError as error:
            click.echo(str(error), err=True)
            sys.exit(code_of_error(error))
        except ModuleNotFoundError as error:
            if error.name != "kubernetes":
                raise
            click.echo("This needs Kubernetes: pip install 'modelmill[kubernetes]'", err=True)
            sys.exit(PREFLIGHT_FAILED)


def code_of_error(error: ModelmillError) -> int:
    """Say how a command ends that could not do what it was asked."""
    match error:
        case NoSuchRun():
            return NO_SUCH_RUN
        case StoreUnreachable() if not isinstance(error, StoreUnfit):
            return UNREACHABLE
        case InternalError():
            return OUR_FAULT
        case _:
            return PREFLIGHT_FAILED


def code_of_run(exit_code: int | None) -> int:
    """Fold how a run ended into what scripts around a cluster tell apart."""
    if exit_code is None:
        return NOT_FINISHED
    known = {0: 0, Interrupted.exit_code: CANCELLED, GateFailed.exit_code: GateFailed.exit_code}
    return known.get(exit_code, RUN_FAILED)
