"""A base as it was held in 4 bits while an adapter was trained on it, one tensor at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import LoraLayer
from transformers.pytorch_utils import Conv1D

from modelmill.models.families import expected_linears
from modelmill.models.merging import Merging
from modelmill.models.shards import TensorSource
from modelmill.store.tensors import TensorInfo


def held_weights(merging: Merging, load_in: str) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Give a function from a tensor and its name to what training saw of it."""
    linears = {f"{name}.weight" for name in expected_linears(merging.model.config)}
    transposed = _transposed(merging, linears)

    def held(name: str, weight: torch.Tensor) -> torch.Tensor:
        from modelmill.models.bitsandbytes import as_held

        if name not in linears:
            return weight
        if name in transposed:
            return as_held(weight.T, load_in).T
        return as_held(weight, load_in)

    return held


@dataclass(frozen=True)
class HeldSource:
    """A base whose linear layers are read as 4 bits had left them."""

    stored: TensorSource
    names: Mapping[str, str]
    """The model's names by the stored ones."""
    held: Callable[[str, torch.Tensor], torch.Tensor]

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name every tensor that can be read."""
        return self.stored.tensors

    def read(self, name: str) -> torch.Tensor:
        """Read one, in float32 where it was held in 4 bits."""
        return self.held(self.names.get(name, name), self.stored.read(name))


def dequantized(merging: Merging, load_in: str) -> HeldSource:
    """Put the base that training saw in place of the one that is stored."""
    names = {
        origin.base: origin.name for origin in merging.origins.values() if origin.base is not None
    }
    return HeldSource(merging.base, names, held_weights(merging, load_in))


def _transposed(merging: Merging, weights: set[str]) -> set[str]:
    found = set()
    for name in weights:
        layer = merging.model.get_submodule(name.removesuffix(".weight"))
        plain = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        if isinstance(plain, Conv1D):
            found.add(name)
    return found
