"""JSON that comes with a model: read within limits, searched for keys that make libraries act.

Every key counts at any depth: a config may hold the config of a part, and libraries have taken
`trust_remote_code` from there although their caller had said no (CVE-2026-5241).

**Repository names.**  Ordinary configs say where they came from: `_name_or_path` in config.json,
`name_or_path` in tokenizer_config.json, `base_model_name_or_path` in adapter_config.json are
names like `org/name` or a path of somebody's machine.  They are let through, because nothing
follows them: models are opened from a folder, with `local_files_only`, and an adapter is put on
a base that the run names (tests/models/test_hostile_settings.py opens such folders with every
connection refused).  A folder without config.json, for which transformers would follow the
adapter's base, is no model to us.  Other keys that end like these name parts that a library
fetches, so they may not name a repository; and no such key may hold the address of a server.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from modelmill.store.refusals import broken, refused

LARGEST_VOCABULARY_BYTES: Final = 128 * 2**20
"""The largest ordinary one, a tokenizer of 256,000 pieces, has 34 MB."""
LARGEST_JSON_BYTES: Final = 32 * 2**20
"""Of others; the largest, indexes of mixtures of experts, have 15 MB."""
DEEPEST_JSON: Final = 64

VOCABULARY_NAMES: Final = frozenset(
    {"tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json"}
)
"""Their keys are pieces of text, so any word may be one."""

_MADE_TO_ACT: Final = frozenset(
    {
        *("auto_map", "trust_remote_code", "custom_pipelines", "custom_pipeline"),
        *("custom_generate", "code_revision", "_target_", "py/object", "py/reduce"),
        *("use_pretrained_backbone", "megatron_config"),
    }
)
"""Harmless only while they say no."""

_IMPLEMENTATION: Final = re.compile(r"_?(?:attn|experts)_implementation\w*")
_IMPLEMENTATIONS: Final = frozenset(
    {
        *("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm"),
        *("flash_attention_2", "flash_attention_3", "flash_attention_4"),
    }
)
"""Those that transformers brings itself; it fetches others from a hub (CVE-2026-4372)."""

_IMPORTED: Final = {
    "megatron_core": re.compile(r"megatron\.core"),
    "parent_library": re.compile(r"transformers(_modules)?\..+"),
}
"""PEFT's, with what it may import."""

_WHERE_FROM: Final = frozenset({"_name_or_path", "name_or_path", "base_model_name_or_path"})
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?(?::[\w.-]+)?")


def read_json(path: Path) -> JsonValue:
    """Read a file whatever its keys mean.

    Raises:
        UnsafeArtifact: it is too large, nested too deep, or says a thing twice.
        DataError: it is not JSON.
    """
    size_bytes = path.stat().st_size
    is_vocabulary = path.name in VOCABULARY_NAMES
    if size_bytes > (LARGEST_VOCABULARY_BYTES if is_vocabulary else LARGEST_JSON_BYTES):
        raise refused(path, f"{size_bytes:,} bytes of JSON are more than any model needs")

    def unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        # Of two equal keys one library takes the first and another the last.
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise refused(path, f"its key {twice!r} occurs twice")
        return found

    try:
        document: JsonValue = json.loads(path.read_text("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise refused(path, f"its JSON is nested deeper than {DEEPEST_JSON} levels") from error
    except ValueError as error:
        raise broken(path, f"is not JSON: {error}") from error
    _check_depth(path, document)
    return document


def check_keys(path: Path, document: JsonValue) -> None:
    """Refuse keys that make libraries load code, or files from elsewhere.

    Raises:
        UnsafeArtifact: there is one.
    """
    for found in objects_in(document):
        for key, held in found.items():
            if rule := _rule(key, held):
                raise refused(path, f"its key {key!r} {rule}")


def objects_in(document: JsonValue) -> Iterator[dict[str, JsonValue]]:
    """List every object of a document, at any depth."""
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += value.values()
            yield value


def _rule(key: str, value: JsonValue) -> str:
    """Say what is wrong with a key, or nothing."""
    if key in _MADE_TO_ACT and value not in (None, False, "", [], {}):
        return "makes libraries load code or other files"
    if _IMPLEMENTATION.fullmatch(key) and not _is_implementation(value):
        return "makes libraries load code from a hub"
    if key in _IMPORTED and not (value is None or _IMPORTED[key].fullmatch(str(value))):
        return f"makes libraries import {value!r}"
    return _rule_of_paths(key, value)


def _is_implementation(value: JsonValue) -> bool:
    if isinstance(value, dict):
        return all(map(_is_implementation, value.values()))
    # transformers 4.47-4.50 wrote `_attn_implementation_autoset: true` into every config.
    return isinstance(value, bool | None) or value in _IMPLEMENTATIONS


def _rule_of_paths(key: str, value: JsonValue) -> str:
    is_name, is_file = key.endswith("name_or_path"), key.endswith("_file")
    values = value if isinstance(value, list) else [value]
    if key == "fast_tokenizer_files":
        plain = all(isinstance(each, str) and _PLAIN_NAME.fullmatch(each) for each in values)
        return "" if plain else "names files that are not beside it"
    if not is_name and not is_file:
        return ""
    texts = [each for each in values if isinstance(each, str)]
    if any("://" in each for each in texts):
        return "names a server where a path belongs"
    if is_file and any(".." in Path(each).parts for each in texts):
        return "names files that are not beside it"
    if is_name and key not in _WHERE_FROM and any(map(_REPOSITORY.fullmatch, texts)):
        return "names a repository that libraries would fetch"
    return ""


_PLAIN_NAME: Final = re.compile(r"[\w.=-]+")


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
    raise refused(path, f"its JSON is nested deeper than {DEEPEST_JSON} levels")
