"""What a merge has to prove, and when it has.

Compares logits of the base, of the base with its adapter and of the merged model as read
back from its files.  The adapter's own effect is the unit: a merge that loses a
tenth of what was learned is wrong however close the weights are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from transformers import PreTrainedModel

from modelmill.models.precision import DTYPES
from modelmill.models.probe import ProbePrompt, distance, norm, probe_logits
from modelmill.spec.closed import Dtype
from modelmill.spec.errors import DataError, InternalError

BOUND: Final[Mapping[Dtype, float]] = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.1}
"""How much of the adapter's effect may change, by the dtype that is written."""

NOISE_PROMPTS: Final = 2
"""Rounding acts on all weights alike; two prompts measure it within a few per cent."""

NOISE_MARGIN: Final = 2.0
"""Of a measured rounding noise, since it is taken from fewer prompts."""


@dataclass(frozen=True)
class Before:
    """What the written model is held against."""

    base: torch.Tensor
    adapter: torch.Tensor
    noise: float
    """Relative change of the logits by rounding the merged weights and nothing else."""
    dtype: Dtype


@dataclass(frozen=True)
class Proof:
    """How close a merge came; `Merged` documents the figures."""

    effect: float
    difference: float
    bound: float
    noise_floor: float

    @property
    def is_weak(self) -> bool:
        """Whether rounding alone may change more of the adapter's effect than the bound."""
        return self.effect < self.noise_floor


def round_weights(model: PreTrainedModel, dtype: Dtype, prompts: Sequence[ProbePrompt]) -> float:
    """Round the weights to what `dtype` can hold, in place and still in float32.

    Returns:
        The relative change of the logits: the noise that writing 16 bits makes, even where
        the base's own weights are 16-bit numbers already and would not change.
    """
    exact = probe_logits(model, prompts[:NOISE_PROMPTS])
    for weight in model.parameters():
        weight.data.copy_(weight.data.to(DTYPES[dtype]))
    rounded = probe_logits(model, prompts[:NOISE_PROMPTS])
    return distance(rounded, exact) / norm(exact)


def prove(before: Before, written: torch.Tensor) -> Proof:
    """Compare what was written with the base and its adapter.

    The logits may differ by `BOUND` of the adapter's effect.  An adapter whose effect is
    below `noise_floor` cannot be told apart from rounding that closely; it may differ by
    what rounding does, so that a wrong file is still refused.

    Args:
        before: logits of the base without and with its adapter.
        written: logits of the model as read back from its files.

    Raises:
        DataError: the adapter has no effect.
        InternalError: the written model is not the base with its adapter.
    """
    scale, learned = norm(before.base), distance(before.adapter, before.base)
    if learned == 0:
        raise DataError(
            "the adapter has no effect: it changes no logit of the probe prompts",
            fix="train longer, or with a higher finetune.learning_rate",
        )
    bound = BOUND[before.dtype]
    proof = Proof(
        effect=learned / scale,
        difference=distance(written, before.adapter) / learned,
        bound=bound,
        noise_floor=before.noise / bound,
    )
    allowed = max(bound * proof.effect, NOISE_MARGIN * before.noise)
    # A negated comparison, because a nan must not pass.
    if not proof.difference * proof.effect <= allowed:
        raise InternalError(
            f"the merged model is not the base with its adapter: its logits differ by "
            f"{proof.difference:.1%} of the adapter's effect, allowed are "
            f"{allowed / proof.effect:.1%}",
            fix="run the stage again; if it stays, report the model family and the adapter's key",
        )
    return proof


def distance_to_trained(before: Before, written: torch.Tensor, trained: torch.Tensor) -> float:
    """Measure how far the merged model is from the one that was trained, in adapter effects."""
    return distance(written, trained) / distance(before.adapter, before.base)
