"""An adapter merged into its base one tensor at a time, by PEFT's own arithmetic.

A model without weights carries the adapter's layers.  For each tensor that is asked for, one of
them is given its weights, merges itself in float32, and is emptied again; so memory depends
on the largest tensor and not on the model.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Embedding, Linear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraEmbeddingVariant, DoraLinearVariant
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from modelmill.models.adapter import check_effect, check_fit, settle_head
from modelmill.models.adapter_tensors import BASE_LAYER, PREFIX, embedded_rows
from modelmill.models.shards import Chosen, TensorSource
from modelmill.models.skeleton import (
    NotStreamable,
    open_skeleton,
    shared_names,
    stored_names,
    written_names,
)
from modelmill.spec.errors import DataError
from modelmill.store.tensors import TensorInfo

NAME: Final = "default"
"""PEFT's name for the only adapter there is."""

INITS_THAT_KEEP_THE_BASE: Final = (True, False, "gaussian", "orthogonal")
"""The others take the adapter's first values out of the base, which needs all of it."""

OTHER_KINDS: Final = (
    "target_parameters",
    "layer_replication",
    "trainable_token_indices",
    "arrow_config",
    "megatron_config",
)
"""What of a LoRA config changes more than single layers."""


@dataclass(frozen=True)
class LowRank:
    """A trained change of one weight: scale * up @ down, and with a magnitude each row resized."""

    down: str
    up: str
    magnitude: str | None
    scale: float
    is_transposed: bool
    """Whether the weight is stored as (in, out): in Conv1D layers and embeddings."""


@dataclass(frozen=True)
class Origin:
    """What one tensor of the merged model is made from."""

    name: str
    shape: tuple[int, ...]
    is_float: bool
    base: str | None
    """As stored in the base; None for what only the adapter brings."""
    replacement: str | None = None
    """The adapter's tensor that stands for the base's: trained whole, or saved with it."""
    low_rank: LowRank | None = None
    added: str | None = None
    """For a layer's bias: the adapter's own, which is scaled and added."""
    added_scale: float = 1.0

    @property
    def is_copied(self) -> bool:
        """Whether the adapter has nothing to do with it."""
        return not (self.replacement or self.low_rank or self.added)

    def adapter_names(self) -> Iterator[str]:
        """List the adapter's tensors that go into it."""
        low = self.low_rank
        trained = () if low is None else (low.down, low.up, low.magnitude)
        return (name for name in (self.replacement, self.added, *trained) if name is not None)


@dataclass(frozen=True)
class Merging:
    """A base and an adapter, ready to be merged tensor by tensor."""

    model: PreTrainedModel
    """Empty, as it is written: with the vocabulary and the head of its own that it will have."""
    adapted: PeftModel
    """Around the same modules, with the adapter's layers in between, empty."""
    base: TensorSource
    adapter: TensorSource
    origins: Mapping[str, Origin]
    """By the names of the tensors that files hold, in the order of dividing them into files."""
    parameters: int

    def merged(self, name: str) -> torch.Tensor:
        """Merge one tensor: in float32 where there is something to add, else as it is stored."""
        origin = self.origins[name]
        before = self.unmerged(origin)
        if origin.low_rank is None and origin.added is None:
            return before
        owner, _, attribute = name.rpartition(".")
        layer = self.model.get_submodule(owner)
        base_layer = layer.get_base_layer()
        parts = [*self.trained_parts(owner), (base_layer, attribute, before.float())]
        del before
        if origin.low_rank is None:
            # PEFT merges a layer's bias together with its weight; this one is not looked at.
            shape = base_layer.weight.shape
            parts.append((base_layer, "weight", torch.zeros(shape)))
        with holding(parts):
            # Not safely: then PEFT would round the change before it adds it.
            layer.merge(safe_merge=False, adapter_names=[NAME])
            layer.merged_adapters.clear()
            merged: torch.Tensor = getattr(base_layer, attribute).data
        return merged

    def unmerged(self, origin: Origin) -> torch.Tensor:
        """Read what a change is added to, as it is stored."""
        if origin.replacement is not None:
            return self.adapter.read(origin.replacement)
        assert origin.base is not None, origin.name
        return self.base.read(origin.base)

    def trained_parts(self, owner: str) -> list[tuple[nn.Module, str, torch.Tensor]]:
        """Read what a LoRA layer has learned: where it belongs in the module, and the values."""
        return [
            (holder, attribute, self.adapter.read(name).float())
            for name, (holder, attribute) in _slots(self.model.get_submodule(owner), owner).items()
            if name in self.adapter.tensors
        ]


@contextmanager
def holding(parts: Sequence[tuple[nn.Module, str, torch.Tensor]]) -> Iterator[None]:
    """Let modules hold tensors in place of their empty parameters for a while."""
    before = []
    try:
        for module, attribute, tensor in parts:
            slots = module._parameters if attribute in module._parameters else module._buffers  # noqa: SLF001
            before.append((slots, attribute, slots[attribute]))
            is_parameter = slots is module._parameters  # noqa: SLF001
            slots[attribute] = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        yield
    finally:
        for slots, attribute, empty in before:
            slots[attribute] = empty


def open_merging(
    base_folder: Path, base: TensorSource, folder: Path, adapter: TensorSource
) -> Merging:
    """Find out from headers and configs alone what becomes of every tensor.

    Args:
        base_folder: config of the base.
        base: its tensors.
        folder: config of the adapter.
        adapter: its tensors.

    Raises:
        NotStreamable: the adapter or the base is of a kind that needs the whole model.
        DataError: files and configs do not fit together, or the adapter does nothing.
    """
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = True
    _check_config(config)
    model = open_skeleton(base_folder)
    stored = stored_names(model, base.tensors, str(base_folder))
    _check_shared(model, stored, base)
    rows = embedded_rows(model, {name: info.shape for name, info in adapter.tensors.items()})
    if rows != model.get_input_embeddings().num_embeddings:
        model = open_skeleton(base_folder, rows)
    adapter = Chosen(adapter, settle_head(model, folder, adapter.tensors, adapter.read))
    places = {name: model.get_parameter_or_buffer(name) for name in written_names(model)}
    parameters = sum(each.numel() for each in model.parameters())
    adapted = get_peft_model(model, config, low_cpu_mem_usage=True).eval()
    _check_layers(adapted)
    origins = {
        name: _origin(
            Origin(name, tuple(place.shape), place.is_floating_point(), stored.get(name)),
            model,
            adapter.tensors,
        )
        for name, place in places.items()
    }
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {name: tuple(place.shape) for name, place in state.items()}
    # PEFT does not expect saved embeddings, but they have a place.
    expected |= {
        origin.replacement: origin.shape
        for origin in origins.values()
        if origin.replacement is not None
    }
    check_fit({name: info.shape for name, info in adapter.tensors.items()}, expected, str(folder))
    check_effect(
        (adapter.read(name) for name in adapter.tensors if ".lora_A." not in name), str(folder)
    )
    _check_all_used(origins, adapter.tensors, str(folder))
    _check_shapes(origins, base.tensors, str(base_folder))
    return Merging(model, adapted, base, adapter, origins, parameters)


def _check_config(config: LoraConfig) -> None:
    if config.init_lora_weights not in INITS_THAT_KEEP_THE_BASE:
        raise NotStreamable(f"the adapter's init_lora_weights is {config.init_lora_weights}")
    for kind in OTHER_KINDS:
        if getattr(config, kind, None):
            raise NotStreamable(f"the adapter has {kind}")


def _check_layers(adapted: PeftModel) -> None:
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            variant = module.lora_variant.get(NAME)
            if type(module) not in (Linear, Embedding) or not isinstance(
                variant, (DoraLinearVariant, DoraEmbeddingVariant, type(None))
            ):
                raise NotStreamable(f"{name} is a {type(module).__name__} of another kind of LoRA")
        elif isinstance(module, AuxiliaryTrainingWrapper) and (
            type(module) is not ModulesToSaveWrapper
        ):
            raise NotStreamable(f"{name} is a {type(module).__name__}")


def _check_shared(model: PreTrainedModel, stored: Mapping[str, str], base: TensorSource) -> None:
    """Make sure that what the config says is one tensor is not stored as two different ones."""
    for name, other in shared_names(model).items():
        if stored[name] != stored[other] and not torch.equal(
            base.read(stored[name]), base.read(stored[other])
        ):
            raise NotStreamable(f"{name} and {other} are to be one tensor and are stored as two")


def _slots(layer: LoraLayer, owner: str) -> dict[str, tuple[nn.Module, str]]:
    """Map the names that a LoRA layer's tensors may have in a file to where they belong."""
    prefix = f"{PREFIX}{owner}"
    slots: dict[str, tuple[nn.Module, str]] = {}
    if isinstance(layer, Embedding):
        slots[f"{prefix}.lora_embedding_A"] = (layer.lora_embedding_A, NAME)
        slots[f"{prefix}.lora_embedding_B"] = (layer.lora_embedding_B, NAME)
    else:
        slots[f"{prefix}.lora_A.weight"] = (layer.lora_A[NAME], "weight")
        slots[f"{prefix}.lora_B.weight"] = (layer.lora_B[NAME], "weight")
        slots[f"{prefix}.lora_B.bias"] = (layer.lora_B[NAME], "bias")
    if NAME in layer.lora_magnitude_vector:
        slots[f"{prefix}.lora_magnitude_vector"] = (layer.lora_magnitude_vector[NAME], "weight")
    return slots


def _origin(plain: Origin, model: PreTrainedModel, adapter: Mapping[str, TensorInfo]) -> Origin:
    """Add what the adapter does to a tensor."""
    owner, _, attribute = plain.name.rpartition(".")
    names = (f"{PREFIX}{plain.name}", f"{PREFIX}{owner}{BASE_LAYER}.{attribute}")
    origin = replace(plain, replacement=next((each for each in names if each in adapter), None))
    layer = _module_at(model, owner)
    if not isinstance(layer, LoraLayer):
        return origin
    scale = _scale(layer)
    if attribute == "bias":
        added = f"{PREFIX}{owner}.lora_B.bias"
        return replace(origin, added=added if added in adapter else None, added_scale=scale)
    down, up, *_ = _slots(layer, owner)
    magnitude = f"{PREFIX}{owner}.lora_magnitude_vector"
    is_transposed = isinstance(layer, Embedding) or bool(layer.fan_in_fan_out)
    has_magnitude = magnitude in adapter
    return replace(
        origin,
        low_rank=LowRank(down, up, magnitude if has_magnitude else None, scale, is_transposed),
    )


def _scale(layer: LoraLayer) -> float:
    """Compute by how much a change is scaled, from rank and alpha and not from PEFT's result."""
    rank = layer.r[NAME]
    return float(layer.lora_alpha[NAME] / (math.sqrt(rank) if layer.use_rslora[NAME] else rank))


def _module_at(model: PreTrainedModel, owner: str) -> nn.Module | None:
    """Find the module that holds a tensor, unless it lies inside one that is trained whole."""
    module: nn.Module = model
    for part in owner.split("."):
        if isinstance(module, AuxiliaryTrainingWrapper):
            return None
        module = getattr(module, part)
    return module


def _check_all_used(
    origins: Mapping[str, Origin], adapter: Mapping[str, TensorInfo], at: str
) -> None:
    used = {name for origin in origins.values() for name in origin.adapter_names()}
    unused = sorted(adapter.keys() - used)
    if unused:
        raise DataError(
            f"{len(unused)} adapter tensors would change no tensor of the model, the first is "
            f"{unused[0]}",
            at=at,
            fix="merge onto the base the adapter was trained on",
        )


def _check_shapes(origins: Mapping[str, Origin], base: Mapping[str, TensorInfo], at: str) -> None:
    wrong = [
        origin.name
        for origin in origins.values()
        if origin.replacement is None
        and (origin.base is None or base[origin.base].shape != origin.shape)
    ]
    if wrong:
        raise DataError(
            f"the adapter was trained with another vocabulary, but brings no {', '.join(wrong)}",
            at=at,
            fix="save the adapter with its embeddings: save_pretrained(save_embedding_layers=True)",
        )
