"""Processes of this machine keep the contract of backends, and what more is said of them."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelmill.conduct.conductor import Conducted
from modelmill.conduct.local import LocalBackend, Place
from modelmill.spec.names import ENVIRONMENT_OF, kind_of
from modelmill.store.kept import KEPT

from ..processes import processes_of, wait_for
from ..workshop import Workshop
from .backend_contract import *  # noqa: F403 - the tests of every backend
from .backend_contract import Bench
from .conftest import Preparer, wait_until

GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class LocalBehaviour:
    """Tells stand-ins by their environment, or puts a script in their interpreter's place."""

    workshop: Workshop
    patch: pytest.MonkeyPatch

    def __call__(self, stage: str, asked: dict[str, Any]) -> None:
        """Let a stand-in do what is asked of it."""
        self.patch.setenv("MODELMILL_STAND_IN", json.dumps({stage: asked}))

    def script(self, stage: str, script: str) -> None:
        """Let a shell script run instead of the stage."""
        self.workshop.write_environment(ENVIRONMENT_OF[kind_of(stage)], script)


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
    """It says that nothing was published, in its last words and in its log."""
    bench.behave("infer-base", {"dawdle": 600})
    attempt = bench.backend.start(bench.order("infer-base"))
    bench.wait_for_progress(attempt)
    bench.backend.stop(attempt)
    over = bench.ended(attempt)
    assert over.exit_code == 75
    assert over.message.startswith("Asked to stop; nothing was published")
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


def _is_stage(pid: int) -> bool:
    try:
        return b"MODELMILL_STAGE=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
