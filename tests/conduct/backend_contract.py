"""What a conductor relies on, for every backend: real stages on a real store.

A test module of a backend imports these tests and has a `bench` of its own.
"""

import json
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from modelmill.conduct.backend import Attempt, Backend, Order
from modelmill.conduct.conductor import Conducted
from modelmill.spec.errors import meaning_of
from modelmill.spec.names import ENVIRONMENT_OF, kind_of
from modelmill.spec.records import Progress
from modelmill.store.artifact import read_manifest
from modelmill.store.checkpoint import read_live
from modelmill.store.runs import read_progress

from ..workshop import Workshop
from .conftest import wait_until


class Behave(Protocol):
    """Says what stages do from now on."""

    def __call__(self, stage: str, asked: dict[str, Any]) -> None:
        """Let a stand-in do what is asked of it."""

    def script(self, stage: str, script: str) -> None:
        """Let a shell script run instead of the stage."""


@dataclass(frozen=True)
class LocalBehaviour:
    """Tells stand-ins by the environment, or puts a script in their interpreter's place."""

    workshop: Workshop
    patch: pytest.MonkeyPatch

    def __call__(self, stage: str, asked: dict[str, Any]) -> None:
        """Let a stand-in do what is asked of it."""
        self.patch.setenv("MODELMILL_STAND_IN", json.dumps({stage: asked}))

    def script(self, stage: str, script: str) -> None:
        """Let a shell script run instead of the stage."""
        self.workshop.write_environment(ENVIRONMENT_OF[kind_of(stage)], script)


@dataclass(frozen=True)
class Bench:
    """One backend, on a run whose rows and model are fetched."""

    given: Conducted
    backend: Backend
    behave: Behave

    def order(self, name: str, number: int = 1) -> Order:
        """Order an attempt at a stage of the plan."""
        stage = self.given.plan.stage(name)
        return Order(name, stage.key, stage.environment, number, self.given.plan_sha256)

    def attempts(self, attempt: Attempt) -> list[Attempt]:
        """List what is known of the stage and number of an attempt."""
        wanted = (attempt.stage, attempt.number)
        return [each for each in self.backend.attempts() if (each.stage, each.number) == wanted]

    def begun(self, attempt: Attempt) -> Attempt:
        """Wait until an attempt's process runs; it has its final id then."""
        wait_until(lambda: any(each.has_begun for each in self.attempts(attempt)))
        [found] = self.attempts(attempt)
        return found

    def ended(self, attempt: Attempt) -> Attempt:
        """Wait for an attempt's end."""
        wait_until(lambda: not any(each.is_live for each in self.attempts(attempt)))
        [found] = self.attempts(attempt)
        return found

    def progress(self, attempt: Attempt) -> Progress | None:
        """Read where an attempt is: from its backend, else from where stages tell it."""
        told = self.backend.progress(attempt) or read_progress(
            self.given.store, self.given.run, attempt.stage
        )
        return told if told is not None and told.attempt == attempt.id else None

    def wait_for_progress(self, attempt: Attempt) -> Progress:
        """Wait until an attempt has told how far its work is; a slow one tells of pulling first."""

        def is_told() -> bool:
            told = self.progress(attempt)
            return told is not None and told.part == "work" and told.done > 0

        wait_until(is_told)
        told = self.progress(attempt)
        assert told is not None
        return told


def is_committed(bench: Bench, stage: str) -> bool:
    """Tell whether a stage has left its mark."""
    planned = bench.given.plan.stage(stage)
    return read_manifest(bench.given.store, planned.kind, planned.key) is not None


def test_attempt_that_succeeds_is_live_until_it_has_committed(bench: Bench) -> None:
    """Its id is in the manifest, its log says what it did, and it ends with 0 and no words."""
    attempt = bench.backend.start(bench.order("infer-base"))
    assert (attempt.stage, attempt.number, attempt.is_live) == ("infer-base", 1, True)
    over = bench.ended(attempt)
    assert (over.exit_code, over.message, over.key) == (0, "", attempt.key)
    committed = read_manifest(bench.given.store, "infer", attempt.key)
    assert committed is not None
    assert committed.manifest.attempt == over.id
    assert b"infer-base committed in" in bench.backend.log(over)
    assert read_live(bench.given.store, attempt.key) is None


def test_attempt_that_fails_says_why(bench: Bench) -> None:
    """Exit code and last words are the stage's own, and the log has them too."""
    attempt = bench.ended(bench.backend.start(bench.order("infer-merged")))
    assert attempt.exit_code == 66
    assert attempt.message.startswith("The input 'model' (merge) is not committed\n  at:  merge ")
    assert attempt.message.encode() in bench.backend.log(attempt)


@pytest.mark.parametrize("code", [71, 70, 137])
def test_attempt_that_dies_without_a_word_is_given_the_meaning_of_its_code(
    bench: Bench, code: int
) -> None:
    """Nobody has to know what 71 or SIGKILL means."""
    if code == 137:
        bench.behave.script("infer-base", "echo about to fall; kill -9 $$")
    else:
        bench.behave("infer-base", {"exit": code})
    over = bench.ended(bench.backend.start(bench.order("infer-base")))
    assert over.exit_code in (code, code - 146)  # -9 where a process is a child
    assert over.message == meaning_of(code)
    assert b"about to fall" in bench.backend.log(over)


def test_live_attempt_can_be_watched_and_stopped(bench: Bench) -> None:
    """Progress and log are there while it lives; stopped, it leaves no commit."""
    bench.behave("infer-base", {"dawdle": 600})
    attempt = bench.begun(bench.backend.start(bench.order("infer-base")))
    progress = bench.wait_for_progress(attempt)
    assert (progress.stage, progress.part, progress.total) == ("infer-base", "work", 6000)
    wait_until(lambda: b"dawdling" in bench.backend.log(attempt))
    assert [each.is_live for each in bench.attempts(attempt)] == [True]

    bench.backend.stop(attempt)
    bench.backend.stop(attempt)
    wait_until(lambda: not any(each.is_live for each in bench.attempts(attempt)))
    # Who asked for it knows: a place may forget an attempt that was stopped.
    assert {each.exit_code for each in bench.attempts(attempt)} <= {75}
    assert not is_committed(bench, "infer-base")
    assert read_live(bench.given.store, attempt.key) is None


def test_attempt_that_ignores_the_request_to_stop_is_killed(bench: Bench) -> None:
    """The grace period ends, whatever the process does."""
    bench.behave.script("merge", "trap '' TERM; echo deaf; while :; do sleep 1; done")
    attempt = bench.begun(bench.backend.start(bench.order("merge")))
    wait_until(lambda: b"deaf" in bench.backend.log(attempt))
    bench.backend.stop(attempt)
    wait_until(lambda: not any(each.is_live for each in bench.attempts(attempt)))


def test_close_leaves_no_live_attempt(bench: Bench) -> None:
    """It returns when the last one is gone."""
    bench.behave("infer-base", {"dawdle": 600})
    for number in (1, 2):
        bench.begun(bench.backend.start(bench.order("infer-base", number)))
    numbers = [each.number for each in bench.backend.attempts() if each.stage == "infer-base"]
    assert numbers == [1, 2]
    bench.backend.close()
    assert not any(each.is_live for each in bench.backend.attempts())
