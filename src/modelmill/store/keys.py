"""The grammar of keys and paths: what we write, what we follow, what we refuse.

Pure.  A path inside an artifact is a key and a local path at once, so a path that a store
or a file system could read differently is refused rather than quoted.
"""

from collections.abc import Iterable

from modelmill.spec.errors import UnsafeArtifact
from modelmill.spec.names import SEGMENT

LONGEST_KEY_BYTES = 900
"""S3 allows 1,024 bytes for prefix and key together; SeaweedFS refuses long segments."""


def check_key(key: str) -> str:
    """Return the key unchanged if every segment is in the grammar.

    Raises:
        UnsafeArtifact: a segment is empty, `.`, `..`, or holds a character outside
            `[A-Za-z0-9._=-]`, or the key is longer than 900 bytes.
    """
    if len(key) > LONGEST_KEY_BYTES:
        raise UnsafeArtifact(
            f"A key of {len(key)} characters is longer than {LONGEST_KEY_BYTES}",
            at=key[:80] + "...",
            fix="shorten the file or folder name",
        )
    for segment in key.split("/"):
        if SEGMENT.fullmatch(segment) is None:
            raise UnsafeArtifact(
                f"The name {segment!r} is not one that every store and file system keeps as it is",
                at=key,
                fix="use letters, digits and . _ = - only, starting with a letter or digit",
            )
    return key


def check_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the paths of one artifact if they can all exist side by side anywhere.

    Raises:
        UnsafeArtifact: one is outside the grammar, occurs twice, differs from another in
            case only, or is a file where another has a folder.
    """
    kept = tuple(check_key(path) for path in paths)
    seen: dict[str, str] = {}
    for path in kept:
        folded = path.casefold()
        if folded in seen:
            raise UnsafeArtifact(
                f"{path!r} and {seen[folded]!r} would be one file on some file systems",
                at=path,
                fix="rename one of them",
            )
        seen[folded] = path
    for path in kept:
        parts = path.casefold().split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder in seen:
                raise UnsafeArtifact(
                    f"{seen[folder]!r} is a file and a folder at once",
                    at=path,
                    fix="rename one of them",
                )
    return kept


def is_under(path: str, parts: Iterable[str]) -> bool:
    """Tell whether a path is one of the parts or lies in one of them."""
    return any(path == part or path.startswith(f"{part}/") for part in parts)
