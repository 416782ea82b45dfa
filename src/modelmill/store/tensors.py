"""The header of a safetensors file, read and checked without any ML library.

The format: eight bytes of little-endian length, that many bytes of JSON, then the tensors'
bytes without gaps (https://huggingface.co/docs/safetensors).  A file that breaks a rule here
would make a loader read beyond its end, read bytes twice, or hide bytes.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError

from modelmill.spec.errors import DataError

LONGEST_HEADER_BYTES: Final = 100_000_000
"""The limit of the reference implementation."""

LENGTH_BYTES: Final = 8

BITS_OF: Final[Mapping[str, int]] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "U8": 8,
    "I8": 8,
    "F16": 16,
    "BF16": 16,
    "U16": 16,
    "I16": 16,
    "F32": 32,
    "U32": 32,
    "I32": 32,
    "C64": 64,
    "F64": 64,
    "U64": 64,
    "I64": 64,
}
"""Per element, of every dtype the format defines."""

_NotNegative = Annotated[StrictInt, Field(ge=0)]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte behind the header."""
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class WeightFile(Protocol):
    """A safetensors file, wherever it lies."""

    @property
    def path(self) -> PurePath:
        """Name it, in messages too."""
        ...

    @property
    def size_bytes(self) -> int:
        """Say how long it is."""
        ...

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes from a place on.

        Raises:
            DataError: the file ends before.
        """
        ...


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    shape: tuple[_NotNegative, ...]
    data_offsets: tuple[_NotNegative, _NotNegative]


_ENTRIES = TypeAdapter(dict[str, _Entry])
_METADATA = TypeAdapter(dict[str, str])


ReadRange = Callable[[int, int], bytes]
"""Reads so many bytes from a place on; fewer where the file ends before."""


def read_safetensors_header(path: Path) -> Mapping[str, TensorInfo]:
    """Read the tensors' names, dtypes, shapes and offsets, in the order of their bytes.

    Raises:
        DataError: the file is truncated, corrupt or contradicts itself.
    """
    with path.open("rb") as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        return parse_safetensors_header(path, path.stat().st_size, read)


def header_of(file: WeightFile) -> Mapping[str, TensorInfo]:
    """Do the same with a file wherever it lies: only its beginning is read.

    Raises:
        DataError: as `read_safetensors_header`.
    """

    def read(start: int, length: int) -> bytes:
        body = bytearray(min(length, file.size_bytes - start))
        file.read_into(start, memoryview(body))
        return bytes(body)

    return parse_safetensors_header(file.path, file.size_bytes, read)


def parse_safetensors_header(
    path: PurePath, size_bytes: int, read: ReadRange
) -> Mapping[str, TensorInfo]:
    """Do the same with a file that need not be here: only its beginning is read.

    Args:
        path: its name in messages.
        size_bytes: of all of it.
        read: asked for eight bytes, then for the header.

    Raises:
        DataError: as `read_safetensors_header`.
    """
    text = _header_text(path, size_bytes, read)
    entries = _parse(path, text)
    tensors = {name: _tensor(path, name, entry) for name, entry in entries.items()}
    in_order = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
    reached = 0
    for name, tensor in in_order:
        if tensor.start != reached:
            what = "overlaps the tensor before it" if tensor.start < reached else "leaves a hole"
            raise _broken(path, f"tensor {name!r} {what} at byte {tensor.start:,}")
        reached = tensor.end
    expected_bytes = LENGTH_BYTES + len(text) + reached
    if expected_bytes != size_bytes:
        state = "truncated" if size_bytes < expected_bytes else "too long"
        raise _broken(
            path,
            f"it is {state}: the header describes {expected_bytes:,} bytes, "
            f"the file has {size_bytes:,}",
        )
    return dict(in_order)


def _header_text(path: PurePath, size_bytes: int, read: ReadRange) -> bytes:
    length = int.from_bytes(read(0, LENGTH_BYTES), "little")
    if size_bytes < LENGTH_BYTES:
        raise _broken(path, f"it is truncated: {size_bytes} bytes")
    if length > LONGEST_HEADER_BYTES:
        raise _broken(path, f"its header would be {length:,} bytes long")
    if LENGTH_BYTES + length > size_bytes:
        raise _broken(path, f"it is truncated inside its header of {length:,} bytes")
    return read(LENGTH_BYTES, length)


def _parse(path: PurePath, text: bytes) -> dict[str, _Entry]:
    if not text.startswith(b"{"):
        raise _broken(path, "its header is not a JSON object")
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        _METADATA.validate_python(header.pop("__metadata__", None) or {})
        return _ENTRIES.validate_python(header)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _broken(path, f"its header is wrong at {where!r}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header cannot be read ({error})") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            msg = f"the name {name!r} occurs twice"
            raise ValueError(msg)
        found[name] = value
    return found


def _tensor(path: PurePath, name: str, entry: _Entry) -> TensorInfo:
    if entry.dtype not in BITS_OF:
        raise _broken(path, f"tensor {name!r} has the unknown dtype {entry.dtype!r}")
    tensor = TensorInfo(entry.dtype, entry.shape, *entry.data_offsets)
    bits = tensor.elements * BITS_OF[entry.dtype]
    if bits % 8 or tensor.end - tensor.start != bits // 8:
        raise _broken(
            path,
            f"tensor {name!r} of shape {list(tensor.shape)} and dtype {tensor.dtype} "
            f"cannot have {tensor.end - tensor.start:,} bytes",
        )
    return tensor


def _broken(path: PurePath, reason: str) -> DataError:
    return DataError(
        f"{path.name} is not a sound safetensors file: {reason}",
        at=str(path),
        fix="copy or save the file again",
    )
