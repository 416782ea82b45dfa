"""What a conductor relies on, for every backend: real processes on a real store."""

import signal
from pathlib import Path

from modelmill.conduct.backend import Attempt
from modelmill.spec.errors import meaning_of
from modelmill.store.artifact import read_manifest
from modelmill.store.checkpoint import read_live

from ..processes import processes_of, wait_for
from ..workshop import Workshop
from .conftest import Bench, wait_until


def now(bench: Bench, attempt: Attempt) -> Attempt:
    """Look at an attempt again."""
    return next(each for each in bench.backend.attempts() if each.id == attempt.id)


def ended(bench: Bench, attempt: Attempt) -> Attempt:
    """Wait for an attempt's end."""
    wait_until(lambda: not now(bench, attempt).is_live)
    return now(bench, attempt)


def is_committed(bench: Bench, stage: str) -> bool:
    """Tell whether a stage has left its mark."""
    planned = bench.given.plan.stage(stage)
    return read_manifest(bench.given.store, planned.kind, planned.key) is not None


def test_attempt_that_succeeds_is_live_until_it_has_committed(bench: Bench) -> None:
    """Its id is in the manifest, its log says what it did, and it ends with 0 and no words."""
    attempt = bench.backend.start(bench.order("infer-base"))
    assert (attempt.stage, attempt.number, attempt.is_live) == ("infer-base", 1, True)
    over = ended(bench, attempt)
    assert (over.exit_code, over.message, over.key) == (0, "", attempt.key)
    committed = read_manifest(bench.given.store, "infer", attempt.key)
    assert committed is not None
    assert committed.manifest.attempt == attempt.id
    assert b"infer-base committed in" in bench.backend.log(over)
    assert read_live(bench.given.store, attempt.key) is None


def test_attempt_that_fails_says_why(bench: Bench) -> None:
    """Exit code and last words are the stage's own, and the log has them too."""
    attempt = ended(bench, bench.backend.start(bench.order("infer-merged")))
    assert attempt.exit_code == 66
    assert attempt.message.startswith("The input 'model' (merge) is not committed\n  at:  merge ")
    assert attempt.message.encode() in bench.backend.log(attempt)


def test_attempt_that_dies_without_a_word_is_given_the_meaning_of_its_code(bench: Bench) -> None:
    """Nobody has to know what 71 or SIGKILL means."""
    bench.behave("infer-base", {"exit": 71})
    died = bench.backend.start(bench.order("infer-base"))
    bench.workshop.write_environment("train", "kill -9 $$")
    killed = bench.backend.start(bench.order("finetune"))
    assert ended(bench, died).exit_code == 71
    assert ended(bench, died).message == meaning_of(71)
    assert b"about to fall" in bench.backend.log(died)
    assert ended(bench, killed).exit_code in (-signal.SIGKILL, 137)
    assert ended(bench, killed).message == "Killed by signal 9."
    bench.workshop.lay_out_environments()


def test_live_attempt_can_be_watched_and_stopped(bench: Bench) -> None:
    """Progress and log are there while it lives; stopped, it ends with 75 and no commit."""
    bench.behave("infer-base", {"dawdle": 600})
    attempt = bench.backend.start(bench.order("infer-base"))
    wait_until(lambda: (told := bench.backend.progress(attempt)) is not None and told.done > 0)
    progress = bench.backend.progress(attempt)
    assert progress is not None
    assert (progress.stage, progress.part, progress.total) == ("infer-base", "work", 6000)
    assert b"dawdling" in bench.backend.log(attempt)
    assert now(bench, attempt).is_live

    bench.backend.stop(attempt)
    bench.backend.stop(attempt)
    over = ended(bench, attempt)
    assert over.exit_code == 75
    assert over.message.startswith("Asked to stop; nothing was published")
    assert not is_committed(bench, "infer-base")
    assert read_live(bench.given.store, attempt.key) is None
    assert b"Asked to stop" in bench.backend.log(over)


def test_attempt_that_ignores_the_request_to_stop_is_killed(bench: Bench) -> None:
    """The grace period ends, whatever the process does."""
    bench.workshop.write_environment("train", "trap '' TERM; echo deaf; while :; do sleep 1; done")
    attempt = bench.backend.start(bench.order("merge"))
    wait_until(lambda: b"deaf" in bench.backend.log(attempt))
    bench.backend.stop(attempt)
    assert ended(bench, attempt).exit_code in (-signal.SIGKILL, 137)
    bench.workshop.lay_out_environments()


def test_close_leaves_no_process(bench: Bench) -> None:
    """Live attempts are stopped and waited for; ended ones stay known, oldest first."""
    bench.behave("infer-base", {"dawdle": 600})
    first = bench.backend.start(bench.order("infer-base"))
    second = bench.backend.start(bench.order("infer-base", 2))
    wait_until(lambda: all(bench.backend.progress(each) for each in (first, second)))
    bench.backend.close()
    attempts = bench.backend.attempts()
    assert [(each.id, each.number) for each in attempts] == [(first.id, 1), (second.id, 2)]
    assert [each.is_live for each in attempts] == [False, False]
    assert not [pid for pid in processes_of(bench.workshop.folder) if _is_stage(pid)]


def test_attempts_die_with_their_conductor(workshop: Workshop) -> None:
    """SIGKILL gives the conductor no time to say good-bye; its stages notice."""
    process = workshop.start(
        *("run", "run.yaml", "--name", "killed"),
        MODELMILL_STAND_IN='{"infer-base": {"dawdle": 600}}',
    )
    wait_for(process, "infer-base started")
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(_is_stage, processes_of(workshop.folder))))


def _is_stage(pid: int) -> bool:
    try:
        return b"MODELMILL_STAGE=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
