"""Tensors read one at a time, from wherever their files lie, and none kept.

Plain reads and no mapped files: pages of a mapped file count as this process's memory for as
long as nobody else wants them, so a merge of 2.2 GB that mapped its shards took 4.8 GB.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch

from modelmill.models.weights import checkpoint_files
from modelmill.spec.errors import DataError
from modelmill.store.tensors import TensorInfo, WeightFile, header_of

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
class LocalFile:
    """A file of this machine, open."""

    path: Path
    size_bytes: int
    fd: int

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes from a place on.

        Raises:
            DataError: the file ends before.
        """
        while view:
            count = os.preadv(self.fd, [view], start)
            if not count:
                raise DataError(
                    f"the file ends at byte {start:,}, inside a tensor",
                    at=str(self.path),
                    fix="copy or save the file again",
                )
            view, start = view[count:], start + count


class Tensors:
    """Tensors of weight files, read from wherever these lie."""

    def __init__(self, files: Iterable[WeightFile]) -> None:
        """Read the files' headers.

        Raises:
            DataError: one is truncated, corrupt or contradicts itself.
        """
        self._places: dict[str, tuple[WeightFile, int, TensorInfo]] = {}
        for file in files:
            tensors = header_of(file)
            data_bytes = max((info.end for info in tensors.values()), default=0)
            behind_header = file.size_bytes - data_bytes
            for name, info in tensors.items():
                self._places[name] = (file, behind_header + info.start, info)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name every tensor of the files."""
        return {name: info for name, (*_, info) in self._places.items()}

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor as it is stored; it belongs to the caller.

        Raises:
            DataError: the file has become shorter than its header says.
        """
        file, start, info = self._places[name]
        tensor = torch.empty(info.shape, dtype=DTYPE_OF[info.dtype])
        if info.elements:
            # A view of the bytes; numpy has no bfloat16.
            file.read_into(start, memoryview(tensor.view(-1).view(torch.uint8).numpy()))
        return tensor


@contextmanager
def open_tensors(folder: Path) -> Iterator[Tensors]:
    """Open the weight files of a folder for as long as they are read."""
    with ExitStack() as opened:
        files = []
        for path in checkpoint_files(folder):
            fd = os.open(path, os.O_RDONLY)
            opened.callback(os.close, fd)
            files.append(LocalFile(path, os.fstat(fd).st_size, fd))
        yield Tensors(files)
