"""The check after every open: nothing missing, nothing left over, everything quantized.

transformers reports such things as a table in the log and goes on with random weights;
here they end the stage.  Looks at opened models only; opens nothing itself.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from modelmill.models.families import embedded_tokens, position_limit
from modelmill.spec.errors import DataError

ALLOWED_UNEXPECTED: Final = (
    re.compile(r"(^|\.)rotary_emb\.inv_freq$"),  # computed from the config; stored by old llamas
    re.compile(r"\.attn\.(bias|masked_bias)$"),  # the causal mask as a buffer; old gpt2 and codegen
    re.compile(r"(^|\.)position_ids$"),  # 0, 1, 2, ...
)
"""Stored tensors that no current model reads and no result depends on."""

_SHOWN = 5


def check_loading(info: Mapping[str, Collection[object]], model: PreTrainedModel, at: str) -> None:
    """Refuse a model whose tensors did not all come from its files.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` returned.
        model: the opened model.
        at: the folder, for the message.

    A tied output head may be stored or not; both are complete.

    Raises:
        DataError: a tensor is missing, left over or of another shape.
    """
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    missing = sorted(str(key) for key in info["missing_keys"] if key not in tied)
    unexpected = sorted(
        str(key)
        for key in info["unexpected_keys"]
        if key not in tied and not any(rule.search(str(key)) for rule in ALLOWED_UNEXPECTED)
    )
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    wrong = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing", missing),
            ("that the architecture does not have", unexpected),
            ("of another shape than the config says", mismatched),
        )
        if names
    ]
    if wrong:
        raise DataError(
            f"the model's files do not match its config.json; tensors {'; '.join(wrong)}",
            at=at,
            fix="fetch the model again, or give the config.json these weights were saved with",
        )


def check_quantized(
    model: PreTrainedModel,
    expected: Collection[str],
    kinds: tuple[type[nn.Module], ...],
    at: str,
) -> int:
    """Count the quantized layers and refuse a model that lacks some.

    Args:
        model: the opened model.
        expected: names of all layers that must be quantized, see `expected_linears`.
        kinds: the module classes that count as quantized.
        at: the folder, for the message.

    Raises:
        DataError: no layer is expected, or some are not quantized; names them.
    """
    found = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    left = [name for name in expected if name not in found]
    if left or not expected:
        raise DataError(
            f"{len(left)} of {len(expected)} layers of the {model.config.model_type} model "
            f"were not quantized: {_some(left) or 'it has none'}",
            at=at,
            fix="this model family cannot be quantized this way; leave the method out of the run",
        )
    return len(found)


def check_vocabulary(model: PreTrainedModel, highest: int, at: str) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        DataError: the tokenizer has more tokens than the model, typically an added pad.
    """
    rows = embedded_tokens(model)
    if highest >= rows:
        raise DataError(
            f"the tokenizer gives token id {highest}, but the model embeds only {rows} tokens",
            at=at,
            fix="use the tokenizer that belongs to the model",
        )


def check_length(config: PreTrainedConfig, longest: int, at: str) -> None:
    """Refuse rows of more tokens than the model can tell apart.

    Raises:
        DataError: the longest row is longer; on a GPU it would end as a fault of the device.
    """
    limit = position_limit(config)
    if limit is not None and longest > limit:
        raise DataError(
            f"a row has {longest} tokens, but the model can tell only {limit} apart",
            at=at,
            fix=f"set data.max_length: {limit}, and data.too_long to what becomes of longer rows",
        )


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
