"""Every name that more than one layer must spell the same way.

Kinds, environments, environment variables and store keys.  Pure; knows nothing about
what the names are used for.
"""

import re
from typing import Final, Literal, get_args

Kind = Literal[
    "fetch-model",
    "fetch-data",
    "fetch-test",
    "fetch-adapter",
    "fetch-text",
    "finetune",
    "merge",
    "quantize",
    "infer",
    "report",
]
"""What a stage does.  A stage's name is its kind, or its kind and its variant."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Fsdp = Literal["auto", "always", "never"]
"""Whether the processes of a finetune hold a part of the weights each."""

Environment = Literal["light", "train", "quantize"]
"""The locked set of packages a stage runs with: an image, or a local environment."""

ENVIRONMENT_OF: Final[dict[Kind, Environment]] = {
    "fetch-model": "light",
    "fetch-data": "light",
    "fetch-test": "light",
    "fetch-adapter": "light",
    "fetch-text": "light",
    "finetune": "train",
    "merge": "train",
    "quantize": "quantize",
    "infer": "quantize",
    "report": "light",
}

Image = Literal["light", "finetune", "merge", "quantize", "infer", "infer-vllm"]
"""A container image, `<registry>/modelmill-<image>`."""

IMAGE_OF: Final[dict[Kind, Image]] = {
    "fetch-model": "light",
    "fetch-data": "light",
    "fetch-test": "light",
    "fetch-adapter": "light",
    "fetch-text": "light",
    "finetune": "finetune",
    "merge": "merge",
    "quantize": "quantize",
    "infer": "infer",
    "report": "light",
}

DEVICE_DEPENDENT: Final[frozenset[Kind]] = frozenset({"finetune", "quantize", "infer"})
"""Kinds whose numbers depend on the accelerator class.  A merge is exact arithmetic."""

Gguf = Literal["f16", "q8_0", "q4_0"]
"""How weights are held in a GGUF file that is exported, in llama.cpp's words."""

GGUFS: Final[tuple[Gguf, ...]] = get_args(Gguf)


def gguf_name(name: str, gguf: Gguf) -> str:
    """Name a model's file as llama.cpp's users do, who choose by its end."""
    return f"{name}-{gguf.upper()}.gguf"


CONDUCTOR_ACCOUNT: Final = "modelmill-conductor"
STAGE_ACCOUNT: Final = "modelmill-stage"
"""ServiceAccounts, once per namespace; workload identity binds to fixed names."""

ENV_STORE: Final = "MODELMILL_STORE"
"""Where everything lives: `s3://bucket/prefix`."""
ENV_SINGLE_WRITER: Final = "MODELMILL_SINGLE_WRITER"
"""Set where the store has no conditional writes and nobody else writes to it."""
ENV_RUN: Final = "MODELMILL_RUN"
"""The name of the run."""
ENV_STAGE: Final = "MODELMILL_STAGE"
"""The name of the stage."""
ENV_PLAN_SHA256: Final = "MODELMILL_PLAN_SHA256"
"""Which immutable plan of the run the stage belongs to."""
ENV_ATTEMPT: Final = "MODELMILL_ATTEMPT"
"""The attempt id the conductor chose; made up by the stage itself when absent."""
ENV_WORK: Final = "MODELMILL_WORK"
"""The folder stages may write to; shared by the attempts of one machine, which go on from what
a killed one has fetched."""
ENV_WORK_BYTES: Final = "MODELMILL_WORK_BYTES"
"""The volume's own limit where the file system cannot tell it."""
ENV_HALVINGS: Final = "MODELMILL_HALVINGS"
"""How often finetune halves its micro-batch, after attempts that were killed for memory."""
ENV_SHARD: Final = "MODELMILL_SHARD"
"""Which part of the rows infer answers, counted from 0; absent: all of them."""
ENV_SHARDS: Final = "MODELMILL_SHARDS"
"""How many parts there are."""
ENV_RANKS: Final = "MODELMILL_RANKS"
"""How many processes of a finetune train together; absent: one on each device."""
ENV_FSDP: Final = "MODELMILL_FSDP"
"""Whether these processes hold a part of the weights each; absent: where one cannot hold all."""
ENV_CHECKPOINT_SECONDS: Final = "MODELMILL_CHECKPOINT_SECONDS"
"""How often a fine-tune saves what it can go on from; absent: every 300 s."""
ENV_GRACE_SECONDS: Final = "MODELMILL_GRACE_SECONDS"
"""How long a stage that is asked to stop may live on; absent: nobody knows."""
ENV_HUNG_AFTER_SECONDS: Final = "MODELMILL_HUNG_AFTER_SECONDS"
"""How long a stage may make no progress before it is taken for hung; absent: for ever."""
ENV_PROGRESS_FILE: Final = "MODELMILL_PROGRESS_FILE"
"""Where a conductor on the same machine reads progress more often than the store's 15 s."""
ENV_TERMINATION: Final = "MODELMILL_TERMINATION"
"""The file for an attempt's last words; a pod's termination message path."""
ENV_PARENT_PID: Final = "MODELMILL_PARENT_PID"
"""A process whose death the stage must not survive."""

ENV_KEY: Final = "MODELMILL_KEY"
"""In a project: the key of the stage, by which a conductor finds the attempt again."""
ENV_NUMBER: Final = "MODELMILL_NUMBER"
"""In a project: the number of the attempt, likewise."""

ENV_PROBE: Final = "MODELMILL_PROBE"
"""In a project: the object of the store that a trial job leaves its last words in."""

ENV_CONDUCTOR: Final = "MODELMILL_CONDUCTOR"
"""For a conductor in a project: its name, so that a later one can take over."""
ENV_HOME: Final = "MODELMILL_HOME"
"""The folder of the environments; `.modelmill` when absent."""

HUB_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables that hold a token of the hub: for fetch, and no other stage."""

ENV_WEBHOOK_FOLDER: Final = "MODELMILL_WEBHOOK_FOLDER"
"""Where the next two are files `url` and `secret`, as a pod is given them."""
ENV_WEBHOOK_URL: Final = "MODELMILL_WEBHOOK_URL"
"""Whom a conductor tells that a run has ended."""
ENV_WEBHOOK_SECRET: Final = "MODELMILL_WEBHOOK_SECRET"  # noqa: S105 - a name
"""What it signs that with: `whsec_` and base64."""

WEBHOOK_VARIABLES: Final = (ENV_WEBHOOK_FOLDER, ENV_WEBHOOK_URL, ENV_WEBHOOK_SECRET)
"""For conductors, and no stage."""

ENV_NAMESPACE: Final = "MODELMILL_NAMESPACE"
"""For a conductor on Kubernetes: the namespace it and its stages are in."""
ENV_REVISION: Final = "MODELMILL_REVISION"
"""For a conductor on Kubernetes: its revision, as the anchor names the live one."""
ENV_ANCHOR: Final = "MODELMILL_ANCHOR"
"""For a conductor on Kubernetes: the ConfigMap that owns the run's Jobs."""
ENV_CONDUCTOR_JOB: Final = "MODELMILL_CONDUCTOR_JOB"
"""For a conductor on Kubernetes: its own Job."""

LABEL_RUN: Final = "modelmill/run"
LABEL_STAGE: Final = "modelmill/stage"
LABEL_KEY: Final = "modelmill/key"
"""The first characters of the key; the annotation of the same name has all of it."""
ANNOTATION_SHAPE: Final = "modelmill/shape"
"""A digest of what a Job would be for any plan and attempt: differs where the profile does."""
LABEL_REVISION: Final = "modelmill/revision"
LABEL_ATTEMPT: Final = "modelmill/attempt"
LABEL_ROLE: Final = "modelmill/role"
"""`conductor`, `fetch` or `stage`: what network policies choose by."""
LABEL_QUEUE: Final = "kueue.x-k8s.io/queue-name"
ANNOTATION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
"""Kubernetes' own: which of an Indexed Job's pods this is."""
LABEL_JOB: Final = "batch.kubernetes.io/job-name"

CONTAINER: Final = "stage"
"""The one container of a stage's pod."""
CONDUCTOR_CONTAINER: Final = "conductor"

COMMITTED: Final = "COMMITTED.json"
WITHDRAWN: Final = "WITHDRAWN.json"
"""What `COMMITTED.json` becomes for as long as a removal can be undone."""
MEASUREMENTS: Final = "measurements.json"
PROMPT: Final = "prompt.json"
PREDICTIONS: Final = "predictions.jsonl"
FINGERPRINTS: Final = "fingerprints.json"
NEAR_PRINTS: Final = "near"
"""Prompts by 64-bit digest, by split: overlap with the test rows can be counted without
giving training stages a look at them."""

RUN_NAME_LIMIT: Final = 20
"""So that `<run>-<stage>-<key8>-a<n>` stays a legal pod name."""
VARIANT_LIMIT: Final = 12

SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")
"""The only shape of a key segment we write or follow.  SeaweedFS rewrites `\\`, control
characters, NFD and `%41`, so a key outside this grammar can name two objects or none."""

RUN_NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""A DNS label that starts with a letter: legal as a Helm release and a Service name."""


def field_prints(name: str, split: str) -> str:
    """Name the fingerprints of a field's values in a split."""
    return f"field/{name}/{split}"


def is_fetch(kind: Kind) -> bool:
    """Tell whether stages of a kind read sources, the only ones that look outside the store."""
    return kind.startswith("fetch-")


def kind_of(stage: str) -> Kind:
    """Read what a stage does from its name.

    Raises:
        ValueError: no kind has that name.
    """
    for kind in KINDS:
        if stage == kind or stage.startswith(f"{kind}-"):
            return kind
    raise ValueError(stage)


def artifact_prefix(kind: Kind, key: str) -> str:
    """Name the folder of one committed or future artifact.

    A report belongs to its run and not to the cache; its key is made by `report_key`.
    """
    if kind == "report":
        run, _, digest = key.partition(".")
        return f"{run_prefix(run)}/reports/{digest}"
    return f"artifacts/{kind}/{key}"


def report_key(run: str, digest: str) -> str:
    """Name the report of one run on one state of its stages."""
    return f"{run}.{digest}"


def checkpoint_prefix(key: str) -> str:
    """Name the folder that holds what an unfinished stage can go on from."""
    return f"checkpoints/{key}"


def live_name(key: str) -> str:
    """Name the document that says who works on a key."""
    return f"{checkpoint_prefix(key)}/LIVE.json"


def run_prefix(run: str) -> str:
    """Name the folder of everything that belongs to one run and not to the cache."""
    return f"runs/{run}"


def source_prefix(sha256: str) -> str:
    """Name the folder of an uploaded local source, addressed by its content."""
    return f"sources/{sha256}"
