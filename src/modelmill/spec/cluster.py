"""What a Kubernetes cluster offers to a run: images, store, nodes, volumes, sizes.

Closed, frozen models; part of the profile.  Names are Kubernetes' own, in the spelling of
the rest of the profile; a unit stands in the name where Kubernetes has none.  Knows no
manifest; `conduct/jobs.py` and the chart make those.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, model_validator

from modelmill.spec.closed import Spec
from modelmill.spec.names import Fsdp, Image, Kind
from modelmill.spec.quantity import Quantity

_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"

Name = Annotated[str, StringConstraints(pattern=rf"^({_SUBDOMAIN})?$", max_length=253)]
"""Of an object in the run's namespace; empty for none."""
QualifiedName = Annotated[
    str, StringConstraints(pattern=rf"^({_SUBDOMAIN}/)?{_LABEL}$", max_length=317)
]
LabelValue = Annotated[str, StringConstraints(pattern=rf"^({_LABEL})?$", max_length=63)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class Images(Spec):
    """Where the images are."""

    registry: str = Field("", pattern=r"^([a-z0-9][-a-z0-9.]*(:[0-9]+)?(/[-a-z0-9._]+)*)?$")
    """Host and path before `/modelmill-<image>`; a cluster cannot do without."""
    tag: str = Field("", pattern=r"^([A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?$")
    """Empty for the version of modelmill."""
    infer: Literal["infer", "infer-vllm"] = "infer"
    """Which image answers, for all models of a run: `infer-vllm` brings vLLM, to measure the speed
    of models that it serves fastest, and a torch of its own."""
    digests: Mapping[Image, Digest] = {}
    """By image: pins what a tag only names."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    pull_secrets: tuple[Name, ...] = ()
    """Secrets of type `kubernetes.io/dockerconfigjson`."""


class StorePlace(Spec):
    """The store as pods reach it."""

    url: str = Field("", pattern=r"^(s3://[^/]+(/.+)?)?$")
    """`s3://bucket/prefix`, one prefix per trust domain; a cluster cannot do without."""
    endpoint_url: str = Field("", pattern=r"^(https?://[^@]+)?$")
    """Empty for AWS itself."""
    region: str = ""
    credentials_secret: Name = ""
    """Secret whose key `credentials` is an AWS credentials file, mounted as one; empty where
    the ServiceAccounts have an identity of their own."""


class HubPlace(Spec):
    """Where `hf:` sources come from; only the conductor and fetch are told."""

    endpoint_url: str = Field("", pattern=r"^(https?://[^@]+)?$")
    """Of a mirror; empty for huggingface.co."""
    token_secret: Name = ""
    """Secret whose key `token` is a token of the hub, mounted as a file; empty where every source
    is public."""


class WebhookPlace(Spec):
    """Who is told that a run has ended."""

    secret: Name = ""
    """Secret whose key `url` says where to, and whose key `secret` signs it; empty for nobody."""


class CaBundle(Spec):
    """Certificates to trust, of the store and of a proxy that looks into TLS."""

    config_map: Name = ""
    key: str = Field("ca.crt", pattern=r"^[-._a-zA-Z0-9]+$")
    """All certificates in one PEM file: it replaces the images' own."""


class Proxy(Spec):
    """The way out of the cluster, as every HTTP client reads it."""

    http_proxy: str = Field("", pattern=r"^[^@]*$")
    https_proxy: str = Field("", pattern=r"^[^@]*$")
    no_proxy: str = ""
    """Hosts to reach directly, the store's among them; the API server is added."""


class Toleration(Spec):
    """A taint to put up with, spelled as in a pod."""

    model_config = ConfigDict(serialize_by_alias=True)

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(None, alias="tolerationSeconds")

    @model_validator(mode="after")
    def _api_server_takes_it(self) -> Self:
        if self.operator == "Exists" and self.value:
            msg = "value: must be empty when operator is Exists"
            raise ValueError(msg)
        if self.operator == "Equal" and not self.key:
            msg = "operator: must be Exists when there is no key"
            raise ValueError(msg)
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            msg = "effect: must be NoExecute when tolerationSeconds is given"
            raise ValueError(msg)
        return self


class PodPlace(Spec):
    """Where pods run and how they are marked."""

    node_selector: Mapping[QualifiedName, LabelValue] = {}
    tolerations: tuple[Toleration, ...] = ()
    priority_class_name: Name = ""
    runtime_class_name: Name = ""
    labels: Mapping[QualifiedName, LabelValue] = {}
    annotations: Mapping[QualifiedName, str] = {}


class PodSettings(PodPlace):
    """What every pod of a run gets, the conductor's too."""

    fs_group: int | None = Field(None, ge=1)
    """Group of mounted volumes, where the storage class gives them to root; OpenShift chooses
    it itself."""


def merged_place(every: PodPlace, own: PodPlace) -> PodPlace:
    """Lay a kind's own place over that of every pod: what both name, the kind decides."""
    return PodPlace(
        node_selector={**every.node_selector, **own.node_selector},
        tolerations=(*every.tolerations, *own.tolerations),
        priority_class_name=own.priority_class_name or every.priority_class_name,
        runtime_class_name=own.runtime_class_name or every.runtime_class_name,
        labels={**every.labels, **own.labels},
        annotations={**every.annotations, **own.annotations},
    )


class PatchOperation(Spec):
    """One step of a JSON Patch (RFC 6902)."""

    op: Literal["add", "replace", "remove"]
    path: str = Field(pattern=r"^/(spec|metadata/annotations)(/|$)")
    """What identifies a Job cannot be patched."""
    value: JsonValue = None


class StagePods(PodPlace):
    """What the pods of one kind of stage get, beside what all pods get.

    Requests equal limits.  What is left out has the default of its kind, which may differ from
    the one here; helm/modelmill/values.yaml lists them.
    """

    cpu: Quantity = "1"
    memory: Quantity = "2Gi"
    """Of the process; `shm` comes on top."""
    gpu: int = Field(0, ge=0, le=64)
    """How many; left out, 0 if `accelerator` is cpu."""
    work: Quantity = "10Gi"
    """The volume for inputs, output and what lies between."""
    work_volume: Literal["emptyDir", "ephemeral"] = "emptyDir"
    """`emptyDir`: the node's own disk; `ephemeral`: a PersistentVolumeClaim of the pod."""
    work_storage_class_name: Name = ""
    """Of an `ephemeral` volume; empty for the cluster's default."""
    tmp: Quantity = "1Gi"
    """The volume for caches and HOME."""
    shm: Quantity = "64Mi"
    """Shared memory of processes, at `/dev/shm`."""
    shards: int = Field(1, ge=1, le=64)
    """Pods that share the test rows of an infer stage, each with all of the above; of no other
    kind.  They answer as one would, and one that is killed costs its own rows only.  On one machine
    and in a project there is one process all the same."""
    ranks: int = Field(0, ge=0, le=64)
    """Processes that share each batch of a finetune stage, each with the model on a device of its
    own, and all with the above; of no other kind.  0: one for each GPU; on a machine without,
    several are of use where one cannot keep all cores busy.  The result is the same up to rounding,
    and at most as many train as `finetune.batch_size` can be divided by."""
    fsdp: Fsdp = "auto"
    """Whether each of these processes holds a part of the weights, gradients and optimizer only
    (fully sharded data parallel); of no other kind.  `auto`: where one device cannot hold all of
    it; `always` spares the attempt to find out; `never`: what does not fit one device does not fit.
    The result is the same up to rounding.  Not with `finetune.load_in`, `finetune.qat`, float16."""
    termination_grace_period_seconds: int = Field(120, ge=10, le=3600)
    """To save what can be resumed after SIGTERM."""
    queue: LabelValue = ""
    """LocalQueue of Kueue; empty for the profile's."""
    patch: tuple[PatchOperation, ...] = ()
    """Applied to the Job as rendered, where nothing else will do."""


class ConductorPod(PodPlace):
    """What the conductor gets: one small process that waits."""

    cpu: str = Field("100m", pattern=r"^[1-9][0-9]{1,2}m$")
    """Requested; the limit is one core, which it uses while it starts."""
    memory: Quantity = "256Mi"
    queue: LabelValue = ""
    """Needed where Kueue manages Jobs without a queue name too; then give it a queue of its
    own, so that a run that waits for a stage does not hold what the stage waits for."""


_Amounts: TypeAlias = Mapping[str, str | int]

_MODEL_ON_CPU: Final[_Amounts] = {
    "cpu": 4,
    "memory": "48Gi",
    "work": "100Gi",
    "tmp": "4Gi",
    "shm": "1Gi",
}
_MODEL_ON_GPU: Final[_Amounts] = {**_MODEL_ON_CPU, "cpu": 8, "work": "60Gi", "gpu": 1}

STAGE_DEFAULTS: Final[Mapping[Kind, _Amounts]] = {
    "fetch-model": {"cpu": 2, "work": "60Gi"},
    "fetch-data": {},
    "fetch-test": {},
    "fetch-adapter": {},
    "fetch-text": {},
    "finetune": {**_MODEL_ON_GPU, "termination_grace_period_seconds": 300},
    "merge": {**_MODEL_ON_CPU},
    "quantize": {**_MODEL_ON_GPU},
    "infer": {**_MODEL_ON_GPU},
    "report": {},
}
"""Where a kind differs from `StagePods`: room for seven billion parameters in 16 bits."""


def stage_pods(given: Mapping[str, Mapping[str, JsonValue]], *, has_gpu: bool) -> JsonValue:
    """Lay what was asked for over the defaults of each kind.

    Args:
        given: by kind, as a user wrote it; unknown kinds stay, for validation to name.
        has_gpu: whether a kind gets a GPU that nobody mentioned.
    """
    defaults: dict[str, _Amounts] = {str(kind): each for kind, each in STAGE_DEFAULTS.items()}
    laid: dict[str, JsonValue] = {}
    for kind in {**defaults, **given}:
        known = {**defaults.get(kind, {})}
        if not has_gpu:
            known.pop("gpu", None)
        laid[kind] = {**known, **given.get(kind, {})}
    return laid
