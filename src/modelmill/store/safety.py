"""The gate that files pass before an ML library sees them.

Names, first bytes, shapes and keys decide, never a library's own loader: libraries have run code
from files that claimed to be data (CVE-2025-32434, CVE-2026-4372, CVE-2026-5241).  What each
rule is good for is in docs/security.md.  Knows file formats; knows nothing about stores and models.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import JsonValue, TypeAdapter, ValidationError

from modelmill.spec.errors import DataError, InputMissing
from modelmill.store.file_kinds import (
    SAFETENSORS,
    WHY_LEFT_OUT,
    Fate,
    Surroundings,
    fate_of,
    is_pointer,
)
from modelmill.store.gguf import read_gguf_header
from modelmill.store.json_files import VOCABULARY_NAMES, check_keys, read_json
from modelmill.store.keys import check_paths
from modelmill.store.pickles import check_pickle
from modelmill.store.refusals import broken, refused
from modelmill.store.remote_code import leave_out_map
from modelmill.store.templates import (
    LONGEST_TEMPLATE,
    TemplateFailed,
    TemplateUnsafe,
    check_template,
    templates_in,
)
from modelmill.store.tensors import TensorInfo, read_safetensors_header

__all__ = ["TensorInfo", "check_adapter", "check_model", "read_safetensors_header"]

TOKENIZERS: Final = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tekken.json",),
)
"""Sets of files of which one is enough."""

CONFIG: Final = "config.json"
ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")

_INDEX_SUFFIX = ".safetensors.index.json"
_MODEL_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
_OTHER_INDEXES = (".bin.index.json", ".h5.index.json", ".msgpack.index.json")
_WEIGHT_MAP = TypeAdapter(dict[str, str])
_NAMES_SHOWN: Final = 3
_BYTES_PER_CHARACTER: Final = 4
"""At most, in UTF-8."""


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
    notes = _check_files(folder, (CONFIG,))
    if not (folder / CONFIG).is_file():
        if (folder / ADAPTER_FILES[0]).is_file():
            raise InputMissing(
                "This is an adapter, not a model",
                at=str(folder),
                fix="name the model that its adapter_config.json names as model.source, and this "
                "as finetune.adapter",
            )
        raise _missing(folder, CONFIG)
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        wanted = ", ".join(" with ".join(names) for names in TOKENIZERS)
        raise _missing(folder, f"tokenizer files (one of {wanted})")
    beside = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    for path in beside:
        path.unlink()
    if beside:
        # transformers would put it on the model without being asked.
        notes = (*notes, "left out the adapter beside the model: name it as finetune.adapter")
    if not any(folder.glob(f"*{SAFETENSORS}")):
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
    for name in ADAPTER_FILES:
        if not (folder / inner / name).is_file():
            raise _missing(folder / inner, name)
    return notes


@dataclass
class _Found:
    """What has been read of a folder and is needed again."""

    documents: dict[Path, JsonValue] = field(default_factory=dict)
    headers: dict[Path, Mapping[str, TensorInfo]] = field(default_factory=dict)


def _check_files(folder: Path, may_map_code: Sequence[str] = ()) -> tuple[str, ...]:
    """Check what stays, and remove what does not.

    Args:
        folder: a private copy.
        may_map_code: configs that may point at code which transformers has itself.
    """
    files = {PurePosixPath(path.relative_to(folder)): path for path in _walk(folder)}
    check_paths(str(name) for name in files if not any(p.startswith(".") for p in name.parts))
    found = _Found()
    families: list[str] = []
    for path in (folder / name for name in may_map_code if PurePosixPath(name) in files):
        found.documents[path] = read_json(path)
        families += filter(None, [leave_out_map(path, found.documents[path])])
    beside = Surroundings(
        has_safetensors=any(path.suffix == SAFETENSORS for path in files.values()),
        has_model=any(PurePosixPath(name) in files for name in _MODEL_WEIGHTS),
        is_native=bool(families),
    )
    left_out: dict[Fate, list[str]] = {}
    for inside, path in files.items():
        fate = _fate(path, inside, beside)
        if fate == "checked":
            _check_content(path, found)
        else:
            path.unlink()
            left_out.setdefault(fate, []).append(str(inside))
    for path, document in found.documents.items():
        if path.name.endswith(_INDEX_SUFFIX):
            _check_index(path, document, found.headers)
    maps = (f"left out auto_map: transformers has {each} models itself" for each in families)
    return (*maps, *_notes(left_out))


def _fate(path: Path, inside: PurePosixPath, beside: Surroundings) -> Fate:
    fate = fate_of(path, inside, beside)
    if is_pointer(path):
        return fate
    if path.suffix.lower() == ".gguf":
        for key, template in read_gguf_header(path).chat_templates().items():
            _check_template(path, f"its {key}", template)
    elif fate in ("other weights", "trainer's state") and path.suffix.lower() in _PICKLED:
        check_pickle(path)
    return "other weights" if path.name.endswith(_OTHER_INDEXES) else fate


_PICKLED: Final = frozenset({".bin", ".pt", ".pth", ".pkl"})


def _check_content(path: Path, found: _Found) -> None:
    suffix = path.suffix.lower()
    if suffix == SAFETENSORS:
        found.headers[path] = read_safetensors_header(path)
    elif suffix == ".jinja":
        if path.stat().st_size > _BYTES_PER_CHARACTER * LONGEST_TEMPLATE:
            raise refused(path, "no template is that long")
        _check_template(path, "it", _text_of(path))
    elif suffix == ".json":
        document = found.documents[path] if path in found.documents else read_json(path)
        if path.name not in VOCABULARY_NAMES:
            check_keys(path, document)
            _check_templates(path, document)
        if path.name.endswith(_INDEX_SUFFIX):
            found.documents[path] = document


def _notes(left_out: Mapping[Fate, Sequence[str]]) -> tuple[str, ...]:
    notes = []
    for fate, names in left_out.items():
        shown = ", ".join(names[:_NAMES_SHOWN])
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        notes.append(f"left out {shown}{more}: {WHY_LEFT_OUT[fate]}")
    return tuple(notes)


def _walk(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise _missing(folder, "anything")
    for parent, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            _check_kind(Path(parent) / name)
        yield from (Path(parent) / name for name in sorted(files))


def _check_kind(path: Path) -> None:
    status = path.lstat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise refused(path, "it is a link or a device, which can lead anywhere")


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise broken(path, "is not UTF-8") from error


def _check_templates(path: Path, document: JsonValue) -> None:
    try:
        found = list(templates_in(document))
    except TemplateUnsafe as error:
        raise refused(path, str(error)) from error
    for name, template in found:
        _check_template(path, f"its {name}", template)


def _check_template(path: Path, whose: str, template: str) -> None:
    try:
        check_template(template)
    except TemplateUnsafe as error:
        raise refused(path, f"{whose} is a template that may not run: {error}") from error
    except TemplateFailed as error:
        raise broken(path, f"holds a chat template that is none: {error}") from error


def _check_index(
    path: Path, document: JsonValue, headers: Mapping[Path, Mapping[str, TensorInfo]]
) -> None:
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
    tensors_of: dict[str, list[str]] = {}
    for name, shard in shard_of.items():
        tensors_of.setdefault(shard, []).append(name)
    for shard, names in sorted(tensors_of.items()):
        if "/" in shard or "\\" in shard or not shard.endswith(SAFETENSORS):
            raise refused(path, f"it names {shard!r}, which is not a file beside it")
        header = headers.get(path.with_name(shard))
        if header is None:
            raise _missing(path.parent, f"{shard}, a shard that {path.name} names")
        absent = [name for name in names if name not in header]
        if absent:
            raise DataError(
                f"{shard} lacks {len(absent)} tensors that {path.name} places there, "
                f"among them {min(absent)!r}",
                at=str(path),
                fix="save the model again",
            )


def _missing(folder: Path, what: str) -> InputMissing:
    return InputMissing(
        f"The folder has no {what}", at=str(folder), fix="point at a complete model folder"
    )
