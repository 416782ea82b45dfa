"""Find what looks like a secret in a text, and keep it out of everything that is said.

Run files and profiles are stored, shown, sent through Helm and put into reports, so
credentials have no place in them.  Pure; knows shapes of secrets, not who reads them.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    # Errors redact what they say, and `--help` knows errors without loading pydantic.
    from pydantic import JsonValue

KeyPath: TypeAlias = tuple[str | int, ...]

_SHAPES: Final = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY.*", re.DOTALL),
    "an AWS access key id": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "the signature of a pre-signed address": re.compile(r"(?i)\bX-Amz-Signature=[^&\s'\"]+"),
    "a user and a password in an address": re.compile(
        r"(?i)(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)",
    ),
}
"""None matches a commit, a digest or a key of ours: what is refused must be a secret."""

REDACTED: Final = "***"


def secret_in(text: str) -> str:
    """Name what a text holds that looks like a secret; empty if it holds nothing."""
    return next((name for name, shape in _SHAPES.items() if shape.search(text)), "")


def redacted(text: str) -> str:
    """Replace whatever looks like a secret."""
    for shape in _SHAPES.values():
        text = shape.sub(REDACTED, text)
    return text


def secrets_in(data: "JsonValue") -> Iterator[tuple[KeyPath, str]]:
    """Find every key and value of a document that looks like a secret, in its order.

    Yields:
        Where it is, and what it looks like.
    """
    # Not recursive: what Helm hands over may be nested as deep as it likes.
    left: list[tuple[KeyPath, JsonValue]] = [((), data)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            left += [((*path, key), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            left += [((*path, index), inner) for index, inner in reversed([*enumerate(value)])]
        own = path[-1] if path else ""
        for text in (own, value):
            if isinstance(text, str) and (looks_like := secret_in(text)):
                yield path, looks_like
