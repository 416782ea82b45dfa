"""The header of a GGUF file, read and checked without any library.

The format: a magic, counts, settings by key, tensors by name, then the tensors' bytes, aligned
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).  Readers in C have multiplied and
added these numbers without looking (CVE-2024-21802, CVE-2026-27940, CVE-2026-7482); here none
is believed before the file has been found long enough for it.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from modelmill.store.refusals import refused

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MOST_ENTRIES: Final = 2**20
"""Settings, or tensors; the largest models have tens of thousands."""
MOST_VALUES: Final = 2**22
"""Of one array; the largest vocabularies have 2**18 pieces and twice as many merges."""
LONGEST_HEADER_BYTES: Final = 2**28
LONGEST_NAME_BYTES: Final = 2**16
LONGEST_TEXT_BYTES: Final = 2**24
MOST_DIMENSIONS: Final = 4
DEFAULT_ALIGNMENT: Final = 32

_STRING: Final = 8
_ARRAY: Final = 9
_NUMBERS: Final[Mapping[int, str]] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
"""How each type of number is stored."""

BLOCKS: Final[Mapping[int, tuple[int, int]]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
"""Elements and bytes of one block, of every type of tensor that is stored in files."""

Value: TypeAlias = bool | int | float | str | list["Value"]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file."""

    kind: int
    """A key of `BLOCKS`."""
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte behind the header."""
    size_bytes: int


@dataclass(frozen=True)
class Gguf:
    """What a file says of itself."""

    settings: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    def chat_templates(self) -> Mapping[str, str]:
        """Name the settings that are programs."""
        return {
            key: value
            for key, value in self.settings.items()
            if key.startswith("tokenizer.chat_template") and isinstance(value, str)
        }


def read_gguf_header(path: Path) -> Gguf:
    """Read settings and tensors, and make sure that the file holds what they promise.

    Raises:
        UnsafeArtifact: a number in it would lead a reader out of the file or astray.
    """
    with path.open("rb") as file:
        reader = _Reader(path, file)
        if reader.take(4) != MAGIC:
            raise refused(path, "it is not a GGUF file")
        if (version := reader.number("<I")) not in VERSIONS:
            raise refused(path, f"its GGUF version is {version}")
        tensor_count, setting_count = reader.count("tensors"), reader.count("settings")
        settings: dict[str, Value] = {}
        for _ in range(setting_count):
            key = reader.text("a key", LONGEST_NAME_BYTES)
            if key in settings:
                raise refused(path, f"its key {key!r} occurs twice")
            settings[key] = reader.value(reader.number("<I"))
        alignment = _alignment(path, settings)
        tensors: dict[str, GgufTensor] = {}
        for _ in range(tensor_count):
            name = reader.text("a tensor's name", LONGEST_NAME_BYTES)
            if name in tensors:
                raise refused(path, f"its tensor {name!r} occurs twice")
            tensors[name] = _tensor(path, name, reader)
        start = math.ceil(file.tell() / alignment) * alignment
    _check_places(path, tensors, alignment, reader.size_bytes - start)
    return Gguf(settings, tensors)


class _Reader:
    """Takes values off a file, never beyond its end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.size_bytes = path.stat().st_size

    def left(self) -> int:
        """Say how many bytes of a header may be left."""
        return min(self.size_bytes, LONGEST_HEADER_BYTES) - self._file.tell()

    def take(self, count: int) -> bytes:
        """Take some bytes."""
        if count > self.left():
            raise refused(self._path, "its header does not end within the file")
        return self._file.read(count)

    def number(self, form: str) -> int:
        """Take a number."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def count(self, what: str) -> int:
        """Take a count of entries, of which each has some bytes at least."""
        count = self.number("<Q")
        if count > MOST_ENTRIES or 8 * count > self.left():
            raise refused(self._path, f"it counts {count:,} {what}")
        return count

    def text(self, what: str, longest_bytes: int) -> str:
        """Take a length and so much text."""
        length = self.number("<Q")
        if length > min(longest_bytes, self.left()):
            raise refused(self._path, f"{what} would be {length:,} bytes long")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise refused(self._path, f"{what} is not UTF-8") from error

    def value(self, kind: int, *, in_array: bool = False) -> Value:
        """Take a setting's value."""
        if kind == _STRING:
            return self.text("a text", LONGEST_TEXT_BYTES)
        if kind == _ARRAY and not in_array:
            return self._array()
        form = _NUMBERS.get(kind)
        if form is None:
            raise refused(self._path, f"it has a value of the unknown type {kind}")
        found: Value = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return found

    def _array(self) -> Value:
        kind, count = self.number("<I"), self.number("<Q")
        form = _NUMBERS.get(kind)
        each_bytes = struct.calcsize(form) if form else 8
        if count > MOST_VALUES or count * each_bytes > self.left():
            raise refused(self._path, f"an array would have {count:,} values")
        if form is None:
            return [self.value(kind, in_array=True) for _ in range(count)]
        return [*struct.unpack(f"<{count}{form[1]}", self.take(count * each_bytes))]


def _alignment(path: Path, settings: Mapping[str, Value]) -> int:
    alignment = settings.get("general.alignment", DEFAULT_ALIGNMENT)
    is_power = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
    if isinstance(alignment, bool) or not isinstance(alignment, int) or not is_power:
        raise refused(path, f"its alignment is {alignment!r}, which is no power of two")
    return alignment


def _tensor(path: Path, name: str, reader: _Reader) -> GgufTensor:
    dimensions = reader.number("<I")
    if dimensions > MOST_DIMENSIONS:
        raise refused(path, f"its tensor {name!r} has {dimensions:,} dimensions")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))
    kind, start = reader.number("<i"), reader.number("<Q")
    if kind not in BLOCKS:
        raise refused(path, f"its tensor {name!r} has the unknown type {kind}")
    elements, (block, block_bytes) = math.prod(shape), BLOCKS[kind]
    if elements % block or (shape and shape[0] % block):
        raise refused(path, f"its tensor {name!r} of shape {list(shape)} has no whole blocks")
    return GgufTensor(kind, shape, start, elements // block * block_bytes)


def _check_places(
    path: Path, tensors: Mapping[str, GgufTensor], alignment: int, data_bytes: int
) -> None:
    reached = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start % alignment:
            raise refused(path, f"its tensor {name!r} begins off the alignment of {alignment}")
        if tensor.start < reached:
            raise refused(path, f"its tensor {name!r} overlaps the one before it")
        reached = tensor.start + tensor.size_bytes
        if reached > data_bytes:
            raise refused(path, f"its tensor {name!r} goes beyond the end of the file")
