"""Weight files: how big they are, what they hold, and that everyone may read them.

Reads headers, never tensors.  Knows safetensors; must not know architectures.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from transformers import PreTrainedModel

SHARD_SIZE = "4GB"
"""Small enough for one multipart upload part table and a retry, large enough to be few."""

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_READABLE = 0o644


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
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return (single,)
    if index.is_file():
        shards = _Index.model_validate_json(index.read_bytes()).weight_map.values()
        return tuple(folder / name for name in sorted(set(shards)))
    return weight_files(folder)


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


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Save weights, config and generation config in shards that other users can read."""
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    make_readable(folder)


def make_readable(folder: Path) -> None:
    """Give every file of a folder mode 0644: safetensors are written 0600."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(_READABLE)
