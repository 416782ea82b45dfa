"""Open a base with an unmerged adapter on it, ready to answer.

Apart from `opened`, because PEFT takes seconds to import and only this needs it.
"""

from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from modelmill.models.adapter import open_adapter
from modelmill.models.open import LoadIn, open_config, open_model
from modelmill.stages.infer.opened import PLAIN_BITS, Opened, opened_of


def open_adapted(
    base: Path, adapter: Path, dtype: torch.dtype, device: torch.device, load_in: LoadIn
) -> Opened:
    """Open a base as it was held in training, with an unmerged adapter on it.

    Raises:
        DataError: the adapter does not fit the base.
    """
    model = open_model(base, dtype=dtype, device=device, load_in=load_in)
    adapted, _ = open_adapter(model, adapter)
    bits = PLAIN_BITS if load_in is None else 8 if load_in == "int8" else 4
    method = "lora" if load_in is None else f"lora on {load_in}"
    # PEFT's wrapper passes on all that is asked of a model here.
    whole = cast("PreTrainedModel", adapted)
    return opened_of(whole, open_config(base), method, bits, "peft unmerged")
