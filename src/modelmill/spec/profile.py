"""What the place offers: the closed, frozen model of a profile.

A profile never changes what is asked for, only where and with how much of it it runs;
the two facts that numbers depend on (`accelerator`, `dtype`) enter the plan by name.
"""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from modelmill.spec.closed import Dtype, Spec
from modelmill.spec.cluster import (
    CaBundle,
    ConductorPod,
    HubPlace,
    Images,
    PodSettings,
    Proxy,
    QualifiedName,
    StagePods,
    StorePlace,
    WebhookPlace,
    stage_pods,
)
from modelmill.spec.errors import Problem, SpecError
from modelmill.spec.names import DEVICE_DEPENDENT, Kind
from modelmill.spec.prices import DeviceName, Prices
from modelmill.spec.project import ProjectPlace


class Profile(Spec):
    """Facts about one place."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` looks for a CUDA device once, when the run is planned; on Kubernetes it is `cuda`
    if stages get a GPU."""
    dtype: Literal["auto"] | Dtype = "auto"
    """Compute dtype of quality measurements where the spec leaves it open."""
    max_parallel: int = Field(1, ge=1, le=64)
    """Stages that may run at the same time."""
    max_attempts: int = Field(3, ge=1, le=20)
    """Counted attempts per stage before it has finally failed; one that saved something to go on
    from is the first again."""
    gpu_type: Literal[""] | DeviceName = ""
    """Which GPU stages get, as `plan --accelerator` calls it: hours and prices are foretold for
    it.  A name of your own for one that is unknown there: its hours are counted, not foretold."""
    prices: Prices = Prices()
    node_lost_after_seconds: int = Field(300, ge=1, le=86_400)
    """How long a pod may be Terminating past its grace before it is deleted by force."""
    checkpoint_seconds: int = Field(300, ge=1, le=86_400)
    """How often a fine-tune saves what an interruption must not lose."""
    hung_after_seconds: int = Field(3600, ge=600, le=604_800)
    """How long a stage may make no progress before it is taken for hung: it writes where all its
    threads are into its log and ends with 71, for another attempt.  A store that is away may
    take 300 of them."""
    queue: str = Field("", pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
    """LocalQueue of Kueue for every stage; empty for none."""
    gpu_resource_name: QualifiedName = "nvidia.com/gpu"
    """What a node calls its GPUs; a taint of that name is tolerated."""
    images: Images = Images()
    store: StorePlace = StorePlace()
    hub: HubPlace = HubPlace()
    webhook: WebhookPlace = WebhookPlace()
    ca_bundle: CaBundle = CaBundle()
    proxy: Proxy = Proxy()
    pods: PodSettings = PodSettings()
    conductor: ConductorPod = ConductorPod()
    cml: ProjectPlace = ProjectPlace()
    stages: Mapping[Kind, StagePods] = Field({}, validate_default=True)
    """By kind of stage, laid over the defaults of the kind."""

    @field_validator("stages", mode="before")
    @classmethod
    def _kinds_have_defaults(cls, given: JsonValue, info: ValidationInfo) -> JsonValue:
        """Complete every kind, so that the model written out means the same read again."""
        if not isinstance(given, dict) or not all(isinstance(v, dict) for v in given.values()):
            return given
        has_gpu = info.data.get("accelerator") != "cpu"
        return stage_pods({k: v for k, v in given.items() if isinstance(v, dict)}, has_gpu=has_gpu)

    @model_validator(mode="after")
    def _accelerator_is_there(self) -> Self:
        without = [kind for kind in sorted(DEVICE_DEPENDENT) if not self.stages[kind].gpu]
        if self.accelerator == "cuda" and without:
            msg = f"stages.{without[0]}.gpu: accelerator is cuda, so it needs one"
            raise ValueError(msg)
        if self.accelerator == "auto" and 0 < len(without) < len(DEVICE_DEPENDENT):
            msg = (
                f"stages.{without[0]}.gpu: other kinds have one; give it one too, or say which "
                "`accelerator` all of them count with"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _gpu_has_its_price(self) -> Self:
        if self.gpu_type == "cpu":
            raise ValueError("gpu_type: a cpu is none; leave it out")
        listed = self.prices.per_hour
        if listed and self.gpu_type and self.gpu_type not in listed:
            msg = f"prices.per_hour: has no '{self.gpu_type}', which is the gpu_type"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _only_finetune_has_ranks(self) -> Self:
        for kind, pods in self.stages.items():
            if kind != "finetune" and pods.ranks:
                msg = f"stages.{kind}.ranks: only finetune has several processes"
                raise ValueError(msg)
            if kind != "finetune" and pods.fsdp != "auto":
                msg = f"stages.{kind}.fsdp: only finetune has several processes"
                raise ValueError(msg)
            if pods.gpu and pods.ranks > pods.gpu:
                msg = f"stages.{kind}.ranks: each needs a GPU, and gpu is {pods.gpu}"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _only_infer_is_shared(self) -> Self:
        for kind, pods in self.stages.items():
            if kind != "infer" and pods.shards > 1:
                msg = f"stages.{kind}.shards: only infer can be shared by several pods"
                raise ValueError(msg)
        return self


class Facts(Spec):
    """The profile's facts that enter keys, with nothing left open."""

    accelerator: Literal["cpu", "cuda"]
    dtype: Dtype


def cluster_facts(profile: Profile) -> Facts:
    """Close what the profile leaves open, where stages run elsewhere than their conductor.

    Nodes without a GPU may differ, and float32 is what all of them have.
    """
    accelerator = profile.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if profile.stages["infer"].gpu else "cpu"
    dtype = profile.dtype
    if dtype == "auto":
        dtype = "bfloat16" if accelerator == "cuda" else "float32"
    return Facts(accelerator=accelerator, dtype=dtype)


def check_cluster(profile: Profile, source: str) -> Profile:
    """Return the profile unchanged if it has what a cluster cannot do without.

    Raises:
        SpecError: naming everything that is missing.
    """
    needed = {"images.registry": profile.images.registry, "store.url": profile.store.url}
    missing = [Problem(key, "required on Kubernetes") for key, value in needed.items() if not value]
    if missing:
        raise SpecError(source, missing)
    return profile


def check_project(profile: Profile, source: str) -> Profile:
    """Return the profile unchanged if it has what a project cannot do without.

    Raises:
        SpecError: naming everything that is missing.
    """
    needed = {
        "cml.runtimes.light": profile.cml.runtimes.get("light"),
        "store.url": profile.store.url,
    }
    missing = [Problem(key, "required on CML") for key, value in needed.items() if not value]
    if missing:
        raise SpecError(source, missing)
    return profile


def queues_of(profile: Profile) -> frozenset[str]:
    """Name every LocalQueue that Jobs of a run are put into."""
    asked = {pods.queue or profile.queue for pods in profile.stages.values()}
    return frozenset({*asked, profile.conductor.queue} - {""})
