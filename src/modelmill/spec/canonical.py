"""One text and one digest for equal values.

Hashes are taken over parsed models, never over what a user typed: YAML, Helm values and
JSON that mean the same give the same digest.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from pydantic import JsonValue


def canonical_json(value: JsonValue | Mapping[str, JsonValue] | Sequence[JsonValue]) -> bytes:
    """Serialize with sorted keys and no freedom left.

    A float that is a whole number is written as an integer: YAML says `3`, Helm says
    `3.0` after a round trip through Go's float64, and both mean the same.
    """
    return json.dumps(
        _without_float_spelling(value),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    ).encode()


def sha256_of(value: JsonValue | Mapping[str, JsonValue] | Sequence[JsonValue]) -> str:
    """Digest the canonical form, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _without_float_spelling(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_float_spelling(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_float_spelling(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
