"""Kueue takes the GPU from a fine-tune for a run that matters more, and gives it back."""

import json
import re
from collections.abc import Iterator

import pytest

from modelmill.spec.figures import Finetuned, Measurements
from modelmill.spec.names import MEASUREMENTS
from modelmill.store.artifact import attempt_prefix, read_manifest
from modelmill.store.runs import list_logs, read_log
from modelmill.store.s3 import open_store

from ..tiny_stages import make_rows
from .team import Json, Team, instead, run_command, small, wait_until

PRIORITY = "kueue.x-k8s.io/priority-class"
EPOCHS = 400
STEPS = 3 * EPOCHS
"""24 rows, 8 at a time."""
ON_A_WORD = instead("until [ -e /scratch/go ]; do sleep 0.2; done; exec $stage")


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


def test_urgent_run_takes_the_gpu_and_gives_it_back(
    team: Team, queue: str, priorities: dict[str, str]
) -> None:
    """The fine-tune saves, waits and says so, and goes on where it was: no step is done twice.

    One attempt is allowed, so it is also seen that this counts for nothing.
    """
    def on_the_gpu(priority: str, *patch: Json) -> Json:
        return small(*patch, gpu=1, queue=queue, labels={PRIORITY: priorities[priority]})

    team.write_profile(stages={"finetune": on_the_gpu("low")}, max_attempts=1, checkpoint_seconds=2)
    team.write_run(
        data={**team.run()["data"], "train": "train.jsonl"},
        finetune={"num_train_epochs": EPOCHS, "learning_rate": 1e-3, "batch_size": 8},
        quantize=[],
    )
    team.submitted("patient")
    team.write_rows("test", make_rows(8, 5))
    team.write_run(quantize=[])
    stages = {"fetch-test": small(ON_A_WORD), "infer": on_the_gpu("high", ON_A_WORD)}
    team.write_profile(stages=stages)
    team.submitted("urgent")
    # Both are as far as they can be: one works, and the other is about to ask for the GPU.
    store, key = open_store(team.store), team.record("patient").keys["finetune"]
    wait_until(lambda: any(store.list(f"checkpoints/{key}/")), 240)
    wait_until(lambda: team.is_running("urgent", "fetch-test"))
    go(team, "fetch-test")

    wait_until(lambda: team.is_running("urgent", "infer-base"))
    wait_until(lambda: "preempted" in team.stage("patient", "finetune")["message"], 60)
    waiting = team.stage("patient", "finetune")
    assert waiting["state"] == "pending"
    assert waiting["message"].startswith(f"Waiting in queue '{queue}' again, preempted: ")
    assert team.pods_of("patient", "finetune") == []
    go(team, "infer-base")
    assert team.wait("urgent") == 0

    wait_until(lambda: "finetune" in team.committed("patient"), 240)
    assert team.starts_of("patient")["finetune"] == 1
    logs = [read_log(store, "patient", *each) or b"" for each in list_logs(store, "patient", "finetune")]
    begun = [re.search(rb"going on from a checkpoint after step (\d+)", log) for log in logs]
    print(begun, logs)
    figures = figures_of(team)
    assert figures.steps == STEPS
    steps = [point.step for point in figures.curve]
    assert steps == sorted(set(steps))


def go(team: Team, stage: str) -> None:
    """Let a stage of the urgent run begin that waits for it."""
    [pod] = team.pods_of("urgent", stage)
    team.kubectl("exec", pod["metadata"]["name"], "--", "touch", "/scratch/go")


def figures_of(team: Team) -> Finetuned:
    """Read how training went."""
    store, key = open_store(team.store), team.record("patient").keys["finetune"]
    manifest = read_manifest(store, "finetune", key)
    assert manifest is not None
    prefix = attempt_prefix("finetune", key, manifest.manifest.attempt)
    measured = store.get(f"{prefix}/{MEASUREMENTS}")
    assert measured is not None
    figures = Measurements.model_validate_json(measured.body).figures
    assert isinstance(figures, Finetuned)
    return figures
