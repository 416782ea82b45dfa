"""Whether rows that share a sequence see each other: asked of the model itself.

Knows logits; must not know the trainer.
"""

from collections.abc import Sequence
from typing import Final

import torch
from transformers import PreTrainedModel

from modelmill.spec.errors import Problem, SpecError

LONGEST: Final = 64
"""Tokens of a row that are compared; enough to see a neighbour, quick on any model."""

BOUND: Final = 0.02
"""Rounding in bfloat16 moves logits by less than 1 %; a neighbour moves them by tens of them."""


@torch.inference_mode()
def leak_between(model: PreTrainedModel, first: Sequence[int], second: Sequence[int]) -> float:
    """Measure how much the second row's logits change when the first stands before it.

    The rows are given as packing gives them: places that begin again, and no mask.  Some
    attentions keep such rows apart (FlashAttention, or a mask made of the places), others
    (those that count distances themselves, as alibi does) do not, and none says so.

    Returns:
        The change relative to the logits; 0 where nothing is seen.
    """
    was_training = model.training
    model.eval()
    before, row = list(first)[:LONGEST], list(second)[:LONGEST]
    alone = _logits(model, [row])[0]
    packed = _logits(model, [before, row])[0, len(before) :]
    model.train(was_training)
    return float((packed - alone).norm() / alone.norm())


def refuse_leaks(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> float:
    """Refuse to pack where rows would see each other; returns what was measured.

    Raises:
        SpecError: they would.
    """
    if not rows[1:]:
        return 0.0
    try:
        leak = leak_between(model, rows[0], rows[1])
    except TypeError:  # a model that takes no places cannot be told where a row begins
        leak = float("inf")
    if not leak <= BOUND:  # negated, because a nan must not pass
        raise SpecError(
            "run",
            [
                Problem(
                    "finetune.packing",
                    f"in this {model.config.model_type} model a packed row would see the rows "
                    f"before it; its logits change by {leak:.0%} (measured)",
                    suggestion="leave it out; rows are sorted by length, so little is padded",
                )
            ],
        )
    return float(leak)


def _logits(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    ids = [each for row in rows for each in row]
    places = [place for row in rows for place in range(len(row))]
    device = model.device
    logits: torch.Tensor = model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([places], device=device),
        use_cache=False,
    ).logits
    return logits.float()
