"""A fine-tune whose processes are killed ends like one that was left alone."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from modelmill.store.embedded import EmbeddedStore

from ..storm import Attempt, Place, fetched, lay_out, torn_uploads

CHECKOUT = Path(__file__).resolve().parents[2]
EPOCHS = 16
STEPS = 112
"""58 rows of 64 are learned from, 8 at a time."""


def test_killed_fine_tune_commits_the_bytes_of_one_that_was_left_alone(
    embedded: EmbeddedStore, tmp_path: Path
) -> None:
    """SIGKILL, then SIGTERM, then peace: nothing is published on the way, nothing is left over."""
    lay_out(tmp_path, EPOCHS)
    calm = fetched(tmp_path, "calm", checkpoint_seconds=300)
    assert calm.train(lambda _: False, signal.SIGTERM) == 0, calm.attempts[-1].log()

    storm = fetched(tmp_path, "storm", checkpoint_seconds=1)
    assert storm.train(_after(storm, 20), signal.SIGKILL) == -signal.SIGKILL
    assert storm.train(_after(storm, 60), signal.SIGTERM) == 75, storm.attempts[-1].log()
    assert "Asked to stop; nothing half-done was published" in storm.attempts[-1].log()
    assert not list(torn_uploads(embedded))
    assert not list(storm.store.list(f"artifacts/finetune/{storm.stage.key}"))
    stopped_at = storm.most_steps[-1]

    assert storm.train(lambda _: False, signal.SIGTERM) == 0, storm.attempts[-1].log()
    # SIGTERM loses no step at all; SIGKILL those since the last checkpoint.
    assert storm.attempts[-1].begun_at() >= stopped_at
    assert storm.adapter() == calm.adapter()
    assert storm.figures() == calm.figures()
    assert storm.checkpoints() == []
    assert storm.steps_all >= STEPS


def test_benchmark_says_how_much_work_was_lost() -> None:
    """In a size for tests it ends before its first kill: nothing is lost, and all is equal."""
    ended = subprocess.run(
        [sys.executable, CHECKOUT / "benchmarks" / "storm.py", "--epochs", "2"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["steps_useful"] == said["steps_all"] > 0
    assert (said["kills"], said["goodput"], said["is_equal"]) == (0, 1.0, True)
    assert said["torn_uploads"] == 0


def _after(place: Place, steps: int) -> "_After":
    return _After(place, steps)


class _After:
    """Tells when so many steps are done and a state is kept."""

    def __init__(self, place: Place, steps: int) -> None:
        self.place, self.steps = place, steps

    def __call__(self, attempt: Attempt) -> bool:
        return attempt.steps() >= self.steps and any(
            key.endswith("COMMITTED.json") for key in self.place.checkpoints()
        )
