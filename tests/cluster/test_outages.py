"""Parts of the cluster go away while a run goes on.  These tests stop them, so they run alone.

Only for the cluster of `make cluster`, whose parts can be stopped one by one.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .team import ROOT, Team, instead, run_command, small, wait_until
from .test_conductor import check_each_stage_ran_once

pytestmark = pytest.mark.outage


def component(verb: str, name: str) -> None:
    """Stop, start, pause or continue a part of the cluster."""
    run_command([str(ROOT / "k8s" / "dev" / "component.sh"), verb, name])


@contextmanager
def without(name: str, off: str, on: str) -> Iterator[None]:
    """Be without a part of the cluster for as long as the context lasts."""
    component(off, name)
    try:
        yield
    finally:
        component(on, name)


def is_answering(team: Team) -> bool:
    """Tell whether the API server answers again."""
    return team.code_of("get", "--raw", "/readyz") == 0


def test_run_outlives_its_api_server(team: Team) -> None:
    """A minute without it costs that minute at most: no pod is lost, no stage runs twice."""
    team.write_run(quantize=[])
    team.write_profile(stages={"fetch-test": small(instead("sleep 20; exec $stage"))})
    team.submitted("deaf")
    wait_until(lambda: team.is_running("deaf", "fetch-test"))
    with without("kube-apiserver", "stop", "start"):
        time.sleep(60)
        # The stage did not need it, and the conductor went on telling the store that it lives.
        assert "fetch-test" in team.committed("deaf")
        assert team.status("deaf")["state"] == "running"
    wait_until(lambda: is_answering(team), 60)
    assert team.wait("deaf") == 0
    check_each_stage_ran_once(team, "deaf")
    [conductor] = team.pods_of("deaf", "conductor")
    assert "deletionTimestamp" not in conductor["metadata"]


def test_pod_of_a_lost_node_is_replaced(team: Team) -> None:
    """Its kubelet is silent, so nobody ends it: by force, the Job gets its next pod; one commit."""
    team.write_run(quantize=[])
    slow = small(instead("sleep 40; exec $stage"), termination_grace_period_seconds=10)
    team.write_profile(stages={"fetch-test": slow}, node_lost_after_seconds=5)
    team.submitted("lost")
    wait_until(lambda: team.is_running("lost", "fetch-test"))
    [pod] = team.pods_of("lost", "fetch-test")
    with without("kubelet", "pause", "continue"):
        team.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")

        def is_replaced() -> bool:
            pods = team.pods_of("lost", "fetch-test")
            return bool(pods) and pod["metadata"]["uid"] not in {p["metadata"]["uid"] for p in pods}

        wait_until(is_replaced, 60)
    assert team.wait("lost") == 0
    check_each_stage_ran_once(team, "lost")
