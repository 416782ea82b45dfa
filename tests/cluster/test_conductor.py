"""Conductors are killed, doubled and evicted, and nothing goes wrong."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Final

import pytest

from modelmill.store.address import open_store
from modelmill.store.artifact import read_manifest

from ..tiny_stages import make_rows
from .team import Json, Team, instead, small, wait_until
from .test_ends import evict

KILL: Final = """
import os
for pid in filter(str.isdecimal, os.listdir("/proc")):
    if open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1] == "1":
        os.kill(int(pid), 9)
"""
"""Ends the child of the container's init with SIGKILL, which nothing can catch."""


def running_conductors(team: Team, run: str) -> list[str]:
    """List the pods in which a conductor runs."""
    return [
        pod["metadata"]["name"]
        for pod in team.pods_of(run, "conductor")
        for status in pod["status"].get("containerStatuses", [])
        if "running" in status["state"]
    ]


def kill(team: Team, run: str) -> None:
    """Kill the conductor of a run, as soon as it has one."""

    def is_killed() -> bool:
        # One that ends by itself at that moment was not killed; the next one will be.
        return any(
            team.code_of("exec", pod, "--", "python", "-c", KILL) in (0, 137)
            for pod in running_conductors(team, run)
        )

    wait_until(is_killed, 90)


def has_job(team: Team, run: str, stage: str) -> bool:
    """Tell whether the Job of a stage exists."""
    return bool(team.objects("jobs", f"modelmill/run={run},modelmill/stage={stage}"))


Moment = Callable[[Team, str], bool]

MOMENTS: Final[tuple[tuple[Moment, Moment], ...]] = (
    (lambda t, r: bool(running_conductors(t, r)), lambda t, r: "fetch-test" in t.committed(r)),
    (lambda t, r: bool(t.record(r).heartbeat), lambda t, r: has_job(t, r, "fetch-test")),
    (lambda t, r: has_job(t, r, "fetch-test"), lambda t, r: has_job(t, r, "infer-base")),
    (lambda t, r: t.is_running(r, "infer-base"), lambda t, r: "infer-base" in t.committed(r)),
    (lambda t, r: "fetch-test" in t.committed(r), lambda t, r: has_job(t, r, "report")),
)
"""Ten moments in the life of five runs; two in each, because a Job waits longer after each kill."""


def check_each_stage_ran_once(team: Team, run: str) -> None:
    """One commit each, and no attempt began after it."""
    store = open_store(team.store)
    jobs = team.objects("jobs", f"modelmill/run={run},modelmill/stage")
    assert jobs
    for job in jobs:
        stage = job["metadata"]["labels"]["modelmill/stage"]
        key = job["metadata"]["annotations"]["modelmill/key"]
        kind = "infer" if stage.startswith("infer") else stage
        commit = read_manifest(store, kind, key)  # type: ignore[arg-type]
        assert commit is not None
        created = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
        assert created <= datetime.fromisoformat(commit.manifest.created)
    counts = team.starts_of(run)
    assert counts == dict.fromkeys(counts, 1)


@pytest.mark.long
def test_conductor_killed_at_ten_moments_costs_nothing(team: Team) -> None:
    """Each stage has one commit and one Job, whenever the conductor dies."""
    team.write_run(quantize=[])
    # Long enough that no moment passes between two looks, however busy the machine is.
    slow = small(instead("sleep 10; exec $stage"))
    team.write_profile(stages={"infer": slow, "report": slow})
    ended = team.submit("--name", "first", "--wait")
    assert ended.returncode == 0, ended.stderr
    killed = []

    def drill(number: int) -> None:
        run = f"kill-{number}"
        for moment in MOMENTS[number]:
            wait_until(lambda: moment(team, run), 240)  # noqa: B023 - called at once
            kill(team, run)
            killed.append(run)

    for number in range(len(MOMENTS)):
        team.write_rows("test", make_rows(6, 100 + number))
        team.submitted(f"kill-{number}")
    with ThreadPoolExecutor(len(MOMENTS)) as pool:
        list(pool.map(drill, range(len(MOMENTS))))
    assert len(killed) == 2 * len(MOMENTS)
    for number in range(len(MOMENTS)):
        assert team.wait(f"kill-{number}") == 0
        check_each_stage_ran_once(team, f"kill-{number}")


def test_two_conductors_of_one_revision_share_a_run(team: Team) -> None:
    """Names of Jobs are locks: what one has started the other watches."""
    team.write_run(quantize=[])
    team.submitted("twins")
    [job] = team.objects("jobs", "modelmill/run=twins,modelmill/role=conductor")
    team.kubectl("apply", "-f", "-", stdin=json.dumps(twin_of(job)))
    assert team.wait("twins") == 0
    check_each_stage_ran_once(team, "twins")

    def phases() -> set[str]:
        return {pod["status"]["phase"] for pod in team.pods_of("twins", "conductor")}

    wait_until(lambda: phases() == {"Succeeded"}, 60)
    assert len(team.pods_of("twins", "conductor")) == 2


def twin_of(job: Json) -> Json:
    """Copy a Job under another name."""
    metadata, spec = job["metadata"], job["spec"]
    pod = spec["template"]
    labels = {k: v for k, v in pod["metadata"]["labels"].items() if k.startswith("modelmill/")}
    return {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "metadata": {"name": f"{metadata['name']}-twin", "labels": labels},
        "spec": {
            "backoffLimit": spec["backoffLimit"],
            "template": {"metadata": {"labels": labels}, "spec": pod["spec"]},
        },
    }


def test_evicted_conductor_says_so_and_another_follows(team: Team) -> None:
    """While it is away the store says since when and why; then the run goes on."""
    team.write_run(quantize=[])
    team.submitted("moved")
    wait_until(lambda: bool(team.record("moved").heartbeat))
    [pod] = team.pods_of("moved", "conductor")
    evict(team, pod["metadata"]["name"])
    seen = ""
    deadline = time.monotonic() + 30
    while not seen and time.monotonic() < deadline:
        seen = team.record("moved").absence
    assert seen == "evicted"
    assert team.wait("moved") == 0
    check_each_stage_ran_once(team, "moved")
