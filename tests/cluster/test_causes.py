"""What stands in the way of a run is named in `status`, in one sentence, within seconds."""

import time
from typing import Any

import pytest

from .conftest import SMALL, Team, wait_until

TOLD_SECONDS = 10.0
"""From the moment the cluster knows it."""


def submitted(team: Team, run: str) -> None:
    """Submit and do not wait."""
    ended = team.submit("--name", run)
    assert ended.returncode == 0, ended.stderr


def told(team: Team, run: str, stage: str, words: str) -> None:
    """Wait until a stage says why it does not run."""
    seen = ""

    def says() -> bool:
        nonlocal seen
        seen = team.stage(run, stage)["message"]
        return words in seen

    try:
        wait_until(says, 60)
    except AssertionError:
        pytest.fail(f"{stage} said {seen!r}, not {words!r}")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"gpu": 7}, "No node fits"),
        ({"queue": "no-such-queue"}, "no-such-queue"),
        (
            {
                "patch": [
                    {
                        "op": "replace",
                        "path": "/spec/template/spec/containers/0/image",
                        "value": "localhost:5001/no-such-image:1",
                    }
                ]
            },
            "cannot be pulled",
        ),
        (
            {
                "patch": [
                    {
                        "op": "replace",
                        "path": "/spec/template/spec/volumes/3/secret/secretName",
                        "value": "no-such-secret",
                    }
                ]
            },
            "no-such-secret",
        ),
    ],
    ids=["gpu", "queue", "image", "secret"],
)
def test_cause_in_the_profile_is_named(team: Team, stage: dict[str, Any], words: str) -> None:
    """The stage waits, and says for what."""
    team.write_profile(stages={"fetch-model": {**SMALL, **stage}})
    submitted(team, "cause")
    told(team, "cause", "fetch-model", words)


def test_full_quota_is_named(team: Team) -> None:
    """Pods that quota refuses never exist; their Job's controller says why."""
    quota = '{"spec": {"hard": {"pods": "1"}}}'
    team.kubectl("patch", "resourcequota", "modelmill", "--type=merge", "--patch", quota)
    submitted(team, "quota")
    told(team, "quota", "fetch-model", "Waiting for quota")


def test_volume_over_its_limit_does_not_fit(team: Team) -> None:
    """The kubelet evicts a pod that outgrows its volume; the run ends with what to raise."""
    team.write_profile(stages={"fetch-model": {**SMALL, "work": "1Mi"}})
    ended = team.submit("--name", "volume", "--wait")
    assert ended.returncode == 3, ended.stderr
    row = team.stage("volume", "fetch-model")
    assert row["state"] == "failed"
    assert "work" in row["message"]


def test_waiting_is_told_in_time(team: Team) -> None:
    """Ten seconds after the scheduler has said no, `status` says why."""
    team.write_profile(stages={"fetch-model": {**SMALL, "gpu": 7}})
    submitted(team, "late")

    def unschedulable() -> bool:
        pods = team.objects("pods", "modelmill/stage=fetch-model")
        return any(
            condition.get("reason") == "Unschedulable"
            for pod in pods
            for condition in pod["status"].get("conditions", [])
        )

    wait_until(unschedulable)
    started = time.monotonic()
    told(team, "late", "fetch-model", "No node fits")
    assert time.monotonic() - started < TOLD_SECONDS
