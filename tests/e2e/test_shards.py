"""Infer shared by three processes, of which two are killed, commits what one process would."""

import signal
import time
from pathlib import Path

import pytest

from modelmill.spec.figures import Inferred, Measurements
from modelmill.spec.names import ENV_SHARD, ENV_SHARDS, MEASUREMENTS, PREDICTIONS
from modelmill.spec.records import Progress
from modelmill.store.artifact import attempt_prefix, read_manifest

from ..storm import Attempt, Place, fetched, lay_out

STAGE = "infer-base"
SHARDS = 3
ROWS = 48
LOOK_SECONDS = 0.1


@pytest.mark.usefixtures("embedded")
def test_killed_shards_commit_the_bytes_of_one_process(tmp_path: Path) -> None:
    """One gets SIGKILL and one SIGTERM in the middle; the last of the restarted ones commits."""
    lay_out(tmp_path, 1, tests=ROWS, more="infer: {batch_size: 2, max_new_tokens: 64}\n")
    calm = _ready(tmp_path, "calm")
    assert _ended(calm.start(STAGE)) == 0
    expected = _committed(calm)

    place = _ready(tmp_path, "shared")
    assert place.given.plan.stage(STAGE).key == calm.given.plan.stage(STAGE).key
    untouched, killed, stopped = (_shard(place, number) for number in range(SHARDS))
    _signal_in_the_middle(killed, signal.SIGKILL)
    _signal_in_the_middle(stopped, signal.SIGTERM)
    assert (_ended(killed), _ended(stopped)) == (-signal.SIGKILL, 75)
    assert _ended(untouched) == 0, untouched.log()
    assert "has done shard 1 of 3; the last one commits" in untouched.log()

    # Two shards of three are never a result.
    again = _shard(place, 1)
    assert _ended(again) == 0, again.log()
    assert "has done shard 2 of 3" in again.log()
    assert read_manifest(place.store, "infer", place.given.plan.stage(STAGE).key) is None

    last = _shard(place, 2)
    assert _ended(last) == 0, last.log()
    assert f"{STAGE} committed" in last.log()
    predictions, figures = _committed(place)
    assert predictions == expected[0]
    assert (figures.rows, figures.generated_tokens) == (ROWS, expected[1].generated_tokens)
    assert (figures.shards, expected[1].shards) == (SHARDS, 1)
    assert list(place.store.list(f"checkpoints/{place.given.plan.stage(STAGE).key}/")) == []
    late = _shard(place, 0)
    assert _ended(late) == 0
    assert "was committed already" in late.log()


def _ready(folder: Path, name: str) -> Place:
    place = fetched(folder, name, checkpoint_seconds=300)
    attempt = place.start("fetch-test")
    assert _ended(attempt) == 0, attempt.log()
    return place


def _shard(place: Place, number: int) -> Attempt:
    told = {ENV_SHARD: str(number), ENV_SHARDS: str(SHARDS), "OMP_NUM_THREADS": "1"}
    return place.start(STAGE, **told)


def _signal_in_the_middle(attempt: Attempt, number: signal.Signals) -> None:
    """Wait until it has answered some of its rows and not all."""
    while attempt.handle.poll() is None:
        progress = _progress(attempt)
        if progress is not None and progress.part == "work" and 0 < progress.done < progress.total:
            attempt.handle.send_signal(number)
            return
        time.sleep(LOOK_SECONDS)
    pytest.fail(f"it ended before anybody looked:\n{attempt.log()}")


def _progress(attempt: Attempt) -> Progress | None:
    try:
        text = (attempt.folder / "progress").read_text(encoding="utf-8")
    except OSError:
        return None
    return Progress.model_validate_json(text)


def _ended(attempt: Attempt) -> int:
    return attempt.handle.wait()


def _committed(place: Place) -> tuple[bytes, Inferred]:
    key = place.given.plan.stage(STAGE).key
    committed = read_manifest(place.store, "infer", key)
    assert committed is not None
    prefix = attempt_prefix("infer", key, committed.manifest.attempt)
    predictions = place.store.get(f"{prefix}/{PREDICTIONS}")
    measured = place.store.get(f"{prefix}/{MEASUREMENTS}")
    assert predictions is not None
    assert measured is not None
    figures = Measurements.model_validate_json(measured.body).figures
    assert isinstance(figures, Inferred)
    return predictions.body, figures
