"""The pods of an Indexed Job are one attempt, and what counts against one counts against it alone.

Jobs and pods are written down as the API server says them; `tests/cluster` has the real ones.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

from modelmill.conduct.backend import Attempt, Order
from modelmill.conduct.cluster import ClusterBackend
from modelmill.conduct.decide import Planned, State, Stop, View, decide
from modelmill.conduct.jobs import Release, stage_job
from modelmill.conduct.kubernetes import Namespace
from modelmill.conduct.seen import JobSeen, PodSeen
from modelmill.spec.profile import Profile

KEY = "ab" * 32
SHARDS = 3
PROFILE = Profile.model_validate(
    {
        "images": {"registry": "r"},
        "store": {"url": "s3://b/p"},
        "stages": {"infer": {"shards": SHARDS}},
    }
)
RELEASE = Release("run", "space", "1-0a1b2c3d", "anchor", "anchor-uid", PROFILE)
JOB = cast("dict[str, Any]", stage_job(Order("infer-base", KEY, "quantize", 1, "cd" * 32), RELEASE))


@dataclass
class Shown:
    """What a mirror shows."""

    items: tuple[Any, ...] = ()

    def all(self) -> tuple[Any, ...]:
        """Show it."""
        return self.items


@dataclass
class Cluster:
    """A namespace that shows what it is told to."""

    jobs: Shown = field(default_factory=Shown)
    pods: Shown = field(default_factory=Shown)

    def mirror_jobs(self, _: str) -> Shown:
        """Show Jobs."""
        return self.jobs

    def mirror_pods(self, _: str) -> Shown:
        """Show pods."""
        return self.pods

    def events_about(self, _: str) -> tuple[()]:
        """Know of none."""
        return ()

    def log_of(self, pod: PodSeen, _: str) -> bytes:
        """Say whose log it is."""
        return f"log of {pod.metadata.uid}\n".encode()

    def look(self, backend: ClusterBackend, *pods: PodSeen, **conditions: str) -> list[Attempt]:
        """See what these pods, and the Job with such conditions, are as attempts."""
        self.jobs.items, self.pods.items = (job(**conditions),), pods
        return list(backend.attempts())


def made() -> tuple[Cluster, ClusterBackend]:
    """Make a backend over a namespace that shows what it is told to."""
    cluster = Cluster()
    backend = ClusterBackend(cast("Namespace", cluster), RELEASE, datetime(2026, 1, 1, tzinfo=UTC))
    return cluster, backend


def job(**conditions: str) -> JobSeen:
    """See the Job as the API server would, with conditions and their reasons."""
    states = [{"type": k, "status": "True", "reason": v} for k, v in conditions.items()]
    metadata = {**JOB["metadata"], "uid": "job", "creationTimestamp": "2026-01-02T00:00:00Z"}
    return JobSeen.model_validate(
        {"metadata": metadata, "spec": JOB["spec"], "status": {"conditions": states}}
    )


def pod(index: int, number: int = 1, code: int | None = None, *, waits: bool = False) -> PodSeen:
    """See the n-th pod of a shard: one that waits or runs, or has ended with a code."""
    template = JOB["spec"]["template"]["metadata"]
    annotations = {
        **template["annotations"],
        "batch.kubernetes.io/job-completion-index": str(index),
    }
    state: dict[str, Any] = {} if waits else {"running": {}}
    if code is not None:
        state = {"terminated": {"exitCode": code}}
    phase = "Running" if code is None else "Failed" if code else "Succeeded"
    return PodSeen.model_validate(
        {
            "metadata": {
                "name": f"p{index}",
                "uid": f"{index}-{number}",
                "labels": template["labels"],
                "annotations": annotations,
                "creationTimestamp": f"2026-01-02T00:{number:02d}:00Z",
                "ownerReferences": [{"uid": "job"}],
            },
            "status": {
                "phase": phase,
                "containerStatuses": [{"name": "stage", "state": state}],
            },
        }
    )


def test_pods_of_a_job_are_one_attempt_while_one_of_them_runs() -> None:
    """It is called after the Job, begins with the first pod, and any of them may commit for it."""
    cluster, backend = made()
    [waiting] = cluster.look(backend)
    assert (waiting.id, waiting.is_live, waiting.has_begun) == ("job", True, False)
    [running] = cluster.look(backend, pod(0), pod(1, waits=True), pod(2, code=0))
    assert (running.id, running.is_live, running.has_begun) == ("job", True, True)
    assert running.is_by("2-1")
    assert not running.is_by("3-1")
    assert backend.log(running).startswith(b"== shard 1 ==\nlog of 0-1\n== shard 2 ==\n")


def test_attempt_is_over_when_every_shard_has_succeeded() -> None:
    """Two of three are not the end; the third is, before its Job says so."""
    cluster, backend = made()
    [two] = cluster.look(backend, pod(0, code=0), pod(1, code=0), pod(2))
    assert two.is_live
    [three] = cluster.look(backend, pod(0, code=0), pod(1, code=0), pod(2, code=0))
    assert (three.is_live, three.exit_code, three.id) == (False, 0, "job")


def test_replaced_pod_is_an_attempt_of_its_shard() -> None:
    """The others live on under the same name, and the message says which shard it was."""
    cluster, backend = made()
    killed, shared = cluster.look(backend, pod(0), pod(1, 1, 137), pod(1, 2), pod(2))
    assert (killed.id, killed.shard, killed.exit_code) == ("1-1", 1, 137)
    assert killed.message.startswith("Shard 2 of 3: ")
    assert (shared.id, shared.shard, shared.is_live) == ("job", None, True)
    assert shared.processes == {"0-1", "1-2", "2-1"}


def test_failed_job_ends_as_its_first_failed_shard() -> None:
    """Once Kubernetes has given one shard up, and the others are done."""
    cluster, backend = made()
    pods = pod(0, code=0), pod(1, 1, 71), pod(1, 2, 71), pod(2, code=0)
    replaced, shared = cluster.look(backend, *pods, Failed="FailedIndexes")
    assert (replaced.exit_code, replaced.shard) == (71, 1)
    assert (shared.exit_code, shared.is_live, shared.shard) == (71, False, None)
    assert shared.message.startswith("Shard 2 of 3: ")


def test_failed_job_ends_as_the_shard_that_can_never_succeed() -> None:
    """Kubernetes stops the others because of it, and they end as interrupted ones do."""
    cluster, backend = made()
    pods = pod(0, code=75), pod(1, 1, 137), pod(1, 2, 71), pod(2, code=65)
    replaced, shared = cluster.look(backend, *pods, Failed="PodFailurePolicy")
    assert (replaced.exit_code, replaced.shard) == (137, 1)
    assert (shared.exit_code, shared.is_live) == (65, False)
    assert shared.message.startswith("Shard 3 of 3: ")
    assert state_of(replaced, shared) is State.FAILED


def test_pods_of_a_deleted_job_stop_as_one() -> None:
    """Nothing new is said to have started while they end."""
    cluster, backend = made()
    cluster.look(backend, pod(0), pod(1))
    cluster.jobs.items = ()
    [stopping] = backend.attempts()
    assert (stopping.id, stopping.is_live, stopping.processes) == ("job", True, {"0-1", "1-1"})


STAGE = Planned("infer-base", KEY, ())
LIVE = Attempt("job", "infer-base", KEY, 1, is_live=True, processes=frozenset({"0-1", "1-1"}))


def failed(shard: int, code: int, number: int) -> Attempt:
    """Make a pod that was replaced."""
    return Attempt(
        f"{shard}-{number}", "infer-base", KEY, 1, is_live=False, exit_code=code, shard=shard
    )


def state_of(*attempts: Attempt) -> State:
    """Decide about the one stage."""
    return decide(View((STAGE,), {}, attempts=attempts)).states["infer-base"]


def test_what_counts_is_counted_for_each_shard() -> None:
    """Eight shards evicted together were interrupted once; one that gets nowhere is found."""
    together = [failed(shard, 75, 1) for shard in range(8)]
    assert state_of(*together, LIVE) is State.LIVE
    assert state_of(*(failed(0, 75, n) for n in range(5)), LIVE) is State.FAILED
    assert state_of(*(failed(shard, 71, 1) for shard in range(3)), LIVE) is State.LIVE
    assert state_of(*(failed(1, 71, n) for n in range(3)), LIVE) is State.FAILED


def test_one_shard_that_can_never_succeed_ends_the_stage() -> None:
    """A Job goes on where the exit code alone does not say so, as after an OOM kill."""
    assert state_of(failed(2, 78, 1), LIVE) is State.FAILED


def test_attempt_whose_shard_has_committed_ends_by_itself() -> None:
    """Its other pods see what is committed; a stranger's commit stops them."""
    view = View((STAGE,), {"infer-base": "1-1"}, attempts=(LIVE,))
    assert Stop(LIVE) not in decide(view).actions
    assert Stop(LIVE) in decide(replace(view, committed={"infer-base": "other"})).actions
