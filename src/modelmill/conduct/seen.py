"""What the API server says about Jobs, pods and queues: only the parts a conductor reads.

Parsed once, where it comes in, into frozen models.  Fields we do not name are ignored,
because the API grows; fields it leaves out have Kubernetes' own defaults.
"""

from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from modelmill.spec.names import ANNOTATION_INDEX, CONDUCTOR_CONTAINER, CONTAINER


class Seen(BaseModel):
    """A part of an object, spelled in Kubernetes' way on the wire."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True
    )


class Owner(Seen):
    """Whose object it is."""

    uid: str


class Metadata(Seen):
    """What every object has."""

    name: str
    uid: str = ""
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    """When its grace period is over; None unless it is being deleted."""
    owner_references: tuple[Owner, ...] = ()


class ObjectSeen(Seen):
    """Any object."""

    metadata: Metadata

    @property
    def age(self) -> tuple[str, str]:
        """Sorts objects, oldest first, always in the same order."""
        created = self.metadata.creation_timestamp
        return (created.isoformat() if created is not None else "", self.metadata.name)


class Condition(Seen):
    """One thing that is, is not, or may be true of an object."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class JobSpec(Seen):
    """What is asked of a Job, as far as it is looked at."""

    suspend: bool = False
    completions: int = 1
    """How many pods have to succeed, each with an index of its own where there are several."""


class JobStatus(Seen):
    """Where a Job is."""

    conditions: tuple[Condition, ...] = ()


class JobSeen(ObjectSeen):
    """A Job."""

    spec: JobSpec = JobSpec()
    status: JobStatus = JobStatus()

    def condition(self, kind: str) -> Condition | None:
        """Find a condition that is true."""
        return _true(self.status.conditions, kind)

    @property
    def is_shared(self) -> bool:
        """Whether several pods share its work."""
        return self.spec.completions > 1

    @property
    def is_being_deleted(self) -> bool:
        """Whether somebody has deleted it."""
        return self.metadata.deletion_timestamp is not None

    @property
    def is_live(self) -> bool:
        """Whether Kubernetes may still start a pod of it, or one may still run.

        `Complete` and `Failed` are set when all pods are gone; `SuccessCriteriaMet` and
        `FailureTarget` before that.
        """
        return self.condition("Complete") is None and self.condition("Failed") is None


class Waiting(Seen):
    """A container that has not started."""

    reason: str = ""
    message: str = ""


class Terminated(Seen):
    """A container that has ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    """What it wrote to its termination message path."""


class ContainerState(Seen):
    """At most one of its fields is set."""

    waiting: Waiting | None = None
    running: Mapping[str, str] | None = None
    terminated: Terminated | None = None


class ContainerStatus(Seen):
    """Where a container is."""

    name: str
    image: str = ""
    state: ContainerState = ContainerState()


class Resources(Seen):
    """What a container may use."""

    limits: Mapping[str, str] = {}


class ContainerSpec(Seen):
    """A container as it was asked for."""

    name: str
    resources: Resources = Resources()


class PodSpec(Seen):
    """Where a pod is put, and what it may use."""

    containers: tuple[ContainerSpec, ...] = ()

    node_name: str = ""
    termination_grace_period_seconds: int = 30


class PodStatus(Seen):
    """Where a pod is."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()


class PodSeen(ObjectSeen):
    """A pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    def condition(self, kind: str) -> Condition | None:
        """Find a condition that is true."""
        return _true(self.status.conditions, kind)

    @property
    def index(self) -> int | None:
        """Which part of a shared Job's work it does; None where it does all."""
        index = self.metadata.annotations.get(ANNOTATION_INDEX)
        return None if index is None else int(index)

    @property
    def has_ended(self) -> bool:
        """Whether its container will never run again."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def has_succeeded(self) -> bool:
        """Whether its container has ended with 0."""
        return self.status.phase == "Succeeded"

    @property
    def has_begun(self) -> bool:
        """Whether its container runs, or has run."""
        return self.state.running is not None or self.state.terminated is not None

    @property
    def state(self) -> ContainerState:
        """Where our container is; empty until the kubelet has looked at it."""
        ours = self._ours
        return ContainerState() if ours is None else ours.state

    @property
    def image(self) -> str:
        """The image of our container, as far as it is known."""
        ours = self._ours
        return "" if ours is None else ours.image

    @property
    def memory_limit(self) -> str:
        """The memory our container may use, as it was asked for; empty for no limit."""
        limits = (s.resources.limits for s in self.spec.containers if s.name == CONTAINER)
        return next(limits, {}).get("memory", "")

    @property
    def _ours(self) -> ContainerStatus | None:
        """Leave out what an injector has added."""
        named = (CONTAINER, CONDUCTOR_CONTAINER)
        return next((s for s in self.status.container_statuses if s.name in named), None)


class Involved(Seen):
    """What an event is about."""

    uid: str = ""


class EventSeen(ObjectSeen):
    """Something a controller or a kubelet says about an object."""

    involved_object: Involved = Involved()
    reason: str = ""
    message: str = ""


class WorkloadStatus(Seen):
    """Where a Job is in its queue."""

    conditions: tuple[Condition, ...] = ()


class WorkloadSpec(Seen):
    """Which queue it is in."""

    queue_name: str = ""


class WorkloadSeen(ObjectSeen):
    """What Kueue makes of a Job."""

    spec: WorkloadSpec = WorkloadSpec()
    status: WorkloadStatus = WorkloadStatus()


class WorkloadsSeen(Seen):
    """A list of them."""

    items: tuple[WorkloadSeen, ...] = ()


class AnchorSeen(ObjectSeen):
    """The ConfigMap that owns a release's Jobs and names its live revision."""


def _true(conditions: tuple[Condition, ...], kind: str) -> Condition | None:
    return next((each for each in conditions if (each.type, each.status) == (kind, "True")), None)


class NamespaceSeen(ObjectSeen):
    """A namespace: its UID tells it from one of the same name elsewhere, or later."""


class QueuesSeen(Seen):
    """A list of LocalQueues."""

    items: tuple[ObjectSeen, ...] = ()
