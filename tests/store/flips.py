"""Transfers in each of which one bit is turned over on the way, in either direction."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from modelmill.spec.errors import ModelmillError
from modelmill.spec.records import FileRecord
from modelmill.store.s3 import Store
from modelmill.store.transfer import PART_BYTES, download, upload
from tests.store.proxy import Proxy

BIG_EVERY: Final = 200
"""Transfers of which the first two, one up and one down, are in parts."""

FOLDER: Final = 50
"""Keys that are used again and again, so that the store stays small."""


@dataclass(frozen=True)
class Flips:
    """What became of them."""

    transfers: int = 0
    flips: int = 0
    violations: int = 0
    """Wrong bytes that were accepted."""
    refused: int = 0
    """Transfers that did not end well although one repetition would have done."""

    def __add__(self, other: "Flips") -> "Flips":
        """Count together."""
        return Flips(
            self.transfers + other.transfers,
            self.flips + other.flips,
            self.violations + other.violations,
            self.refused + other.refused,
        )


@dataclass(frozen=True)
class Flipper:
    """Sends and fetches behind a proxy that turns bits over, and looks from before it."""

    calm: Store
    behind: Store
    proxy: Proxy
    folder: Path

    def flip_many(self, count: int) -> Flips:
        """Make so many transfers: up, down as a file, and down as a document."""
        wrong = refused = 0
        for number in range(count):
            try:
                wrong += not self._flip(number)
            except ModelmillError:
                refused += 1
        flips = sum(fault.startswith("flip") for fault in self.proxy.applied)
        return Flips(count, flips, wrong, refused)

    def _flip(self, number: int) -> bool:
        """Make one transfer and tell whether all is as it was sent."""
        random = Random(number)
        is_big = number % BIG_EVERY < 2
        size = PART_BYTES + 1000 if is_big else random.randint(1, 20_000)
        body = random.randbytes(size)
        key = f"file-{number % FOLDER}"
        if number % 2 == 0:
            return self._flip_up(key, body, is_big=is_big)
        if number % 4 == 1:
            return self._flip_down(key, body)
        self.calm.put(key, body)
        self.proxy.plan("GetObject", "flip down")
        stored = self.behind.get(key)
        return stored is not None and stored.body == body

    def _flip_up(self, key: str, body: bytes, *, is_big: bool) -> bool:
        source = self.folder / "source"
        source.write_bytes(body)
        self.proxy.plan("UploadPart" if is_big else "PutObject", "flip up")
        record = upload(self.behind, key, source)
        stored = self.calm.get(key)
        is_right = stored is not None and stored.body == body
        return is_right and record == _record(key, body)

    def _flip_down(self, key: str, body: bytes) -> bool:
        source, target = self.folder / "source", self.folder / "target"
        source.write_bytes(body)
        record = upload(self.calm, key, source)
        self.proxy.plan("GetObject", "flip down")
        download(self.behind, key, target, record)
        return target.read_bytes() == body


def _record(key: str, body: bytes) -> FileRecord:
    return FileRecord(path=key, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
