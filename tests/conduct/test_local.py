"""Processes of this machine keep the contract of backends, and what more is said of them."""

import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmill.conduct.conductor import Conducted, Conductor
from modelmill.conduct.local import LocalBackend, Place
from modelmill.store.kept import KEPT

from ..processes import processes_of, wait_for
from ..workshop import STAND_IN, Workshop
from .backend_contract import *  # noqa: F403 - the tests of every backend
from .backend_contract import Bench, LocalBehaviour
from .conftest import Preparer, wait_until

GRACE_SECONDS = 3.0


@pytest.fixture
def bench(
    workshop: Workshop,
    fetched: Conducted,
    prepared: Preparer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    """Make a backend with keys that nothing else has."""
    tokens = random.SystemRandom().randrange(1, 65536)
    given = prepared(
        "bench", **{"data.test": "fetched.jsonl", "infer.max_new_tokens": tokens, "finetune": "{}"}
    )
    place = Place(workshop.home, given.store.url, {})
    backend = LocalBackend(given.run, place, GRACE_SECONDS)
    yield Bench(given, backend, LocalBehaviour(workshop, monkeypatch))
    backend.close()
    workshop.lay_out_environments()


def test_stopped_attempt_stays_known_with_its_words(bench: Bench) -> None:
    """It says that nothing half-done was published, in its last words and in its log."""
    bench.behave("infer-base", {"dawdle": 600})
    attempt = bench.backend.start(bench.order("infer-base"))
    bench.wait_for_progress(attempt)
    bench.backend.stop(attempt)
    over = bench.ended(attempt)
    assert over.exit_code == 75
    assert over.message.startswith("Asked to stop; nothing half-done was published")
    assert b"Asked to stop" in bench.backend.log(over)


def test_attempt_after_a_killed_one(bench: Bench, workshop: Workshop) -> None:
    """It finds what the killed one has fetched, and once it is done nothing is left of either."""
    work = workshop.home / "work"
    bench.behave("infer-base", {"exit": 137})
    bench.ended(bench.backend.start(bench.order("infer-base")))
    assert len(list(work.glob("modelmill-infer-base-*"))) == 1
    kept = {path.stat().st_ino for path in (work / KEPT).iterdir()}
    used = {path.stat().st_ino for path in work.glob("modelmill-*/inputs/*/*")}
    assert used
    assert used <= kept

    bench.behave("infer-base", {"dawdle": 1})
    second = bench.backend.start(bench.order("infer-base", 2))
    wait_until(lambda: (told := bench.progress(second)) is not None and told.part == "work")
    assert {path.stat().st_ino for path in work.glob("modelmill-*/inputs/*/*")} == used
    assert bench.ended(second).exit_code == 0
    assert [path for path in work.iterdir() if path.is_dir()] == []


def test_close_leaves_no_process(bench: Bench, workshop: Workshop) -> None:
    """Neither does it forget: ended attempts are listed, oldest first."""
    bench.behave("infer-base", {"dawdle": 600})
    first = bench.backend.start(bench.order("infer-base"))
    second = bench.backend.start(bench.order("infer-base", 2))
    wait_until(lambda: all(bench.backend.progress(each) for each in (first, second)))
    bench.backend.close()
    attempts = bench.backend.attempts()
    assert [(each.id, each.number) for each in attempts] == [(first.id, 1), (second.id, 2)]
    assert [each.is_live for each in attempts] == [False, False]
    assert not [pid for pid in processes_of(workshop.folder) if _is_stage(pid)]


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


def test_stage_that_hangs_says_where_and_is_tried_again(bench: Bench) -> None:
    """The stacks of all threads are in its log, and its last words name the part."""
    bench.behave("infer-base", {"hang": True})
    bench.behave.script(
        "infer-base",
        f'MODELMILL_HUNG_AFTER_SECONDS=1 exec "{sys.executable}" "{STAND_IN}"',
    )
    over = bench.ended(bench.backend.start(bench.order("infer-base")))
    log = bench.backend.log(over)
    assert over.exit_code == 71
    assert re.match(r"No progress for [12] s in 'work'; the log", over.message)
    assert b"stand_in.py" in log
    assert b"pulse.py" in log


@pytest.fixture
def small_group() -> Iterator[Path]:
    """Make a control group of 64 MiB, where this user may: version 1 or 2."""
    v1 = Path("/sys/fs/cgroup/memory")
    group = (v1 if v1.is_dir() else v1.parent) / f"modelmill-test-{os.getpid()}"
    try:
        group.mkdir()
        name = "memory.limit_in_bytes" if v1.is_dir() else "memory.max"
        (group / name).write_text(str(64 * 2**20), encoding="utf-8")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    wait_until(lambda: not (group / "cgroup.procs").read_text(encoding="utf-8"))
    group.rmdir()


EAT = f"exec {sys.executable} -c 'bytearray(2**30)'"


def test_attempt_that_the_kernel_killed_for_memory_says_so_with_the_numbers(
    bench: Bench, small_group: Path
) -> None:
    """It does not fit, which SIGKILL alone does not say."""
    bench.behave.script("infer-base", f"echo $$ > {small_group}/cgroup.procs; {EAT}")
    over = bench.ended(bench.backend.start(bench.order("infer-base")))
    assert (over.exit_code, over.is_oom) == (78, True)
    assert re.search(r"used at least [0-9.]+ of [0-9.]+ GiB", over.message)


@pytest.mark.usefixtures("fetched")
def test_finetune_that_is_killed_for_memory_gets_two_more_attempts_with_fewer_rows(
    prepared: Preparer, workshop: Workshop, small_group: Path
) -> None:
    """Each with half the rows; then it does not fit, and the numbers are in the verdict."""
    given = prepared("oom", **{"data.test": "fetched.jsonl", "finetune": "{}", "seed": 5})
    told = workshop.folder / "halvings"
    # The light environment runs the others.
    workshop.write_environment(
        "train",
        f'echo "$MODELMILL_HALVINGS" >> {told}; echo $$ > {small_group}/cgroup.procs; {EAT}',
    )
    backend = LocalBackend(given.run, Place(workshop.home, given.store.url, {}), GRACE_SECONDS)
    conductor = Conductor(given, backend, Silent())
    try:
        verdict = conductor.drive()
    finally:
        conductor.stop()
        conductor.leave(0)
        workshop.lay_out_environments()
    assert told.read_text(encoding="utf-8").split() == ["0", "1", "2"]
    assert verdict.exit_code == 78
    assert "GiB" in verdict.failures["finetune"].message


class Silent:
    """Hears of everything and says nothing."""

    def happened(self, event: object) -> None:
        """Hear of an event."""

    def standing(self, states: object, live: object) -> None:
        """See where everything is."""


def test_kill_by_somebody_is_not_taken_for_the_kernels(bench: Bench) -> None:
    """The kernel's count has not risen."""
    bench.behave.script("infer-base", "kill -9 $$")
    over = bench.ended(bench.backend.start(bench.order("infer-base")))
    assert (over.exit_code, over.is_oom) == (-9, False)


def _is_stage(pid: int) -> bool:
    try:
        return b"MODELMILL_STAGE=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
