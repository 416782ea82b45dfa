"""Which files of a repository on a hub are wanted, by their names.  Pure.

Of a model or an adapter: one set of safetensors, the settings, the vocabulary and the words for
people.  Of a data set: files of rows, all of one format.  What could run code is never asked for.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from modelmill.spec.canonical import sha256_of
from modelmill.spec.errors import DataError, InputMissing, UnsafeArtifact
from modelmill.spec.sources import TABLE_NAMES, HubAddress, table_kind, tables_among

MODEL_SUFFIXES: Final = frozenset({".json", ".txt", ".jinja", ".model", ".md", ".tiktoken", ".bpe"})
MODEL_NAMES: Final = frozenset({"LICENSE", "LICENCE", "NOTICE", "COPYING"})
"""Beside weights: settings, vocabularies, and what whoever passes the model on must keep."""

_ADAPTER: Final = "adapter_model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_WHOLE: Final = "model.safetensors"
_SHARD: Final = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")
_OTHER_INDEX: Final = re.compile(r".*\.index(\..+)?\.json")
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_NAMES_SHOWN: Final = 5


@dataclass(frozen=True)
class HubFile:
    """A file as the hub describes it."""

    path: str
    size_bytes: int
    git_blob: str
    """The SHA-1 that git has for it; for a large file that of a pointer to it."""
    sha256: str = ""
    """Of the content, for a large file."""


def digest_of(files: Iterable[HubFile]) -> str:
    """Digest what the hub says about some files."""
    return sha256_of([[each.path, each.size_bytes, each.sha256 or each.git_blob] for each in files])


def folder_to_list(address: HubAddress) -> tuple[str, bool]:
    """Name the folder whose listing holds what is wanted, and whether folders in it count."""
    if address.kind == "model":
        return "", False
    parts = address.path.rstrip("/").split("/")
    fixed = next((n for n, part in enumerate(parts) if _is_pattern(part)), None)
    if fixed is not None:
        return "/".join(parts[:fixed]), fixed < len(parts) - 1
    if table_kind(parts[-1]) is not None:
        return "/".join(parts[:-1]), False
    return "/".join(parts), True


def wanted_files(address: HubAddress, found: Sequence[HubFile]) -> tuple[HubFile, ...]:
    """Choose from a listing, in the order of names.

    Raises:
        InputMissing: what is wanted is not among them.
        UnsafeArtifact: the weights are pickles only.
        DataError: the rows are in more than one format.
    """
    ordered = sorted(found, key=lambda each: each.path)
    return _of_model(address, ordered) if address.kind == "model" else _of_data(address, ordered)


def _of_model(address: HubAddress, found: Sequence[HubFile]) -> tuple[HubFile, ...]:
    names = [each.path for each in found if "/" not in each.path]
    weights = _weights(names)
    if not weights:
        raise _no_weights(address, names)
    return tuple(each for each in found if each.path in weights or _is_beside_weights(each.path))


def _weights(names: Sequence[str]) -> frozenset[str]:
    """Choose one set of weights, the one that libraries open; others are copies of it."""
    if _WHOLE in names:
        return frozenset({_WHOLE})
    if _INDEX not in names:
        # Whether a model or an adapter is wanted is known by whoever looks into the files.
        return frozenset({_ADAPTER} & set(names))
    shards = [name for name in names if _SHARD.fullmatch(name)]
    others = [name for name in names if name.endswith(".safetensors")]
    return frozenset({_INDEX, *(shards or others)})


def _is_beside_weights(path: str) -> bool:
    name = PurePosixPath(path)
    is_ours = name.suffix in MODEL_SUFFIXES or name.stem.upper() in MODEL_NAMES
    # A hidden file is the repository's own; an index belongs to weights that are chosen by name.
    hidden = path.startswith(".")
    return "/" not in path and is_ours and not hidden and not _OTHER_INDEX.fullmatch(path)


def _no_weights(address: HubAddress, names: Sequence[str]) -> UnsafeArtifact | InputMissing:
    at = str(address)
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return UnsafeArtifact(
            f"The weights are in a format that can hold code ({_some(pickles)}), "
            "and there are no safetensors",
            at=at,
            fix=f"look for a conversion among the repository's pull requests "
            f"(hf:{address.repository}@refs/pr/N), or convert it where it may run: "
            f"transformers' from_pretrained('{address.repository}').save_pretrained('model'), "
            "the tokenizer alike, and name that folder",
        )
    return InputMissing(
        "The repository has no model.safetensors and no model.safetensors.index.json",
        at=at,
        fix="name a repository with the weights of a model in the format of transformers"
        + (f"; this one has {_some(names)}" if names else ""),
    )


def _of_data(address: HubAddress, found: Sequence[HubFile]) -> tuple[HubFile, ...]:
    asked = address.path.rstrip("/").split("/")
    is_folder = not any(map(_is_pattern, asked)) and table_kind(asked[-1]) is None
    named = [each for each in found if is_folder or _matches(each.path.split("/"), asked)]
    chosen = tables_among(each.path for each in named)
    tables = tuple(each for each in named if each.path in chosen)
    if not tables:
        others = [each.path for each in named or found]
        raise InputMissing(
            "There are no files of rows here" if named or is_folder else "There is no such file",
            at=str(address),
            fix=f"rows are read from {TABLE_NAMES}; "
            + (f"there is {_some(others)}" if others else "the folder is empty"),
        )
    kinds = sorted(set(chosen.values()))
    if len(kinds) > 1:
        raise DataError(
            f"The files are of more than one format ({', '.join(kinds)})",
            at=str(address),
            fix=f"name those of one by a pattern, such as *.{kinds[0]}",
        )
    return tables


def _is_pattern(part: str) -> bool:
    return any(each in part for each in "*?[")


def _matches(path: Sequence[str], asked: Sequence[str]) -> bool:
    """Compare part by part: a `*` does not reach over a slash."""
    return len(path) == len(asked) and all(map(fnmatchcase, path, asked))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
