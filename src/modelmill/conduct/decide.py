"""What to do next, as a pure function of what is true.

Level-triggered: nothing is remembered between two decisions, so a conductor can be killed
anywhere, or run twice, and the next decision is still right.  Knows no store, no clock
and no backend.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from modelmill.conduct.backend import Attempt
from modelmill.spec.errors import DataError, InternalError, Retry, retry_for

REPORT: Final = "report"

FREE_ATTEMPTS: Final = 5
"""Interruptions cost nothing; so many in a row that saved nothing get nowhere."""

HALVED: Final = "finetune"
"""The stage that does the same with fewer rows at a time."""
HALVINGS: Final = 2
"""Attempts with half the rows each, before it does not fit."""


class State(StrEnum):
    """Where a stage is."""

    DONE = "done"
    LIVE = "live"
    READY = "ready"
    WAITING = "waiting"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Planned:
    """A stage as the decision sees it."""

    name: str
    key: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """Everything that is true at one moment."""

    stages: tuple[Planned, ...]
    """In plan order: inputs come first."""
    committed: Mapping[str, str]
    """Stages whose key is committed with sound lineage, and the attempt that did it."""
    broken: frozenset[str] = frozenset()
    """Stages whose commit was made from inputs that are no longer the committed ones."""
    elsewhere: frozenset[str] = frozenset()
    """Stages whose key another run is computing right now."""
    attempts: tuple[Attempt, ...] = ()
    report_key: str = ""
    """What the report must cover; known once every stage is settled."""
    is_reported: bool = False
    max_parallel: int = 1
    max_attempts: int = 3


@dataclass(frozen=True)
class Start:
    """Start an attempt."""

    stage: str
    key: str
    number: int
    halvings: int = 0


@dataclass(frozen=True)
class Stop:
    """Stop an attempt that is no longer wanted."""

    attempt: Attempt


@dataclass(frozen=True)
class Finish:
    """Nothing is left to do."""

    exit_code: int
    """0, or the first permanent cause; the gate's verdict is not known here."""


@dataclass(frozen=True)
class Decision:
    """What to do now, and where everything stands."""

    states: Mapping[str, State]
    actions: tuple[Start | Stop | Finish, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)
    """Exit codes of the stages that have finally failed, in plan order."""


def decide(view: View) -> Decision:
    """Say what to do next."""
    states: dict[str, State] = {}
    failures: dict[str, int] = {}
    for stage in view.stages:
        states[stage.name], code = _state(stage, view, states)
        if states[stage.name] is State.FAILED:
            failures[stage.name] = code
    report, code = _report_state(view, states)
    states[REPORT] = report
    if report is State.FAILED:
        failures[REPORT] = code
    actions: tuple[Start | Stop | Finish, ...] = (*_stops(view, states), *_starts(view, states))
    if not any(attempt.is_live for attempt in view.attempts):
        actions = (*actions, *_finish(states, failures))
    return Decision(states, actions, failures)


def settled(states: Mapping[str, State]) -> bool:
    """Tell whether every stage has come to an end of some kind."""
    return all(
        state in (State.DONE, State.FAILED, State.SKIPPED)
        for name, state in states.items()
        if name != REPORT
    )


def _state(stage: Planned, view: View, before: Mapping[str, State]) -> tuple[State, int]:
    if stage.name in view.committed:
        return State.DONE, 0
    if any(before[need] in (State.FAILED, State.SKIPPED) for need in stage.needs):
        return State.SKIPPED, 0
    if stage.name in view.broken:
        return State.FAILED, DataError.exit_code
    attempts = _attempts_of(stage.name, stage.key, view)
    failed, code = _has_finally_failed(attempts, view.max_attempts)
    if failed:
        # Even where an attempt lives: a cluster starts the next one by itself.
        return State.FAILED, code
    if any(attempt.is_live for attempt in attempts):
        return State.LIVE, 0
    is_ready = all(before[need] is State.DONE for need in stage.needs)
    is_ready = is_ready and stage.name not in view.elsewhere
    return (State.READY if is_ready else State.WAITING), 0


def _report_state(view: View, states: Mapping[str, State]) -> tuple[State, int]:
    if not settled(states) or not view.report_key:
        return State.WAITING, 0
    if view.is_reported:
        return State.DONE, 0
    attempts = _attempts_of(REPORT, view.report_key, view)
    failed, code = _has_finally_failed(attempts, view.max_attempts)
    if failed:
        return State.FAILED, code
    return (State.LIVE if any(each.is_live for each in attempts) else State.READY), 0


def _attempts_of(stage: str, key: str, view: View) -> tuple[Attempt, ...]:
    return tuple(each for each in view.attempts if (each.stage, each.key) == (stage, key))


def _has_finally_failed(attempts: tuple[Attempt, ...], max_attempts: int) -> tuple[bool, int]:
    """Look at each shard apart: evicted together they were interrupted once."""
    for shard in {each.shard: None for each in attempts if each.shard is not None} or (None,):
        of_shard = (each for each in attempts if each.shard in (shard, None))
        failed, code = _shard_has_finally_failed(of_shard, max_attempts)
        if failed:
            return True, code
    return False, 0


def _shard_has_finally_failed(attempts: Iterable[Attempt], max_attempts: int) -> tuple[bool, int]:
    counted = free = halvings = 0
    for attempt in attempts:
        code = attempt.exit_code
        if attempt.is_live or code is None:
            continue
        if code == 0:
            # It said that it was done and nothing is committed: our own defect.
            return True, InternalError.exit_code
        if attempt.is_oom and attempt.stage == HALVED and halvings < HALVINGS:
            halvings += 1
            continue
        match retry_for(code):
            case Retry.NEVER:
                return True, code
            case Retry.COUNTED:
                # A place that fails from time to time does not end what gets on between.
                counted = 1 if attempt.has_saved else counted + 1
            case Retry.FREE:
                free = 0 if attempt.has_saved else free + 1
        if counted >= max_attempts or free >= FREE_ATTEMPTS:
            return True, code
    return False, 0


def _stops(view: View, states: Mapping[str, State]) -> Iterator[Stop]:
    wanted = {(stage.name, stage.key) for stage in view.stages}
    wanted.add((REPORT, view.report_key))
    for attempt in view.attempts:
        if not attempt.is_live or attempt.is_by(view.committed.get(attempt.stage, "")):
            # Who has just committed ends by itself.
            continue
        is_planned = (attempt.stage, attempt.key) in wanted
        if attempt.is_stale or not is_planned or states[attempt.stage] is not State.LIVE:
            yield Stop(attempt)


def _starts(view: View, states: Mapping[str, State]) -> Iterator[Start]:
    free = view.max_parallel - sum(attempt.is_live for attempt in view.attempts)
    keys = {stage.name: stage.key for stage in view.stages} | {REPORT: view.report_key}
    for name, state in states.items():
        if free > 0 and state is State.READY:
            attempts = _attempts_of(name, keys[name], view)
            number = max((attempt.number for attempt in attempts), default=0) + 1
            halvings = sum(attempt.is_oom for attempt in attempts)
            yield Start(name, keys[name], number, halvings)
            free -= 1


def _finish(states: Mapping[str, State], failures: Mapping[str, int]) -> Iterator[Finish]:
    if settled(states) and states[REPORT] in (State.DONE, State.FAILED):
        yield Finish(next(iter(failures.values()), 0))
