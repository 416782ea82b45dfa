"""Files of a hub on their way to this machine: resumed, and compared with what the hub states.

Not through huggingface_hub's own download, which leaves a cache and compares no digest.
"""

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import BinaryIO, Final

from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status

from modelmill.spec.errors import DigestMismatch
from modelmill.spec.records import FileRecord
from modelmill.spec.sources import HubAddress
from modelmill.store.connection import Stopped
from modelmill.store.crew import OnBytes
from modelmill.store.hub_client import SILENCE_SECONDS, Hub, Patience
from modelmill.store.hub_failures import FAILURES
from modelmill.store.hub_files import HubFile
from modelmill.store.landing import final_name, sink_of

THREADS: Final = 4
CHUNK_BYTES: Final = 1024 * 1024

_PARTIAL: Final = 206
_NO_SUCH_RANGE: Final = 416


def download(
    hub: Hub,
    address: HubAddress,
    files: Sequence[HubFile],
    destination: Path,
    on_bytes: OnBytes,
) -> tuple[FileRecord, ...]:
    """Download files side by side; each gets its name only when all of it is right.

    Raises:
        DigestMismatch: what arrives is not what the hub states, twice.
        ModelmillError: the hub does not answer, or refuses.
    """
    telling = threading.Lock()

    def tell(count: int) -> None:
        with telling:
            on_bytes(count)

    def fetch(file: HubFile) -> FileRecord:
        return _Download(hub, address, file, tell).into(destination / file.path)

    with ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(fetch, file) for file in files]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:
            hub.stop.set()
            for future in waiting:
                future.cancel()
            raise
    return tuple(future.result() for future in waiting)


class _Download:
    """One file on its way: goes on where a connection broke, and is hashed as it comes."""

    def __init__(self, hub: Hub, address: HubAddress, file: HubFile, tell: OnBytes) -> None:
        self._hub = hub
        self._address = address
        self._file = file
        self._tell = tell
        self._url = hf_hub_url(
            address.repository,
            file.path,
            repo_type=address.kind,
            revision=address.revision,
            endpoint=hub.endpoint,
        )
        self._start_over()

    def into(self, path: Path) -> FileRecord:
        """Write the file, from its start once more if its digest is wrong the first time."""
        with final_name(path) as target:
            self._read(target)
            if not self._is_right():
                self._start_over(target)
                self._read(target)
            if not self._is_right():
                raise self._mismatch()
        return FileRecord(
            path=self._file.path, size_bytes=self._done, sha256=self._sha256.hexdigest()
        )

    def _start_over(self, target: BinaryIO | None = None) -> None:
        if target is not None:
            target.truncate(0)
            self._tell(-self._done)
        self._done: int = 0
        self._sha256 = hashlib.sha256()
        # Git's name for a content; it is compared with what git has, and protects nothing else.
        self._git = hashlib.sha1(b"blob %d\0" % self._file.size_bytes, usedforsecurity=False)

    def _read(self, target: BinaryIO) -> None:
        """Read to the end of what comes, however often the connection breaks."""
        patience = Patience(self._hub, self._address)
        while True:
            before = self._done
            try:
                self._go_on(target)
            except FAILURES as error:
                if self._done > before:
                    patience.renew()
                patience.wait_after(error)
            else:
                return

    def _go_on(self, target: BinaryIO) -> None:
        sink, headers = sink_of(target), self._hub.headers()
        if self._done:
            headers["range"] = f"bytes={self._done}-"
        request = get_session().stream("GET", self._url, headers=headers, timeout=SILENCE_SECONDS)
        with request as answer:
            if self._done and answer.status_code == _NO_SUCH_RANGE:
                return
            hf_raise_for_status(answer)
            if self._done and answer.status_code != _PARTIAL:
                self._start_over(target)
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                if self._hub.stop.is_set():
                    raise Stopped
                sink(self._done, chunk)
                self._take(chunk)
                if self._done > self._file.size_bytes:
                    return

    def _take(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._git.update(chunk)
        self._done += len(chunk)
        self._tell(len(chunk))

    def _is_right(self) -> bool:
        stated = self._file.sha256
        found = self._sha256.hexdigest() if stated else self._git.hexdigest()
        return self._done == self._file.size_bytes and found == (stated or self._file.git_blob)

    def _mismatch(self) -> DigestMismatch:
        return DigestMismatch(
            f"{self._file.path} is not what the hub says it is: {self._done:,} bytes with the "
            f"SHA-256 {self._sha256.hexdigest()} came, {self._file.size_bytes:,} bytes with "
            + (f"{self._file.sha256}" if self._file.sha256 else f"git's {self._file.git_blob}")
            + " were stated",
            at=str(self._address),
            fix="run the same command again; if it stays, tell who keeps the hub or its mirror",
        )
