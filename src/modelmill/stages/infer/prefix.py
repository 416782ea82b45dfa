"""What all prompts of a stage begin with, read by the model once and not with every row.

A few-shot prompt is mostly its examples, and every row is read twice: for its answer and
for its reference's likelihood.  Knows caches; must not know forms.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import torch
from transformers import DynamicCache, PreTrainedModel

WORTH_TOKENS: Final = 64
"""A shorter beginning costs less than copying what was read of it."""


@dataclass(frozen=True)
class Prefix:
    """A common beginning, perhaps an empty one."""

    ids: list[int]
    read: DynamicCache | None = None
    """Keys and values of one row; None for an empty beginning."""

    def cache(self, rows: int) -> DynamicCache | None:
        """Copy what was read for a batch, which goes on writing behind it."""
        if self.read is None:
            return None
        cache = copy.deepcopy(self.read)
        cache.batch_repeat_interleave(rows)
        return cache


NO_PREFIX: Final = Prefix([])


def read_prefix(model: PreTrainedModel, prompts: Collection[list[int]]) -> Prefix:
    """Let the model read what all prompts begin with, if that is worth it.

    A model whose cache is not one of plain keys and values reads every row whole.
    """
    # The last token of a prompt is never shared: something must be left to predict from.
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    common = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    if len(common) < WORTH_TOKENS or len(prompts) == 1:
        return NO_PREFIX
    with torch.inference_mode():
        read = model(
            input_ids=torch.tensor([common], device=model.device), use_cache=True, logits_to_keep=1
        ).past_key_values
    return Prefix(common, read) if type(read) is DynamicCache else NO_PREFIX
