"""Render the pod of a stage: one container, its volumes, and what it is told.

Pure.  The pod passes Pod Security *restricted* under any UID: it names no user, so that
OpenShift can.  Conventions about where things lie are shared with the chart's conductor.
"""

from importlib.metadata import version
from typing import Final

from pydantic import JsonValue

from modelmill.conduct.backend import Order
from modelmill.spec.cluster import PodPlace, StagePods, merged_place
from modelmill.spec.names import (
    ANNOTATION_INDEX,
    CONTAINER,
    ENV_ATTEMPT,
    ENV_CHECKPOINT_SECONDS,
    ENV_FSDP,
    ENV_GRACE_SECONDS,
    ENV_HALVINGS,
    ENV_HUNG_AFTER_SECONDS,
    ENV_PLAN_SHA256,
    ENV_RANKS,
    ENV_RUN,
    ENV_SHARD,
    ENV_SHARDS,
    ENV_STAGE,
    ENV_STORE,
    ENV_TERMINATION,
    ENV_WORK,
    ENV_WORK_BYTES,
    IMAGE_OF,
    STAGE_ACCOUNT,
    Image,
    Kind,
    is_fetch,
    kind_of,
)
from modelmill.spec.profile import Profile
from modelmill.spec.quantity import total, whole_bytes

WORK: Final = "/scratch"
TMP: Final = "/tmp"  # noqa: S108 - a volume of the pod's own
TERMINATION: Final = "/dev/termination-log"
CREDENTIALS: Final = "/run/modelmill/store"
HUB_TOKEN: Final = "/run/modelmill/hub"  # noqa: S105 - where it is
CA_BUNDLE: Final = "/run/modelmill/ca"

LOGS: Final = "128Mi"
"""What the node keeps of a container's output counts as its ephemeral storage."""
NODE_TROUBLE_SECONDS: Final = 60
"""How long a node may be silent before its pod is replaced; Kubernetes waits five minutes."""


def stage_pod(order: Order, run: str, profile: Profile) -> dict[str, JsonValue]:
    """Render the pod's spec."""
    kind = kind_of(order.stage)
    pods = profile.stages[kind]
    place = merged_place(profile.pods, pods)
    security: dict[str, JsonValue] = {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if profile.pods.fs_group is not None:
        security["fsGroup"] = profile.pods.fs_group
    return {
        "restartPolicy": "Never",
        "serviceAccountName": STAGE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pods.termination_grace_period_seconds,
        "securityContext": security,
        **_where(place, pods, profile),
        "containers": [_container(order, run, profile, kind)],
        "volumes": _volumes(kind, pods, profile),
    }


def image_for(kind: Kind, profile: Profile) -> Image:
    """Say which image runs a kind of stage."""
    return profile.images.infer if kind == "infer" else IMAGE_OF[kind]


def image_of(image: Image, profile: Profile) -> str:
    """Name an image by its digest, or by its tag where none is pinned."""
    images = profile.images
    name = f"{images.registry}/modelmill-{image}" if images.registry else f"modelmill-{image}"
    digest = images.digests.get(image)
    return f"{name}@{digest}" if digest else f"{name}:{images.tag or version('modelmill')}"


def _where(place: PodPlace, pods: StagePods, profile: Profile) -> dict[str, JsonValue]:
    tolerations: list[JsonValue] = [
        {
            "key": f"node.kubernetes.io/{trouble}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": NODE_TROUBLE_SECONDS,
        }
        for trouble in ("not-ready", "unreachable")
    ]
    if pods.gpu:
        tolerations.append(
            {"key": profile.gpu_resource_name, "operator": "Exists", "effect": "NoSchedule"}
        )
    tolerations += [each.model_dump(exclude_defaults=True) for each in place.tolerations]
    optional: dict[str, JsonValue] = {
        "nodeSelector": dict(place.node_selector),
        "priorityClassName": place.priority_class_name,
        "runtimeClassName": place.runtime_class_name,
        "imagePullSecrets": [{"name": name} for name in profile.images.pull_secrets],
    }
    return {"tolerations": tolerations, **{key: each for key, each in optional.items() if each}}


def _container(order: Order, run: str, profile: Profile, kind: Kind) -> dict[str, JsonValue]:
    pods = profile.stages[kind]
    resources = _resources(pods, profile)
    return {
        "name": CONTAINER,
        "image": image_of(image_for(kind, profile), profile),
        "imagePullPolicy": profile.images.pull_policy,
        # Not `command`: the image's entrypoint is an init that reaps and passes signals on.
        "args": ["python", "-m", "modelmill.stages"],
        "env": [
            *_told(order, run, pods, profile),
            *_libraries(kind, pods),
            *_store(profile),
            *_hub(kind, profile),
            *_network(profile),
        ],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": TERMINATION,
        "terminationMessagePolicy": "File",
        "volumeMounts": _mounts(kind, profile),
    }


def _resources(pods: StagePods, profile: Profile) -> dict[str, JsonValue]:
    own_disk = (pods.work,) if pods.work_volume == "emptyDir" else ()
    resources: dict[str, JsonValue] = {
        "cpu": pods.cpu,
        # A volume in memory is charged to the container that writes to it.
        "memory": total(pods.memory, pods.shm),
        "ephemeral-storage": total(*own_disk, pods.tmp, LOGS),
    }
    if pods.gpu:
        resources[profile.gpu_resource_name] = str(pods.gpu)
    return resources


def _told(order: Order, run: str, pods: StagePods, profile: Profile) -> list[JsonValue]:
    """What the entrypoint reads; a replaced pod is another attempt, so its UID is the id."""
    told = {
        ENV_STORE: profile.store.url,
        ENV_RUN: run,
        ENV_STAGE: order.stage,
        ENV_PLAN_SHA256: order.plan_sha256,
        ENV_WORK: WORK,
        ENV_TERMINATION: TERMINATION,
        ENV_CHECKPOINT_SECONDS: str(profile.checkpoint_seconds),
        ENV_GRACE_SECONDS: str(pods.termination_grace_period_seconds),
        ENV_HUNG_AFTER_SECONDS: str(profile.hung_after_seconds),
    }
    if order.halvings:
        told[ENV_HALVINGS] = str(order.halvings)
    if pods.ranks:
        told[ENV_RANKS] = str(pods.ranks)
    if pods.fsdp != "auto":
        told[ENV_FSDP] = pods.fsdp
    if pods.work_volume == "emptyDir":
        # Over this limit the kubelet evicts; the file system would show the node's space.
        told[ENV_WORK_BYTES] = str(whole_bytes(pods.work))
    from_pod = [_from_pod(ENV_ATTEMPT, "metadata.uid")]
    if pods.shards > 1:
        told[ENV_SHARDS] = str(pods.shards)
        from_pod.append(_from_pod(ENV_SHARD, f"metadata.annotations['{ANNOTATION_INDEX}']"))
    return [*_values(told), *from_pod]


def _libraries(kind: Kind, pods: StagePods) -> list[JsonValue]:
    settings = {
        # A UID without a passwd entry: getpass, and torch at import, ask for these.
        "USER": "modelmill",
        "LOGNAME": "modelmill",
        "HOME": TMP,
        "TMPDIR": TMP,
        "XDG_CACHE_HOME": f"{TMP}/.cache",
        "HF_HOME": f"{TMP}/.cache/huggingface",
        # Images say 1 as well; only fetch has anything to look for.
        "HF_HUB_OFFLINE": "0" if is_fetch(kind) else "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        # Threads that spin at barriers starve each other: see conduct/local.py.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not pods.gpu:
        # CUDA images say `all`, and some nodes' runtimes believe it without a request.
        settings["NVIDIA_VISIBLE_DEVICES"] = "void"
    threads: JsonValue = {
        # Libraries count the node's cores and would share this pod's among as many threads.
        "name": "OMP_NUM_THREADS",
        "valueFrom": {"resourceFieldRef": {"containerName": CONTAINER, "resource": "limits.cpu"}},
    }
    return [*_values(settings), threads]


def _store(profile: Profile) -> list[JsonValue]:
    """Tell the AWS SDK by its own names."""
    store = profile.store
    settings = {"AWS_ENDPOINT_URL": store.endpoint_url, "AWS_DEFAULT_REGION": store.region}
    if store.credentials_secret:
        settings["AWS_SHARED_CREDENTIALS_FILE"] = f"{CREDENTIALS}/credentials"
        # What the file does not say, no node's identity may.
        settings["AWS_EC2_METADATA_DISABLED"] = "true"
    return _values({name: value for name, value in settings.items() if value})


def _hub(kind: Kind, profile: Profile) -> list[JsonValue]:
    """Tell fetch, and nobody else, where the hub is and who it is there."""
    if not is_fetch(kind):
        return []
    settings = {"HF_ENDPOINT": profile.hub.endpoint_url}
    if profile.hub.token_secret:
        settings["HF_TOKEN_PATH"] = f"{HUB_TOKEN}/token"
    return _values({name: value for name, value in settings.items() if value})


def _network(profile: Profile) -> list[JsonValue]:
    proxy, settings = profile.proxy, dict[str, str]()
    settings["HTTP_PROXY"] = proxy.http_proxy
    settings["HTTPS_PROXY"] = proxy.https_proxy
    settings["NO_PROXY"] = proxy.no_proxy
    if profile.ca_bundle.config_map:
        path = f"{CA_BUNDLE}/{profile.ca_bundle.key}"
        settings |= dict.fromkeys(("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), path)
    return _values({name: value for name, value in settings.items() if value})


def _values(settings: dict[str, str]) -> list[JsonValue]:
    return [{"name": name, "value": value} for name, value in settings.items()]


def _from_pod(name: str, path: str) -> JsonValue:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _mounts(kind: Kind, profile: Profile) -> list[JsonValue]:
    mounts: list[JsonValue] = [
        {"name": "work", "mountPath": WORK},
        {"name": "tmp", "mountPath": TMP},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - a volume of the pod's own
    ]
    if profile.store.credentials_secret:
        mounts.append({"name": "store", "mountPath": CREDENTIALS, "readOnly": True})
    if profile.hub.token_secret and is_fetch(kind):
        mounts.append({"name": "hub", "mountPath": HUB_TOKEN, "readOnly": True})
    if profile.ca_bundle.config_map:
        mounts.append({"name": "ca", "mountPath": CA_BUNDLE, "readOnly": True})
    return mounts


def _volumes(kind: Kind, pods: StagePods, profile: Profile) -> list[JsonValue]:
    volumes: list[JsonValue] = [
        {"name": "work", **_work_volume(pods)},
        {"name": "tmp", "emptyDir": {"sizeLimit": pods.tmp}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pods.shm}},
    ]
    if profile.store.credentials_secret:
        volumes.append(_secret("store", profile.store.credentials_secret, "credentials"))
    if profile.hub.token_secret and is_fetch(kind):
        volumes.append(_secret("hub", profile.hub.token_secret, "token"))
    if profile.ca_bundle.config_map:
        key = profile.ca_bundle.key
        bundle: JsonValue = {
            "name": profile.ca_bundle.config_map,
            "items": [{"key": key, "path": key}],
        }
        volumes.append({"name": "ca", "configMap": bundle})
    return volumes


def _secret(name: str, secret: str, key: str) -> JsonValue:
    """Mount one key of a Secret as the file of that name."""
    return {
        "name": name,
        "secret": {"secretName": secret, "items": [{"key": key, "path": key}]},
    }


def _work_volume(pods: StagePods) -> dict[str, JsonValue]:
    if pods.work_volume == "emptyDir":
        return {"emptyDir": {"sizeLimit": pods.work}}
    claim: dict[str, JsonValue] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": pods.work}},
    }
    if pods.work_storage_class_name:
        claim["storageClassName"] = pods.work_storage_class_name
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
