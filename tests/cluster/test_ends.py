"""How an attempt ended decides whether there is another: each cause once, on real pods."""

import json

from .team import Team, instead, small, wait_until


def evict(team: Team, pod: str) -> None:
    """Ask for an eviction as a node that is drained does."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": team.namespace},
    }
    path = f"/api/v1/namespaces/{team.namespace}/pods/{pod}/eviction"
    team.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


def test_evicted_stage_goes_on_and_loses_no_attempt(team: Team) -> None:
    """With one attempt allowed an eviction ends nothing: the Job replaces the pod."""
    team.write_run(quantize=[])
    slow = small(instead("sleep 8; exec $stage"))
    team.write_profile(stages={"fetch-model": slow}, max_attempts=1)
    team.submitted("evicted")
    wait_until(lambda: team.is_running("evicted", "fetch-model"))
    [pod] = team.pods_of("evicted", "fetch-model")
    evict(team, pod["metadata"]["name"])
    assert team.wait("evicted") == 0
    row = team.stage("evicted", "fetch-model")
    assert (row["state"], row["attempts"]) == ("committed", 2)
    assert team.starts_of("evicted")["fetch-model"] == 1
    report = team.modelmill("report", "evicted", "-o", "json")
    stages = {each["stage"]: each["attempts"] for each in json.loads(report.stdout)["stages"]}
    assert stages["fetch-model"] == 2


def test_permanent_failure_is_final(team: Team) -> None:
    """Bad data stays bad: one Job, one pod, and the run ends with its code."""
    words = '{"exit_code": 65, "message": "Row 3 is not what it says"}'
    script = instead(f"echo '{words}' > $MODELMILL_TERMINATION; exit 65")
    team.write_profile(stages={"fetch-test": small(script)})
    team.write_run(quantize=[])
    ended = team.submit("--name", "bad", "--wait")
    assert ended.returncode == 3, ended.stderr
    assert "fetch-test failed with 65: Row 3 is not what it says" in ended.stderr
    assert len(team.pods_of("bad", "fetch-test")) == 1
    assert team.status("bad")["exit_code"] == 65

    def has_failed() -> bool:
        [job] = team.objects("jobs", "modelmill/run=bad,modelmill/role=conductor")
        return any(each["type"] == "Failed" for each in job["status"].get("conditions", []))

    wait_until(has_failed, 30)
    [pod] = team.pods_of("bad", "conductor")
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 65


def test_fault_of_the_place_is_tried_again(team: Team) -> None:
    """A device fault is worth another attempt, in a Job of its own."""
    once = instead("case $HOSTNAME in *-a1-*) exit 71;; esac; exec $stage")
    team.write_profile(stages={"fetch-test": small(once)})
    team.write_run(quantize=[])
    ended = team.submit("--name", "fault", "--wait")
    assert ended.returncode == 0, ended.stderr
    assert team.starts_of("fault")["fetch-test"] == 2
    assert team.stage("fault", "fetch-test")["attempts"] == 2


def test_interrupted_stage_is_replaced_by_its_job(team: Team) -> None:
    """Exit code 75 is nobody's fault, whoever asked for it; a Job starts the next pod itself."""
    team.write_profile(stages={"fetch-test": small(instead("exit 75"))}, max_attempts=1)
    team.write_run(quantize=[])
    team.submitted("spot")
    wait_until(lambda: team.stage("spot", "fetch-test")["attempts"] == 3)
    assert team.stage("spot", "fetch-test")["state"] != "failed"
    assert team.starts_of("spot")["fetch-test"] == 1


def test_killed_finetune_takes_half_the_rows(team: Team) -> None:
    """Memory is tried with smaller micro-batches before it does not fit."""
    first = instead(
        "case $HOSTNAME in *-a1-*) exec python -c 'bytearray(10**10)';; esac; exec $stage"
    )
    team.write_profile(stages={"finetune": small(first)})
    team.write_run(
        data={**team.run()["data"], "train": "train.jsonl"},
        finetune={"num_train_epochs": 1, "learning_rate": 1e-2, "batch_size": 8},
        quantize=[],
    )
    team.submitted("oom")
    wait_until(lambda: team.stage("oom", "finetune")["state"] == "committed", 240)
    report = team.modelmill("artifacts", "ls", "-o", "json")
    key = next(row["key"] for row in json.loads(report.stdout) if row["kind"] == "finetune")
    shown = team.modelmill("artifacts", "get", key, str(team.folder / "tuned"))
    assert shown.returncode == 0, shown.stderr
    measured = json.loads((team.folder / "tuned/measurements.json").read_text(encoding="utf-8"))
    assert measured["effective"]["micro_batch_size"] == 2
