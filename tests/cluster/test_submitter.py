"""What a person sees and does from a laptop: doctor, status, logs, names, removal."""

import json
import subprocess
import sys

import pytest

from modelmill.spec.records import RunRecord
from modelmill.store.address import open_store
from modelmill.store.runs import list_logs, read_log, update_run

from .team import LONGEST_SECONDS, Team, instead, run_command, small, wait_until
from .test_ends import evict


def findings(team: Team, *words: str) -> dict[str, tuple[str, str]]:
    """Examine the cluster: by check, its state and what was found."""
    ended = team.modelmill("doctor", "--profile", "profile.yaml", *words, "-o", "json")
    assert ended.stdout, ended.stderr
    return {each["check"]: (each["state"], each["words"]) for each in json.loads(ended.stdout)}


def test_doctor_finds_a_good_cluster_good(team: Team) -> None:
    """Every check that can be made is, down to a pod of every image and the store from inside."""
    found = findings(team, "--pods")
    assert {state for state, _ in found.values()} == {"good"}
    images = {f"image {name}" for name in ("light", "finetune", "merge", "quantize", "infer")}
    assert found.keys() > images
    assert team.objects("jobs") == []


def test_doctor_names_everything_that_is_missing(team: Team) -> None:
    """One look tells all of it: account, queue, images, credentials, and Kueue's trap."""
    team.kubectl("delete", "serviceaccount", "modelmill-stage")
    trap = {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "LocalQueue",
        "metadata": {"name": "default"},
        "spec": {"clusterQueue": "whatever"},
    }
    team.kubectl("apply", "-f", "-", stdin=json.dumps(trap))
    team.write_profile(queue="no-such-queue")
    found = findings(team)
    bad = {check for check, (state, _) in found.items() if state == "bad"}
    assert bad == {"accounts", "queues", "conductor"}
    assert "no LocalQueue no-such-queue" in found["queues"][1]
    assert "no ServiceAccount modelmill-stage" in found["accounts"][1]
    assert "a LocalQueue 'default'" in found["conductor"][1]


def test_doctor_tries_images_and_credentials_in_pods(team: Team) -> None:
    """Only a pod shows whether an image is there and the store's keys work."""
    wrong = team.profile()
    wrong["images"]["registry"] = "localhost:5001/nowhere"
    team.write_profile(images=wrong["images"])
    found = findings(team, "--pods")
    assert "cannot be pulled" in found["image light"][1]
    assert found["image finetune"][0] == "bad"


def test_status_needs_no_cluster(team: Team) -> None:
    """The store knows where a run is; a laptop without a kubeconfig may ask."""
    team.write_run(quantize=[])
    team.write_profile(stages={"infer": small(instead("sleep 600 & wait"))})
    team.submitted("alone")
    wait_until(lambda: team.is_running("alone", "infer-base"))
    ended = subprocess.run(
        [sys.executable, "-m", "modelmill", "status", "alone"],
        env={**team.environment, "KUBECONFIG": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "Run 'alone': running\n"
    [line] = [line for line in ended.stdout.splitlines() if line.startswith("infer-base")]
    assert line.split()[:2] == ["infer-base", "running"]
    assert team.modelmill("status", "alone", "--exit-code").returncode == 4


def test_logs_follow_stages_and_replaced_pods(team: Team) -> None:
    """Every line once, from every attempt, until the run has ended."""
    team.write_run(quantize=[])
    counting = "for n in $(seq 300); do echo line $n of $HOSTNAME; sleep 0.05; done; exec $stage"
    team.write_profile(stages={"fetch-test": small(instead(counting))})
    team.submitted("told")
    follower = subprocess.Popen(
        [sys.executable, "-m", "modelmill", "logs", "--follow", "told"],
        env=team.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: team.is_running("told", "fetch-test"))
    [pod] = team.pods_of("told", "fetch-test")
    wait_until(lambda: "line 40 " in team.kubectl("logs", pod["metadata"]["name"]))
    evict(team, pod["metadata"]["name"])
    stdout, stderr = follower.communicate(timeout=LONGEST_SECONDS)
    assert follower.returncode == 0
    lines = [line for line in stdout.splitlines() if line.startswith("line ")]
    assert len(lines) == len(set(lines))
    evicted = pod["metadata"]["name"]
    first = [line for line in lines if line.endswith(evicted)]
    last = [line for line in lines if not line.endswith(evicted)]
    [replacement] = {line.split()[-1] for line in last}
    assert first == [f"line {n} of {evicted}" for n in range(1, len(first) + 1)]
    assert last == [f"line {n} of {replacement}" for n in range(1, 301)]
    for stage in ("fetch-model", "fetch-test", "infer-base", "report"):
        assert f"--- {stage} " in stderr
        assert f"{stage} committed in" in stdout
    # When the pods are gone the store still has them.
    team.helm("uninstall", "told")
    wait_until(lambda: team.pods_of("told") == [], 60)
    store = open_store(team.store)
    kept = [read_log(store, "told", *each) or b"" for each in list_logs(store, "told")]
    assert sum(text.count(b"line 300 of") for text in kept) == 1
    assert team.modelmill("logs", "told", "fetch-test").stdout.count("line 300 of") == 1


def test_name_that_belongs_elsewhere_is_refused_until_it_is_taken_over(team: Team) -> None:
    """Two releases must not write one run; whose it is stands in its record."""
    theirs = "release mine in namespace elsewhere (00000000-0000-0000-0000-000000000000)"
    owned = RunRecord(name="mine", created="2026-01-01T00:00:00.000+00:00", owner=theirs)
    update_run(open_store(team.store), "mine", lambda _: owned)
    team.write_run(quantize=[])
    ended = team.submit("--name", "mine")
    assert ended.returncode == 7
    assert f"Run 'mine' belongs to {theirs}" in ended.stderr
    assert "--take-over" in ended.stderr
    ended = team.submit("--name", "mine", "--take-over", "--wait")
    assert ended.returncode == 0, ended.stderr


def test_removed_run_is_gone_from_cluster_and_list(team: Team) -> None:
    """What it made stays and is used again under another name."""
    team.write_run(quantize=[])
    ended = team.submit("--name", "brief", "--wait")
    assert ended.returncode == 0, ended.stderr
    removed = team.modelmill("rm", "brief")
    assert removed.returncode == 0, removed.stderr
    assert team.modelmill("status", "brief").returncode == 5
    assert json.loads(team.modelmill("list", "-o", "json").stdout) == []
    wait_until(lambda: team.objects("jobs") == [], 30)
    ended = team.submit("--name", "heir", "--wait")
    assert ended.returncode == 0, ended.stderr
    assert set(team.starts_of("heir")) == {"report"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--namespace", "no-such-namespace"), "no namespace 'no-such-namespace'"),
        (("--context", "no-such-context"), "no usable kubeconfig"),
        (("--name", "much-too-long-a-name-for-a-run"), "at most 20"),
        (("--set", "quantize=[{method: bitsandbytes, name: thirteen-long}]"), "12"),
    ],
)
def test_submission_that_cannot_work_is_refused(
    team: Team, words: tuple[str, ...], said: str
) -> None:
    """Preflight fails in words, and nothing was created."""
    ended = team.submit(*words)
    assert ended.returncode == 7, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert team.objects("jobs") == []


def test_cluster_that_does_not_answer_is_8(team: Team) -> None:
    """Unreachable is not refused."""
    config = json.loads(run_command(["kubectl", "config", "view", "--raw", "-o", "json"]))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    (team.folder / "elsewhere").write_text(json.dumps(config), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "modelmill", "submit", "run.yaml", "--profile", "profile.yaml"],
        cwd=team.folder,
        env={**team.environment, "KUBECONFIG": str(team.folder / "elsewhere")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 8, ended.stderr
    assert "does not answer" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_older_kubernetes_is_refused_by_helm(team: Team) -> None:
    """Before anything is created, with both versions in the words."""
    (team.folder / "values.json").write_text(
        json.dumps({"run": team.run(sources="s3://x/"), "profile": team.profile()}),
        encoding="utf-8",
    )
    ended = subprocess.run(
        ["helm", "template", "old", *team.chart, "--kube-version", "1.32.9"],
        cwd=team.folder,
        env=team.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "1.33" in ended.stderr
    assert "1.32.9" in ended.stderr
