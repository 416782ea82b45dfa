"""The quantizers of the concepts page in their shortest form, for one layer and a few inputs.

For reading and for the page's tables only: the mill quantizes with GPTQModel, AutoRound and
bitsandbytes.
All arrays are float64 and small, so that every machine prints the same digits.

Shapes: weights (outputs, inputs), activations (inputs, samples).
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

GROUP: Final = 32
OUTPUTS: Final = 48
INPUTS: Final = 96
SAMPLES: Final = 384
STEPS: Final = 1000

NF4: Final = np.array(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ]
)
"""Quantiles of the normal distribution (Dettmers et al., QLoRA, 2023, appendix E)."""

FP4: Final = np.array([0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25])
"""The magnitudes of bitsandbytes' 4-bit float, which has a sign bit besides."""


@dataclass(frozen=True)
class Layer:
    """One layer, and what flows into it when it is calibrated and when it is used."""

    weights: Array
    calibration: Array
    """What the quantizer sees."""
    other: Array
    """Text of another kind, for the table about calibration."""
    used: Array
    """What the error is measured on."""

    def error(self, quantized: Array) -> float:
        """Measure how much of the layer's output is lost: squared norms, between 0 and 1."""
        lost = (quantized - self.weights) @ self.used
        return float(np.square(lost).sum() / np.square(self.weights @ self.used).sum())


def example_layer() -> Layer:
    """Make a layer whose inputs are correlated, as those of language models are."""
    draw = np.random.default_rng(0)
    mixing = draw.normal(size=(INPUTS, INPUTS)) * np.geomspace(3, 0.05, INPUTS)
    elsewhere = draw.normal(size=(INPUTS, INPUTS)) * np.geomspace(3, 0.05, INPUTS)
    return Layer(
        weights=draw.normal(size=(OUTPUTS, INPUTS)) * 0.05,
        calibration=mixing @ draw.normal(size=(INPUTS, SAMPLES)),
        other=elsewhere @ draw.normal(size=(INPUTS, SAMPLES)),
        used=mixing @ draw.normal(size=(INPUTS, SAMPLES)),
    )


def scales(weights: Array, bits: int) -> Array:
    """Find each group's symmetric scale: (outputs, inputs), equal within a group."""
    grouped = np.abs(weights).reshape(len(weights), -1, GROUP).max(-1, keepdims=True)
    steps = np.broadcast_to(grouped / (2 ** (bits - 1) - 1), (*grouped.shape[:2], GROUP))
    return steps.reshape(weights.shape)


def rounded(weights: Array, scale: Array, bits: int) -> Array:
    """Round to the grid of a scale and go back to weights."""
    most = 2 ** (bits - 1) - 1
    back: Array = scale * np.clip(np.round(weights / scale), -most, most)
    return back


def nearest(weights: Array, bits: int) -> Array:
    """Round to nearest: every weight alone, no data."""
    return rounded(weights, scales(weights, bits), bits)


def gptq(weights: Array, inputs: Array, bits: int) -> Array:
    """Round column by column; the columns to come make up for each rounding.

    Frantar et al., GPTQ, 2022, algorithm 1 without its blocking.
    """
    scale = scales(weights, bits)
    hessian = inputs @ inputs.T
    hessian += 0.05 * np.mean(np.diag(hessian)) * np.eye(len(hessian))  # `damp_percent`
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left, done = weights.copy(), np.zeros_like(weights)
    for column in range(weights.shape[1]):
        done[:, column] = rounded(left[:, column], scale[:, column], bits)
        missed = (left[:, column] - done[:, column]) / inverse[column, column]
        left[:, column:] -= np.outer(missed, inverse[column, column:])
    return done


def autoround(weights: Array, inputs: Array, bits: int) -> Array:
    """Learn by the sign of the gradient which way to round and where each group's range ends.

    Cheng et al., SignRound, 2023: an offset per weight and a factor per scale, a few hundred
    steps, the best kept.
    """
    most, moved = 2 ** (bits - 1) - 1, 2.0 / STEPS
    plain, hessian = scales(weights, bits), inputs @ inputs.T
    offset, factor = np.zeros_like(weights), np.ones((len(weights), INPUTS // GROUP, 1))
    best, least = nearest(weights, bits), np.inf
    for step in range(STEPS):
        scale = plain * np.repeat(factor[..., 0], GROUP, axis=1)
        place = weights / scale + offset
        grid = np.clip(np.round(place), -most, most)
        lost = scale * grid - weights
        slope = lost @ hessian
        if (total := float((slope * lost).sum())) < least:
            best, least = scale * grid, total
        inside = np.abs(place) <= most
        by_factor = slope * plain * (grid - inside * weights / scale)
        by_factor = by_factor.reshape(*factor.shape[:2], GROUP).sum(-1, keepdims=True)
        rate = moved * (1 - step / STEPS)
        offset = np.clip(offset - rate * np.sign(slope * scale * inside), -0.5, 0.5)
        factor = np.clip(factor - rate * np.sign(by_factor), 0.4, 1.0)
    return best


def absmean(weights: Array) -> Array:
    """Round to -1, 0 and 1 times the mean absolute value (Ma et al., BitNet b1.58, 2024)."""
    scale = np.abs(weights).mean()
    back: Array = scale * np.clip(np.round(weights / scale), -1, 1)
    return back


def by_code_book(weights: Array, book: Array, block: int = 64) -> Array:
    """Round to the nearest entry of a code book, scaled to each block's largest weight."""
    flat = weights.reshape(-1, block)
    most = np.abs(flat).max(1, keepdims=True)
    places = np.abs((flat / most)[..., None] - book).argmin(-1)
    return (book[places] * most).reshape(weights.shape)
