"""Drive a run to its end: read what is true, decide, act, and look again.

Keeps nothing that matters: truth is in the store and in the backend, so a conductor can be
killed anywhere and another one goes on.  Knows no place; backends do.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from modelmill.conduct.backend import Attempt, Backend, NotNow, Order
from modelmill.conduct.clock import is_young, now
from modelmill.conduct.decide import (
    REPORT,
    Decision,
    Finish,
    Planned,
    Start,
    State,
    Stop,
    View,
    decide,
    settled,
)
from modelmill.conduct.history import History, Watcher
from modelmill.spec.errors import (
    Interrupted,
    LineageBroken,
    Retry,
    StoreUnreachable,
    code_of,
    meaning_of,
    retry_for,
)
from modelmill.spec.names import ENVIRONMENT_OF, report_key
from modelmill.spec.plan import Plan, Stage, report_digest
from modelmill.spec.profile import Profile
from modelmill.spec.records import Ending, RunRecord
from modelmill.store.artifact import Committed, check_ancestry, read_manifest
from modelmill.store.checkpoint import has_checkpoint, read_live
from modelmill.store.runs import read_run, update_run
from modelmill.store.s3 import Store

TICK_SECONDS: Final = 2.0
"""A backend returns sooner when something happens; what a stage waits for is looked at so often."""
HEARTBEAT_SECONDS: Final = 15.0
LAST_WORDS_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 10.0
"""How often to look whether another run has committed what this one waits for."""


@dataclass(frozen=True)
class Conducted:
    """What is to be driven."""

    store: Store
    run: str
    plan: Plan
    plan_sha256: str
    profile: Profile
    conductor: str
    """Names this conductor in run.json; a newer one supersedes it."""
    owner: str = ""
    """Where the run belongs, as run.json says it."""


@dataclass(frozen=True)
class Verdict:
    """How a run ended."""

    exit_code: int
    """0, or the code of the first stage that finally failed."""
    failures: Mapping[str, Ending]
    """Code and last words of every stage that finally failed, in plan order."""
    report: Committed | None
    broken: tuple[str, ...] = ()
    """Failed stages that only another computation mends: their lineage is broken."""
    superseded: bool = False
    cancelled: bool = False


@dataclass
class Conductor:
    """One loop over one run."""

    given: Conducted
    backend: Backend
    watcher: Watcher
    _sound: dict[str, Committed] = field(default_factory=dict)
    _broken: dict[str, str] = field(default_factory=dict)
    _elsewhere: set[str] = field(default_factory=set)
    _history: History = field(init=False)
    _live: dict[str, Attempt] = field(default_factory=dict)
    """Those that have begun, by id; whoever is gone at the next look was stopped."""
    _saved: dict[str, bool] = field(default_factory=dict)
    """By attempt, whether it left something to go on from; looked up when it matters."""
    _fresh: set[str] = field(default_factory=set)
    """Stages whose attempts have just ended: they may have committed."""
    _is_cancelled: bool = False
    _looked: float = -LOOK_SECONDS
    _beaten: float = -HEARTBEAT_SECONDS

    def __post_init__(self) -> None:
        """Begin a history, or go on with it."""
        store, run = self.given.store, self.given.run
        self._history = History(store, run, self.watcher, self.backend.log)

    def drive(self) -> Verdict:
        """Go on until nothing is left to do, or a newer conductor has taken over.

        Raises:
            ModelmillError: the store cannot be reached, or an environment is missing.
        """
        self._history.recall()
        while True:
            verdict = self._act() or self._report_for_duty()
            self._history.write()
            if verdict is not None:
                return verdict
            self.backend.wait(TICK_SECONDS)

    def _act(self) -> Verdict | None:
        """Look, decide, and do what is decided; nothing else stands between two stages."""
        attempts = self._observe()
        if self._is_cancelled:
            return self._wind_down(attempts)
        self._look(attempts)
        decision = decide(self._view(attempts))
        for name, state in decision.states.items():
            if state is State.SKIPPED:
                self._history.skipped(name)
        self._show(decision, attempts)
        for action in decision.actions:
            match action:
                case Finish(exit_code=code):
                    return self._verdict(code, decision.failures, attempts)
                case Start() | Stop() if not self._is_mine():
                    return Verdict(0, {}, None, superseded=True)
                case Start():
                    self._start(action)
                case Stop(attempt=attempt):
                    self.backend.stop(attempt)
        return None

    def _report_for_duty(self) -> Verdict | None:
        """Say from time to time that somebody drives the run, and hear what is asked."""
        if time.monotonic() - self._beaten < HEARTBEAT_SECONDS:
            return None
        record = self._beat()
        if record.conductor != self.given.conductor:
            return Verdict(0, {}, None, superseded=True)
        self._is_cancelled = record.cancelled == self.given.conductor
        return None

    def _wind_down(self, attempts: tuple[Attempt, ...]) -> Verdict | None:
        """Stop everything; the run is over when the last attempt is."""
        live = [attempt for attempt in attempts if attempt.is_live]
        for attempt in live:
            self.backend.stop(attempt)
        return None if live else Verdict(Interrupted.exit_code, {}, None, cancelled=True)

    def stop(self) -> None:
        """Stop what runs, keep its logs, and say so in the run's history.

        What is said afterwards is said quickly or not at all: the store may be what is gone.
        """
        live = {each.id: each for each in self.backend.attempts() if each.is_live}
        self.backend.close()
        left = {each.id: each for each in self.backend.attempts()}
        self._hurry()
        with contextlib.suppress(StoreUnreachable):
            for attempt in live.values():
                self._history.stopped(left.get(attempt.id, attempt))
            self._history.write()

    def leave(self, exit_code: int, message: str = "") -> None:
        """Write down that nobody drives the run any more, and how it ended."""

        def left(record: RunRecord) -> RunRecord:
            # An end that belongs to an older plan would be taken for the end of the new one.
            is_end = record.plan_sha256 == self.given.plan_sha256
            ending = {"exit_code": exit_code, "message": message} if is_end else {}
            return record.model_copy(update={"conductor": "", **ending})

        with contextlib.suppress(StoreUnreachable):
            self._change(left)

    def step_aside(self, why: str) -> None:
        """Write down why this process is stopped; stages go on, and so may another conductor."""
        self._hurry()
        with contextlib.suppress(StoreUnreachable):
            self._change(lambda record: record.model_copy(update={"absence": why}))

    def _hurry(self) -> None:
        hurried = replace(self.given.store, retry_budget_seconds=LAST_WORDS_SECONDS)
        self.given = replace(self.given, store=hurried)
        self._history.hurry(LAST_WORDS_SECONDS)

    def _observe(self) -> tuple[Attempt, ...]:
        attempts = self.backend.attempts()
        for gone in self._live.keys() - {attempt.id for attempt in attempts}:
            self._fresh.add(self._live[gone].stage)
            self._history.stopped(self._live[gone])
        self._live = {each.id: each for each in attempts if each.is_live and each.has_begun}
        for attempt in attempts:
            if attempt.is_live:
                self._history.lives(attempt)
            elif self._history.ended(attempt, was_asked_to=self._is_cancelled):
                self._fresh.add(attempt.stage)
        return tuple(replace(each, has_saved=self._has_saved(each)) for each in attempts)

    def _has_saved(self, attempt: Attempt) -> bool:
        code = attempt.exit_code
        if attempt.is_live or code is None or retry_for(code) is Retry.NEVER:
            return False
        if attempt.id not in self._saved:
            self._saved[attempt.id] = any(
                has_checkpoint(self.given.store, attempt.key, process)
                for process in (attempt.id, *attempt.processes)
            )
        return self._saved[attempt.id]

    def _look(self, attempts: tuple[Attempt, ...]) -> None:
        """Find out what is committed: at once what may have been, the rest from time to time."""
        is_due = time.monotonic() - self._looked >= LOOK_SECONDS
        if is_due:
            self._looked = time.monotonic()
            self._elsewhere.clear()
        sound = {committed.sha256 for committed in self._sound.values()}
        for stage in self.given.plan.stages:
            is_open = stage.name not in self._sound and stage.name not in self._broken
            if is_open and (is_due or stage.name in self._fresh):
                self._look_at(stage, attempts, sound)
        self._fresh.clear()

    def _look_at(self, stage: Stage, attempts: tuple[Attempt, ...], sound: set[str]) -> None:
        committed = read_manifest(self.given.store, stage.kind, stage.key)
        if committed is None:
            live = read_live(self.given.store, stage.key)
            if live is not None and live.run != self.given.run and is_young(live.time):
                self._elsewhere.add(stage.name)
            return
        try:
            check_ancestry(self.given.store, committed, sound)
        except LineageBroken as error:
            # Only the first of a chain is at fault: made again, it has a new key, and so
            # has everything after it.
            if not any(each.stage in self._broken for each in stage.inputs):
                self._history.broken(stage, error.exit_code, str(error))
            self._broken[stage.name] = str(error)
            return
        self._sound[stage.name] = committed
        mine = next((each for each in attempts if each.is_by(committed.manifest.attempt)), None)
        if mine is not None:
            self._history.committed(mine)
        elif committed.manifest.run != self.given.run:
            self._history.adopted(stage.name, committed.manifest.run)
        else:
            self._history.found(stage, committed.manifest)

    def _view(self, attempts: tuple[Attempt, ...]) -> View:
        plan = self.given.plan
        view = View(
            stages=tuple(
                Planned(stage.name, stage.key, tuple(each.stage for each in stage.inputs))
                for stage in plan.stages
            ),
            committed={name: each.manifest.attempt for name, each in self._sound.items()},
            broken=frozenset(self._broken),
            elsewhere=frozenset(self._elsewhere),
            attempts=attempts,
            max_parallel=self.given.profile.max_parallel,
            max_attempts=self.given.profile.max_attempts,
        )
        if not settled(decide(view).states):
            return view
        commits = {name: each.sha256 for name, each in self._sound.items() if name != REPORT}
        digest = report_digest(self.given.plan_sha256, commits)
        key = report_key(self.given.run, digest)
        # Who is making it ends by itself.
        is_made = any(attempt.is_live and attempt.stage == REPORT for attempt in attempts)
        if REPORT not in self._sound and not is_made:
            reported = read_manifest(self.given.store, "report", key)
            if reported is not None:
                self._sound[REPORT] = reported
        return replace(view, report_key=key, is_reported=REPORT in self._sound)

    def _verdict(
        self, exit_code: int, failures: Mapping[str, int], attempts: tuple[Attempt, ...]
    ) -> Verdict:
        words = self._broken | {
            attempt.stage: attempt.message for attempt in attempts if attempt.message
        }
        return Verdict(
            code_of(exit_code),
            {
                stage: Ending(exit_code=code_of(code), message=words.get(stage) or meaning_of(code))
                for stage, code in failures.items()
            },
            self._sound.get(REPORT),
            tuple(stage for stage in failures if stage in self._broken),
        )

    def _start(self, action: Start) -> None:
        environment = ENVIRONMENT_OF["report"]
        if action.stage != REPORT:
            environment = self.given.plan.stage(action.stage).environment
        order = Order(
            action.stage,
            action.key,
            environment,
            action.number,
            self.given.plan_sha256,
            action.halvings,
        )
        try:
            attempt = self.backend.start(order)
        except NotNow as reason:
            self._history.waits(action.stage, action.key, str(reason))
            return
        self._history.lives(attempt)

    def _is_mine(self) -> bool:
        if not self.backend.is_wanted():
            return False
        record = read_run(self.given.store, self.given.run)
        return record is not None and record.conductor == self.given.conductor

    def _beat(self) -> RunRecord:
        """Renew the heartbeat and the logs of live attempts, and read what is asked of us."""
        self._beaten = time.monotonic()
        for attempt in self.backend.attempts():
            if attempt.is_live:
                self._history.put_log(attempt)
        return self._change(lambda record: record.model_copy(update={"heartbeat": now()}))

    def _change(self, change: Callable[[RunRecord], RunRecord]) -> RunRecord:
        """Change the run's record if this conductor drives it; returns it as it is now."""

        def if_mine(record: RunRecord | None) -> RunRecord:
            assert record is not None
            return change(record) if record.conductor == self.given.conductor else record

        return update_run(self.given.store, self.given.run, if_mine)

    def _show(self, decision: Decision, attempts: tuple[Attempt, ...]) -> None:
        live = {
            attempt.stage: self.backend.progress(attempt) for attempt in attempts if attempt.is_live
        }
        self.watcher.standing(decision.states, live)
