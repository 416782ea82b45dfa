"""Weight files: how big they are, what they hold, and that everyone may read them.

Reads headers, not tensors.  Knows safetensors; must not know architectures.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter
from safetensors import safe_open
from transformers import PreTrainedModel

SHARD_SIZE = "4GB"
"""Small enough for one multipart upload part table and a retry, large enough to be few."""

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
"""Which shard holds which tensor."""

_READABLE = 0o644

_INDEX_FILE = TypeAdapter(dict[str, dict[str, JsonValue]])


class _Index(BaseModel):
    """Which tensor is in which file."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    weight_map: Mapping[str, str]


def weight_files(folder: Path) -> tuple[Path, ...]:
    """List the safetensors files of a folder, by name."""
    return tuple(sorted(folder.glob("*.safetensors")))


def checkpoint_files(folder: Path) -> tuple[Path, ...]:
    """List those weight files that are read when a folder is opened, by name.

    As transformers has it: one file, else what the index names.  Some models bring the same
    weights a second time, under the names of another library.
    """
    names = [path.name for path in weight_files(folder)]
    return tuple(folder / name for name in checkpoint_names(folder, names))


def checkpoint_names(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Choose those weight files that are read when a folder is opened, wherever they lie.

    Args:
        folder: with the index, if there is one.
        names: of all weight files.
    """
    index = folder / INDEX
    if SINGLE in names:
        return (SINGLE,)
    if index.is_file():
        shards = _Index.model_validate_json(index.read_bytes()).weight_map.values()
        return tuple(sorted(set(shards)))
    return tuple(sorted(names))


def weight_bytes(folder: Path) -> int:
    """Add up the sizes of the weight files on disk."""
    return sum(path.stat().st_size for path in weight_files(folder))


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Map every stored tensor's name to its shape, from the headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    return shapes


def parameter_count(folder: Path) -> int:
    """Count the stored parameters of a plain (not packed) checkpoint."""
    return sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def index_tensors(folder: Path, path: Path, added: Mapping[str, torch.Tensor]) -> None:
    """Name tensors that a shard was given in the index of the shards, if there is one."""
    index = folder / INDEX
    if not index.exists():
        return
    stored = _INDEX_FILE.validate_json(index.read_bytes())
    stored["weight_map"].update(dict.fromkeys(added, path.name))
    told = stored["metadata"].get("total_size")
    if isinstance(told, int):
        stored["metadata"]["total_size"] = told + sum(each.nbytes for each in added.values())
    _write_index(index, stored)


def write_index(folder: Path, places: Mapping[str, str], size_bytes: int) -> None:
    """Write which shard holds which tensor."""
    about: dict[str, JsonValue] = {"total_size": size_bytes}
    _write_index(folder / INDEX, {"metadata": about, "weight_map": dict(places)})


def _write_index(path: Path, index: Mapping[str, dict[str, JsonValue]]) -> None:
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Save weights, config and generation config in shards that other users can read."""
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    make_readable(folder)


def make_readable(folder: Path) -> None:
    """Give every file of a folder mode 0644: safetensors are written 0600."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(_READABLE)
