"""Why an attempt on a cluster waits, and how it ended, in one sentence.

Pure functions of what the API server says.  Kubernetes spreads a cause over the Job, its
pods, their events and Kueue's Workload; a person wants one sentence and what to do.
Exit codes alone do not tell an OOM kill (137) from a grace period overrun (also 137), nor
an eviction from a failure.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from modelmill.conduct.backend import NotNow
from modelmill.conduct.seen import EventSeen, JobSeen, PodSeen, Terminated, WorkloadSeen
from modelmill.spec.errors import (
    DeviceFault,
    DoesNotFit,
    InternalError,
    Interrupted,
    ModelmillError,
    PermissionRefused,
    meaning_of,
)
from modelmill.spec.records import Ending


@dataclass(frozen=True)
class Ended:
    """How a pod ended."""

    exit_code: int
    message: str
    is_oom: bool = False
    """The kernel killed it for its memory limit."""


def how_it_ended(pod: PodSeen) -> Ended | None:
    """Say how a pod ended; None while it may still run."""
    if not pod.has_ended:
        return None
    if pod.status.reason == "Evicted" and _exceeded_its_own_limit(pod.status.message):
        return _ended(
            DoesNotFit(
                f"Evicted for disk: {_sentence(pod.status.message)}",
                at=f"pod {pod.metadata.name}",
                fix="raise `work` or `tmp` of this kind of stage in the profile",
            )
        )
    disruption = pod.condition("DisruptionTarget")
    if disruption is not None:
        words = _DISRUPTIONS.get(disruption.reason, disruption.reason)
        detail = pod.status.message or disruption.message
        return _ended(Interrupted(f"Interrupted, {words}: {_sentence(detail)}"))
    terminated = pod.state.terminated
    if terminated is None:
        # The kubelet refused it: the device plugin, or resources that went since it was bound.
        reason = f"{pod.status.reason}: {_sentence(pod.status.message)}".strip(": ")
        return _ended(DeviceFault(f"The node did not run the pod: {reason or 'no reason given'}"))
    return _how_container_ended(pod, terminated)


def why_stopped(pod: PodSeen) -> str:
    """Say why a pod that still runs is asked to stop."""
    disruption = pod.condition("DisruptionTarget")
    if disruption is None:
        return "its pod was deleted" if pod.metadata.deletion_timestamp else "asked to stop"
    return _DISRUPTIONS.get(disruption.reason, disruption.reason)


def why_it_waits(
    job: JobSeen,
    pod: PodSeen | None,
    events: Sequence[EventSeen],
    workload: WorkloadSeen | None,
) -> str:
    """Say why an attempt does not run yet; empty once it runs.

    Args:
        job: of the attempt.
        pod: its newest, if there is one.
        events: about the Job and the pod, oldest first.
        workload: Kueue's, if there is one.
    """
    if job.metadata.deletion_timestamp is not None:
        return "Being stopped"
    if job.spec.suspend:
        return _why_queued(workload)
    if pod is None:
        return _why_no_pod(events)
    if pod.metadata.deletion_timestamp is not None:
        return "Its pod is being stopped; a new one follows when it is gone"
    if pod.has_begun or pod.has_ended:
        return ""
    return _why_pending(pod, events)


def why_refused(text: str, action: str) -> NotNow | PermissionRefused:
    """Tell a full quota, which empties, from a policy and from a missing permission.

    Args:
        text: what the API server answered with 403 or another refusal.
        action: what was tried.
    """
    if "exceeded quota" in text:
        return NotNow(f"Waiting for quota: {_sentence(text.partition('is forbidden: ')[2])}")
    if " cannot " in text:
        return PermissionRefused(
            f"Kubernetes does not let the conductor {action}: {_sentence(text)}",
            fix="apply k8s/ to this namespace: it has the Role and its binding",
        )
    return PermissionRefused(
        f"The cluster's admission refuses to {action}: {_sentence(text)}",
        fix="ask who keeps the cluster, or change the profile (pods, stages.<kind>.patch)",
    )


def _how_container_ended(pod: PodSeen, terminated: Terminated) -> Ended:
    if terminated.reason == "OOMKilled":
        limit = f" of {pod.memory_limit}" if pod.memory_limit else ""
        failure = DoesNotFit(
            f"Killed by the kernel: it used more memory than its limit{limit}",
            at=f"pod {pod.metadata.name}",
            fix="raise `memory` of this kind of stage in the profile",
        )
        return Ended(failure.exit_code, str(failure), is_oom=True)
    if terminated.reason in ("StartError", "ContainerCannotRun"):
        return _ended(
            InternalError(
                f"The container could not start: {_sentence(terminated.message)}",
                at=f"image {pod.image}",
                fix="look whether the image is modelmill's own for this kind of stage",
            )
        )
    try:
        message = Ending.model_validate_json(terminated.message).message
    except ValidationError:
        message = "" if terminated.exit_code == 0 else meaning_of(terminated.exit_code)
    return Ended(terminated.exit_code, message)


def _why_queued(workload: WorkloadSeen | None) -> str:
    if workload is None:
        return "Suspended, and no queue has taken it: is Kueue running, and is the queue there?"
    conditions = {each.type: each for each in workload.status.conditions}
    where = f"Waiting in queue '{workload.spec.queue_name}'"
    evicted = conditions.get("Evicted")
    if evicted is not None and evicted.status == "True":
        words = "preempted" if "Preempted" in conditions else f"evicted ({evicted.reason})"
        where = f"{where} again, {words}: {_sentence(evicted.message)}"
    reserved = conditions.get("QuotaReserved")
    if reserved is not None and reserved.status == "False" and reserved.message:
        return f"{where}: {_sentence(reserved.message)}"
    return where


def _why_no_pod(events: Sequence[EventSeen]) -> str:
    refused = _last(events, "FailedCreate")
    if refused is None:
        return "Waiting for its pod"
    text = refused.message.removeprefix("Error creating: ")
    if "exceeded quota" in text:
        return f"Waiting for quota: {_sentence(text.partition('is forbidden: ')[2] or text)}"
    if "PodSecurity" in text:
        return f"The namespace refuses the pod: {_sentence(text.partition('is forbidden: ')[2])}"
    if "service account" in text or "serviceaccount" in text:
        return f"{_sentence(text)}; apply k8s/ to this namespace first"
    return f"The pod cannot be created: {_sentence(text)}"


def _why_pending(pod: PodSeen, events: Sequence[EventSeen]) -> str:
    conditions = {each.type: each for each in pod.status.conditions}
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return f"No node fits: {_sentence(scheduled.message)}"
    waiting = pod.state.waiting
    reason = waiting.reason if waiting is not None else ""
    message = waiting.message if waiting is not None else ""
    if reason in _IMAGE_REASONS:
        return f"Image '{pod.image}' cannot be pulled: {_sentence(message or reason)}"
    if reason.startswith("CreateContainer"):
        return f"The container cannot be made: {_sentence(message)}"
    for kind, words in _STUCK:
        stuck = _last(events, kind)
        if stuck is not None:
            return f"{words}: {_sentence(stuck.message)}"
    pulling, pulled = _last(events, "Pulling"), _last(events, "Pulled")
    if pulling is not None and pulled is None:
        return _sentence(pulling.message)
    return f"Starting on node {pod.spec.node_name}" if pod.spec.node_name else "Waiting for a node"


_IMAGE_REASONS = frozenset(
    {
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RegistryUnavailable",
    }
)

_STUCK = (
    ("FailedMount", "A volume cannot be mounted"),
    ("FailedAttachVolume", "A volume cannot be attached"),
    ("FailedCreatePodSandBox", "The node cannot set the pod up"),
)

_DISRUPTIONS = {
    "PreemptionByScheduler": "preempted by a pod of higher priority",
    "DeletionByTaintManager": "its node was tainted",
    "EvictionByEvictionAPI": "evicted",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "the node ended it",
}
"""https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions"""

_OWN_LIMIT = re.compile(r"exceeds the (total )?limit|exceeded its local ephemeral storage limit")


def _exceeded_its_own_limit(message: str) -> bool:
    """Tell a pod that outgrew its own limits from one that made room for others."""
    return _OWN_LIMIT.search(message) is not None


def _ended(failure: ModelmillError) -> Ended:
    return Ended(failure.exit_code, str(failure))


def _last(events: Sequence[EventSeen], reason: str) -> EventSeen | None:
    return next((each for each in reversed(events) if each.reason == reason), None)


def _sentence(text: str) -> str:
    """Put a message on one line and take its full stop off."""
    return " ".join(text.split()).rstrip(". ")
