"""What is known of weights that stay in a store, kept in the folder `resume` for a later attempt.

Of the base, the digests of its pieces; of the output, the parts that have been sent.  So a
killed attempt costs the parts that nobody had written down, and no second look at the base.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import ValidationError

from modelmill.spec.errors import ModelmillError
from modelmill.spec.records import FileRecord, Record
from modelmill.store.multipart import UploadLost
from modelmill.store.poured import Poured
from modelmill.store.ranges import RangedFile, Ranges
from modelmill.store.sent import Sent, sent_before

VERIFIED: Final = ".verified.json"
SENT: Final = ".sent.json"
"""End the name of what is known of a file of the base, or of the output."""

T = TypeVar("T", bound=Record)

logger = logging.getLogger(__name__)


class Verified(Record):
    """What the pieces of a stored file are, all of which has been compared with its record."""

    format: Literal[1] = 1
    file: FileRecord
    digests: tuple[str, ...]


@dataclass
class Ledger:
    """What attempts at a stage know of its weights."""

    folder: Path
    ranges: Ranges
    saved: Callable[[], None]
    """Told that the folder holds something new, all of it consistent."""
    begun: list[Poured] = field(default_factory=list)
    """Files of the output, by this attempt."""

    def __post_init__(self) -> None:
        """Read what an earlier attempt has put there."""
        self._verified = {each.file: each.digests for each in self._read(Verified, VERIFIED)}
        self._sent = {each.path: each for each in self._read(Sent, SENT)}

    def knows(self, file: FileRecord) -> bool:
        """Tell whether a file of the base has been verified."""
        return file in self._verified

    def digests(self, file: FileRecord) -> tuple[bytes, ...]:
        """Give those of the pieces of a file that has been."""
        return tuple(map(bytes.fromhex, self._verified[file]))

    def verified(self, files: Sequence[tuple[FileRecord, Sequence[bytes]]]) -> None:
        """Hear of files that have been, and what their pieces are."""
        for file, digests in files:
            each = Verified(file=file, digests=tuple(digest.hex() for digest in digests))
            self._verified[file] = each.digests
            self._write(file.path, VERIFIED, each)
        if files:
            self.saved()

    def before(self, name: str, header: bytes, size_bytes: int) -> RangedFile | None:
        """Open what an earlier attempt has sent of the very file that is about to be made."""
        sent = self._sent.get(name)
        if sent is None:
            return None
        try:
            file = sent_before(sent, self.ranges)
            found = bytearray(min(len(header), file.size_bytes))
            file.read_into(0, memoryview(found))
        except (UploadLost, ModelmillError) as error:
            logger.info("%s is made again: what was sent before is gone (%r)", name, error)
        else:
            if (sent.size_bytes, bytes(found)) == (size_bytes, header):
                logger.info("%s: %d of %d bytes have been sent", name, sent.sent_bytes, size_bytes)
                return file
            logger.info("%s is made again: it is another file now", name)
        del self._sent[name]
        return None

    def keep(self) -> None:
        """Put there what this attempt has sent, where it is more than was known."""
        new = [file for file in self.begun if file.parts_accepted > self._known_parts(file.path)]
        for file in new:
            self._sent[file.path] = file.sent()
            self._write(file.path, SENT, self._sent[file.path])
        if new:
            self.saved()

    def _known_parts(self, path: str) -> int:
        sent = self._sent.get(path)
        return 0 if sent is None else len(sent.parts)

    def _read(self, kind: type[T], suffix: str) -> Iterator[T]:
        for path in self.folder.glob(f"*{suffix}"):
            try:
                yield kind.model_validate_json(path.read_bytes())
            except ValidationError:
                # Another version of ours wrote it; only time is lost.
                logger.info("%s is of another form, and passed over", path.name)

    def _write(self, of: str, suffix: str, record: Record) -> None:
        path = self.folder / f"{of.replace('/', '=')}{suffix}"
        # A stage that is asked to stop stops in the middle of anything.
        aside = path.with_suffix(".new")
        aside.write_text(record.model_dump_json(), encoding="utf-8")
        aside.replace(path)
