"""The documents stages leave behind: manifest, measurements, predictions, events.

Closed, frozen models, written once and never changed.  Readers of a later version must
read what an earlier one wrote: new fields get defaults, old ones keep their meaning.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from modelmill.spec.names import Kind
from modelmill.spec.settings import Pin


class Record(BaseModel):
    """A closed document."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileRecord(Record):
    """One file of an artifact."""

    path: str
    size_bytes: int
    sha256: str


class Device(Record):
    """What a stage ran on."""

    accelerator: Literal["cpu", "cuda"]
    name: str
    count: int = 1


class InputRecord(Record):
    """Exactly which commit a stage was given."""

    kind: Kind
    key: str
    manifest_sha256: str


class Manifest(Record):
    """What a commit is: the only document that makes an artifact exist."""

    format: Literal[1] = 1
    kind: Kind
    key: str
    stage: str
    run: str
    """The run that made it; others adopt it."""
    attempt: str
    created: str
    """UTC, ISO 8601."""
    settings: Mapping[str, JsonValue]
    """As asked, canonical."""
    effective: Mapping[str, JsonValue] = {}
    """What the device made of them: precision, micro-batch, world size."""
    inputs: Mapping[str, InputRecord]
    """By role, the name the stage function knows them by."""
    versions: Mapping[str, str]
    device: Device
    files: tuple[FileRecord, ...]


class Part(Record):
    """One timed part of a stage: pull, load, work, save, push."""

    name: str
    seconds: float
    bytes: int = 0


class ModelFetched(Record):
    """What fetch-model found."""

    kind: Literal["fetch-model"] = "fetch-model"
    architecture: str
    parameters: int
    size_bytes: int
    dtype: str


class SourceRows(Record):
    """What one of several sources contributes to the training rows."""

    address: str
    """As pinned."""
    weight: float
    rows: int
    """Left to learn from after the eval share."""
    taken: int
    """By weight: some twice, or only some."""


class DataFetched(Record):
    """What fetch-data or fetch-test found."""

    kind: Literal["fetch-data"] = "fetch-data"
    rows: Mapping[str, int]
    """By split: train, eval, test."""
    duplicates: Mapping[str, int]
    """Rows equal to an earlier row of the same split."""
    overlap: Mapping[str, int] = {}
    """Rows of one split whose prompt stands in another, by `train/eval`."""
    sources: tuple[SourceRows, ...] = ()
    """Of train, where it is a list; `duplicates` counts before rows are taken by weight."""


class CurvePoint(Record):
    """One logged step of training."""

    step: int
    epoch: float
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None


class Finetuned(Record):
    """How training went."""

    kind: Literal["finetune"] = "finetune"
    steps: int
    train_rows: int
    eval_rows: int
    too_long: int = 0
    """Rows dropped because they exceed max_length."""
    tokens: int
    trainable_parameters: int
    parameters: int
    micro_batch_size: int
    precision: str
    precision_reason: str
    best_step: int | None = None
    best_eval_loss: float | None = None
    curve: tuple[CurvePoint, ...]


class Merged(Record):
    """What the merge proved about itself."""

    kind: Literal["merge"] = "merge"
    dtype: str
    size_bytes: int
    adapter_tensors: int
    prompts: int
    effect: float
    """Relative change of the logits that the adapter makes on its base."""
    difference: float
    """Relative difference of merged and adapter logits, as a share of `effect`."""
    bound: float
    noise_floor: float
    """Below this relative effect nothing can be told apart from rounding."""
    training_distance: float | None = None
    """For a quantized training base: distance of the merged model to the model that was
    trained, as a share of `effect`.  Reported, not bounded."""


class Quantized(Record):
    """What the quantizer wrote."""

    kind: Literal["quantize"] = "quantize"
    method: str
    bits: int
    group_size: int | None = None
    modules: int
    size_bytes: int
    parameters: int
    bits_per_weight: float
    """All bytes of the weight files over all parameters, embeddings included."""
    calibration_rows: int = 0
    calibration_tokens: int = 0


class Inferred(Record):
    """How a model answered a file of prompts."""

    kind: Literal["infer"] = "infer"
    rows: int
    quarantined: int
    generated_tokens: int
    generate_seconds: float
    tokens_per_second: float
    engine: str
    dtype: str
    device: str
    batch_size: int
    method: str
    bits: int
    size_bytes: int
    """Weight files on disk."""
    parameters: int
    prompt_form: str
    """`contract`, `chat` or `3-shot`."""


class Reported(Record):
    """What the report covers."""

    kind: Literal["report"] = "report"
    models: int


Figures = Annotated[
    ModelFetched | DataFetched | Finetuned | Merged | Quantized | Inferred | Reported,
    Field(discriminator="kind"),
]


class Measurements(Record):
    """What a stage cost and what it found, committed beside its output."""

    parts: tuple[Part, ...]
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int = 0
    bytes_in: int
    bytes_out: int
    figures: Figures
    effective: Mapping[str, JsonValue] = {}
    warnings: tuple[str, ...] = ()
    """Sentences the report must show."""


class Row(Record):
    """One checked and rendered example, as fetch commits it."""

    row: int
    """0-based position in its source; survives sorting, batching and resuming."""
    prompt: str
    completion: str
    fields: Mapping[str, JsonValue]
    """The source row, for metrics and slices."""


class Prediction(Record):
    """One answered row; carries what scoring needs, so that scoring needs nothing else."""

    row: int
    prompt: str
    reference: str
    fields: Mapping[str, JsonValue]
    output: str
    tokens: int = 0
    """Generated tokens."""
    nll: float | None = None
    """Mean negative log-likelihood of the reference's tokens and its end, in nats."""
    nll_tokens: int = 0
    error: str = ""
    """Why the row was quarantined; such a row has no output."""


class Event(Record):
    """One thing that happened to a run, as the conductor saw it."""

    time: str
    """UTC, ISO 8601 with milliseconds."""
    event: Literal["started", "waiting", "committed", "adopted", "failed", "stopped", "skipped"]
    stage: str
    key: str = ""
    attempt: str = ""
    exit_code: int | None = None
    message: str = ""
    from_run: str = ""


class Progress(Record):
    """Where a live attempt is; overwritten in place, trusted only while young."""

    stage: str
    attempt: str
    time: str
    part: str
    done: int = 0
    total: int = 0
    unit: str = ""
    rate: float = 0.0
    """Units per second."""
    note: str = ""
    """A few words: the loss, the layer."""


class Live(Record):
    """Who works on a key right now, so that another run waits instead of doing it too."""

    run: str
    attempt: str
    time: str
    """UTC, ISO 8601; trusted only while young."""


class RunRecord(Record):
    """What a run is now; the only document of a run that changes, by compare-and-swap."""

    format: Literal[1] = 1
    name: str
    created: str
    """UTC, ISO 8601."""
    owner: str = ""
    """The release it belongs to, with its namespace and that one's UID; empty for a laptop's."""
    pins: Mapping[str, Pin] = {}
    """Which state of each source the run uses, by the source as asked."""
    pinned_at: str = ""
    """UTC, ISO 8601."""
    plan_sha256: str = ""
    """The live plan."""
    plans: tuple[str, ...] = ()
    """Every plan the run ever had, oldest first."""
    keys: Mapping[str, str] = {}
    """By stage, of the live plan: what `gc` must keep."""
    again: Mapping[str, int] = {}
    """By stage: how often the user asked for another computation."""
    conductor: str = ""
    """The conductor that drives the run, empty when it has left; a newer one supersedes it."""
    exit_code: int | None = None
    """How the last conductor left; None while one drives the run, or died."""
    message: str = ""
    """Why the last conductor gave up before any stage could say why; empty otherwise."""
    cancelled: str = ""
    """The conductor that was asked to stop everything; the next one starts anew."""
    absence: str = ""
    """Why the last conductor was stopped in the middle, in its words; another may follow."""
    heartbeat: str = ""
    """When a conductor last worked on it; UTC, ISO 8601."""
    change: str = ""
    """Random, new with every change: a writer whose answer was lost finds its own again."""


TERMINATION_MESSAGE_BYTES = 4096
"""A kubelet reads no more of a termination message, and half a document is none."""


class Ending(Record):
    """The last words of an attempt that failed, where a person or a conductor reads them."""

    exit_code: int
    message: str

    def termination_message(self) -> str:
        """Write it as a document that a kubelet reads whole, shortened where it has to be."""
        ending, words = self, self.message
        # ASCII: a character is a byte.
        while len(text := json.dumps(ending.model_dump())) > TERMINATION_MESSAGE_BYTES:
            words = words[: len(words) * 9 // 10]
            ending = self.model_copy(update={"message": f"{words}..."})
        return text
