"""What a store says about objects, whole or in part, and uploads.

Knows answers; makes no request.
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Stored:
    """A small object, whole."""

    body: bytes
    etag: str


@dataclass(frozen=True)
class Range:
    """Some bytes of an object."""

    body: bytes
    etag: str
    object_bytes: int
    """Size of the whole object."""


@dataclass(frozen=True)
class ListedObject:
    """What a listing tells about an object."""

    key: str
    """Relative to the store's prefix."""
    size_bytes: int
    etag: str
    last_modified: datetime


@dataclass(frozen=True)
class Span:
    """Some bytes of an object, as they are asked for."""

    key: str
    start: int
    size_bytes: int

    def __str__(self) -> str:
        """Write it as the header `Range` has it."""
        return f"bytes={self.start}-{self.start + self.size_bytes - 1}"


@dataclass(frozen=True)
class PutPart:
    """One accepted part of a multipart upload."""

    number: int
    size_bytes: int
    etag: str
    crc32: str


@dataclass(frozen=True)
class Unfinished:
    """An upload in parts that was begun and neither finished nor abandoned."""

    key: str
    """Relative to the store's prefix."""
    upload_id: str
    initiated: datetime
