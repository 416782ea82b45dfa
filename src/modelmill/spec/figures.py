"""What stages found out and what they cost: the figures of `measurements.json`.

Closed, frozen models like all records; a later version reads what an earlier one wrote.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from modelmill.spec.records import Record


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
    near_duplicates: Mapping[str, int] = {}
    """Rows whose prompt has the words of an earlier one, numbers and order aside."""
    near_overlap: Mapping[str, int] = {}
    """As `overlap`, by the words of the prompts."""
    sources: tuple[SourceRows, ...] = ()
    """Of train, where it is a list; `duplicates` counts before rows are taken by weight."""


class AdapterFetched(Record):
    """What fetch-adapter found."""

    kind: Literal["fetch-adapter"] = "fetch-adapter"
    r: int
    targets: tuple[str, ...]
    parameters: int
    size_bytes: int


class CurvePoint(Record):
    """One logged step of training."""

    step: int
    epoch: float
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None


class LengthBin(Record):
    """Rows of at most so many tokens, and more than the bin before."""

    upto: int
    rows: int


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
    packed_to: int | None = None
    """Sequences that the rows were packed to; None without packing."""
    stopped_early: bool = False
    lengths: tuple[LengthBin, ...] = ()
    """Training rows by tokens, those left out included."""
    max_length: int | None = None


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
    """Rows and texts of which at least one token was looked at."""
    calibration_tokens: int = 0
    calibration_text_tokens: int = 0
    """Of them, those of `calibration.text`."""
    calibration_unused: int = 0
    """Rows and texts that the tokens asked for left no room for."""
    calibration_longer: int = 0
    """Training rows longer than max_length; they go on in the next sequence."""


class Speed(Record):
    """How fast a model answered, and in which engine."""

    engine: str
    """With its version."""
    why: str
    """It is this one."""
    tokens: int
    seconds: float
    """Of pure generation."""
    equal_answers: int | None = None
    """How many answers are those that are judged; None where the judged ones were timed."""


class Inferred(Record):
    """How a model answered a file of prompts."""

    kind: Literal["infer"] = "infer"
    rows: int
    quarantined: int
    generated_tokens: int
    generate_seconds: float
    """Of the judged answers."""
    tokens_per_second: float
    """In the engine that `speed` names, or else in `engine`."""
    engine: str
    """Of the judged answers: one for all models of a run."""
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
    shards: int = 1
    """Attempts that the rows were dealt out to; seconds are summed over all of them, so the speed
    is that of one."""
    speed: Speed | None = None
    """None where nothing was generated."""

    @property
    def place(self) -> str:
        """What the speed is that of."""
        return self.device if self.shards == 1 else f"{self.device}, one of {self.shards} shards"


class Reported(Record):
    """What the report covers."""

    kind: Literal["report"] = "report"
    models: int


Figures = Annotated[
    ModelFetched
    | DataFetched
    | AdapterFetched
    | Finetuned
    | Merged
    | Quantized
    | Inferred
    | Reported,
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
