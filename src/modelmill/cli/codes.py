"""What commands about runs on a cluster end with.

A run's own code says what went wrong inside it; these say how the command itself went, so
that a script can tell "it failed" from "I could not ask".
"""

import shlex
import sys
from dataclasses import dataclass
from typing import Final

import click

from modelmill.cli.options import store_words
from modelmill.spec.errors import (
    GateFailed,
    InternalError,
    Interrupted,
    ModelmillError,
    NoSuchRun,
    Retry,
    StoreUnfit,
    StoreUnreachable,
    advice_for,
    classes_of,
    meaning_of,
    retry_for,
)

OUR_FAULT: Final = 1
RUN_FAILED: Final = 3
NOT_FINISHED: Final = 4
NO_SUCH_RUN: Final = 5
CANCELLED: Final = 6
PREFLIGHT_FAILED: Final = 7
UNREACHABLE: Final = 8
INTERRUPTED: Final = 130


ON_A_CLUSTER: Final = "commands about runs on a cluster"
ELSEWHERE: Final = "stages, runs and all other commands"


@dataclass(frozen=True)
class End:
    """One way something can end."""

    code: int
    meaning: str
    advice: str
    of: str = ON_A_CLUSTER
    name: str = ""
    """Of the class of errors."""
    retry: str = ""
    """Whether a conductor makes another attempt, and why."""


ENDS: Final = (
    End(0, "It did what was asked; where it tells how a run ended, the run is done.", ""),
    End(OUR_FAULT, InternalError.meaning(), InternalError.advice),
    End(2, "The command line could not be understood.", "Read `modelmill COMMAND --help`."),
    End(
        RUN_FAILED,
        "The run has failed; its own exit code is in `modelmill status RUN -o json`.",
        "`modelmill status RUN` says which stage and why, `modelmill logs RUN STAGE` the rest.",
    ),
    End(
        NOT_FINISHED,
        "The run has not ended, or has not answered in time.",
        "Ask again later, or `modelmill wait RUN`.",
    ),
    End(NO_SUCH_RUN, NoSuchRun.meaning(), NoSuchRun.advice),
    End(
        CANCELLED,
        "The run was cancelled or interrupted; what was committed is kept.",
        "On a cluster `modelmill resume RUN` goes on with it; elsewhere the same command.",
    ),
    End(
        PREFLIGHT_FAILED,
        "Something that is needed is wrong or missing; nothing was started.",
        "Do what the message says; `modelmill doctor --profile FILE` looks at everything.",
    ),
    End(
        UNREACHABLE,
        "The store or the cluster does not answer, so nothing is known about the run.",
        "Look at the endpoint, the kubeconfig and the network; the run itself goes on.",
    ),
    End(GateFailed.exit_code, GateFailed.meaning(), GateFailed.advice),
    End(
        INTERRUPTED,
        "This command was interrupted, and no stage.",
        "`modelmill status RUN` says where the run is; `modelmill wait RUN` watches it again.",
    ),
)
"""What each of these codes means; the reference page and `modelmill explain` say it."""


class ClusterCommand(click.Command):
    """A command whose known errors end with a code from this module."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; say what went wrong in words."""
        try:
            return super().invoke(ctx)
        except ModelmillError as error:
            click.echo(str(error), err=True)
            sys.exit(code_of_error(error))
        except (KeyboardInterrupt, click.Abort):
            # 75 would say that the run was interrupted.
            run = ctx.params.get("run") or ctx.params.get("name")
            look = ("list",) if run is None else ("status", run)
            command = shlex.join(("modelmill", *look, *store_words()))
            click.echo(f"Interrupted: this command only.  To see what goes on: {command}", err=True)
            sys.exit(INTERRUPTED)
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


def ends_of(code: int) -> tuple[End, ...]:
    """Say everything that an exit code can mean."""
    on_a_cluster = tuple(end for end in ENDS if end.code == code)
    classes = classes_of(code)
    elsewhere = [
        End(code, each.meaning(), each.advice, ELSEWHERE, each.__name__, _retry_words(each.retry))
        for each in classes
    ]
    if not classes and (not on_a_cluster or code in (0, OUR_FAULT)):
        retry = _retry_words(retry_for(code)) if code else ""
        elsewhere = [End(code, meaning_of(code), advice_for(code), ELSEWHERE, retry=retry)]
    return (*elsewhere, *on_a_cluster)


def _retry_words(retry: Retry) -> str:
    return f"{retry.value}: {retry.words}"
