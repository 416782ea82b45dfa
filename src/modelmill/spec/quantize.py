"""How a model gets smaller."""

from typing import Annotated, Literal

from pydantic import Field

from modelmill.spec.closed import LARGEST_INTEGER, Spec


class CalibrationSpec(Spec):
    """What the quantizer looks at while it rounds."""

    tokens: int = Field(131_072, ge=128, le=LARGEST_INTEGER)
    """At most this many, taken from training rows in the contract's form."""


class GptqSpec(Spec):
    """GPTQ: rounds column by column and lets the next columns make up for the error."""

    method: Literal["gptq"]
    bits: Literal[2, 3, 4, 8] = 4
    """Per weight, scales not counted."""
    sym: bool = True
    """Symmetric around zero; what vLLM and auto-gptq read fastest."""
    desc_act: bool = False
    group_size: Literal["auto", 32, 64, 128] = "auto"
    """Weights that share one scale; `auto` takes the largest that divides every layer."""
    damp_percent: float = Field(0.05, gt=0, lt=1)
    calibration: CalibrationSpec = CalibrationSpec()
    name: str | None = None
    """Of the model in stages and tables; made from the method when absent."""


class BitsandbytesSpec(Spec):
    """bitsandbytes: rounds to a fixed code book without looking at data."""

    method: Literal["bitsandbytes"]
    type: Literal["nf4"] = "nf4"
    double_quant: bool = True
    """Store the scales in 8 bits too: 0.4 bits per weight less."""
    name: str | None = None
    """Of the model in stages and tables; made from the method when absent."""


QuantizeSpec = Annotated[GptqSpec | BitsandbytesSpec, Field(discriminator="method")]


def variant_of(spec: GptqSpec | BitsandbytesSpec) -> str:
    """Name a quantized model after what it is, unless the user named it."""
    if spec.name is not None:
        return spec.name
    return f"gptq-{spec.bits}" if isinstance(spec, GptqSpec) else spec.type


def bits_of(spec: QuantizeSpec) -> int:
    """Bits per quantized weight, scales not counted."""
    return 4 if isinstance(spec, BitsandbytesSpec) else spec.bits
