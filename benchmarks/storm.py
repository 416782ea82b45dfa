"""How much work is lost on machines that are taken away every minute, and whether the result is.

    .venv/bin/python benchmarks/storm.py [--minutes N] [--checkpoint-seconds S]

The same fine-tune is computed twice: in calm, and by processes that are killed after 20 to 60
seconds, half of them with SIGKILL and half with SIGTERM and a grace period.  Goodput is the steps
of the recipe by the steps that were computed for it.  The last line is one JSON object.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from modelmill.store.embedded import EmbeddedStore  # noqa: E402
from tests.storm import Attempt, Place, fetched, lay_out, torn_uploads  # noqa: E402

SHORTEST_SECONDS, LONGEST_SECONDS = 20, 60
SAMPLE_EPOCHS = 60


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--checkpoint-seconds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with EmbeddedStore(home / "store") as embedded:
            os.environ.update(embedded.environment)
            epochs = epochs_of(home / "sample", asked.minutes * 60)
            say(f"{epochs} passes over the rows")
            work = home / "work"
            work.mkdir()
            lay_out(work, epochs)
            calm = in_calm(work)
            storm = in_storm(work, asked.checkpoint_seconds, random.Random(asked.seed))
            torn = list(torn_uploads(embedded))
    useful = int(str(calm.figures()["steps"]))
    result = {
        "kills": len(storm.attempts) - 1,
        "steps_useful": useful,
        "steps_all": storm.steps_all,
        "goodput": round(useful / storm.steps_all, 3),
        "is_equal": storm.adapter() == calm.adapter() and storm.figures() == calm.figures(),
        "torn_uploads": len(torn),
    }
    print(json.dumps(result))


def epochs_of(folder: Path, seconds: float) -> int:
    """Train for a moment to find out how many passes take so long."""
    folder.mkdir()
    lay_out(folder, SAMPLE_EPOCHS)
    sample = fetched(folder, "sample", 300)
    run_to_its_end(sample)
    return max(SAMPLE_EPOCHS, int(SAMPLE_EPOCHS * seconds / sample.work_seconds()))


def in_calm(folder: Path) -> Place:
    """Train without any kill."""
    calm = fetched(folder, "calm", 300)
    run_to_its_end(calm)
    return calm


def in_storm(folder: Path, checkpoint_seconds: int, draw: random.Random) -> Place:
    """Train with kills until it is done."""
    storm = fetched(folder, "storm", checkpoint_seconds)
    while True:
        number = draw.choice((signal.SIGKILL, signal.SIGTERM))
        ends = time.monotonic() + draw.uniform(SHORTEST_SECONDS, LONGEST_SECONDS)

        def is_time(_: Attempt, ends: float = ends) -> bool:
            return time.monotonic() >= ends

        code = storm.train(is_time, number)
        last = storm.attempts[-1]
        say(f"{number.name}: exit {code}, steps {last.begun_at()} to {storm.most_steps[-1]}")
        if code == 0:
            return storm
        if code not in (-signal.SIGKILL, 75):
            sys.exit(last.log())


def run_to_its_end(place: Place) -> None:
    """Train in peace."""
    if place.train(lambda _: False, signal.SIGTERM) != 0:
        sys.exit(place.attempts[-1].log())


def say(text: str) -> None:
    """Tell who waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
