"""What a site of Cloudera AI says of a project, its jobs, and itself: only what somebody reads.

Parsed once, where it comes in, into frozen models.  Names are those of the description that every
site serves; a field that is zero, or the first of its enumeration, may be left out on the wire.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

ENDED: Final = frozenset(
    {
        "ENGINE_SUCCEEDED",
        "ENGINE_FAILED",
        "ENGINE_TIMEDOUT",
        "ENGINE_STOPPED",
        "ENGINE_SKIPPED",
    }
)
"""States that a run does not leave.  "We do not know", and what a later version may add, is no
end: taking it for one would start a second attempt beside the first."""


class Seen(BaseModel):
    """A part of an answer; fields that are not named are ignored, because the API grows."""

    model_config = ConfigDict(frozen=True, extra="ignore")


_VARIABLES: Final = TypeAdapter(dict[str, str])


class _WithEnvironment(Seen):
    environment: str = ""
    """JSON, although requests take an object."""

    @property
    def variables(self) -> Mapping[str, str]:
        """Read the environment; nothing where somebody else has written something else."""
        try:
            return _VARIABLES.validate_json(self.environment or "{}")
        except ValidationError:
            return {}


class JobSeen(_WithEnvironment):
    """A job: what its runs begin with."""

    id: str
    name: str = ""
    script: str = ""
    cpu: float = 0.0
    memory: float = 0.0
    nvidia_gpu: int = 0
    runtime_identifier: str = ""
    accelerator_label_id: str = ""
    timeout: int = 0
    kill_on_timeout: bool = False
    created_at: datetime | None = None


class RunSeen(_WithEnvironment):
    """A run of a job; the API tells neither its exit code nor what it has printed."""

    id: str
    job_id: str = ""
    # The first of an enumeration may be left out on the wire.
    status: str = "ENGINE_SCHEDULING"
    cpu: float = 0.0
    memory: float = 0.0
    nvidia_gpu: int = 0
    runtime_identifier: str = ""
    created_at: datetime

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.status not in ENDED


class JobRequest(BaseModel):
    """What a job is to be; spelled as the API spells it."""

    model_config = ConfigDict(frozen=True)

    name: str
    script: str
    cpu: float
    memory: float
    """GiB, which the API calls GB."""
    nvidia_gpu: int
    runtime_identifier: str
    environment: Mapping[str, str]
    accelerator_label_id: str = ""
    timeout: int = 0
    """Seconds; 0 for the site's own limit."""
    kill_on_timeout: bool = False

    def differs_from(self, job: JobSeen) -> dict[str, JsonValue]:
        """Name the settings in which a job is another one, with what they should be."""
        wanted = self.model_dump(mode="json", exclude={"name", "environment"})
        return {name: value for name, value in wanted.items() if getattr(job, name) != value}


class Permissions(Seen):
    """What the owner of a key may do in a project; all false where a site leaves it out."""

    read: bool = False
    write: bool = False
    admin: bool = False


class ProjectSeen(_WithEnvironment):
    """A project."""

    name: str = ""
    default_engine_type: str = ""
    permissions: Permissions | None = None
    shared_memory_limit: int = 0
    """MB, beside the memory of a job."""


class RuntimeSeen(Seen):
    """A Runtime of the catalogue."""

    image_identifier: str = ""
    kernel: str = ""
    """Such as `Python 3.12`."""
    status: str = "ENABLED"


class AcceleratorSeen(Seen):
    """A kind of GPU that the site has."""

    id: str = ""
    label_value: str = ""
    availability: bool = False
    max_gpu_per_workload: int = 0


class ResourceGroupSeen(Seen):
    """Nodes of one kind."""

    name: str = ""
    cpu_count: int = 0
    memory_in_gib: int = 0
    allow_jobs: bool = False


class Jobs(Seen):
    """A page of jobs."""

    jobs: tuple[JobSeen, ...] = ()
    next_page_token: str = ""


class Runs(Seen):
    """A page of runs."""

    job_runs: tuple[RunSeen, ...] = ()
    next_page_token: str = ""


class Runtimes(Seen):
    """A page of the catalogue."""

    runtimes: tuple[RuntimeSeen, ...] = ()
    next_page_token: str = ""


class Accelerators(Seen):
    """A page of kinds of GPUs."""

    accelerator_node_label: tuple[AcceleratorSeen, ...] = ()
    next_page_token: str = ""


class ResourceGroups(Seen):
    """A page of kinds of nodes."""

    resource_group: tuple[ResourceGroupSeen, ...] = ()
    next_page_token: str = ""
