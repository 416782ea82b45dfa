"""Rounding in a few lines of our own, for what needs no data: what an engine's files must mean.

All take and give weights as [outputs, inputs] in float32.
"""

import torch

from modelmill.spec.quantize import BitnetSpec, BitsandbytesSpec, QuantizeSpec, RtnSpec

GROUP = 64

NF4 = [
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
]
"""Quantiles of the normal distribution (Dettmers et al., QLoRA, 2023, appendix E)."""

FP4 = [sign * each / 192 for sign in (1, -1) for each in (0, 1, 128, 192, 64, 96, 32, 48)]
"""A sign, two bits of exponent and one of mantissa, the largest being one."""


def rounded(weight: torch.Tensor, bits: int, *, sym: bool) -> torch.Tensor:
    """Round to the nearest integer of its group, scales stored in 16 bits."""
    groups = weight.reshape(len(weight), -1, GROUP)
    high, low = groups.amax(2, keepdim=True).clamp(min=0), groups.amin(2, keepdim=True).clamp(max=0)
    if sym:
        high = torch.maximum(high, -low)
        low = -high
    most = 2**bits - 1
    scale = (high - low) / most
    zero = torch.full_like(scale, 2 ** (bits - 1)) if sym else torch.round(-low / scale)
    codes = (torch.round(groups / scale) + zero).clamp(0, most)
    return (scale.half().float() * (codes - zero)).reshape(weight.shape)


def by_book(weight: torch.Tensor, book: list[float]) -> torch.Tensor:
    """Take the nearest entry of a code book, scaled to the largest weight of each 64."""
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    entries = torch.tensor(book)
    places = ((blocks / largest)[..., None] - entries).abs().argmin(-1)
    return (entries[places] * largest).reshape(weight.shape)


def by_output(weight: torch.Tensor) -> torch.Tensor:
    """Round to 8 bits by the largest weight of each output."""
    step = weight.abs().amax(1, keepdim=True) / 127
    return (weight / step).round() * step


def by_mean(weight: torch.Tensor) -> torch.Tensor:
    """Round to -1, 0 and 1 times the mean absolute weight."""
    mean = weight.abs().mean()
    return (weight / mean).round().clamp(-1, 1) * mean


def plain_weight(spec: QuantizeSpec, weight: torch.Tensor) -> torch.Tensor | None:
    """Compute what a method makes of a weight; None where that depends on data."""
    match spec:
        case RtnSpec():
            return rounded(weight, spec.bits, sym=spec.sym)
        case BitsandbytesSpec(type="int8"):
            return by_output(weight)
        case BitsandbytesSpec():
            return by_book(weight, NF4 if spec.type == "nf4" else FP4)
        case BitnetSpec():
            return by_mean(weight)
    return None
