"""Render the Kubernetes Job of one attempt: a pure function from what is wanted to a manifest.

Knows Jobs, their names and labels; the pod inside is made in `pods`.  Speaks to no cluster,
so `modelmill render`, the examples in `k8s/jobs` and the conductor show the same thing.
"""

from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from pydantic import JsonValue

from modelmill.conduct.backend import Order
from modelmill.conduct.json_patch import patched
from modelmill.conduct.pods import stage_pod
from modelmill.spec.canonical import sha256_of
from modelmill.spec.cluster import merged_place
from modelmill.spec.errors import REPEATED_CODES, Interrupted
from modelmill.spec.names import (
    ANNOTATION_SHAPE,
    CONTAINER,
    LABEL_ATTEMPT,
    LABEL_KEY,
    LABEL_QUEUE,
    LABEL_REVISION,
    LABEL_ROLE,
    LABEL_RUN,
    LABEL_STAGE,
    is_fetch,
    kind_of,
)
from modelmill.spec.profile import Profile

Manifest: TypeAlias = dict[str, JsonValue]
"""A Kubernetes object as JSON."""

KEY_LABEL_CHARACTERS: Final = 32
"""Of a key's 64; a label holds 63."""
KEY_NAME_CHARACTERS: Final = 8
SHAPE_CHARACTERS: Final = 16


@dataclass(frozen=True)
class Release:
    """What all Jobs of one conductor share."""

    run: str
    namespace: str
    revision: str
    """As the anchor names the live one."""
    anchor: str
    """The ConfigMap that owns every Job: it outlives upgrades and dies with the release."""
    anchor_uid: str
    profile: Profile


def stage_job(order: Order, release: Release) -> Manifest:
    """Render the Job that carries out an order.

    Raises:
        SpecError: a patch of the profile does not fit the Job.
    """
    return _job(order, release, shape_of(order, release))


def shape_of(order: Order, release: Release) -> str:
    """Digest what an order's Job would be for any plan, attempt and revision.

    A Job of another shape was made by another profile; while it waits, it waits for the wrong
    thing.
    """
    of_any = replace(order, number=0, plan_sha256="", halvings=0)
    return sha256_of(_job(of_any, replace(release, revision=""), ""))[:SHAPE_CHARACTERS]


def _job(order: Order, release: Release, shape: str) -> Manifest:
    kind = kind_of(order.stage)
    profile = release.profile
    pods = profile.stages[kind]
    place = merged_place(profile.pods, pods)
    labels: dict[str, JsonValue] = {**place.labels, **_labels(order, release)}
    queue = pods.queue or profile.queue
    job: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(order, release.run),
            "namespace": release.namespace,
            "labels": {**labels, **({LABEL_QUEUE: queue} if queue else {})},
            "annotations": {
                **place.annotations,
                LABEL_KEY: order.key,
                ANNOTATION_SHAPE: shape,
            },
            "ownerReferences": [_owner(release)],
        },
        "spec": {
            **_pods_at_once(pods.shards, profile.max_attempts),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules(pods.shards)},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {**_STAY, **place.annotations, LABEL_KEY: order.key},
                },
                "spec": stage_pod(order, release.run, profile),
            },
        },
    }
    patch = patched(job, pods.patch, f"stages.{kind}.patch")
    assert isinstance(patch, dict)
    return patch


def job_name(order: Order, run: str) -> str:
    """Name the Job of an attempt; creating it twice is refused, which makes the name a lock.

    At most 58 characters for attempts below 100,000, so that a pod's name has room for its
    suffix.
    """
    return f"{run}-{order.stage}-{_digest(order.key)[:KEY_NAME_CHARACTERS]}-a{order.number}"


def key_label(key: str) -> str:
    """Shorten a key to what a label may hold."""
    return _digest(key)[:KEY_LABEL_CHARACTERS]


def _digest(key: str) -> str:
    """Leave out the run that stands before the digest in a report's key."""
    return key.rpartition(".")[2]


def _labels(order: Order, release: Release) -> dict[str, JsonValue]:
    return {
        "app.kubernetes.io/name": "modelmill",
        "app.kubernetes.io/instance": release.run,
        "app.kubernetes.io/component": order.stage,
        "app.kubernetes.io/managed-by": "modelmill",
        LABEL_RUN: release.run,
        LABEL_STAGE: order.stage,
        LABEL_KEY: key_label(order.key),
        LABEL_REVISION: release.revision,
        LABEL_ATTEMPT: str(order.number),
        LABEL_ROLE: "fetch" if is_fetch(kind_of(order.stage)) else "stage",
    }


def _owner(release: Release) -> JsonValue:
    """Let the Job be collected with the release.

    Not as controller: Kueue takes a Job with a managed controller for that one's child.  Not
    blocking: OpenShift wants a permission for it that a conductor has no other use for.
    """
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": release.anchor,
        "uid": release.anchor_uid,
        "controller": False,
        "blockOwnerDeletion": False,
    }


def _pods_at_once(shards: int, max_attempts: int) -> dict[str, JsonValue]:
    """Let one pod do all, or each shard have a pod whose failure is no other's business.

    Only the conductor decides about other attempts, so the Job of one pod has none.  With shards
    that would end all pods with the first that fails; so Kubernetes replaces it, as often as the
    conductor would.
    """
    if shards == 1:
        return {"backoffLimit": 0, "completions": 1, "parallelism": 1}
    return {
        "backoffLimitPerIndex": max_attempts - 1,
        "completionMode": "Indexed",
        "completions": shards,
        "parallelism": shards,
    }


def _failure_rules(shards: int) -> list[JsonValue]:
    """Let the Job replace a pod that did nothing wrong; the first rule that fits decides.

    Where it would replace one that did, it ends with a shard that can never succeed: without
    that shard there is no result, and the conductor that would stop it may be away.
    """
    rules: list[JsonValue] = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "Ignore",
            "onExitCodes": {
                "containerName": CONTAINER,
                "operator": "In",
                "values": [Interrupted.exit_code],
            },
        },
    ]
    if shards > 1:
        rules.append(
            {
                "action": "FailJob",
                "onExitCodes": {
                    "containerName": CONTAINER,
                    "operator": "NotIn",
                    "values": list(REPEATED_CODES),
                },
            }
        )
    return rules


_STAY: Final[dict[str, JsonValue]] = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
    # Two pods of one attempt cannot both commit, so Kueue may replace one on a lost node.
    "kueue.x-k8s.io/safe-to-forcefully-delete": "true",
}
"""A stage is not worth moving for a tidier cluster."""
