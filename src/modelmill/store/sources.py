"""Where models and data come from: other people's buckets, hubs, local files sent to the store.

A local folder or file is uploaded once, addressed by its content.  Anything else is pinned
by what a listing says of it, so that a run notices when it changes.  Knows nothing about
what the files mean.
"""

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from modelmill.spec.canonical import canonical_json, sha256_of
from modelmill.spec.errors import DataError, DigestMismatch, InputMissing, StoreUnreachable
from modelmill.spec.names import COMMITTED, source_prefix
from modelmill.spec.records import FileRecord, Record
from modelmill.spec.settings import Pin
from modelmill.spec.sources import is_hub
from modelmill.store.address import open_source
from modelmill.store.artifact import SETTLE_PAUSE_SECONDS, local_files
from modelmill.store.beginning import DistantFile, file_here
from modelmill.store.crew import OnBytes, no_progress
from modelmill.store.kept import Kept
from modelmill.store.keys import check_paths
from modelmill.store.objects import ListedObject
from modelmill.store.s3 import Store
from modelmill.store.transfer import download_listed, download_many, upload_many
from modelmill.store.whole import is_whole

TRIES = 3
"""Of an upload that `gc` is removing while it goes on."""


class Source(Record):
    """The manifest of an uploaded source."""

    format: Literal[1] = 1
    files: tuple[FileRecord, ...]


def pin_local(path: Path) -> Pin:
    """Say what `upload_source` would return, without sending anything.

    Raises:
        InputMissing: there is nothing at the path.
        UnsafeArtifact: a name is outside the grammar, or something is not a plain file.
    """
    return _pin(path, _hash_all(_local(path)))


def upload_source(store: Store, path: Path, on_bytes: OnBytes = no_progress) -> Pin:
    """Send a local file or folder to the store, unless it is there already.

    Hidden files (`.git`, `.cache`, `.gitattributes`) are left out.

    Returns:
        Its address, `sources/<sha256>` for a folder and `sources/<sha256>/<name>` for a
        file, and that digest.

    Raises:
        InputMissing: there is nothing at the path.
        UnsafeArtifact: a name is outside the grammar, or something is not a plain file.
    """
    local = _local(path)
    files = _hash_all(local)
    pin = _pin(path, files)
    for _ in range(TRIES):
        if is_uploaded(store, pin) or _upload(store, local, files, pin, on_bytes):
            return pin
        time.sleep(SETTLE_PAUSE_SECONDS)
    raise StoreUnreachable(
        "A removal of the same source goes on, or was cut off",
        at=store.url_of(source_prefix(pin.digest)),
        fix="modelmill gc --yes, then the same command",
    )


def is_uploaded(store: Store, pin: Pin) -> bool:
    """Tell whether a local source is in the store."""
    return store.head(f"{source_prefix(pin.digest)}/{COMMITTED}") is not None


def _upload(
    store: Store,
    local: Mapping[str, Path],
    files: tuple[FileRecord, ...],
    pin: Pin,
    on_bytes: OnBytes,
) -> bool:
    prefix = source_prefix(pin.digest)
    sent = upload_many(store, {f"{prefix}/{name}": file for name, file in local.items()}, on_bytes)
    for before, after in zip(files, sent, strict=True):
        if (before.size_bytes, before.sha256) != (after.size_bytes, after.sha256):
            raise DataError(
                "The file changed while it was being uploaded",
                at=str(local[before.path]),
                fix="run the same command again when nothing writes to it",
            )
    store.put(f"{prefix}/{COMMITTED}", canonical_json(Source(files=files).model_dump(mode="json")))
    if is_whole(store, prefix, local):
        return True
    # `gc` is at work on a former upload of it.
    store.delete([f"{prefix}/{COMMITTED}"])
    return False


def pin_source(store: Store, address: str) -> Pin:
    """Find out which state of a source is the present one.

    Args:
        store: the run's store, for `sources/...`.
        address: `s3://bucket/key-or-prefix`, `hf:...`, or what `upload_source` returned.

    Raises:
        InputMissing: there is nothing at the address.
    """
    if is_hub(address):
        with _hub_library():
            from modelmill.store.hub import pin_hub
        return pin_hub(address, store.retry_budget_seconds)
    if not address.startswith("s3://"):
        read_uploaded(store, address)
        return Pin(address=address, digest=address.split("/")[1])
    return Pin(address=address, digest=_digest(_listed(store, address)[1]))


def source_bytes(store: Store, pin: Pin) -> int:
    """Say how many bytes `pull_source` would download.

    Raises:
        InputMissing: it is gone.
    """
    if is_hub(pin.address):
        with _hub_library():
            from modelmill.store.hub import hub_bytes
        return hub_bytes(pin, store.retry_budget_seconds)
    if pin.address.startswith("s3://"):
        return sum(item.size_bytes for item in _listed(store, pin.address)[1].values())
    return sum(file.size_bytes for file in read_uploaded(store, pin.address))


def look_local(path: Path) -> tuple[DistantFile, ...]:
    """List the files of a local source, to read how they begin.

    Raises:
        InputMissing: there is nothing at the path.
        UnsafeArtifact: a name is outside the grammar, or something is not a plain file.
    """
    return tuple(file_here(file, name) for name, file in _local(path).items())


def look_source(store: Store, pin: Pin) -> tuple[DistantFile, ...]:
    """List the files of a pinned source, to read how they begin without downloading them.

    Raises:
        InputMissing: it is gone.
        ModelmillError: it cannot be listed.
    """
    if is_hub(pin.address):
        with _hub_library():
            from modelmill.store.hub import look_hub
        return look_hub(pin, store.retry_budget_seconds)
    if pin.address.startswith("s3://"):
        bucket, found = _listed(store, pin.address)
        return tuple(
            distant_object(bucket, path, item.key, item.size_bytes) for path, item in found.items()
        )
    prefix = source_prefix(pin.digest)
    return tuple(
        distant_object(store, file.path, f"{prefix}/{file.path}", file.size_bytes)
        for file in read_uploaded(store, pin.address)
    )


def distant_object(store: Store, path: str, key: str, size_bytes: int) -> DistantFile:
    """Look at an object of a store without downloading it."""

    def first(length: int) -> bytes:
        if not length:
            return b""
        found = store.read_range(key, 0, length)
        if found is None:
            raise InputMissing("The object is gone", at=store.url_of(key))
        return found.body

    return DistantFile(path, size_bytes, first)


def pull_source(
    store: Store,
    pin: Pin,
    destination: Path,
    on_bytes: OnBytes = no_progress,
    kept: Kept | None = None,
) -> tuple[FileRecord, ...]:
    """Download a pinned source into a folder; a single file keeps its name.

    Raises:
        InputMissing: it is gone.
        DataError: it is not in the pinned state any more.
        DigestMismatch: an uploaded source's bytes have changed in the store, or a hub sends
            others than it states.
    """
    if is_hub(pin.address):
        with _hub_library():
            from modelmill.store.hub import pull_hub
        return pull_hub(pin, destination, store.retry_budget_seconds, on_bytes)
    if not pin.address.startswith("s3://"):
        files = read_uploaded(store, pin.address)
        prefix = source_prefix(pin.digest)
        try:
            download_many(
                store,
                [(file, f"{prefix}/{file.path}", destination / file.path) for file in files],
                on_bytes,
                kept,
            )
        except DigestMismatch as error:
            raise DigestMismatch(
                error.what,
                at=error.at,
                fix=f"remove {store.url_of(prefix)} and start the run again: it uploads it anew",
            ) from error
        return files
    bucket, found = _listed(store, pin.address)
    if _digest(found) != pin.digest:
        raise DataError(
            "The source has changed since the run was pinned to it",
            at=pin.address,
            fix="put the pinned state back, or accept the new one: modelmill run FILE --repin",
        )
    check_paths(found)
    records = download_listed(
        bucket, [(item, destination / path) for path, item in found.items()], on_bytes
    )
    return tuple(
        record.model_copy(update={"path": path})
        for path, record in zip(found, records, strict=True)
    )


@contextmanager
def _hub_library() -> Iterator[None]:
    """Import what speaks to hubs inside; whoever reads none needs no library for it.

    Raises:
        InputMissing: the library is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise InputMissing(
            f"A source is on a hub, and this Python has no huggingface_hub ({error.name})",
            at=sys.executable,
            fix="pip install 'modelmill[fetch]'",
        ) from error


def _local(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {path.name: path}
    names = [] if not path.is_dir() else local_files(path, skip_hidden=True)
    if not names:
        raise InputMissing(
            "There is no file or folder of files here", at=str(path), fix="correct the path"
        )
    return {name: path / name for name in names}


def _hash_all(local: Mapping[str, Path]) -> tuple[FileRecord, ...]:
    check_paths([*local, COMMITTED])
    return tuple(_hashed(name, file) for name, file in local.items())


def _pin(path: Path, files: tuple[FileRecord, ...]) -> Pin:
    digest = _content_digest(files)
    prefix = source_prefix(digest)
    return Pin(address=f"{prefix}/{path.name}" if path.is_file() else prefix, digest=digest)


def _content_digest(files: tuple[FileRecord, ...]) -> str:
    return sha256_of([[file.path, file.size_bytes, file.sha256] for file in files])


def _hashed(name: str, path: Path) -> FileRecord:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(path=name, size_bytes=file.tell(), sha256=sha256)


def read_uploaded(store: Store, address: str) -> tuple[FileRecord, ...]:
    """Read which files an uploaded source has.

    Raises:
        InputMissing: it is not there.
        DataError: its manifest is unreadable, or of another source.
    """
    digest = address.split("/")[1]
    key = f"{source_prefix(digest)}/{COMMITTED}"
    stored = store.get(key)
    if stored is None:
        raise InputMissing(
            "The uploaded source is not in this store",
            at=store.url_of(key),
            fix="start the run again where the files are, so that they are uploaded",
        )
    try:
        files = Source.model_validate_json(stored.body).files
    except ValidationError as error:
        raise DataError("The manifest of the source is unreadable", at=store.url_of(key)) from error
    if _content_digest(files) != digest:
        raise DataError("The source is not the one its name promises", at=store.url_of(key))
    check_paths(file.path for file in files)
    return files


def _listed(store: Store, address: str) -> tuple[Store, dict[str, ListedObject]]:
    """List the object at an address, or all objects below it, by relative path."""
    bucket, key = open_source(address, retry_budget_seconds=store.retry_budget_seconds)
    alone = bucket.head(key) if key else None
    prefix = f"{key}/" if key else ""
    found = {
        item.key.removeprefix(prefix): item
        for item in bucket.list(prefix)
        # Some tools create empty objects that stand for folders.
        if not item.key.endswith("/") and not _is_hidden(item.key.removeprefix(prefix))
    }
    if alone is not None and (alone.size_bytes or not found):
        return bucket, {key.rpartition("/")[2]: alone}
    if not found:
        bucket.check()
        raise InputMissing("There is nothing at this address", at=address, fix="correct it")
    return bucket, found


def _is_hidden(path: str) -> bool:
    """Tell what is left out of a local folder too: a hub's and git's own files."""
    return any(part.startswith(".") for part in path.split("/"))


def _digest(found: dict[str, ListedObject]) -> str:
    return sha256_of([[path, item.etag, item.size_bytes] for path, item in sorted(found.items())])
