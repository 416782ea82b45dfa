"""How much work is lost on machines that are taken away every minute, and whether the result is.

    .venv/bin/python benchmarks/storm.py [--epochs N] [--checkpoint-seconds S] [--seed N]

The same fine-tune is computed twice: in calm, and by processes that are killed 20 to 60 seconds
after their first step, half of them with SIGKILL and half with SIGTERM and a grace period.
Goodput is the steps of the recipe by the steps that were computed for it.  The last line is one
JSON object.
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from modelmill.store.embedded import EmbeddedStore  # noqa: E402
from tests.storm import Attempt, Place, fetched, lay_out, torn_uploads  # noqa: E402

SHORTEST_SECONDS, LONGEST_SECONDS = 20, 60


@dataclass
class Clock:
    """Strikes so long after the first step of an attempt."""

    seconds: float
    first: float | None = None

    def __call__(self, attempt: Attempt) -> bool:
        """Look at it."""
        now = time.monotonic()
        if self.first is None and attempt.steps() > attempt.begun_at():
            self.first = now
        return self.first is not None and now - self.first >= self.seconds


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--epochs", type=int, default=1000, help="of 7 steps")
    parser.add_argument("--checkpoint-seconds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with EmbeddedStore(home / "store") as embedded:
            os.environ.update(embedded.environment)
            lay_out(home, asked.epochs)
            calm = in_calm(home)
            say(f"calm: {calm.figures()['steps']} steps in {calm.work_seconds():.0f} s")
            storm = in_storm(home, asked.checkpoint_seconds, random.Random(asked.seed))
            print(json.dumps(measured(calm, storm, torn_uploads(embedded))))


def measured(calm: Place, storm: Place, torn: Iterable[object]) -> dict[str, object]:
    """Hold the storm against the calm; reads what both have committed."""
    useful = int(str(calm.figures()["steps"]))
    return {
        "kills": len(storm.attempts) - 1,
        "steps_useful": useful,
        "steps_all": storm.steps_all,
        "goodput": round(useful / storm.steps_all, 3),
        "is_equal": storm.adapter() == calm.adapter() and storm.figures() == calm.figures(),
        "torn_uploads": len(list(torn)),
        "checkpoints": len(storm.stalls()),
        "stall_seconds": round(statistics.median(storm.stalls() or [0.0]), 3),
    }


def in_calm(folder: Path) -> Place:
    """Train without any kill."""
    calm = fetched(folder, "calm", 300)
    if calm.train(lambda _: False, signal.SIGTERM) != 0:
        sys.exit(calm.attempts[-1].log())
    return calm


def in_storm(folder: Path, checkpoint_seconds: int, draw: random.Random) -> Place:
    """Train with kills until it is done."""
    storm = fetched(folder, "storm", checkpoint_seconds)
    while True:
        number = draw.choice((signal.SIGKILL, signal.SIGTERM))
        code = storm.train(Clock(draw.uniform(SHORTEST_SECONDS, LONGEST_SECONDS)), number)
        last = storm.attempts[-1]
        say(f"{number.name}: exit {code}, steps {last.begun_at()} to {storm.most_steps[-1]}")
        if code == 0:
            return storm
        if code not in (-signal.SIGKILL, 75):
            sys.exit(last.log())


def say(text: str) -> None:
    """Tell who waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
