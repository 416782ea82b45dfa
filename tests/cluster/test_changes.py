"""A release is upgraded, rolled back, cancelled, removed and installed again."""

import time

import pytest

from .team import Team, instead, small, wait_until

WAITS = instead("sleep 600 & wait")
"""Ends at once when it is asked to."""


def names_of(team: Team, run: str, kinds: str = "jobs,pods,configmaps") -> list[str]:
    """List what is left of a run in the namespace; Helm's own records are not its objects."""
    return [each["metadata"]["name"] for each in team.objects(kinds, f"modelmill/run={run}")]


def test_upgrades_change_what_they_are_asked_to_and_nothing_else(uploaded: Team) -> None:
    """No-op, changed quantization, rollback: each computes what it must, on the same anchor."""
    team, profile = uploaded, uploaded.profile()
    run = team.run(sources=f"{uploaded.store}/data/")
    team.write_values(run, profile)
    team.helm("install", "change", *team.chart)
    assert team.ended("change") == "1"
    anchor = team.anchor_uid("change")
    once = dict.fromkeys(team.states("change"), 1)
    assert team.starts_of("change") == once

    team.helm("upgrade", "change", *team.chart)
    assert team.ended("change") == "2"
    assert team.starts_of("change") == once

    changed = {"method": "bitsandbytes", "double_quant": False}
    team.write_values({**run, "quantize": [changed]}, profile)
    team.helm("upgrade", "change", *team.chart)
    assert team.ended("change") == "3"
    again = dict.fromkeys(("quantize-nf4", "infer-nf4", "report"), 2)
    assert team.starts_of("change") == {**once, **again}

    team.helm("rollback", "change", "1")
    assert team.ended("change") == "1"
    assert team.starts_of("change") == {**once, **again}
    assert team.anchor_uid("change") == anchor


def test_upgrade_of_a_running_stage_stops_it(team: Team) -> None:
    """The old attempt is stopped, its conductor writes no more, and the new one goes on."""
    team.write_profile(stages={"quantize": small(WAITS)})
    team.submitted("change")
    wait_until(lambda: team.is_running("change", "quantize-nf4"))
    [old] = team.objects("jobs", "modelmill/run=change,modelmill/stage=quantize-nf4")
    [conductor] = team.pods_of("change", "conductor")

    team.write_profile()
    team.write_run(quantize=[{"method": "bitsandbytes", "double_quant": False}])
    team.submitted("change", "--wait")
    [new] = team.objects("jobs", "modelmill/run=change,modelmill/stage=quantize-nf4")
    assert new["metadata"]["name"] != old["metadata"]["name"]
    revisions = {
        each["metadata"]["labels"]["modelmill/revision"]
        for each in team.objects("jobs", "modelmill/run=change")
    }
    assert {revision.partition("-")[0] for revision in revisions} == {"1", "2"}
    assert team.committed("change") == set(team.states("change")) - {"report"}
    names = [each["metadata"]["name"] for each in team.pods_of("change", "conductor")]
    assert conductor["metadata"]["name"] not in names


def test_upgrade_after_a_failure_goes_on_at_the_failed_stage(team: Team) -> None:
    """What was committed before is not computed again; what failed is tried again."""
    team.write_profile(stages={"quantize": small(instead("exit 65"))})
    ended = team.submit("--name", "mend", "--wait")
    assert ended.returncode == 3, ended.stderr
    assert (team.status("mend")["exit_code"], team.states("mend")["infer-nf4"]) == (65, "skipped")
    before = team.starts_of("mend")

    team.write_profile()
    ended = team.submit("--name", "mend", "--wait")
    assert ended.returncode == 0, ended.stderr
    assert team.starts_of("mend") == {**before, "quantize-nf4": 2, "infer-nf4": 1, "report": 2}
    assert set(team.states("mend").values()) == {"committed"}


def test_resume_tries_again_what_failed(team: Team) -> None:
    """The same values in a new revision: nothing has changed but the wish."""
    first = instead("case $HOSTNAME in *-a1-*) exit 65;; esac; exec $stage")
    team.write_profile(stages={"fetch-test": small(first)})
    team.write_run(quantize=[])
    ended = team.submit("--name", "again", "--wait")
    assert ended.returncode == 3, ended.stderr
    resumed = team.modelmill("resume", "again")
    assert resumed.returncode == 0, resumed.stderr
    wait_until(lambda: set(team.states("again").values()) == {"committed"})
    assert team.starts_of("again")["fetch-test"] == 2


def test_uninstalled_run_leaves_artifacts_and_goes_on_when_installed_again(team: Team) -> None:
    """No Job, pod or ConfigMap stays; what was committed counts for the next install."""
    team.write_run(quantize=[])
    team.write_profile(stages={"infer": small(WAITS)})
    team.submitted("gone")
    wait_until(lambda: team.is_running("gone", "infer-base"))
    before = team.committed("gone")
    assert before == {"fetch-model", "fetch-test"}
    team.helm("uninstall", "gone")
    wait_until(lambda: names_of(team, "gone") == [], 30)
    assert team.committed("gone") == before
    assert "uninstalled" in team.status("gone")["state"]

    team.write_profile()
    ended = team.submit("--name", "gone", "--wait")
    assert ended.returncode == 0, ended.stderr
    assert set(team.starts_of("gone")) == {"infer-base", "report"}


def test_cancelled_run_has_no_pod_left(team: Team) -> None:
    """The stage may save and ends; the conductor ends after it; status says what happened."""
    team.write_run(quantize=[])
    team.write_profile(stages={"infer": small(WAITS)})
    team.submitted("stop")
    wait_until(lambda: team.is_running("stop", "infer-base"))
    ended = team.modelmill("cancel", "stop")
    assert ended.returncode == 0, ended.stderr
    assert {pod["status"]["phase"] for pod in team.pods_of("stop")} == {"Succeeded"}
    assert team.status("stop")["state"] == "cancelled"
    assert team.states("stop")["infer-base"] == "stopped"
    assert team.modelmill("status", "stop", "--exit-code").returncode == 6
    wait_until(lambda: team.pods_of("stop", "conductor")[0]["status"]["phase"] == "Failed", 30)
    # It stays stopped: nobody starts the conductor again.
    time.sleep(15)
    assert len(team.pods_of("stop", "conductor")) == 1

    team.write_profile()
    ended = team.submit("--name", "stop", "--wait")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("verb", ["cancel", "logs", "resume", "status", "wait", "rm"])
def test_run_that_is_not_there_is_said_so(team: Team, verb: str) -> None:
    """Every verb has the same answer."""
    ended = team.modelmill(verb, "nothing")
    assert (ended.returncode, ended.stdout) == (5, "")
    assert "There is no run 'nothing'" in ended.stderr
