"""What each kind of stage is told, and which of it decides the result.

Every field enters the stage's key unless it is listed in `UNKEYED` or has its `NEUTRAL`
value.  Pure data: a stage function gets one of these and paths.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue

from modelmill.spec.closed import Dtype, FieldName, Spec
from modelmill.spec.data import Format, TemplateSpec
from modelmill.spec.finetune import FinetuneSpec, LoadIn
from modelmill.spec.infer import MetricName, MetricsSpec
from modelmill.spec.quantize import QuantizeSpec
from modelmill.spec.run import MergeSpec


class Pin(Spec):
    """Where a source really is, and which state of it."""

    address: str
    """`s3://...`, `hf:...@<commit>`, or `sources/<sha256>/<name>` inside the store for an
    uploaded local one."""
    digest: str
    """Over the content where it was uploaded, over names, sizes and what the place tells of the
    content (ETags, digests) elsewhere."""


class WeightedPin(Spec):
    """One of several sources of training rows."""

    pin: Pin
    weight: float


class ContractSettings(Spec):
    """What of the prompt contract the spec decides; the tokenizer decides the rest."""

    max_length: int
    format: Format = "prompt_completion"
    chat_template: Literal["tokenizer", "plain"] = "tokenizer"


class Settings(Spec):
    """What one stage is told."""


class FetchModelSettings(Settings):
    """Which base model."""

    kind: Literal["fetch-model"] = "fetch-model"
    source: Pin


class FetchDataSettings(Settings):
    """Which rows to learn from, and how they become text."""

    kind: Literal["fetch-data"] = "fetch-data"
    format: Format
    train: Pin | tuple[WeightedPin, ...]
    eval_source: Pin | None
    eval_share: float | None
    template: TemplateSpec | None
    text_field: FieldName | None = None
    seed: int

    def train_by_role(self) -> Mapping[str, WeightedPin]:
        """List the sources of training rows by the role that their folder has."""
        if isinstance(self.train, Pin):
            return {"source": WeightedPin(pin=self.train, weight=1)}
        return {f"source-{number}": each for number, each in enumerate(self.train, start=1)}


class FetchTestSettings(Settings):
    """Which rows to be judged on, and how they become text."""

    kind: Literal["fetch-test"] = "fetch-test"
    format: Format
    test: Pin
    template: TemplateSpec | None
    text_field: FieldName | None = None


class FetchAdapterSettings(Settings):
    """Which adapter, to be merged or to go on from."""

    kind: Literal["fetch-adapter"] = "fetch-adapter"
    source: Pin


class FetchTextSettings(Settings):
    """Which text to calibrate on, instead of training rows or beside them."""

    kind: Literal["fetch-text"] = "fetch-text"
    source: Pin


class FinetuneSettings(Settings):
    """How to learn."""

    kind: Literal["finetune"] = "finetune"
    finetune: FinetuneSpec
    contract: ContractSettings
    too_long: Literal["error", "drop", "split"]
    loss_on: Literal["assistant", "last_turn"] = "assistant"
    dtype: Dtype | None = None
    """Of a full fine-tune's weights as written."""
    seed: int
    micro_batch_halvings: int = 0
    """How often the rows of one forward pass are halved; set for an attempt, never planned."""


class MergeSettings(Settings):
    """How to merge."""

    kind: Literal["merge"] = "merge"
    merge: MergeSpec
    load_in: LoadIn | None
    """How the base was held while training; the distance to that model is reported."""
    contract: ContractSettings | None = None
    """For an adapter that brings no prompt contract of its own."""

    @property
    def needs_whole_base(self) -> bool:
        """Whether the base must answer as one: int8 rounds activations too."""
        return self.load_in == "int8"


class QuantizeSettings(Settings):
    """How to quantize."""

    kind: Literal["quantize"] = "quantize"
    quantize: QuantizeSpec
    contract: ContractSettings
    seed: int


class InferSettings(Settings):
    """How to answer the test rows."""

    kind: Literal["infer"] = "infer"
    prompt: Literal["contract", "own"]
    """`own`: the base model's best form, chat or few-shot, chosen on eval."""
    shots: int | None
    """Examples in the few-shot form; None for the contract's form."""
    max_new_tokens: int
    batch_size: int
    dtype: Dtype
    nll: bool
    contract: ContractSettings
    base_load_in: LoadIn | None = None
    """How to hold the base of an adapter that is judged unmerged."""
    seed: int | None
    """Picks the few-shot examples; None for the contract's form."""


class GateSettings(Settings):
    """What the gate asks; no model of it is left open any more."""

    models: tuple[str, ...]
    metric: MetricName
    against: str
    max_worse: float


class ReportSettings(Settings):
    """How to judge and what to show; computed from records, so never part of a key."""

    kind: Literal["report"] = "report"
    metrics: MetricsSpec
    gate: GateSettings | None
    samples: int
    slice: str | tuple[str, ...] | None
    model_note: str
    seed: int

    @property
    def slice_fields(self) -> tuple[str, ...]:
        """The data fields whose values are scored apart."""
        match self.slice:
            case None:
                return ()
            case str(field):
                return (field,)
            case fields:
                return fields


StageSettings = Annotated[
    FetchModelSettings
    | FetchDataSettings
    | FetchTestSettings
    | FetchAdapterSettings
    | FetchTextSettings
    | FinetuneSettings
    | MergeSettings
    | QuantizeSettings
    | InferSettings,
    Field(discriminator="kind"),
]

UNKEYED: Final[frozenset[str]] = frozenset(
    {
        "finetune.micro_batch_size",
        "finetune.gradient_checkpointing",
        "finetune.stop_when_diverging",
        "finetune.init_adapter",  # the key of that input says which one it really is
        "micro_batch_halvings",
        "quantize.calibration.text",  # as for init_adapter
        "quantize.name",
    }
)
"""Settings that cannot change the result: memory, naming, and whether there is one."""

UNKEYED_WORDS: Final[Mapping[str, frozenset[str]]] = {"quantize.compat": frozenset({"vllm"})}
"""Items of a list that only ask for a check; the result is the same without them."""

NEUTRAL: Final[Mapping[str, JsonValue]] = {
    "contract": None,
    "contract.format": "prompt_completion",
    "contract.chat_template": "tokenizer",
    "text_field": None,
    "loss_on": "assistant",
    "dtype": None,
    "base_load_in": None,
    "quantize.compat": [],
    "quantize.calibration.text_share": 1.0,
    "finetune.adapter": None,
    "finetune.use_rslora": False,
    "finetune.use_dora": False,
    "finetune.modules_to_save": [],
    "finetune.neftune_noise_alpha": None,
    "finetune.packing": False,
    "finetune.early_stopping_patience": None,
    "finetune.early_stopping_threshold": 0.0,
    "finetune.tf32": None,
    "finetune.qat": None,
}
"""Settings added after stages were committed without them, with the value that means what
those stages did; so an upgrade of modelmill invalidates nothing."""
