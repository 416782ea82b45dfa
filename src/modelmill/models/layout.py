"""Weight files laid out before a tensor is there, then written in one pass.

The bytes are those of transformers' `save_pretrained`: the same shards, the same order, the
same headers.  Names, shapes and dtypes decide all of that, so every length is known before
the first byte is written, and every digest when the last one is.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

import torch

from modelmill.models.shards import NAME_OF
from modelmill.models.weights import INDEX, SINGLE
from modelmill.store.poured import Poured
from modelmill.store.tensors import LENGTH_BYTES

SHARD_BYTES: Final = 4_000_000_000
"""What `weights.SHARD_SIZE` means."""

_ALIGNMENT_BYTES = 8
_BYTE_ORDER: Final = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""The order in which safetensors places tensors; those of one dtype by name."""


@dataclass(frozen=True)
class Form:
    """What is known of a tensor before it exists."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes in a file."""
        return self.elements * int(self.dtype.itemsize)

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """One file: its name, and its tensors in the order of their bytes."""

    name: str
    forms: tuple[Form, ...]

    @property
    def size_bytes(self) -> int:
        """How many bytes the file will have."""
        return len(self.header()) + sum(form.size_bytes for form in self.forms)

    def header(self) -> bytes:
        """Make all bytes before the first tensor."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        reached = 0
        for form in self.forms:
            end = reached + form.size_bytes
            entries[form.name] = {
                "dtype": NAME_OF[form.dtype],
                "shape": list(form.shape),
                "data_offsets": [reached, end],
            }
            reached = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT_BYTES)
        return len(text).to_bytes(LENGTH_BYTES, "little") + text


Make = Callable[[Form], torch.Tensor]


def lay_out(forms: Sequence[Form], shard_bytes: int = SHARD_BYTES) -> tuple[Shard, ...]:
    """Place tensors in files, in the order given until a file would become too big."""
    groups: list[list[Form]] = []
    current: list[Form] = []
    for form in forms:
        if form.size_bytes > shard_bytes:
            groups.append([form])
            continue
        if sum(each.size_bytes for each in current) + form.size_bytes > shard_bytes:
            groups.append(current)
            current = []
        current.append(form)
    if current:
        groups.append(current)
    count = len(groups)
    return tuple(
        Shard(
            SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors",
            tuple(sorted(group, key=_byte_order)),
        )
        for number, group in enumerate(groups, 1)
    )


def write_shards(
    shards: Sequence[Shard],
    folder: Path,
    make: Make,
    begun: Callable[[Path, int], None] = lambda *_: None,
) -> Iterator[Form]:
    """Write every shard from its first byte to its last, and tell each tensor that is there.

    Args:
        shards: what `lay_out` made.
        folder: where to.
        make: makes one tensor of the form asked for; it is not needed afterwards.
        begun: told of each file, and how many bytes it will have, when it is there.
    """
    for shard in shards:
        with (folder / shard.name).open("xb", buffering=0) as file:
            begun(folder / shard.name, shard.size_bytes)

            def write(rest: memoryview, file: FileIO = file) -> None:
                while rest:
                    rest = rest[file.write(rest) or 0 :]

            write(memoryview(shard.header()))
            for form in shard.forms:
                write(_bytes_of(make(form), form))
                yield form


def pour_shards(
    shards: Sequence[Shard], make: Make, begin: Callable[[str, bytes, int], Poured]
) -> Iterator[Form]:
    """Do the same with files that lie nowhere, and make no tensor that has been sent before.

    Args:
        shards: what `lay_out` made.
        make: makes one tensor of the form asked for; it is not needed afterwards.
        begin: begins a file of a name, of all bytes before its first tensor and so many in all.
    """
    for shard in shards:
        header = shard.header()
        poured = begin(shard.name, header, shard.size_bytes)
        poured.write(memoryview(header)[poured.take(len(header)) :])
        for form in shard.forms:
            taken_bytes = poured.take(form.size_bytes)
            if taken_bytes < form.size_bytes:
                poured.write(_bytes_of(make(form), form)[taken_bytes:])
            yield form


def write_index(shards: Sequence[Shard], folder: Path, parameters: int) -> None:
    """Write which tensor is in which file, where there is more than one."""
    if len(shards) == 1:
        return
    index: Mapping[str, object] = {
        "metadata": {
            "total_parameters": parameters,
            "total_size": sum(form.size_bytes for shard in shards for form in shard.forms),
        },
        "weight_map": {form.name: shard.name for shard in shards for form in shard.forms},
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")


def _byte_order(form: Form) -> tuple[int, str]:
    return _BYTE_ORDER.index(NAME_OF[form.dtype]), form.name


def _bytes_of(tensor: torch.Tensor, form: Form) -> memoryview:
    assert tensor.shape == form.shape, form.name
    assert tensor.dtype == form.dtype, form.name
    if not form.elements:
        return memoryview(b"")
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())
