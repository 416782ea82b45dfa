"""Addresses of models and data: what a user may write, and what it is made of.  Pure.

`s3://bucket/key`, `hf:org/name@revision` for a model, `hf:datasets/org/name@revision/path` for
data (as `huggingface_hub.HfFileSystem` spells it, without the slashes), or a local path.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator

TableKind: TypeAlias = Literal["jsonl", "csv", "tsv", "parquet", "text"]

_KINDS: Final[dict[str, TableKind]] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
_GZIP: Final = ".gz"

TABLE_NAMES: Final = ".jsonl, .json, .csv, .tsv, .txt (also with .gz) or .parquet"
"""For messages: the names that rows are read from."""


def table_kind(name: str) -> TableKind | None:
    """Tell the format of a file of rows by its name, or that it is none."""
    lower = name.lower()
    inner = lower.removesuffix(_GZIP)
    kind = next((kind for suffix, kind in _KINDS.items() if inner.endswith(suffix)), None)
    # Parquet compresses its pages itself.
    return None if kind == "parquet" and inner != lower else kind


def tables_among(names: Iterable[str]) -> Mapping[str, TableKind]:
    """Choose the files of rows: plain texts only where there is nothing else.

    Beside tables they are words for people, such as LICENSE.txt.
    """
    kinds = {name: kind for name in names if (kind := table_kind(name)) is not None}
    tables = {name: kind for name, kind in kinds.items() if kind != "text"}
    return tables or kinds


def is_gzip(name: str) -> bool:
    """Tell whether a file is compressed as a whole."""
    return name.lower().endswith(_GZIP)


def is_hub(source: str) -> bool:
    """Tell whether a source is on a hub."""
    return source.startswith("hf:")


def is_local(source: str) -> bool:
    """Tell whether a source is a path of the machine of whoever wrote it."""
    return not is_hub(source) and not source.startswith("s3://")


@dataclass(frozen=True)
class HubAddress:
    """A repository on a hub, or files of a data set in one."""

    kind: Literal["model", "dataset"]
    repository: str
    """`org/name`."""
    revision: str = ""
    """A branch, a tag, a commit or `refs/...`; empty for the default branch."""
    path: str = ""
    """Of a file, a folder or files by a pattern; empty for a model, which is all of it."""

    def at(self, commit: str) -> "HubAddress":
        """Name the same at one commit."""
        return replace(self, revision=commit)

    def __str__(self) -> str:
        """Write the address as `parse_hub` reads it."""
        prefix = "datasets/" if self.kind == "dataset" else ""
        revision = self.revision
        if revision and _SPECIAL_REVISION.fullmatch(revision) is None:
            revision = revision.replace("/", "%2F")
        at = f"@{revision}" if revision else ""
        return f"hf:{prefix}{self.repository}{at}{f'/{self.path}' if self.path else ''}"


def parse_hub(address: str) -> HubAddress:
    """Take the address of a model or of data on a hub apart.

    Raises:
        ValueError: in words for whoever wrote it.
    """
    rest = address.removeprefix("hf:")
    if rest.startswith("//"):
        raise ValueError("write hf: without slashes behind it")
    kind: Literal["model", "dataset"] = "dataset" if rest.startswith("datasets/") else "model"
    rest = rest.removeprefix("datasets/")
    named, has_revision, tail = rest.partition("@")
    if has_revision:
        repository = named
        special = _SPECIAL_REVISION.match(tail)
        revision = special.group() if special else tail.partition("/")[0]
        path = tail[len(revision) :]
        if not revision or (path and not path.startswith("/")):
            raise ValueError("there is no revision behind the @")
    else:
        repository, revision = "/".join(named.split("/")[:2]), ""
        path = named[len(repository) :]
    _check_parts(kind, repository, path)
    # A slash is all that has to be written otherwise here.
    revision = revision.replace("%2F", "/").replace("%2f", "/")
    return HubAddress(kind, repository, revision, path.strip("/"))


def _check_parts(kind: str, repository: str, path: str) -> None:
    if _REPOSITORY.fullmatch(repository) is None or ".." in repository or "--" in repository:
        msg = f"'{repository}' is not a repository of a hub, which is called org/name"
        raise ValueError(msg)
    if kind == "model" and path:
        raise ValueError(
            "a model on a hub is a whole repository, hf:org/name@revision; "
            "a slash in a revision is written %2F, and data is hf:datasets/org/name/path"
        )
    if kind == "dataset" and not path.strip("/"):
        raise ValueError(
            "name the file, the folder or a pattern in the data set, "
            "such as hf:datasets/org/name/data/train-*.parquet"
        )
    if any(part in ("", ".", "..") for part in path.strip("/").split("/")) and path:
        raise ValueError("a path in a data set has no empty parts, '.' or '..'")


_REPOSITORY: Final = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_SPECIAL_REVISION: Final = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)", re.ASCII)
"""Revisions whose slash belongs to them; the ones HfFileSystem knows."""


def _check_any(source: str) -> str:
    scheme, separator, rest = source.partition("://")
    if separator and scheme != "s3" and not is_hub(source):
        msg = f"'{scheme}://' is not a kind of source; use s3://, hf: or a local path"
        raise ValueError(msg)
    if scheme == "s3" and separator and (not rest.partition("/")[0] or not rest.partition("/")[2]):
        raise ValueError("an s3 source is s3://bucket/key")
    return source


def _check_model(source: str) -> str:
    if is_hub(source) and parse_hub(source).kind != "model":
        raise ValueError("this is a data set; a model on a hub is hf:org/name@revision")
    return _check_any(source)


def _check_data(source: str) -> str:
    if is_hub(source) and parse_hub(source).kind != "dataset":
        raise ValueError("data on a hub is hf:datasets/org/name@revision/path")
    return _check_any(source)


ModelSource = Annotated[str, AfterValidator(_check_model)]
"""The address of a model."""

DataSource = Annotated[str, AfterValidator(_check_data)]
"""The address of rows."""
