"""What a person is told, from objects as an API server 1.34 and Kueue 0.19 write them."""

import json
from datetime import UTC, datetime

import pytest
from pydantic import JsonValue

from modelmill.conduct.backend import NotNow
from modelmill.conduct.reasons import Ended, how_it_ended, why_it_waits, why_refused
from modelmill.conduct.seen import EventSeen, JobSeen, PodSeen, PodSpec, WorkloadSeen
from modelmill.spec.errors import PermissionRefused

IMAGE = "registry.example.com/modelmill-finetune:0.1.0"


def pod(phase: str = "Pending", **status: JsonValue) -> PodSeen:
    """Make a pod on a node."""
    return PodSeen.model_validate(
        {
            "metadata": {"name": "run-finetune-0123abcd-a1-x7x2k", "uid": "u1"},
            "spec": {"nodeName": "node-1"},
            "status": {"phase": phase, **status},
        }
    )


def ended(exit_code: int, *, phase: str = "Failed", **terminated: JsonValue) -> PodSeen:
    """Make a pod whose container has terminated."""
    return pod(phase, containerStatuses=container(terminated={"exitCode": exit_code, **terminated}))


def container(**state: JsonValue) -> JsonValue:
    """Make the status of the stage's container, behind one that an injector added."""
    return [
        {"name": "istio-proxy", "image": "proxy", "state": {"running": {"startedAt": "now"}}},
        {"name": "stage", "image": IMAGE, "state": state},
    ]


def job(**spec: JsonValue) -> JobSeen:
    """Make a Job."""
    return JobSeen.model_validate({"metadata": {"name": "j", "uid": "j1"}, "spec": spec})


def event(reason: str, message: str) -> EventSeen:
    """Make an event."""
    metadata: JsonValue = {"name": "e", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return EventSeen.model_validate({"metadata": metadata, "reason": reason, "message": message})


def workload(*conditions: dict[str, JsonValue]) -> WorkloadSeen:
    """Make Kueue's view of a Job."""
    return WorkloadSeen.model_validate(
        {
            "metadata": {"name": "w"},
            "spec": {"queueName": "team"},
            "status": {"conditions": list(conditions)},
        }
    )


def disruption(reason: str, message: str = "") -> JsonValue:
    """Make the condition of a pod that did nothing wrong."""
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}]


def test_running_pod_has_not_ended_and_waits_for_nothing() -> None:
    """Nothing is said about what goes well."""
    running = pod("Running", containerStatuses=container(running={"startedAt": "now"}))
    assert how_it_ended(running) is None
    assert why_it_waits(job(), running, (), None) == ""


def test_last_words_are_the_message() -> None:
    """What the stage wrote into its termination message is what a person reads."""
    words = json.dumps({"exit_code": 65, "message": "row 3 has no field 'answer'"})
    assert how_it_ended(ended(65, message=words)) == Ended(65, "row 3 has no field 'answer'")


def test_end_without_words_is_explained_by_its_code() -> None:
    """A process that was killed has no last words."""
    found = how_it_ended(ended(139, reason="Error"))
    assert found is not None
    assert found.exit_code == 139
    assert "signal 11" in found.message


def test_success_has_no_message() -> None:
    """There is nothing to explain."""
    assert how_it_ended(ended(0, phase="Succeeded", reason="Completed")) == Ended(0, "")


def test_oom_kill_is_told_from_other_kills() -> None:
    """137 is also a grace period that was too short; only the reason tells."""
    oom, killed = how_it_ended(ended(137, reason="OOMKilled")), how_it_ended(ended(137))
    assert oom is not None
    assert killed is not None
    assert (oom.exit_code, oom.is_oom) == (78, True)
    assert "memory" in oom.message
    assert (killed.exit_code, killed.is_oom) == (137, False)


def test_oom_kill_names_the_limit() -> None:
    """Who raises it must know what it was."""
    pod = ended(137, reason="OOMKilled")
    limits = {"containers": [{"name": "stage", "resources": {"limits": {"memory": "24Gi"}}}]}
    found = how_it_ended(pod.model_copy(update={"spec": PodSpec.model_validate(limits)}))
    assert found is not None
    assert "it used more memory than its limit of 24Gi" in found.message


@pytest.mark.parametrize(
    "message",
    [
        'Usage of EmptyDir volume "work" exceeds the limit "64Mi". ',
        "Pod ephemeral local storage usage exceeds the total limit of containers 192Mi. ",
        'Container stage exceeded its local ephemeral storage limit "1Gi". ',
    ],
)
def test_eviction_for_ones_own_disk_does_not_fit(message: str) -> None:
    """Starting again would fill the volume again."""
    found = how_it_ended(pod("Failed", reason="Evicted", message=message))
    assert found is not None
    assert found.exit_code == 78
    assert message.strip(". ") in found.message
    assert "`work`" in found.message


def test_eviction_for_others_is_free() -> None:
    """The node was short of something; the stage did nothing wrong."""
    found = how_it_ended(
        pod(
            "Failed",
            reason="Evicted",
            message="The node was low on resource: memory. ",
            conditions=disruption("TerminationByKubelet"),
        )
    )
    assert found is not None
    assert found.exit_code == 75
    assert found.message == "Interrupted, the node ended it: The node was low on resource: memory"


def test_disruption_counts_before_the_exit_code() -> None:
    """A pod that is preempted in the middle may fail in any way on its way out."""
    status = ended(70).model_dump(by_alias=True, mode="json")
    status["status"]["conditions"] = disruption("PreemptionByScheduler", "preempting pod x")
    found = how_it_ended(PodSeen.model_validate(status))
    assert found is not None
    assert found.exit_code == 75
    assert "higher priority: preempting pod x" in found.message


def test_pod_a_node_refused_is_a_fault_of_the_node() -> None:
    """No container ever ran; another node, or the same one later, may take it."""
    found = how_it_ended(pod("Failed", reason="UnexpectedAdmissionError", message="no devices."))
    assert found is not None
    assert found.exit_code == 71
    assert "UnexpectedAdmissionError: no devices" in found.message


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ErrImagePull", 'rpc error: failed to resolve reference "x": not found'),
        ("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: not found'),
        ("InvalidImageName", "couldn't parse image name"),
    ],
)
def test_image_that_cannot_be_pulled_is_named(reason: str, message: str) -> None:
    """A wrong tag is the commonest reason why nothing happens."""
    waiting = pod(containerStatuses=container(waiting={"reason": reason, "message": message}))
    assert why_it_waits(job(), waiting, (), None) == (
        f"Image '{IMAGE}' cannot be pulled: {message}"
    )


def test_missing_secret_is_named() -> None:
    """It shows only in an event: the container is said to be created."""
    waiting = pod(containerStatuses=container(waiting={"reason": "ContainerCreating"}))
    told = event(
        "FailedMount", 'MountVolume.SetUp failed for volume "store" : secret "s3" not found'
    )
    assert why_it_waits(job(), waiting, [event("Scheduled", "x"), told], None) == (
        'A volume cannot be mounted: MountVolume.SetUp failed for volume "store" : '
        'secret "s3" not found'
    )
    refused = pod(
        containerStatuses=container(
            waiting={"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}
        )
    )
    assert why_it_waits(job(), refused, (), None) == (
        'The container cannot be made: secret "s3" not found'
    )


def test_impossible_request_names_what_no_node_has() -> None:
    """The scheduler says it in a condition."""
    unscheduled = pod(
        conditions=[
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. ",
            }
        ]
    )
    assert why_it_waits(job(), unscheduled, (), None) == (
        "No node fits: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu"
    )


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            (
                'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: '
                "requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=2, limited: "
                "requests.nvidia.com/gpu=2"
            ),
            "Waiting for quota: exceeded quota: gpus, requested",
        ),
        (
            (
                'Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": '
                "runAsNonRoot != true"
            ),
            'The namespace refuses the pod: violates PodSecurity "restricted:latest"',
        ),
        (
            (
                'Error creating: pods "x" is forbidden: error looking up service account '
                'team/modelmill-stage: serviceaccount "modelmill-stage" not found'
            ),
            "apply k8s/ to this namespace first",
        ),
    ],
)
def test_job_without_a_pod_says_who_refuses_it(message: str, words: str) -> None:
    """A Job cannot tell; its controller does, in an event."""
    assert words in why_it_waits(job(), None, [event("FailedCreate", message)], None)


def test_queue_says_what_it_waits_for() -> None:
    """Kueue's own words, with the queue's name."""
    pending = workload(
        {
            "type": "QuotaReserved",
            "status": "False",
            "reason": "Pending",
            "message": "couldn't assign flavors to pod set main: insufficient unused quota.",
        }
    )
    assert why_it_waits(job(suspend=True), None, (), pending) == (
        "Waiting in queue 'team': couldn't assign flavors to pod set main: "
        "insufficient unused quota"
    )


def test_preempted_run_says_that_it_waits_again() -> None:
    """What was running and is not any more needs the reason most."""
    evicted = workload(
        {"type": "Evicted", "status": "True", "reason": "Preempted", "message": "Preempted to x."},
        {"type": "Preempted", "status": "True", "reason": "InClusterQueue"},
        {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "no quota"},
    )
    assert why_it_waits(job(suspend=True), None, (), evicted) == (
        "Waiting in queue 'team' again, preempted: Preempted to x: no quota"
    )


def test_suspended_job_without_a_queue_asks_for_one() -> None:
    """Nobody will ever start it."""
    assert "is Kueue running" in why_it_waits(job(suspend=True), None, (), None)


def test_job_being_deleted_is_being_stopped() -> None:
    """Whatever its pod still does."""
    deleted = JobSeen.model_validate(
        {"metadata": {"name": "j", "deletionTimestamp": datetime.now(UTC).isoformat()}}
    )
    assert why_it_waits(deleted, pod(), (), None) == "Being stopped"


def test_refusals_are_told_apart() -> None:
    """Quota empties; a policy and a missing permission do not."""
    quota = why_refused(
        'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1', "create"
    )
    assert isinstance(quota, NotNow)
    assert str(quota).startswith("Waiting for quota: exceeded quota: jobs")
    rbac = why_refused(
        'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs"',
        "create a Job",
    )
    assert isinstance(rbac, PermissionRefused)
    assert 'cannot create resource "jobs"' in str(rbac)
    policy = why_refused('admission webhook "v.example.com" denied the request: no', "create a Job")
    assert isinstance(policy, PermissionRefused)
    assert "admission" in str(policy)
