"""GPTQ checkpoints: what their files must hold, and the weights that they mean.

An independent reading of format v1: no line of the engine that wrote it runs here, so
that a wrong file cannot be read back wrongly in the same way.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modelmill.models.families import close_known_holes, linear_in_features
from modelmill.models.guard import check_loading
from modelmill.models.open import open_config
from modelmill.models.weights import index_tensors, tensor_shapes, weight_files

PACKED: Final = ("qweight", "qzeros", "scales", "g_idx")
"""What stands for a quantized layer's `weight`."""

_WORD: Final = 32


def check_files(folder: Path, config: PreTrainedConfig) -> int:
    """Count the quantized layers in a folder's files and refuse it if a tensor is amiss.

    Args:
        folder: safetensors in the GPTQ layout.
        config: of the unquantized model.

    Raises:
        DataError: a layer is not quantized, or a tensor is missing or left over.
    """
    model = _skeleton(config)
    layers = linear_in_features(model)
    wanted = {name for name in model.state_dict() if name.removesuffix(".weight") not in layers}
    wanted |= {f"{layer}.{part}" for layer in layers for part in PACKED}
    found = set(tensor_shapes(folder))
    info: dict[str, set[object]] = {
        "missing_keys": {*(wanted - found)},
        "unexpected_keys": {*(found - wanted)},
        "mismatched_keys": set(),
    }
    check_loading(info, model, str(folder))
    return len(layers)


def store_tied_heads(folder: Path, config: PreTrainedConfig) -> None:
    """Store what is tied to the embeddings as a tensor of its own, beside what it is a copy of.

    auto-gptq 0.7.1 ties before it loads, and computes with an output head that nobody filled.
    Later readers tie after loading and drop the copy.

    Args:
        folder: safetensors in the GPTQ layout; changed in place.
        config: of the unquantized model, which must go on saying that the two are tied.
    """
    tied = _skeleton(config).all_tied_weights_keys if config.tie_word_embeddings else {}
    missing = {name: source for name, source in tied.items() if name not in tensor_shapes(folder)}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
        tensors = load_file(path)
        copies = {
            name: tensors[source].clone() for name, source in missing.items() if source in tensors
        }
        if copies:
            save_file({**tensors, **copies}, path, metadata=about)
            index_tensors(folder, path, copies)


def open_unpacked(folder: Path, *, bits: int, dtype: torch.dtype) -> PreTrainedModel:
    """Open a GPTQ checkpoint as the plain model that its packed weights mean, on the CPU.

    Args:
        folder: format v1, as written by the quantize stage.
        bits: per weight, 2, 3, 4 or 8.
        dtype: of weights and compute.

    Raises:
        DataError: a layer is not quantized, or a tensor is missing or left over.
    """
    config = open_config(folder)
    del config.quantization_config
    check_files(folder, config)
    skeleton = _skeleton(config)
    transposed = {name for name, module in skeleton.named_modules() if isinstance(module, Conv1D)}
    packed: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        packed |= load_file(path)
    state = dict(_unpacked(packed, bits, dtype, transposed))
    model, info = type(skeleton).from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    check_loading(info, model, str(folder))
    return model


@dataclass(frozen=True)
class PackedLayer:
    """One layer as format v1 stores it."""

    qweight: torch.Tensor
    """int32 [in_features * bits / 32, out_features], packed along the inputs."""
    qzeros: torch.Tensor
    """int32 [groups, out_features * bits / 32], see `zero_points`."""
    scales: torch.Tensor
    """[groups, out_features]."""
    g_idx: torch.Tensor
    """The group of every input feature."""

    def weight(self, bits: int) -> torch.Tensor:
        """Compute the weights they mean, in float32 [in_features, out_features]."""
        codes = unpack(self.qweight, bits)
        zeros = zero_points(self.qzeros, bits)
        groups = self.g_idx.long()
        return self.scales.float()[groups] * (codes - zeros[groups]).float()


def zero_points(qzeros: torch.Tensor, bits: int) -> torch.Tensor:
    """Compute the integers that stand for zero, [groups, out_features].

    Each is stored less one, and GPTQModel takes the ones off whole words: for a zero point of 0 it
    borrows from the next one in the word, and gives that back when it reads.  At 3 bits it takes
    words apart first.
    """
    if _WORD % bits == 0:
        ones = sum(1 << place for place in range(0, _WORD, bits))
        return unpack((qzeros + ones).T.contiguous(), bits).T
    return (unpack(qzeros.T.contiguous(), bits).T + 1) % (1 << bits)


def count_lowest_zeros(folder: Path, bits: int) -> int:
    """Count the groups in a folder's files whose zero point is 0."""
    count = 0
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if name.endswith(f".{PACKED[1]}"):
                    zeros = zero_points(file.get_tensor(name), bits)
                    count += int((zeros == 0).sum())
    return count


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Spread int32 words into the codes they hold, lowest bits first, along the first axis.

    3-bit codes go on across the border between two words.
    """
    if _WORD % bits == 0:
        shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
        codes = (words[:, None, :] >> shifts[None, :, None]) & ((1 << bits) - 1)
        return codes.reshape(-1, words.shape[1])
    shifts = torch.arange(_WORD, dtype=torch.int32)
    ones = ((words[:, None, :] >> shifts[None, :, None]) & 1).reshape(-1, bits, words.shape[1])
    places = 1 << torch.arange(bits, dtype=torch.int32)
    return (ones * places[None, :, None]).sum(dim=1, dtype=torch.int32)


def _unpacked(
    packed: Mapping[str, torch.Tensor], bits: int, dtype: torch.dtype, transposed: set[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in packed.items():
        layer, _, part = name.rpartition(".")
        if part == PACKED[0]:
            weight = PackedLayer(*(packed[f"{layer}.{each}"] for each in PACKED)).weight(bits)
            weight = weight if layer in transposed else weight.T
            yield f"{layer}.weight", weight.to(dtype).contiguous()
        elif part not in PACKED:
            yield name, tensor.to(dtype)


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    close_known_holes(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
