"""Whole runs, from `helm install` or the submitter to the report."""

import json
import time
from collections.abc import Callable
from threading import Event, Thread

import pytest

from .team import KINDS_AND_REPORT, Json, Team, small

MODELS = ("finetune", "quantize", "infer")


def sampled(look: Callable[[], None]) -> tuple[Thread, Event]:
    """Look again and again beside the test."""
    stop = Event()

    def sample() -> None:
        while not stop.wait(0.5):
            look()

    thread = Thread(target=sample)
    thread.start()
    return thread, stop


def test_two_whole_runs_share_one_gpu(uploaded: Team, queue: str) -> None:
    """Installed by helm, queued by Kueue, *restricted*: only the stage that runs holds quota."""
    team, sources = uploaded, f"{uploaded.store}/data/"
    stages = {kind: small(queue=queue, gpu=int(kind in MODELS)) for kind in KINDS_AND_REPORT}
    profile = team.profile(stages=stages)
    whole = {
        "data": {**team.run(sources)["data"], "train": f"{sources}train.jsonl"},
        "finetune": {"num_train_epochs": 1, "learning_rate": 1e-2, "batch_size": 8},
        "quantize": [{"method": "gptq", "bits": 4, "group_size": 32}, {"method": "bitsandbytes"}],
        "gate": {"models": ["nf4"], "metric": "nll", "against": "merged", "max_worse": 5},
    }
    holders: list[set[str]] = []
    waits: set[str] = set()

    def look() -> None:
        jobs = {job["metadata"]["uid"]: job for job in team.objects("jobs", "modelmill/stage")}
        holding = set()
        for workload in team.objects("workloads"):
            conditions = workload.get("status", {}).get("conditions", [])
            true = {each["type"] for each in conditions if each["status"] == "True"}
            job = jobs.get(workload["metadata"]["labels"]["kueue.x-k8s.io/job-uid"])
            if job is None or "Finished" in true:
                continue
            name = job["metadata"]["name"]
            if "QuotaReserved" in true:
                pods = workload["spec"]["podSets"][0]["template"]["spec"]["containers"]
                if "nvidia.com/gpu" in pods[0]["resources"]["requests"]:
                    holding.add(name)
            else:
                waits.add(name)
        holders.append(holding)

    team.write_values(team.run(sources, **whole), profile)
    team.helm("install", "whole", *team.chart)
    team.write_values(team.run(sources), profile)
    team.helm("install", "short", *team.chart)
    thread, stop = sampled(look)
    try:
        for run in ("short", "whole"):
            assert team.ended(run) == "1"
    finally:
        stop.set()
        thread.join()
    for run in ("short", "whole"):
        assert set(team.states(run).values()) == {"committed"}
    # One GPU: never two at a time, both runs in turn, and one of them did wait.
    assert max(len(holding) for holding in holders) == 1
    served = {name.partition("-")[0] for holding in holders for name in holding}
    assert served == {"short", "whole"}
    assert waits
    check_report(team, "whole")


def check_report(team: Team, run: str) -> None:
    """Read the report of a whole run as its user does."""
    ended = team.modelmill("report", run, "-o", "json")
    assert ended.returncode == 0, ended.stderr
    report: Json = json.loads(ended.stdout)
    assert [model["model"] for model in report["models"]] == ["base", "merged", "gptq-4", "nf4"]
    # Eight rows rarely decide; that they were judged is what counts here.
    assert report["gate"]["outcome"] in ("passed", "undecided")
    assert {stage["status"] for stage in report["stages"]} <= {"done", "adopted"}
    html = (team.folder / "reports" / run / "report.html").read_text(encoding="utf-8")
    assert "gptq-4" in html


def test_submitting_twice_is_one_run(team: Team) -> None:
    """In a namespace that enforces *restricted*, every stage runs once, whoever asks how often."""
    team.write_run(quantize=[])
    team.submitted("once")
    team.submitted("once")
    assert team.wait("once") == 0
    stages = team.status("once")["stages"]
    assert {(row["state"], row["attempts"]) for row in stages} == {("committed", 1)}
    assert set(team.starts_of("once").values()) == {1}
    started = time.monotonic()
    ended = team.submit("--name", "once", "--wait")
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - started < 60
    assert set(team.starts_of("once").values()) == {1}


@pytest.mark.parametrize("fsdp", [pytest.param("auto", marks=pytest.mark.long), "always"])
def test_two_ranks_train_in_one_pod(team: Team, fsdp: str) -> None:
    """Processes of a *restricted* pod find each other by gloo; the manifest says how they share."""
    name = f"ranks-{fsdp}"
    team.write_profile(stages={"finetune": small(ranks=2, fsdp=fsdp, memory="3Gi")})
    finetune = {"num_train_epochs": 1, "learning_rate": 1e-2, "batch_size": 8}
    data = {**team.run()["data"], "train": "train.jsonl"}
    team.write_run(data=data, finetune=finetune, quantize=[])
    team.submitted(name)
    assert team.wait(name) == 0
    assert team.starts_of(name)["finetune"] == 1
    effective = team.manifest(name, "finetune").effective
    assert effective["ranks"] == 2
    assert effective.get("fsdp", False) == (fsdp == "always")
