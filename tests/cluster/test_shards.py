"""Infer as an Indexed Job: pods share the rows, and one that dies costs its own rows alone."""

from pathlib import Path

from modelmill.spec.figures import Inferred, Measurements
from modelmill.spec.names import ANNOTATION_INDEX, MEASUREMENTS, PREDICTIONS
from modelmill.store.address import open_store
from modelmill.store.artifact import attempt_prefix, read_manifest
from modelmill.store.checkpoint import restore_all

from ..tiny_stages import make_rows
from .team import Json, Team, instead, small, wait_until
from .test_ends import evict

STAGE = "infer-base"
SHARDS = 3
ROWS_EACH = 80
FRAGILE = 1
"""The shard whose pods are killed and evicted."""
ON_A_WORD = f"""
[ $MODELMILL_SHARD = {FRAGILE} ] || exec $stage
until [ -s /tmp/word ]; do sleep 0.1; done
grep -q go /tmp/word && exec $stage
$stage &
until find /scratch -type d -name resume | grep -q .; do sleep 0.1; done
kill -STOP $!
sleep 20
kill -CONT $!
until find /scratch -path '*resume/predictions.jsonl' -size +0 | grep -q .; do sleep 0.1; done
sleep 2
kill -9 $!
exit 137"""
"""Its pods wait until they are told to go on, or to die.  One that dies stands still for as long
as lies between two saves, so it saves after its first batch, and is killed at one of the next."""


def test_killed_shard_costs_its_own_rows(team: Team, tmp_path: Path) -> None:
    """One pod of three is killed in the middle and the next is evicted: one pod's bytes come out.

    Two attempts are allowed.  The kill is the first of them, so the eviction counts for nothing.
    """
    team.write_rows("test", make_rows(SHARDS * ROWS_EACH, 3))
    infer = {"max_new_tokens": 128, "batch_size": 4, "metrics": {"nll": {}}}
    team.write_run(quantize=[], infer=infer)
    team.submitted("alone")
    assert team.wait("alone") == 0
    pods = small(instead(ON_A_WORD), shards=SHARDS)
    team.write_profile(stages={"infer": pods}, max_attempts=2)
    team.submitted("shared", "--again", STAGE)

    killed = next_pod(team)
    tell(team, killed, "die")
    evicted = next_pod(team, killed)
    evict(team, evicted["metadata"]["name"])
    last = next_pod(team, killed, evicted)
    saved = rows_saved(team, killed, tmp_path)
    tell(team, last, "go")
    assert team.wait("shared") == 0

    # The other shards have had one pod each, so nobody answered one of their rows again.
    assert sorted(map(index_of, pods_of(team))) == [0, 1, 1, 2]
    assert team.starts_of("shared")[STAGE] == 1
    assert team.stage("shared", STAGE)["attempts"] == 3
    assert 0 < saved < ROWS_EACH
    log = team.kubectl("logs", last["metadata"]["name"])
    assert f"going on after {saved} of {ROWS_EACH} rows" in log
    alone, shared = committed(team, "alone"), committed(team, "shared")
    assert shared[0] == alone[0]
    assert (alone[1].shards, shared[1].shards) == (1, SHARDS)
    assert (shared[1].rows, shared[1].quarantined) == (SHARDS * ROWS_EACH, 0)


def pods_of(team: Team) -> list[Json]:
    """List the pods that share the stage, and those that did."""
    return team.pods_of("shared", STAGE)


def index_of(pod: Json) -> int:
    """Read which shard a pod is."""
    return int(pod["metadata"]["annotations"][ANNOTATION_INDEX])


def next_pod(team: Team, *before: Json) -> Json:
    """Wait until the fragile shard has another pod, which runs."""
    known = {each["metadata"]["uid"] for each in before}

    def running() -> list[Json]:
        return [
            pod
            for pod in pods_of(team)
            if index_of(pod) == FRAGILE and pod["metadata"]["uid"] not in known
            if pod["status"]["phase"] == "Running"
        ]

    wait_until(lambda: bool(running()))
    [pod] = running()
    return pod


def tell(team: Team, pod: Json, word: str) -> None:
    """Say to a pod of the fragile shard what it waits for."""
    team.kubectl("exec", pod["metadata"]["name"], "--", "sh", "-c", f"echo {word} >/tmp/word")


def key_of(team: Team, run: str) -> str:
    """Read the key of the stage in a run."""
    return team.record(run).keys[STAGE]


def rows_saved(team: Team, pod: Json, folder: Path) -> int:
    """Count the rows that a pod has left in the store for the next one."""
    states = restore_all(open_store(team.store), key_of(team, "shared"), folder / "states")
    of_pod = [state for state in states if state.name.startswith(pod["metadata"]["uid"])]
    lines = [(state / PREDICTIONS).read_bytes().splitlines() for state in of_pod]
    return max(map(len, lines), default=0)


def committed(team: Team, run: str) -> tuple[bytes, Inferred]:
    """Read what the stage of a run has committed: answers, and how they were made."""
    store, key = open_store(team.store), key_of(team, run)
    manifest = read_manifest(store, "infer", key)
    assert manifest is not None
    prefix = attempt_prefix("infer", key, manifest.manifest.attempt)
    predictions, measured = (store.get(f"{prefix}/{name}") for name in (PREDICTIONS, MEASUREMENTS))
    assert predictions is not None
    assert measured is not None
    figures = Measurements.model_validate_json(measured.body).figures
    assert isinstance(figures, Inferred)
    return predictions.body, figures
