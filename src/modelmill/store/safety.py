"""The gate that files pass before an ML library sees them.

Names, shapes and keys decide, never a library's own loader: libraries have run code from
files that claimed to be data (CVE-2025-32434, CVE-2026-4372, CVE-2026-5241).  Knows file
formats; knows nothing about stores and models.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import JsonValue, TypeAdapter, ValidationError

from modelmill.spec.errors import DataError, InputMissing, UnsafeArtifact
from modelmill.store.tensors import TensorInfo, read_safetensors_header

__all__ = ["TensorInfo", "check_adapter", "check_model", "read_safetensors_header"]

CODE_SUFFIXES: Final = frozenset(
    {
        *(".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".onnx", ".npy"),
        *(".py", ".pyc", ".so", ".dll", ".dylib", ".exe", ".sh"),
        *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z"),
    }
)
"""Pickles and formats that can hold them, code, and archives that can hold either."""

READ_SUFFIXES: Final = frozenset(
    {".safetensors", ".json", ".jsonl", ".txt", ".jinja", ".model", ".md", ".tiktoken", ".bpe"}
)
"""Weights, settings, vocabularies and words for people."""

DROPPED_NAMES: Final = frozenset({"training_args.bin"})
"""A pickle that the Trainer leaves in many folders and that nothing of ours reads."""

VOCABULARY_NAMES: Final = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})
"""Their keys are pieces of text, so any word may be one."""

TOKENIZERS: Final = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
)
"""Sets of files of which one is enough."""

LARGEST_JSON_BYTES: Final = 128 * 1024 * 1024
"""The largest ordinary one, a tokenizer of 256,000 pieces, has 34 MB."""
DEEPEST_JSON: Final = 64

_INDEX_SUFFIX = ".safetensors.index.json"
_WEIGHT_MAP = TypeAdapter(dict[str, str])


def check_model(folder: Path) -> tuple[str, ...]:
    """Refuse a model folder that could run code, lies about its shape, or is incomplete.

    The folder must be a private copy: files that nothing here reads are removed from it.

    Returns:
        Sentences about what was removed.

    Raises:
        UnsafeArtifact: pickles, code, archives, links, or settings that load code.
        DataError: weights or settings that are truncated or corrupt.
        InputMissing: no config, no tokenizer, no weights, or a shard is missing.
    """
    notes = _check_files(folder)
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputMissing(
                "This is an adapter, not a model",
                at=str(folder),
                fix="name the model that its adapter_config.json names as model.source, and this "
                "as finetune.adapter",
            )
        raise _missing(folder, "config.json")
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        wanted = ", ".join(" with ".join(names) for names in TOKENIZERS)
        raise _missing(folder, f"tokenizer files (one of {wanted})")
    if not any(folder.glob("*.safetensors")):
        raise _missing(folder, "weights (*.safetensors)")
    return notes


def check_adapter(folder: Path, inner: str = "") -> tuple[str, ...]:
    """Refuse an adapter folder for the reasons `check_model` has, config and tokenizer aside.

    Args:
        folder: all of it is looked at; a private copy.
        inner: where in it the adapter itself lies.

    Returns:
        Sentences about what was removed from this private copy.

    Raises:
        UnsafeArtifact, DataError: as for a model.
        InputMissing: no adapter_config.json or no adapter_model.safetensors.
    """
    notes = _check_files(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / inner / name).is_file():
            raise _missing(folder / inner, name)
    return notes


def _check_files(folder: Path) -> tuple[str, ...]:
    notes = []
    for path in _walk(folder):
        suffix = path.suffix.lower()
        if path.name in DROPPED_NAMES:
            path.unlink()
            notes.append(f"left out {path.name}: a pickle that nothing here reads")
        elif suffix in CODE_SUFFIXES:
            raise _refused(path, f"a {suffix} file can hold code")
        elif suffix and suffix not in READ_SUFFIXES:
            path.unlink()
            notes.append(f"left out {path.relative_to(folder)}: nothing here reads {suffix} files")
    for path in _walk(folder):
        if path.suffix.lower() == ".safetensors":
            read_safetensors_header(path)
        elif path.suffix.lower() == ".json":
            document = _read_json(path)
            if path.name.endswith(_INDEX_SUFFIX):
                _check_index(path, document)
    return tuple(notes)


def _walk(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise _missing(folder, "anything")
    for parent, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            _check_kind(Path(parent) / name)
        yield from (Path(parent) / name for name in sorted(files))


def _check_kind(path: Path) -> None:
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise _refused(path, "it is a link or a device, which can lead anywhere")


def _read_json(path: Path) -> JsonValue:
    size_bytes = path.stat().st_size
    if size_bytes > LARGEST_JSON_BYTES:
        raise _refused(path, f"{size_bytes:,} bytes of JSON are more than any model needs")
    is_vocabulary = path.name in VOCABULARY_NAMES

    def check_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        # Every pair, not the dict: of two equal keys a later parser may take the first.
        for name, value in pairs:
            if not is_vocabulary and _loads_code(name, value):
                raise _refused(path, f"its key {name!r} makes libraries load code or other files")
        return dict(pairs)

    try:
        document: JsonValue = json.loads(path.read_bytes(), object_pairs_hook=check_keys)
    except RecursionError as error:
        raise _refused(path, "its JSON is nested too deep") from error
    except ValueError as error:
        raise DataError(
            f"{path.name} is not JSON: {error}", at=str(path), fix="copy or save the file again"
        ) from error
    _check_depth(path, document)
    return document


def _loads_code(name: str, value: JsonValue) -> bool:
    if name.startswith("_attn_implementation"):
        # transformers 4.47-4.50 wrote `_attn_implementation_autoset: true` into every config.
        return not isinstance(value, bool | None)
    return name in {"auto_map", "trust_remote_code"} and value not in (None, False, {})


def _check_depth(path: Path, document: JsonValue) -> None:
    level: list[JsonValue] = [document]
    for _ in range(DEEPEST_JSON):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise _refused(path, f"its JSON is nested deeper than {DEEPEST_JSON} levels")


def _check_index(path: Path, document: JsonValue) -> None:
    try:
        shard_of = _WEIGHT_MAP.validate_python(
            document["weight_map"] if isinstance(document, dict) else None
        )
    except (KeyError, ValidationError) as error:
        raise DataError(
            f"{path.name} has no weight_map from tensors to files",
            at=str(path),
            fix="save the model again",
        ) from error
    for shard in sorted(set(shard_of.values())):
        if "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise _refused(path, f"it names {shard!r}, which is not a file beside it")
        beside = path.with_name(shard)
        if not beside.is_file():
            raise _missing(path.parent, f"{shard}, a shard that {path.name} names")
        absent = {name for name, at in shard_of.items() if at == shard}.difference(
            read_safetensors_header(beside)
        )
        if absent:
            raise DataError(
                f"{shard} lacks {len(absent)} tensors that {path.name} places there, "
                f"among them {min(absent)!r}",
                at=str(path),
                fix="save the model again",
            )


def _refused(path: Path, rule: str) -> UnsafeArtifact:
    return UnsafeArtifact(
        f"{path.name} is refused unread: {rule}",
        at=str(path),
        fix="convert weights to safetensors, and leave out what is neither weights nor settings",
    )


def _missing(folder: Path, what: str) -> InputMissing:
    return InputMissing(
        f"The folder has no {what}", at=str(folder), fix="point at a complete model folder"
    )
