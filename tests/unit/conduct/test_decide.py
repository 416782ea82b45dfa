"""The conductor's decision, driven through every order of events hypothesis can think of."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelmill.conduct.backend import Attempt
from modelmill.conduct.decide import (
    FREE_ATTEMPTS,
    REPORT,
    Decision,
    Finish,
    Planned,
    Start,
    State,
    Stop,
    View,
    decide,
)

STAGES = (
    Planned("fetch", "f", ()),
    Planned("finetune", "t", ("fetch",)),
    Planned("merge", "m", ("fetch", "finetune")),
    Planned("quantize", "q", ("merge",)),
    Planned("infer-base", "b", ("fetch",)),
    Planned("infer-merged", "i", ("merge",)),
)
NEVER, COUNTED, FREE = 65, 71, 75


def attempt(stage: str, code: int | None = None, number: int = 1) -> Attempt:
    """Make an attempt; without a code it lives."""
    key = next((each.key for each in STAGES if each.name == stage), "r")
    return Attempt(f"{stage}-{number}", stage, key, number, code is None, code)


def view_of(*attempts: Attempt, committed: str = "", max_parallel: int = 1) -> View:
    """See the stages with these attempts."""
    return View(
        STAGES,
        dict.fromkeys(committed.split(), "somebody"),
        attempts=attempts,
        report_key="r",
        max_parallel=max_parallel,
    )


def test_first_ready_stage_starts() -> None:
    """Plan order decides where nothing else does."""
    assert decide(view_of()).actions == (Start("fetch", "f", 1),)


def test_parallel_stages_start_together_up_to_the_limit() -> None:
    """Independent stages use what the profile gives them."""
    actions = decide(view_of(committed="fetch", max_parallel=2)).actions
    assert actions == (Start("finetune", "t", 1), Start("infer-base", "b", 1))


def test_first_stage_of_a_broken_chain_is_the_one_at_fault() -> None:
    """Made again it has a new key, so what comes after it has nothing to mend."""
    broken = frozenset({"finetune", "merge", "infer-merged"})
    decision = decide(replace(view_of(committed="fetch infer-base"), broken=broken))
    assert decision.failures == {"finetune": 65}
    assert {decision.states[name] for name in ("merge", "infer-merged")} == {State.SKIPPED}


def test_failed_branch_does_not_stop_another() -> None:
    """What does not need the failed stage goes on; what does is skipped."""
    decision = decide(view_of(attempt("finetune", NEVER), committed="fetch"))
    assert decision.states["merge"] is State.SKIPPED
    assert decision.actions == (Start("infer-base", "b", 1),)


def test_counted_failures_end_after_the_limit() -> None:
    """A device fault is worth another attempt, three times."""
    two = tuple(attempt("fetch", COUNTED, n) for n in (1, 2))
    assert decide(view_of(*two)).actions == (Start("fetch", "f", 3),)
    three = (*two, attempt("fetch", COUNTED, 3))
    assert decide(view_of(*three)).states["fetch"] is State.FAILED


def test_interruptions_are_free_but_not_endless() -> None:
    """A stage that is interrupted again and again makes no progress."""
    some = tuple(attempt("fetch", FREE, n) for n in range(1, FREE_ATTEMPTS))
    assert decide(view_of(*some)).states["fetch"] is State.READY
    more = (*some, attempt("fetch", FREE, FREE_ATTEMPTS))
    assert decide(view_of(*more)).states["fetch"] is State.FAILED


def test_interruption_that_saved_something_starts_the_count_anew() -> None:
    """Five in a row that saved nothing are too many; a spot machine may interrupt for ever."""
    lost = [attempt("fetch", FREE, number) for number in range(1, 2 * FREE_ATTEMPTS)]
    lost[FREE_ATTEMPTS - 1] = replace(lost[FREE_ATTEMPTS - 1], has_saved=True)
    assert decide(view_of(*lost)).states["fetch"] is State.READY
    assert decide(view_of(*lost, attempt("fetch", FREE, 99))).states["fetch"] is State.FAILED


def test_kill_after_something_was_saved_starts_the_count_anew() -> None:
    """Three nodes that die for nothing are too many; a long training may outlive more of them."""
    killed = [attempt("fetch", COUNTED, number) for number in range(1, 5)]
    killed[1] = replace(killed[1], has_saved=True)
    assert decide(view_of(*killed[:3])).states["fetch"] is State.READY
    assert decide(view_of(*killed)).states["fetch"] is State.FAILED


def test_attempt_that_a_place_started_itself_does_not_hide_what_came_before() -> None:
    """A cluster replaces pods without asking; after five for nothing the last is stopped."""
    lost = [attempt("fetch", FREE, 1) for _ in range(FREE_ATTEMPTS)]
    next_ = attempt("fetch")
    decision = decide(view_of(*lost, next_))
    assert decision.states["fetch"] is State.FAILED
    assert Stop(next_) in decision.actions


def test_killed_finetune_tries_with_half_the_rows_twice() -> None:
    """Memory is the one failure that a smaller step mends; no other stage has one."""
    killed = [replace(attempt("finetune", 78, number), is_oom=True) for number in (1, 2, 3)]
    for number in (1, 2):
        decision = decide(view_of(*killed[:number], committed="fetch"))
        assert decision.actions == (Start("finetune", "t", number + 1, halvings=number),)
    decision = decide(view_of(*killed, committed="fetch"))
    assert (decision.states["finetune"], decision.failures) == (State.FAILED, {"finetune": 78})
    other = replace(attempt("infer-base", 78), is_oom=True)
    assert decide(view_of(other, committed="fetch")).states["infer-base"] is State.FAILED


def test_attempt_that_waits_for_something_nobody_asks_for_is_stopped() -> None:
    """The profile was changed: the new one must not wait behind the old one's Job."""
    stale = replace(attempt("fetch"), has_begun=False, is_stale=True)
    assert decide(view_of(stale)).actions == (Stop(stale),)


def test_number_follows_the_highest() -> None:
    """Attempts may be forgotten, and names must not be used twice."""
    assert decide(view_of(attempt("fetch", COUNTED, 4))).actions == (Start("fetch", "f", 5),)


def test_success_without_a_commit_is_a_failure() -> None:
    """Exit 0 is a claim; the manifest is the fact."""
    decision = decide(view_of(attempt("fetch", 0)))
    assert decision.states["fetch"] is State.FAILED
    assert decision.failures == {"fetch": 70}


def test_attempt_that_is_no_longer_wanted_is_stopped() -> None:
    """A committed stage needs no process, and a key that is not planned has no claim."""
    stale = Attempt("old", "fetch", "other-key", 1, is_live=True)
    decision = decide(view_of(stale, attempt("finetune"), committed="fetch finetune"))
    assert [action for action in decision.actions if isinstance(action, Stop)] == [
        Stop(stale),
        Stop(attempt("finetune")),
    ]


def test_attempt_that_committed_ends_by_itself() -> None:
    """Between its commit and its end a process must not be killed, nor the run be over."""
    winner = attempt("fetch")
    view = View(STAGES[:1], {"fetch": winner.id}, attempts=(winner,), report_key="r")
    assert decide(view).actions == ()
    assert decide(View(**{**view.__dict__, "is_reported": True})).actions == ()


def test_run_ends_with_its_first_permanent_cause() -> None:
    """In plan order, whatever failed first in time."""
    view = view_of(attempt("infer-base", 78), attempt("finetune", NEVER), committed="fetch")
    report = View(**{**view.__dict__, "is_reported": True})
    assert decide(report).actions == (Finish(NEVER),)


class World(RuleBasedStateMachine):
    """A place where attempts live, commit, fail and vanish in any order."""

    def __init__(self) -> None:
        """Start with nothing done."""
        super().__init__()
        self.attempts: list[Attempt] = []
        self.committed: dict[str, str] = {}
        self.is_reported = False
        self.finished: Finish | None = None
        self.max_parallel = 2

    def decision(self) -> Decision:
        """Decide about the present state."""
        return decide(
            View(
                STAGES,
                self.committed,
                attempts=tuple(self.attempts),
                report_key="r",
                is_reported=self.is_reported,
                max_parallel=self.max_parallel,
            )
        )

    @property
    def live(self) -> list[Attempt]:
        """List live attempts."""
        return [each for each in self.attempts if each.is_live]

    @rule()
    def act(self) -> None:
        """Carry out everything that is decided."""
        for action in self.decision().actions:
            match action:
                case Start(stage, key, number):
                    name = f"{stage}-{number}-{len(self.attempts)}"
                    self.attempts.append(Attempt(name, stage, key, number, is_live=True))
                case Stop(attempt=unwanted):
                    self.end(unwanted, FREE)
                case Finish():
                    self.finished = action

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        """A live attempt commits and ends."""
        done = data.draw(st.sampled_from(self.live))
        if done.stage == REPORT:
            self.is_reported = True
        else:
            self.committed.setdefault(done.stage, done.id)
        if data.draw(st.booleans()):
            self.end(done, 0)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), code=st.sampled_from([65, 70, 71, 74, 75, 78, -9, 137]))
    def fail(self, data: st.DataObject, code: int) -> None:
        """A live attempt ends without a commit."""
        self.end(data.draw(st.sampled_from(self.live)), code)

    @rule()
    def forget(self) -> None:
        """The conductor is killed and another one starts; its attempts die with it."""
        self.attempts = []

    @rule(stage=st.sampled_from([each.name for each in STAGES[:2]]))
    def committed_elsewhere(self, stage: str) -> None:
        """Another run commits the same key."""
        needs = next(each.needs for each in STAGES if each.name == stage)
        if all(need in self.committed for need in needs):
            self.committed.setdefault(stage, "another run")

    def end(self, ended: Attempt, code: int) -> None:
        """Replace a live attempt by its end."""
        self.attempts = [
            Attempt(a.id, a.stage, a.key, a.number, is_live=False, exit_code=code)
            if a.id == ended.id
            else a
            for a in self.attempts
        ]

    @invariant()
    def nothing_runs_twice_or_too_early(self) -> None:
        """One live attempt per stage, its inputs committed, within the limit."""
        stages = [each.stage for each in self.live]
        assert len(stages) == len(set(stages))
        assert len(stages) <= self.max_parallel
        for each in STAGES:
            if each.name in stages:
                assert set(each.needs) <= self.committed.keys()

    @invariant()
    def starts_are_ready_and_new(self) -> None:
        """Nothing committed, live or doomed is ever started."""
        decision = self.decision()
        for action in decision.actions:
            if isinstance(action, Start):
                assert decision.states[action.stage] is State.READY
                assert action.stage not in self.committed
                assert action.stage not in {each.stage for each in self.live}

    @invariant()
    def something_always_happens(self) -> None:
        """While nothing lives there is something to start, or the run is over."""
        if not self.live:
            assert self.decision().actions

    @invariant()
    def the_end_is_an_end(self) -> None:
        """A finish leaves every stage done, failed or skipped."""
        decision = self.decision()
        if any(isinstance(action, Finish) for action in decision.actions):
            assert all(
                state in (State.DONE, State.FAILED, State.SKIPPED)
                for state in decision.states.values()
            )
            assert not self.live


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
