"""Kueue takes the GPU from a fine-tune for a run that matters more, and gives it back."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelmill.spec.figures import Finetuned, Measurements
from modelmill.spec.names import COMMITTED, MEASUREMENTS
from modelmill.store.address import open_store
from modelmill.store.artifact import attempt_prefix, read_manifest
from modelmill.store.checkpoint import restore_checkpoints
from modelmill.store.runs import list_logs, read_log

from ..tiny_stages import make_rows
from .team import Json, Team, instead, run_command, small, wait_until

PRIORITY = "kueue.x-k8s.io/priority-class"
EPOCHS = 200
STEPS = 3 * EPOCHS
"""24 rows, 8 at a time."""
STANDS_STILL = instead(
    """
$stage >/tmp/log 2>&1 &
trap 'kill -TERM $!; kill -CONT $!' TERM
until grep -qe 'checkpoint: ' -e 'going on' /tmp/log; do sleep 0.1; done
grep -q 'going on' /tmp/log || kill -STOP $!
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
cat /tmp/log
exit $code"""
)
"""However fast the machine is, training that has saved something goes no further until SIGTERM."""
WAITS = instead("until [ -e /tmp/go ]; do sleep 0.1; done; exec $stage")


@pytest.fixture
def priorities(team: Team) -> Iterator[dict[str, str]]:
    """Make a priority for runs that may wait, and one for those that may not."""
    names = {word: f"{team.namespace}-{word}" for word in ("low", "high")}
    objects = [
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "WorkloadPriorityClass",
            "metadata": {"name": names[word]},
            "value": value,
        }
        for word, value in (("low", 10), ("high", 1000))
    ]
    everything = {"apiVersion": "v1", "kind": "List", "items": objects}
    run_command(["kubectl", "apply", "-f", "-"], json.dumps(everything))
    yield names
    run_command(["kubectl", "delete", "workloadpriorityclass", *names.values()])


@pytest.mark.long
def test_urgent_run_takes_the_gpu_and_gives_it_back(
    team: Team, queue: str, priorities: dict[str, str], tmp_path: Path
) -> None:
    """The fine-tune saves, waits and says so, and goes on where it was: no step is done twice.

    One attempt is allowed, so it is also seen that this counts for nothing.
    """

    def on_the_gpu(priority: str, *patch: Json) -> Json:
        return small(*patch, gpu=1, queue=queue, labels={PRIORITY: priorities[priority]})

    patient = {"finetune": on_the_gpu("low", STANDS_STILL)}
    team.write_profile(stages=patient, max_attempts=1, checkpoint_seconds=1)
    team.write_run(
        data={**team.run()["data"], "train": "train.jsonl"},
        finetune={"num_train_epochs": EPOCHS, "learning_rate": 1e-3, "batch_size": 8},
        quantize=[],
    )
    team.submitted("patient")
    wait_until(lambda: team.is_running("patient", "finetune"), 240)
    store, key = open_store(team.store), team.record("patient").keys["finetune"]
    saves = f"checkpoints/{key}/"
    wait_until(lambda: any(each.key.endswith(COMMITTED) for each in store.list(saves)), 240)

    team.write_rows("test", make_rows(8, 5))
    team.write_run(quantize=[])
    team.write_profile(stages={"infer": on_the_gpu("high", WAITS)})
    team.submitted("urgent")
    wait_until(lambda: team.is_running("urgent", "infer-base"), 240)
    wait_until(lambda: "preempted" in team.stage("patient", "finetune")["message"], 60)
    waiting = team.stage("patient", "finetune")
    assert waiting["state"] == "pending"
    assert waiting["message"].startswith(f"Waiting in queue '{queue}' again, preempted: ")
    assert team.pods_of("patient", "finetune") == []
    saved = steps_saved(team, key, tmp_path / "state")
    [pod] = team.pods_of("urgent", "infer-base")
    go = ("touch", "/tmp/go")  # noqa: S108 - a volume of the pod's own
    team.kubectl("exec", pod["metadata"]["name"], "--", *go)
    assert team.wait("urgent") == 0

    wait_until(lambda: "finetune" in team.committed("patient"), 240)
    assert team.starts_of("patient")["finetune"] == 1
    wait_until(lambda: steps_kept(team) > 0)  # logs are kept a moment after the commit
    assert 0 < saved == steps_kept(team) < STEPS
    figures = figures_of(team, key)
    steps = [point.step for point in figures.curve if point.loss is not None]
    assert (figures.steps, steps) == (STEPS, sorted(set(steps)))


def steps_saved(team: Team, key: str, folder: Path) -> int:
    """Read after which step the newest state of the fine-tune was saved."""
    assert next(restore_checkpoints(open_store(team.store), key, folder))
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return int(state["step"])


def steps_kept(team: Team) -> int:
    """Read from the logs after which step an attempt went on; 0 where none is there that did."""
    store = open_store(team.store)
    logs = [read_log(store, "patient", *each) for each in list_logs(store, "patient", "finetune")]
    found = re.search(rb"going on from a checkpoint after step (\d+)", b"".join(filter(None, logs)))
    return 0 if found is None else int(found[1])


def figures_of(team: Team, key: str) -> Finetuned:
    """Read how training went."""
    store = open_store(team.store)
    manifest = read_manifest(store, "finetune", key)
    assert manifest is not None
    prefix = attempt_prefix("finetune", key, manifest.manifest.attempt)
    measured = store.get(f"{prefix}/{MEASUREMENTS}")
    assert measured is not None
    figures = Measurements.model_validate_json(measured.body).figures
    assert isinstance(figures, Finetuned)
    return figures
