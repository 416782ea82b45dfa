"""Try in a cluster what runs will do: Jobs that are never made, and pods that live a moment.

A dry run goes through admission, quota and permissions like the real thing; only a pod
shows whether an image can be pulled and whether the store is there for it.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from modelmill.conduct.answers import NotThere, Refused, Unavailable
from modelmill.conduct.backend import Order
from modelmill.conduct.jobs import Manifest, Release, stage_job
from modelmill.conduct.kubernetes import Namespace
from modelmill.conduct.pods import image_for
from modelmill.conduct.reasons import how_it_ended, why_it_waits
from modelmill.conduct.render import NO_UID
from modelmill.conduct.seen import JobSeen, PodSeen
from modelmill.spec.cluster import PatchOperation
from modelmill.spec.names import ENVIRONMENT_OF, KINDS, LABEL_ROLE, Image, Kind
from modelmill.spec.profile import Profile

PATIENCE_SECONDS: Final = 600.0
"""An image of several gigabytes takes minutes when a node sees it for the first time."""
LOOK_SECONDS: Final = 1.0
KEPT_SECONDS: Final = 600
"""Kubernetes removes a trial by itself if whoever made it cannot."""


@dataclass(frozen=True)
class Tried:
    """How one trial came out."""

    what: str
    problem: str
    """Empty where it went well."""


def try_admission(namespace: Namespace, profile: Profile) -> Iterator[Tried]:
    """Let the API server look at a Job of every kind without making it."""
    for kind in KINDS:
        try:
            namespace.try_job(_job(kind, namespace, profile))
            yield Tried(kind, "")
        except (NotThere, Refused) as refused:
            yield Tried(kind, str(refused))


def is_suspended_unasked(namespace: Namespace, profile: Profile) -> bool:
    """Tell whether Kueue takes Jobs that name no queue, as a conductor's does.

    Either it manages all Jobs (`manageJobsWithoutQueueName`), or there is a LocalQueue called
    `default`.
    """
    return namespace.try_job(_job("report", namespace, _small(profile))).spec.suspend


def try_pods(namespace: Namespace, profile: Profile) -> Iterator[Tried]:
    """Start a pod of every image, all at once; the light one also tries the store."""
    kinds: dict[Image, Kind] = {}
    for kind in KINDS:
        kinds.setdefault(image_for(kind, profile), kind)
    made: dict[Image, JobSeen] = {}
    try:
        for image, kind in kinds.items():
            made[image] = namespace.create_job(_trial_job(image, kind, namespace, profile))
        deadline = time.monotonic() + PATIENCE_SECONDS
        for image, job in made.items():
            yield Tried(f"image {image}", _problem_of(namespace, job, deadline))
    finally:
        for job in made.values():
            namespace.delete_job(job)


def _job(kind: Kind, namespace: Namespace, profile: Profile) -> Manifest:
    order = Order(kind, "0" * 64, ENVIRONMENT_OF[kind], 1, "0" * 64)
    release = Release("doctor", namespace.name, "0", "doctor", NO_UID, profile)
    return stage_job(order, release)


def _trial_job(image: Image, kind: Kind, namespace: Namespace, profile: Profile) -> Manifest:
    """Make a Job that belongs to nobody and does next to nothing."""
    tries = "python -m modelmill.store.probe" if image == "light" else "modelmill version"
    metadata: dict[str, JsonValue] = {
        "name": f"doctor-{image}-{secrets.token_hex(4)}",
        "labels": {"app.kubernetes.io/name": "modelmill", LABEL_ROLE: "stage"},
    }
    job = _job(kind, namespace, _small(profile, tries.split()))
    return {**job, "metadata": metadata}


def _small(profile: Profile, arguments: Sequence[str] = ()) -> Profile:
    """Ask for pods that wait in no queue and for no GPU, perhaps to do something else."""
    patch = [
        PatchOperation(op="add", path="/spec/ttlSecondsAfterFinished", value=KEPT_SECONDS),
        PatchOperation(
            op="replace", path="/spec/template/spec/containers/0/args", value=list(arguments)
        ),
    ]
    sizes = {"cpu": "100m", "memory": "256Mi", "work": "64Mi", "tmp": "64Mi", "gpu": 0, "queue": ""}
    stages = {
        kind: pods.model_copy(update={**sizes, "patch": (*pods.patch, *patch)})
        for kind, pods in profile.stages.items()
    }
    return profile.model_copy(update={"queue": "", "stages": stages})


def _problem_of(namespace: Namespace, job: JobSeen, deadline: float) -> str:
    words = "Waiting for its pod"
    while time.monotonic() < deadline:
        try:
            pods = namespace.list_pods(f"batch.kubernetes.io/job-name={job.metadata.name}")
            pod: PodSeen | None = pods[-1] if pods else None
            if pod is not None and pod.has_succeeded:
                return ""
            ended = None if pod is None else how_it_ended(pod)
            if ended is not None:
                return ended.message or f"ended with {ended.exit_code}"
            about = job.metadata.uid if pod is None else pod.metadata.uid
            words = why_it_waits(job, pod, namespace.events_about(about), None) or words
        except Unavailable as error:
            words = str(error)
        if _is_hopeless(words):
            return words
        time.sleep(LOOK_SECONDS)
    return words


def _is_hopeless(words: str) -> bool:
    """Tell whether waiting for longer would be for nothing."""
    return "cannot be pulled" in words or "cannot be mounted" in words
