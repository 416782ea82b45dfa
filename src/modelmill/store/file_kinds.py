"""What becomes of each file of a model or an adapter, by its name and its first bytes.

What a library of ours could read is checked.  What nothing here reads is left out of our copy,
and said.  What can run code is refused, unless it is one of the well-known by-products that
honest folders carry beside their safetensors: other forms of the same weights, and the state of
a trainer.  Those are left out too, and no name counts without the bytes that belong to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeAlias

from modelmill.spec.errors import DataError
from modelmill.store.gguf import MAGIC as GGUF
from modelmill.store.refusals import refused

SAFETENSORS: Final = ".safetensors"

READ_SUFFIXES: Final = frozenset(
    {SAFETENSORS, ".json", ".jsonl", ".txt", ".jinja", ".model", ".md", ".tiktoken", ".bpe"}
)
"""Weights, settings, vocabularies and words for people."""

CODE_SUFFIXES: Final = frozenset(
    {
        *(".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".hdf5", ".keras", ".msgpack"),
        *(".onnx", ".npy", ".npz", ".joblib", ".dill", ".ot", ".tflite", ".mar"),
        *(".py", ".pyc", ".pyd", ".pyx", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".ps1"),
        *(".js", ".jar", ".wasm", ".whl", ".egg", ".pth.tar"),
        *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".lz4"),
    }
)
"""Pickles and formats that can hold them, code, and archives that can hold either."""

OTHER_WEIGHTS: Final = (
    *("pytorch_model*.bin", "adapter_model*.bin", "openvino_*.bin", "consolidated*.pth"),
    *("tf_model*.h5", "flax_model*.msgpack", "rust_model.ot", "*.onnx", "*.tflite"),
    *("pytorch_model.pt", "ggml-model*.bin"),
)
OTHER_LAYOUT: Final = "consolidated*.safetensors"
"""What Mistral's own program reads, beside what transformers reads."""
TRAINER_STATE: Final = (
    *("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin"),
    *("scaler.pt", "rng_state.pth", "rng_state_*.pth", "random_states_*.pkl"),
    *("*_optim_states.pt", "*_model_states.pt", "zero_to_fp32.py"),
)
CORE_ML: Final = ".mlpackage"
"""A folder whose weights are called weight.bin."""

Fate: TypeAlias = Literal[
    "checked", "other weights", "other layout", "trainer's state", "code", "unread"
]

WHY_LEFT_OUT: Final[Mapping[Fate, str]] = {
    "other weights": "the same weights in formats that can hold code",
    "other layout": "the same weights for another program",
    "trainer's state": "the state of a trainer, which is pickled",
    "code": "the model is of a class that transformers has itself",
    "unread": "nothing here reads such files",
}


@dataclass(frozen=True)
class Surroundings:
    """What stands beside a file."""

    has_safetensors: bool
    has_model: bool = False
    """Whether some of them are by the names that transformers looks for."""
    is_native: bool = False
    """Whether the folder brings code for a model that needs none."""


def fate_of(path: Path, inside: PurePosixPath, beside: Surroundings) -> Fate:
    """Decide about a file.

    Args:
        path: of the file.
        inside: of it in the folder.
        beside: what stands beside it.

    Raises:
        UnsafeArtifact: it can run code, or is not what its name says.
        DataError: it stands for another file.
    """
    suffix = path.suffix.lower()
    head = _head(path)
    if any(part.startswith(".") for part in inside.parts):
        return "unread"
    if suffix in CODE_SUFFIXES:
        return _fate_of_code(path, inside, head, beside)
    if suffix and suffix not in READ_SUFFIXES:
        if suffix == ".gguf" and not head.startswith((GGUF, _LFS)):
            raise _disguised(path, head)
        return "unread"
    if is_pointer(path):
        raise DataError(
            f"{path.name} is not the file itself but a pointer of Git LFS to it",
            at=str(path),
            fix="git lfs pull, then give the same command again",
        )
    _check_bytes(path, suffix, head)
    if beside.has_model and fnmatchcase(path.name.lower(), OTHER_LAYOUT):
        return "other layout"
    return "checked"


def is_pointer(path: Path) -> bool:
    """Tell a file that Git LFS has left in the place of a large one."""
    return _head(path).startswith(_LFS)


def _fate_of_code(path: Path, inside: PurePosixPath, head: bytes, beside: Surroundings) -> Fate:
    name, suffix = path.name.lower(), path.suffix.lower()
    if beside.is_native and suffix == ".py":
        return "code"
    fates: dict[Fate, bool] = {
        "trainer's state": _is_one_of(name, TRAINER_STATE),
        "other weights": _is_one_of(name, OTHER_WEIGHTS)
        or any(part.endswith(CORE_ML) for part in inside.parts[:-1]),
    }
    fate = next((each for each, applies in fates.items() if applies), None)
    if fate is None or not beside.has_safetensors:
        raise refused(path, f"a {suffix} file can hold code")
    is_right = _BY_PRODUCTS.get(suffix)
    if is_right is not None and not is_right(head) and not head.startswith(_LFS):
        raise _disguised(path, head)
    return fate


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


_HEAD_BYTES: Final = 4096
_TAR_AT: Final = 257
_LFS: Final = b"version https://git-lfs"
_MAGICS: Final[Mapping[bytes, str]] = {
    b"PK\3\4": "a zip archive", b"PK\5\6": "a zip archive", b"\x1f\x8b": "a gzip archive",
    b"BZh9": "a bzip2 archive", b"\xfd7zXZ": "an xz archive", b"7z\xbc\xaf": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive", b"\x7fELF": "a program", b"MZ\x90": "a program",
    b"\xcf\xfa\xed\xfe": "a program", b"\xca\xfe\xba\xbe": "a program", b"#!": "a script",
    b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy file", GGUF: "a GGUF file",
    b"\x80\2": "a pickle", b"\x80\3": "a pickle", b"\x80\4": "a pickle", b"\x80\5": "a pickle",
}  # fmt: skip

_BY_PRODUCTS: Final[Mapping[str, Callable[[bytes], bool]]] = {
    ".h5": lambda head: head.startswith(b"\x89HDF"),
    ".msgpack": lambda head: (
        head[:1] in (*(bytes([n]) for n in range(0x81, 0x90)), b"\xde", b"\xdf")
    ),
    ".onnx": lambda head: head.startswith(b"\x08"),
    ".tflite": lambda head: head[4:8] == b"TFL3",
    ".ot": lambda head: head.startswith(b"PK\3\4"),
}
"""Those that are no pickles; of pickles the whole is looked at."""


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _check_bytes(path: Path, suffix: str, head: bytes) -> None:
    """Refuse a file that is read by its name but is something else."""
    if suffix == SAFETENSORS:
        # Eight bytes of length may look like anything, the brace behind them may not.
        if head[8:9] != b"{" and (_magic(head) or head[:1] == b"("):
            raise _disguised(path, head)
        return
    if suffix == ".model":
        _check_vocabulary(path, head)
        return
    is_readers = suffix in ("", ".md")
    if _magic(head) or (b"\0" in head and not is_readers):
        raise _disguised(path, head)


def _check_vocabulary(path: Path, head: bytes) -> None:
    """Accept a SentencePiece model, whose fields are known, or tiktoken's lines of text."""
    if _magic(head):
        raise _disguised(path, head)
    if head.startswith(b"\x0a") or b"\0" in head or not _is_text(head):
        _check_fields(path, path.read_bytes())


_SENTENCEPIECE_FIELDS: Final = 5
_BYTES_FIELD: Final = 2


def _check_fields(path: Path, body: bytes) -> None:
    """Walk over the fields of a protocol buffer: each says how long it is."""
    place = 0
    while place < len(body):
        tag, place = body[place], place + 1
        length, shift = 0, 0
        while place < len(body):
            byte, place = body[place], place + 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
                break
        place += length
        is_known = 1 <= tag >> 3 <= _SENTENCEPIECE_FIELDS and tag & 7 == _BYTES_FIELD
        if not is_known or shift > 35 or place > len(body):  # noqa: PLR2004 - 5 bytes of 7 bits
            raise refused(path, "it is neither a SentencePiece model nor a list of tokens")


def _is_text(head: bytes) -> bool:
    try:
        head[:-4].decode() if len(head) == _HEAD_BYTES else head.decode()
    except UnicodeDecodeError as error:
        # The last character may be cut off.
        return error.start >= len(head) - 8
    return True


def _magic(head: bytes) -> str:
    if head[_TAR_AT:].startswith(b"ustar"):
        return "a tar archive"
    return next((what for magic, what in _MAGICS.items() if head.startswith(magic)), "")


def _disguised(path: Path, head: bytes) -> Exception:
    return refused(path, f"it is {_magic(head) or 'something else'} under another name")
