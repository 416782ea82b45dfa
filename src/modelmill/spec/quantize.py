"""How a model gets smaller."""

from typing import Annotated, Final, Literal, Self, get_args

from pydantic import Field, model_validator

from modelmill.spec.closed import LARGEST_INTEGER, GroupSize, Spec
from modelmill.spec.finetune import GridSpec
from modelmill.spec.sources import DataSource
from modelmill.spec.vllm import packing_problems

HoldIn = Literal["nf4", "nf4-single", "fp4", "fp4-single", "int8"]
"""How bitsandbytes holds weights: `-single` keeps the scales of 4-bit blocks in 32 bits, the
others quantize these too (double quantization); int8 has one scale for each output."""


TERNARY_BITS: Final = 2
"""One of three values takes two bits of a byte, though it says only 1.58."""


class CalibrationSpec(Spec):
    """What the quantizer looks at while it rounds."""

    tokens: int = Field(131_072, ge=128, le=LARGEST_INTEGER)
    """At most this many, of training rows in the contract's form, of `text`, or of both."""
    text: DataSource | None = None
    """Text to look at instead of training rows: `.txt`, whose texts stand between empty lines, or
    a table with a field `text`; local, `s3://bucket/key` or `hf:datasets/org/name@revision/path`.
    For a model that is to stay good at more than what it was trained on."""
    text_share: float = Field(1.0, gt=0, le=1)
    """Of the tokens, how many come from `text`; the others are of training rows.  Below 1, both
    are looked at, each in sequences of its own."""

    @property
    def has_rows(self) -> bool:
        """Whether training rows are looked at."""
        return self.text is None or self.text_share < 1

    @model_validator(mode="after")
    def _shares_a_text(self) -> Self:
        if self.text is None and self.text_share != 1:
            raise ValueError("text_share: there is no text to take a share of")
        return self


class PackedSpec(Spec):
    """What is written in GPTQ's format: integers of a few bits, a scale for each group."""

    method: str
    bits: Literal[2, 3, 4, 8] = 4
    """Per weight, scales not counted."""
    sym: bool = True
    """Symmetric around zero; what vLLM and auto-gptq read fastest.  Without it, groups that have no
    negative weight are refused by `autoround`, and by `compat: [auto-gptq]`."""
    group_size: GroupSize = "auto"
    """Weights that share one scale; `auto` takes the largest that divides every layer."""
    compat: tuple[Literal["auto-gptq", "vllm"], ...] = ()
    """Readers that must be able to read it.  `auto-gptq` (0.7.1) gets the output head as a tensor
    of its own where it is tied to the embeddings: without it, it answers with noise.  `vllm` (0.33)
    changes nothing that is written; what it could not read is refused before anything runs."""
    name: str | None = None
    """Of the model in stages and tables; made from the method when absent."""

    @property
    def reorders(self) -> bool:
        """Whether inputs are quantized in another order than they have."""
        return False

    @model_validator(mode="after")
    def _can_be_read_by_vllm(self) -> Self:
        if "vllm" not in self.compat:
            return self
        wrong = list(packing_problems(self.bits, sym=self.sym, reorders=self.reorders))
        if wrong:
            raise ValueError("\n".join(str(each).strip() for each in wrong))
        return self


class CalibratedSpec(PackedSpec):
    """What looks at training rows, or at another text, while it rounds."""

    calibration: CalibrationSpec = CalibrationSpec()


class GptqSpec(CalibratedSpec):
    """GPTQ: rounds column by column and lets the next columns make up for the error."""

    method: Literal["gptq"]
    desc_act: bool = False
    damp_percent: float = Field(0.05, gt=0, lt=1)

    @property
    def reorders(self) -> bool:
        """Whether inputs are quantized in the order of their activations."""
        return self.desc_act


class AutoroundSpec(CalibratedSpec):
    """AutoRound: learns, block by block, which way to round; ahead of GPTQ at 2 and 3 bits."""

    method: Literal["autoround"]
    bits: Literal[2, 3, 4] = 4
    """Per weight, scales not counted."""
    iters: int = Field(200, ge=1, le=10_000)
    """Steps for each block; time grows with them."""


class RtnSpec(PackedSpec):
    """Round to nearest: looks at no data; the cheap control beside a GPTQ model of equal bits."""

    method: Literal["rtn"]


class QatSpec(PackedSpec):
    """Pack what `finetune.qat` has trained: nothing is rounded, so nothing is lost."""

    method: Literal["qat"]
    bits: Literal[4, 8] = 4
    """As in `finetune.qat`, which decides; no other is accepted."""
    sym: Literal[True] = True
    """The grid of `finetune.qat` is symmetric."""
    group_size: GroupSize = "auto"
    """As in `finetune.qat`, which decides; no other is accepted."""

    def packing(self, grid: GridSpec) -> "QatSpec":
        """Take over what was trained on.

        Raises:
            ValueError: something else was asked for here.
        """
        trained = grid.model_dump()
        asked = self.model_dump(include=trained.keys() & self.model_fields_set)
        wrong = [
            f"{name}: finetune.qat has trained on {trained[name]}; leave it out here"
            for name, value in asked.items()
            if value != trained[name]
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        return self.model_copy(update=trained)


class BitsandbytesSpec(Spec):
    """bitsandbytes: rounds to a fixed code book without looking at data."""

    method: Literal["bitsandbytes"]
    type: Literal["nf4", "fp4", "int8"] = "nf4"
    """`nf4`'s 16 values lie as weights do; `fp4`'s are those of a 4-bit float, worse at the same
    size; `int8` (LLM.int8) takes twice the memory and is nearest to the model."""
    double_quant: bool = True
    """Store the scales of 4-bit blocks in 8 bits too: 0.4 bits per weight less."""
    name: str | None = None
    """Of the model in stages and tables; made from the method when absent."""

    @property
    def hold_in(self) -> HoldIn:
        """The type with its kind of scales, as the readers of models call it."""
        match self.type, self.double_quant:
            case "nf4", False:
                return "nf4-single"
            case "fp4", False:
                return "fp4-single"
        return self.type

    @model_validator(mode="after")
    def _has_scales_to_quantize(self) -> Self:
        if self.type == "int8" and not self.double_quant:
            raise ValueError(
                "double_quant: int8 has no blocks whose scales it changes; leave it out"
            )
        return self


class BitnetSpec(Spec):
    """BitNet b1.58: rounds to -1, 0 and 1 times one scale per layer, the mean absolute weight.

    A demonstration: it looks at no data, and ruins a model that was not trained with three values.
    """

    method: Literal["bitnet"]
    name: str | None = None
    """Of the model in stages and tables; made from the method when absent."""


QuantizeSpec = Annotated[
    GptqSpec | AutoroundSpec | RtnSpec | QatSpec | BitsandbytesSpec | BitnetSpec,
    Field(discriminator="method"),
]

METHODS: Final = tuple(
    get_args(form.model_fields["method"].annotation)[0]
    for form in get_args(get_args(QuantizeSpec)[0])
)
"""The values of `method`, one for each form."""


def variant_of(spec: QuantizeSpec) -> str:
    """Name a quantized model after what it is, unless the user named it."""
    if spec.name is not None:
        return spec.name
    match spec:
        case BitsandbytesSpec():
            return spec.type
        case BitnetSpec():
            return spec.method
    return f"{spec.method}-{spec.bits}"


def bits_of(spec: QuantizeSpec) -> int:
    """Bits per quantized weight as it is stored, scales not counted."""
    match spec:
        case BitsandbytesSpec():
            return 8 if spec.type == "int8" else 4
        case BitnetSpec():
            return TERNARY_BITS
    return spec.bits
