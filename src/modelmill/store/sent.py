"""What has been sent of a file by an upload in parts that a later process goes on with.

Parts of an upload that is not finished cannot be read.  So whoever was asked to stop finishes it
as it is, and so does whoever comes after a kill; that shorter object, under the key of the dead
attempt, is read, compared and copied from.
"""

from pathlib import PurePosixPath
from typing import Literal

from modelmill.spec.records import Record
from modelmill.store.objects import PutPart
from modelmill.store.ranges import RangedFile, Ranges


class SentPart(Record):
    """One part that the store has accepted."""

    size_bytes: int
    etag: str
    crc32: str


class Sent(Record):
    """The first parts of a file, which are in a store or were when this was written."""

    format: Literal[1] = 1
    path: str
    """Inside the artifact."""
    size_bytes: int
    """Of all of the file."""
    key: str
    upload_id: str
    parts: tuple[SentPart, ...]
    digests: tuple[str, ...]
    """SHA-256 of each piece of the parts."""

    @property
    def sent_bytes(self) -> int:
        """How much of the file the parts are."""
        return sum(part.size_bytes for part in self.parts)


def sent_before(sent: Sent, ranges: Ranges) -> RangedFile:
    """Make readable what an earlier process has sent of a file.

    A process that still sends more of it is told that its upload is lost.

    Raises:
        UploadLost: nothing is there any more.
    """
    store = ranges.store
    found = store.head(sent.key)
    if found is None or found.size_bytes < sent.sent_bytes:
        parts = [
            PutPart(number, part.size_bytes, part.etag, part.crc32)
            for number, part in enumerate(sent.parts, 1)
        ]
        store.finish_multipart(sent.key, sent.upload_id, parts)
    digests = tuple(map(bytes.fromhex, sent.digests))
    return RangedFile(PurePosixPath(sent.path), sent.key, sent.sent_bytes, digests, ranges)
