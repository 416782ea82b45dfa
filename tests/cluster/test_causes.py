"""What stands in the way of a run is named in `status`, in one sentence."""

from typing import Any

import pytest

from .team import Json, Team, instead, small, wait_until


def told(team: Team, run: str, stage: str, words: str) -> str:
    """Wait until a stage says why it does not run, and return its sentence."""
    seen = ""

    def says() -> bool:
        nonlocal seen
        seen = team.stage(run, stage)["message"]
        return words in seen

    try:
        wait_until(says, 60)
    except AssertionError:
        pytest.fail(f"{stage} said {seen!r}, not {words!r}")
    return seen


def replaced(path: str, value: Any) -> Json:
    """Change something of a pod that no profile changes."""
    return {"op": "replace", "path": f"/spec/template/spec/{path}", "value": value}


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (small(gpu=2), "No node fits: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu"),
        (small(queue="no-such-queue"), "no-such-queue"),
        (
            small(replaced("containers/0/image", "localhost:5001/no-such-image:1")),
            "Image 'localhost:5001/no-such-image:1' cannot be pulled",
        ),
        (
            small(replaced("volumes/3/secret/secretName", "no-such-secret")),
            'MountVolume.SetUp failed for volume "store" : secret "no-such-secret" not found',
        ),
        (small(replaced("serviceAccountName", "nobody")), "nobody"),
    ],
    ids=["gpu", "queue", "image", "secret", "account"],
)
def test_what_a_stage_waits_for_is_named(team: Team, stage: Json, words: str) -> None:
    """The stage waits, and says for what in one line."""
    team.write_profile(stages={"fetch-model": stage})
    team.submitted("cause")
    sentence = told(team, "cause", "fetch-model", words)
    assert "\n" not in sentence
    assert team.stage("cause", "fetch-model")["state"] == "pending"


def test_full_queue_is_named(team: Team, queue: str) -> None:
    """Kueue's own words say what is used up; nothing of the stage exists meanwhile."""
    team.write_profile(stages={"fetch-model": small(queue=queue, gpu=2)})
    team.submitted("queued")
    told(team, "queued", "fetch-model", f"Waiting in queue '{queue}': couldn't assign flavors")
    assert team.pods_of("queued", "fetch-model") == []


def test_run_that_cannot_begin_is_said_so(uploaded: Team) -> None:
    """A source that is not there ends a bare `helm install` with its code, and `status` knows."""
    team = uploaded
    run = team.run(sources=f"{team.store}/data/", model={"source": f"{team.store}/no-such"})
    team.write_values(run, team.profile())
    team.helm("install", "unborn", *team.chart)
    wait_until(lambda: team.modelmill("status", "unborn").returncode == 0, 60)
    status = team.status("unborn")
    assert (status["exit_code"], status["state"].startswith("failed with 66: ")) == (66, True)
    waited = team.modelmill("wait", "unborn")
    assert waited.returncode == 3
    assert f"{team.store}/no-such" in waited.stderr


def test_mended_profile_replaces_what_waits(team: Team) -> None:
    """The next revision does not wait behind the Job that the first one made."""
    team.write_profile(stages={"fetch-model": small(gpu=2)})
    team.submitted("mended")
    told(team, "mended", "fetch-model", "No node fits")
    team.write_profile()
    team.submitted("mended")
    wait_until(lambda: team.stage("mended", "fetch-model")["state"] == "committed")


def test_full_quota_is_named(team: Team) -> None:
    """Pods that quota refuses never exist; their Job's controller says why."""
    quota = '{"spec": {"hard": {"pods": "1"}}}'
    team.kubectl("patch", "resourcequota", "modelmill", "--type=merge", "--patch", quota)
    team.submitted("quota")
    told(team, "quota", "fetch-model", "Waiting for quota: exceeded quota: modelmill")


def test_full_quota_of_jobs_is_waited_for(team: Team) -> None:
    """The conductor itself is refused; it asks again until there is room."""
    jobs = '{"spec": {"hard": {"count/jobs.batch": "1"}}}'
    team.kubectl("patch", "resourcequota", "modelmill", "--type=merge", "--patch", jobs)
    team.submitted("jobs")
    told(team, "jobs", "fetch-model", "Waiting for quota: exceeded quota: modelmill")
    more = '{"spec": {"hard": {"count/jobs.batch": "9"}}}'
    team.kubectl("patch", "resourcequota", "modelmill", "--type=merge", "--patch", more)
    wait_until(lambda: team.stage("jobs", "fetch-model")["state"] == "committed")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": {"registry": "localhost:5001/nowhere"}}, "cannot be pulled"),
        ({"store": {"credentials_secret": "no-such-secret"}}, 'secret "no-such-secret" not found'),
        ({"conductor": {"node_selector": {"kubernetes.io/hostname": "mars"}}}, "No node fits"),
    ],
    ids=["image", "secret", "node"],
)
def test_why_there_is_no_conductor_is_named(team: Team, changes: Json, words: str) -> None:
    """The store knows only that nobody drives the run; the cluster knows why."""
    good = team.profile()
    team.write_profile(**{key: {**good.get(key, {}), **each} for key, each in changes.items()})
    team.submitted("nobody")
    wait_until(lambda: words in team.status("nobody")["state"], 30)
    assert team.status("nobody")["state"].startswith("no conductor for 0 min: ")


def test_missing_account_of_the_conductor_is_named(team: Team) -> None:
    """Its Job cannot make a pod."""
    team.kubectl("delete", "serviceaccount", "modelmill-conductor")
    team.submitted("account")
    wait_until(lambda: "modelmill-conductor" in team.status("account")["state"], 30)


def test_missing_permission_ends_with_77_and_the_verb(team: Team) -> None:
    """A Role without `create jobs` is said in words, by the run's own end."""
    role = '[{"op": "replace", "path": "/rules/0/verbs", "value": ["get","list","watch","patch"]}]'
    team.kubectl("patch", "role", "modelmill-conductor", "--type=json", "--patch", role)
    ended = team.submit("--name", "denied", "--wait")
    assert ended.returncode == 3, ended.stderr
    assert team.status("denied")["exit_code"] == 77
    [pod] = team.pods_of("denied", "conductor")
    message = pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    assert 'cannot create resource \\"jobs\\"' in message


def test_volume_over_its_limit_does_not_fit(team: Team) -> None:
    """The kubelet evicts a pod that outgrows its volume; the run ends with what to raise."""
    glutton = instead("head -c 20000000 /dev/zero > /scratch/big; sleep 600")
    team.write_profile(stages={"fetch-model": small(glutton, work="1Mi")})
    ended = team.submit("--name", "volume", "--wait")
    assert ended.returncode == 3, ended.stderr
    row = team.stage("volume", "fetch-model")
    assert (row["state"], row["attempts"]) == ("failed", 1)
    assert row["message"].startswith("Evicted for disk: Usage of EmptyDir volume")
    assert "raise `work`" in row["message"]
    assert team.status("volume")["exit_code"] == 78


def test_container_over_its_memory_does_not_fit(team: Team) -> None:
    """The kernel kills it; the message says what to raise."""
    hungry = instead("exec python -c 'bytearray(10**10)'")
    team.write_profile(stages={"fetch-model": small(hungry, memory="64Mi")})
    ended = team.submit("--name", "memory", "--wait")
    assert ended.returncode == 3, ended.stderr
    row = team.stage("memory", "fetch-model")
    assert (row["state"], row["attempts"]) == ("failed", 1)
    assert "more memory than its limit" in row["message"]
    assert "raise `memory`" in row["message"]
