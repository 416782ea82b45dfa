"""A merge, or only its proof, with whole models in memory: for what cannot be streamed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from modelmill.models.adapter import open_adapter
from modelmill.models.open import LoadIn, open_model
from modelmill.models.precision import DTYPES
from modelmill.models.probe import ProbePrompt, probe_logits
from modelmill.models.weights import save_weights
from modelmill.spec.closed import Dtype
from modelmill.stages.merge.proof import Before, round_weights

CPU = torch.device("cpu")
"""A merge is one addition per weight; it needs no accelerator and gives equal bytes everywhere."""


@dataclass(frozen=True)
class Whole:
    """A merged model in memory, rounded but still in float32."""

    model: PreTrainedModel
    before: Before
    adapter_tensors: int

    def write(self, folder: Path, settle: Callable[[GenerationConfig], None]) -> None:
        """Write weights and configs, the generation config as `settle` leaves it."""
        self.model.to(DTYPES[self.before.dtype])
        settle(self.model.generation_config)
        save_weights(self.model, folder)


def merge_whole(base: Path, adapter: Path, dtype: Dtype, prompts: Sequence[ProbePrompt]) -> Whole:
    """Merge in memory, and take the logits that the result must have.

    Raises:
        DataError: the adapter does not fit the base or has no effect.
    """
    adapted, tensors = open_adapter(open_model(base, dtype=torch.float32, device=CPU), adapter)
    with_adapter = probe_logits(adapted, prompts)
    with adapted.disable_adapter():
        without = probe_logits(adapted, prompts)
    # In float32 and rounded once: in 16 bits the product, its scaling and the sum would
    # each be rounded.
    merged = adapted.merge_and_unload()
    noise = round_weights(merged, dtype, prompts)
    return Whole(merged, Before(without, with_adapter, noise, dtype), tensors)


def answers_of(folder: Path, prompts: Sequence[ProbePrompt]) -> torch.Tensor:
    """Compute the logits of a model as its files are."""
    return probe_logits(open_model(folder, dtype=torch.float32, device=CPU), prompts)


def answers_as_trained(
    base: Path, adapter: Path, load_in: LoadIn, prompts: Sequence[ProbePrompt]
) -> torch.Tensor:
    """Compute the logits of the adapter on the base as it was held in training."""
    held = open_model(base, dtype=torch.float32, device=CPU, load_in=load_in)
    trained, _ = open_adapter(held, adapter)
    return probe_logits(trained, prompts)
