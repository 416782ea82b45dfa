"""Weights of a merge that stay in the store, because the volume has no room for them.

Every byte is compared with its record before any is used, and again whenever it is read
(`store/ranges.py`).  Slower than files, which are read once from the store and then from this
machine; so it is for where they do not fit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from modelmill.spec.plan import Stage
from modelmill.spec.records import FileRecord
from modelmill.spec.settings import MergeSettings
from modelmill.stages.ahead import Ahead
from modelmill.stages.ledger import Ledger
from modelmill.stages.stage import InStore
from modelmill.store.artifact import Committed, attempt_prefix
from modelmill.store.crew import OnBytes
from modelmill.store.poured import Poured
from modelmill.store.ranges import RangedFile
from modelmill.store.tensors import LENGTH_BYTES, LONGEST_HEADER_BYTES
from modelmill.store.transfer import digests_of_pieces

MODEL: Final = "model"
"""The role of the base."""


def weights_that_may_stay(stage: Stage, inputs: Mapping[str, Committed]) -> tuple[FileRecord, ...]:
    """Name the weight files of the base that the stage can read in the store; none if it cannot."""
    settings = stage.settings
    if not isinstance(settings, MergeSettings) or settings.needs_whole_base:
        return ()
    files = inputs[MODEL].manifest.files
    return tuple(file for file in files if PurePosixPath(file.path).match("*.safetensors"))


def verified(
    committed: Committed, files: Sequence[FileRecord], ledger: Ledger, on_bytes: OnBytes
) -> tuple[RangedFile, ...]:
    """Read files of an artifact once, and have each piece of them known from then on.

    What an earlier attempt has read so is not read again.

    Raises:
        DigestMismatch: stored bytes are not the committed ones.
    """
    manifest, ranges = committed.manifest, ledger.ranges
    prefix = attempt_prefix(manifest.kind, manifest.key, manifest.attempt)
    new = [file for file in files if not ledger.knows(file)]
    on_bytes(sum(file.size_bytes for file in files if ledger.knows(file)))
    keyed = [(file, f"{prefix}/{file.path}") for file in new]
    found = digests_of_pieces(ranges.store, keyed, on_bytes)
    ledger.verified([*zip(new, found, strict=True)])
    return tuple(
        RangedFile(
            PurePosixPath(file.path),
            f"{prefix}/{file.path}",
            file.size_bytes,
            ledger.digests(file),
            ranges,
        )
        for file in files
    )


@contextmanager
def lent_headers(files: Sequence[RangedFile], folder: Path) -> Iterator[None]:
    """Put files into a folder that have the headers of these, and holes for their tensors.

    For a look at what they say of themselves: nobody can take a hole for a tensor afterwards.
    """
    lent = [folder / file.path for file in files]
    for file, path in zip(files, lent, strict=True):
        with path.open("xb") as standing_in:
            standing_in.write(_header(file))
            standing_in.truncate(file.size_bytes)
    try:
        yield
    finally:
        for path in lent:
            path.unlink(missing_ok=True)


def _header(file: RangedFile) -> bytearray:
    """Read the beginning of a safetensors file, as far as it may be a header."""
    length = bytearray(min(LENGTH_BYTES, file.size_bytes))
    file.read_into(0, memoryview(length))
    header_bytes = min(int.from_bytes(length, "little"), LONGEST_HEADER_BYTES)
    header = bytearray(min(LENGTH_BYTES + header_bytes, file.size_bytes))
    file.read_into(0, memoryview(header))
    return header


def in_store(weights: tuple[RangedFile, ...], ahead: Ahead, ledger: Ledger) -> InStore:
    """Let a stage read the weights of its base, and write its own where they are sent from."""

    def begin(name: str, header: bytes, size_bytes: int) -> Poured:
        before = ledger.before(name, header, size_bytes)
        ledger.begun.append(ahead.pour(name, size_bytes, before))
        return ledger.begun[-1]

    def poured() -> Iterator[RangedFile]:
        for record, file in ahead.poured():
            path = PurePosixPath(record.path)
            yield RangedFile(path, file.key, file.size_bytes, file.digests, ledger.ranges)

    return InStore({MODEL: weights}, begin, lambda: tuple(poured()), ledger.keep)
