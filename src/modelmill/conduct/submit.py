"""What a laptop does to a run elsewhere, on a cluster or in a project: submit, go on, cancel.

The store comes first: local sources, pins and the plan are written there before anything
is asked of that place, so a half-done submission is simply submitted again.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from pydantic import JsonValue

from modelmill.conduct.lookup import find_run, live_plan
from modelmill.conduct.owner import command_to_go_on, is_of_a_machine, parse_project_owner
from modelmill.conduct.prepare import Asked, preview, record_plan
from modelmill.conduct.standing import PlanRow, is_driven, plan_rows
from modelmill.spec.errors import InputMissing, WouldBeLost
from modelmill.spec.profile import Profile
from modelmill.spec.records import RunRecord
from modelmill.spec.run import RunSpec
from modelmill.spec.values import Values
from modelmill.store.probe import check_conditional_writes
from modelmill.store.runs import drop_run, read_run, update_run
from modelmill.store.s3 import Store

ANSWER_SECONDS: Final = 1.0
"""Between two looks whether a conductor has done what was asked."""


class Launcher(Protocol):
    """Starts conductors in one place: Helm in a namespace, or a project."""

    @property
    def place(self) -> str:
        """Say where runs go."""
        ...

    def install(self, run: str, values: Mapping[str, JsonValue], /) -> object:
        """Let a run be driven by these values from now on."""
        ...

    def upgrade(self, run: str, /) -> object:
        """Let a new conductor drive a run by the values it has."""
        ...


@dataclass(frozen=True)
class Submission:
    """A run for another place."""

    spec: RunSpec
    profile: Profile
    asked: Asked


@dataclass(frozen=True)
class Submitted:
    """What became of a submission."""

    run: str
    place: str
    plan_sha256: str
    """Empty where the conductor has sources on a hub to pin before there is a plan."""
    rows: tuple[PlanRow, ...]
    """What is committed already, and what will run; empty where there is no plan yet."""


def submit(store: Store, submission: Submission, launcher: Launcher) -> Submitted:
    """Make the run that place's, and start a conductor there or change what it drives.

    Doing it twice is one run: a new conductor adopts what the one before has started.

    Raises:
        ModelmillError: a source is missing, the name is taken, or the place refuses.
    """
    asked = replace(submission.asked, asks_hub=False)
    check_conditional_writes(store)
    recorded = record_plan(store, submission.spec, submission.profile, asked)
    values = Values(run=submission.spec, profile=submission.profile, submitted=True)
    launcher.install(asked.name, values.model_dump(mode="json"))
    if recorded is None:
        return Submitted(asked.name, launcher.place, "", ())
    plan, sha256 = recorded
    return Submitted(asked.name, launcher.place, sha256, plan_rows(store, plan))


def resume(store: Store, asked: Asked, launcher: Launcher) -> None:
    """Start a new conductor of a run as it is, perhaps with stages to compute again.

    Raises:
        InputMissing: there is no such run.
        ModelmillError: a stage to compute again is none of the run's, or the place refuses.
    """
    plan = live_plan(store, find_run(store, asked.name))
    record_plan(store, plan.run, Profile(), replace(asked, facts=plan.facts, asks_hub=False))
    launcher.upgrade(asked.name)


def rows_of(store: Store, submission: Submission) -> tuple[PlanRow, ...]:
    """Show what a submission would do, without doing it."""
    plan = preview(store, submission.spec, submission.profile, submission.asked)
    return plan_rows(store, plan)


def cancel(store: Store, run: str, patience_seconds: float) -> bool:
    """Ask whoever drives a run to stop every stage; returns whether it has done so in time.

    Raises:
        NoSuchRun: there is no such run.
        InputMissing: nobody drives it.
    """
    record = find_run(store, run)
    conductor = record.conductor
    if not is_driven(record):
        left = f"if pods of it are left: helm uninstall {run}"
        if parse_project_owner(record.owner) is not None:
            left = f"if jobs of it still run: modelmill rm {run}"
        elif is_of_a_machine(record.owner):
            again = command_to_go_on(run, record.owner)
            left = f"it was run on one machine, and goes on there: {again}"
        raise InputMissing(f"Nobody drives run '{run}'", at=store.url, fix=left)

    def ask(present: RunRecord | None) -> RunRecord:
        assert present is not None
        return present.model_copy(update={"cancelled": conductor})

    update_run(store, run, ask)
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        present = read_run(store, run)
        if present is None or present.conductor != conductor:
            return True
        time.sleep(ANSWER_SECONDS)
    return False


def remove(store: Store, run: str, uninstall: Callable[[RunRecord], None]) -> None:
    """Forget a run: its record, history, logs and reports; what its stages made stays.

    Args:
        store: where it is.
        run: its name.
        uninstall: removes its release, if it has one.

    Raises:
        NoSuchRun: there is no such run.
        WouldBeLost: somebody drives it.
    """
    record = find_run(store, run)
    if is_driven(record):
        raise WouldBeLost(
            f"Run '{run}' is being driven", at=store.url, fix=f"modelmill cancel {run}"
        )
    uninstall(record)
    drop_run(store, run)
