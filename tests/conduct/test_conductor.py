"""The loop on a real store, with a backend that plays stages by a script."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from modelmill.conduct.backend import Order
from modelmill.conduct.clock import now
from modelmill.conduct.conductor import Conducted, Conductor, Verdict
from modelmill.conduct.decide import FREE_ATTEMPTS
from modelmill.spec.errors import code_of
from modelmill.spec.profile import Profile
from modelmill.spec.records import Event, Live, Progress, RunRecord
from modelmill.store.artifact import attempt_id
from modelmill.store.checkpoint import put_live, save_checkpoint
from modelmill.store.runs import read_events, read_log, read_run, update_run

from .conftest import Preparer, ScriptedBackend, publish

ALL = ["fetch-test 1", "infer-base 1", "report 1"]
"""What is left to do once the first test has fetched the model and the training rows."""


class Listener:
    """Remembers what happened."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def happened(self, event: Event) -> None:
        """Hear of an event."""
        self.events.append(f"{event.event} {event.stage}")

    def standing(self, states: object, live: dict[str, Progress | None]) -> None:
        """See nothing."""


def drive(given: Conducted, backend: ScriptedBackend) -> tuple[Verdict, list[str]]:
    """Drive a run as a command does."""
    listener = Listener()
    conductor = Conductor(given, backend, listener)
    try:
        return conductor.drive(), listener.events
    finally:
        conductor.stop()
        conductor.leave(0)


@pytest.fixture
def fetched(prepared: Preparer) -> None:
    """Commit what all runs here share."""
    given = prepared("shared")
    drive(given, ScriptedBackend(given, {}))


@pytest.mark.usefixtures("fetched")
def test_run_goes_through_its_stages_once(prepared: Preparer) -> None:
    """In plan order, with every event and log kept; a second drive starts nothing."""
    given = prepared("once")
    backend = ScriptedBackend(given, {})
    verdict, heard = drive(given, backend)
    assert (verdict.exit_code, verdict.failures) == (0, {})
    assert verdict.report is not None
    assert backend.started == ALL
    assert heard[:2] == ["adopted fetch-model", "adopted fetch-data"]
    assert [f"{each.event} {each.stage}" for each in read_events(given.store, "once")] == heard
    attempt = next(each.id for each in backend.attempts() if each.stage == "infer-base")
    assert read_log(given.store, "once", "infer-base", attempt) == b"infer-base 1\n"
    again = prepared("once")
    backend = ScriptedBackend(again, {})
    assert drive(again, backend)[0].exit_code == 0
    assert backend.started == []


@pytest.mark.usefixtures("fetched")
@pytest.mark.parametrize(
    ("codes", "exit_code", "starts"),
    [
        ([71, 0], 0, 2),
        ([74, 137, 0], 0, 3),
        ([71, 74, -9, 0], 71, 3),
        ([75] * (FREE_ATTEMPTS - 1) + [0], 0, FREE_ATTEMPTS),
        ([75] * FREE_ATTEMPTS, 75, FREE_ATTEMPTS),
        ([70, 0], 70, 1),
    ],
)
def test_failure_is_tried_again_if_another_attempt_may_help(
    prepared: Preparer, codes: list[int | None], exit_code: int, starts: int
) -> None:
    """Faults of places count up to three, interruptions up to five, the rest is final."""
    given = prepared(f"retry-{exit_code}-{starts}")
    backend = ScriptedBackend(given, {"infer-base": [*codes]})
    verdict, _ = drive(given, backend)
    assert verdict.exit_code == exit_code
    tried = [each for each in backend.started if each.startswith("infer-base ")]
    assert tried == [f"infer-base {number}" for number in range(1, starts + 1)]
    if exit_code:
        assert verdict.failures["infer-base"].message == f"infer-base says {codes[starts - 1]}"


@pytest.mark.usefixtures("fetched")
@pytest.mark.parametrize(
    ("code", "in_vain", "exit_code"),
    [(75, FREE_ATTEMPTS - 1, 0), (75, FREE_ATTEMPTS, 75), (137, 1, 0), (137, 2, 137)],
)
def test_stage_that_saves_something_may_be_interrupted_for_ever(
    prepared: Preparer, tmp_path: Path, code: int, in_vain: int, exit_code: int
) -> None:
    """What counts is how often in a row it got nowhere, whatever took its machine away."""
    saved = 2 * FREE_ATTEMPTS
    given = prepared(f"saves-{code}-{in_vain}")
    backend = ScriptedBackend(given, {"infer-base": [code] * (saved + in_vain) + [0]})
    (tmp_path / "step").write_text("1", encoding="utf-8")

    def save(order: Order) -> None:
        tried = sum(each.startswith("infer-base ") for each in backend.started)
        if order.stage == "infer-base" and tried <= saved:
            save_checkpoint(given.store, order.key, backend.newest, tmp_path)

    backend.on_start = save
    verdict, _ = drive(given, backend)
    assert verdict.exit_code == code_of(exit_code)


@pytest.mark.usefixtures("fetched")
def test_first_cause_in_plan_order_is_the_code_of_the_run(prepared: Preparer) -> None:
    """Independent stages go on, dependents are skipped, and there is a report all the same."""
    given = prepared("causes", seed=7, quantize="[{method: gptq}]")
    backend = ScriptedBackend(given, {"fetch-data": [66], "infer-base": [65]})
    verdict, heard = drive(given, backend)
    assert verdict.exit_code == 66
    assert list(verdict.failures) == ["fetch-data", "infer-base"]
    assert "skipped quantize-gptq-4" in heard
    assert "committed fetch-test" in heard
    assert verdict.report is not None


@pytest.mark.usefixtures("fetched")
def test_stage_that_says_done_and_has_not_committed_is_our_defect(prepared: Preparer) -> None:
    """It is not started for ever."""
    given = prepared("liar")
    backend = ScriptedBackend(given, {"fetch-test": [None]})
    backend.on_start = lambda order: backend.finish(order.stage)
    verdict, _ = drive(given, backend)
    assert verdict.exit_code == 70
    assert backend.started == ["fetch-test 1", "report 1"]


@pytest.mark.usefixtures("fetched")
def test_newer_conductor_supersedes_an_older_one(prepared: Preparer) -> None:
    """The older one ends with 0, starts nothing more and stops what it has started."""
    given = prepared("superseded", Profile(max_parallel=2))
    newer: list[Conducted] = []
    backend = ScriptedBackend(given, {"fetch-test": [0], "infer-base": [None]})

    def supersede(order: object) -> None:
        if backend.started[-1] == "infer-base 1":
            newer.append(prepared("superseded", Profile(max_parallel=2)))

    backend.on_start = supersede
    verdict, heard = drive(given, backend)
    assert verdict == Verdict(0, {}, None, superseded=True)
    assert backend.started == ["fetch-test 1", "infer-base 1"]
    assert backend.stopped == ["infer-base"]
    assert heard[-1] == "stopped infer-base"
    record = read_run(given.store, "superseded")
    assert record is not None
    assert record.conductor == newer[0].conductor
    other = ScriptedBackend(newer[0], {})
    assert drive(newer[0], other)[0].exit_code == 0
    record = read_run(given.store, "superseded")
    assert record is not None
    assert record.conductor == ""


@pytest.mark.usefixtures("fetched")
def test_key_that_another_run_computes_is_waited_for_and_adopted(prepared: Preparer) -> None:
    """Nothing is computed twice at the same time; what does not need it goes on."""
    given = prepared("waits", finetune="{}")
    test = given.plan.stage("fetch-test")
    put_live(given.store, test.key, Live(run="other", attempt="theirs", time=now()))
    backend = ScriptedBackend(given, {})

    def other_commits(order: object) -> None:
        if backend.started == ["finetune 1"]:
            publish(given, "fetch-test", test.key, attempt_id(), "other")

    backend.on_start = other_commits
    verdict, heard = drive(given, backend)
    assert verdict.exit_code == 0
    assert backend.started[:3] == ["finetune 1", "merge 1", "infer-base 1"]
    assert "adopted fetch-test" in heard


@pytest.mark.usefixtures("fetched")
def test_key_whose_other_run_is_silent_is_computed(prepared: Preparer) -> None:
    """Who has said nothing for two minutes is dead."""
    given = prepared("takes-over")
    old = (datetime.now(UTC) - timedelta(minutes=3)).isoformat(timespec="milliseconds")
    test = given.plan.stage("fetch-test")
    put_live(given.store, test.key, Live(run="other", attempt="theirs", time=old))
    backend = ScriptedBackend(given, {})
    assert drive(given, backend)[0].exit_code == 0
    assert backend.started == ALL


@pytest.mark.usefixtures("fetched")
def test_cancelled_conductor_stops_everything_before_it_ends(prepared: Preparer) -> None:
    """It waits for what it has stopped, starts nothing more, and the next one starts anew."""
    given = prepared("cancelled", Profile(max_parallel=2))
    backend = ScriptedBackend(given, {"fetch-test": [None]})

    def cancel(order: object) -> None:
        update_run(
            given.store,
            given.run,
            lambda record: record.model_copy(update={"cancelled": given.conductor}),  # type: ignore[union-attr]
        )

    backend.on_start = cancel
    verdict, heard = drive(given, backend)
    assert (verdict.exit_code, verdict.cancelled) == (75, True)
    assert backend.started == ["fetch-test 1"]
    assert set(backend.stopped) == {"fetch-test"}
    assert heard[-1] == "stopped fetch-test"
    again = prepared("cancelled")
    assert drive(again, ScriptedBackend(again, {}))[0].exit_code == 0


def told_of(given: Conducted, stage: str) -> list[str]:
    """List what the history says of a stage."""
    return [each.event for each in read_events(given.store, given.run) if each.stage == stage]


@pytest.mark.usefixtures("fetched")
def test_attempt_that_nobody_saw_is_told_once(prepared: Preparer) -> None:
    """It began while its conductor was replaced, and had committed before the next one looked."""
    given = prepared("unseen")
    publish(given, "fetch-test", given.plan.stage("fetch-test").key, attempt_id(), "unseen")
    for _ in range(2):
        drive(given, ScriptedBackend(given, {}))
        assert told_of(given, "fetch-test") == ["started", "committed"]


@pytest.mark.usefixtures("fetched")
def test_commit_from_before_a_run_is_no_news_of_it(prepared: Preparer) -> None:
    """A run of the same name had made it, and was removed."""
    given = prepared("removed")
    publish(given, "fetch-test", given.plan.stage("fetch-test").key, attempt_id(), "removed")
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat(timespec="milliseconds")

    def pinned_later(record: RunRecord | None) -> RunRecord:
        assert record is not None
        return record.model_copy(update={"pinned_at": later})

    update_run(given.store, given.run, pinned_later)
    drive(given, ScriptedBackend(given, {}))
    assert told_of(given, "fetch-test") == []


@pytest.mark.usefixtures("fetched")
def test_restarted_conductor_repeats_nothing(prepared: Preparer) -> None:
    """What an earlier process of it has told stands in the store."""
    given = prepared("restarted")
    backend = ScriptedBackend(given, {"infer-base": [65]})
    drive(given, backend)
    before = [f"{each.event} {each.stage}" for each in read_events(given.store, "restarted")]
    _, heard = drive(given, backend)
    assert heard == [each for each in before if each.startswith(("adopted", "skipped"))]
