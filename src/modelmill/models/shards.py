"""Tensors read one at a time, wherever in a folder's files they lie, and none kept.

Plain reads and no mapped files: pages of a mapped file count as this process's memory for as
long as nobody else wants them, so a merge of 2.2 GB that mapped its shards took 4.8 GB.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, Self

import torch

from modelmill.models.weights import checkpoint_files
from modelmill.spec.errors import DataError
from modelmill.store.tensors import TensorInfo, read_safetensors_header

DTYPE_OF: Final[Mapping[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""What plain checkpoints are made of; the packed formats are other stages' work."""

NAME_OF: Final[Mapping[torch.dtype, str]] = {dtype: name for name, dtype in DTYPE_OF.items()}


class TensorSource(Protocol):
    """Where tensors come from."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name every tensor that can be read."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """Read one, as it is stored; it belongs to the caller."""
        ...


@dataclass(frozen=True)
class Chosen:
    """Some of the tensors of a source."""

    source: TensorSource
    names: Collection[str]

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name those that were chosen."""
        return {name: info for name, info in self.source.tensors.items() if name in self.names}

    def read(self, name: str) -> torch.Tensor:
        """Read one, as it is stored; it belongs to the caller."""
        return self.source.read(name)


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are."""

    file: int
    """Open descriptor."""
    path: Path
    start: int
    info: TensorInfo


@dataclass(frozen=True)
class FileSource:
    """The safetensors files of a folder; a context, because it holds them open."""

    folder: Path
    _places: dict[str, _Place] = field(default_factory=dict)

    def __enter__(self) -> Self:
        for path in checkpoint_files(self.folder):
            self._open(path)
        return self

    def __exit__(self, *_: object) -> None:
        for file in {place.file for place in self._places.values()}:
            os.close(file)
        self._places.clear()

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name every tensor of the folder."""
        return {name: place.info for name, place in self._places.items()}

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor as it is stored; it belongs to the caller.

        Raises:
            DataError: the file has become shorter than its header says.
        """
        place = self._places[name]
        info = place.info
        tensor = torch.empty(info.shape, dtype=DTYPE_OF[info.dtype])
        # A view of the bytes; numpy has no bfloat16.
        rest = memoryview(tensor.view(-1).view(torch.uint8).numpy()) if info.elements else None
        at = place.start
        while rest:
            count = os.preadv(place.file, [rest], at)
            if not count:
                raise DataError(
                    f"the file ends inside the tensor {name!r}",
                    at=str(place.path),
                    fix="copy or save the file again",
                )
            rest, at = rest[count:], at + count
        return tensor

    def _open(self, path: Path) -> None:
        tensors = read_safetensors_header(path)
        data_bytes = max((info.end for info in tensors.values()), default=0)
        behind_header = path.stat().st_size - data_bytes
        file = os.open(path, os.O_RDONLY)
        for name, info in tensors.items():
            self._places[name] = _Place(file, path, behind_header + info.start, info)
