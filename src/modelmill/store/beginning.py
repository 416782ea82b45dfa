"""Files that are somewhere else, of which only the beginning is read.

What a model is made of stands in its config and in the first kilobytes of its weight files.
Knows files and safetensors headers; must not know models.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from modelmill.store.tensors import TensorInfo, parse_safetensors_header

FIRST_BYTES: Final = 256 * 1024
"""Of a first read: holds the header of a shard of some thousand tensors."""

AT_ONCE: Final = 8
"""Files that are read side by side."""


@dataclass(frozen=True)
class DistantFile:
    """A file, and a way to read how it begins."""

    path: str
    size_bytes: int
    first: Callable[[int], bytes]
    """Reads so many bytes from the start, or all there are."""

    def whole(self) -> bytes:
        """Read all of it; for small files."""
        return self.first(self.size_bytes)


def file_here(path: Path, name: str) -> DistantFile:
    """Look at a file of this machine in the same way."""

    def first(length: int) -> bytes:
        with path.open("rb") as file:
            return file.read(length)

    return DistantFile(name, path.stat().st_size, first)


def distant_tensors(files: Iterable[DistantFile]) -> Mapping[str, TensorInfo]:
    """Read the headers of the safetensors files among some files; one or two reads each.

    Raises:
        DataError: a header is broken, or does not describe a file of that size.
        ModelmillError: the files cannot be read.
    """
    weights = [each for each in files if each.path.endswith(".safetensors")]
    tensors: dict[str, TensorInfo] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for header in pool.map(_header, weights):
            tensors |= header
    return tensors


def _header(file: DistantFile) -> Mapping[str, TensorInfo]:
    beginning = b""

    def read(start: int, length: int) -> bytes:
        nonlocal beginning
        end = start + length
        if len(beginning) < min(end, file.size_bytes):
            beginning = file.first(min(max(end, FIRST_BYTES), file.size_bytes))
        return beginning[start:end]

    return parse_safetensors_header(PurePosixPath(file.path), file.size_bytes, read)
