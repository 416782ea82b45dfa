"""Which tensors of an adapter's file say something, and what they make of the base.

PEFT writes some tensors twice, and embeddings beside an adapter that was not asked to train them.
Knows names and embeddings; must not know layers.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final

import torch
from transformers import PreTrainedModel

from modelmill.models.skeleton import shared_names

PREFIX: Final = "base_model.model."
"""Before every name in an adapter's file."""

BASE_LAYER: Final = ".base_layer"
"""In the names of what an adapter's layers stand around."""

_KEPT = ".original_module."
_TRAINED = ".modules_to_save."

Read = Callable[[str], torch.Tensor]


def own_tensors(names: Collection[str], read: Read) -> set[str]:
    """Leave out what `save_pretrained` writes of an embedding that is trained whole, but once.

    It is there under its own name, as PEFT reads it; as its wrapper has it; and as it was before.
    """
    own = set(names)
    for name in sorted(names):
        plain = name.replace(_TRAINED, ".").replace(_KEPT, ".")
        if plain == name or plain not in own:
            continue
        if _KEPT in name or torch.equal(read(name), read(plain)):
            own.remove(name)
    return own


def head_copies(base: PreTrainedModel, names: Collection[str], read: Read) -> set[str] | None:
    """Find the adapter's copies of the embeddings for a head that is tied to them.

    Returns:
        Their names, or None where the adapter's head is another one than its embeddings.
    """
    copies: set[str] = set()
    for name, kept in shared_names(base).items():
        head, embeddings = f"{PREFIX}{name}", f"{PREFIX}{kept}"
        if head not in names:
            continue
        if embeddings not in names or not torch.equal(read(head), read(embeddings)):
            return None
        copies.add(head)
    return copies


def embedded_rows(base: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the tokens that the adapter's own embeddings have, or else the base's."""
    embeddings = base.get_input_embeddings()
    name = next(name for name, module in base.named_modules() if module is embeddings)
    sides = ((".weight", 0), (f"{BASE_LAYER}.weight", 0), (".lora_embedding_A", 1))
    for suffix, dimension in sides:
        shape = shapes.get(f"{PREFIX}{name}{suffix}")
        if shape is not None:
            return shape[dimension]
    return int(embeddings.num_embeddings)


def embedding_names(base: PreTrainedModel) -> set[str]:
    """Name the weights of embeddings and head as an adapter's file may, with or without layers."""
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    owners = [name for name, module in base.named_modules() if module in ends]
    return {f"{PREFIX}{owner}{layer}.weight" for owner in owners for layer in ("", BASE_LAYER)}
