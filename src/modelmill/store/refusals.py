"""The words in which the safety check refuses a file."""

from pathlib import Path

from modelmill.spec.errors import DataError, UnsafeArtifact


def refused(path: Path, rule: str) -> UnsafeArtifact:
    """Refuse a file that could run code or lies about what it is.

    Args:
        path: the file.
        rule: why, as a clause about the file.
    """
    return UnsafeArtifact(
        f"{path.name} is refused unread: {rule}",
        at=str(path),
        fix="convert weights to safetensors, and leave out what is neither weights nor settings",
    )


def broken(path: Path, reason: str) -> DataError:
    """Refuse a file that is damaged rather than dangerous."""
    return DataError(f"{path.name} {reason}", at=str(path), fix="copy or save the file again")
