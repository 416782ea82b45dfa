"""Take things out of a store so that no reader and no writer is left with half of one.

What is committed is withdrawn first: its manifest moves aside, byte for byte, and can come
back.  Files go later, under a mark that whoever commits in the meantime sees.  Knows
manifests and attempts; knows nothing about who needs them.
"""

from collections.abc import Iterable
from contextlib import suppress

from pydantic import ValidationError

from modelmill.spec.errors import DataError, InputMissing, Interrupted
from modelmill.spec.names import COMMITTED, WITHDRAWN, Kind, artifact_prefix, source_prefix
from modelmill.spec.records import Manifest
from modelmill.store.artifact import attempt_prefix, confirmed, read_manifest
from modelmill.store.s3 import PreconditionFailed, Store
from modelmill.store.sources import read_uploaded
from modelmill.store.whole import is_whole, removal_mark


def withdraw(store: Store, prefix: str) -> bool:
    """Let what is committed in a folder exist no more, in a way that can be undone.

    Returns:
        Whether there was anything.
    """
    stored = store.get(f"{prefix}/{COMMITTED}")
    if stored is None:
        return False
    store.put(f"{prefix}/{WITHDRAWN}", stored.body)
    store.delete([f"{prefix}/{COMMITTED}"])
    return True


def restore(store: Store, kind: Kind, key: str) -> bool:
    """Let a withdrawn artifact exist again, the same to the byte, if its files are there.

    Returns:
        Whether an artifact of that key exists now.
    """
    prefix = artifact_prefix(kind, key)
    _put_back(store, prefix)
    present = read_manifest(store, kind, key)
    if present is None:
        return False
    try:
        confirmed(store, present)
    except Interrupted:
        # Some of its files are gone already, so the rest is of no use.
        remove_attempt(store, kind, key, present.manifest.attempt)
        store.delete([f"{prefix}/{WITHDRAWN}"])
        return False
    store.delete([f"{prefix}/{WITHDRAWN}"])
    return True


def restore_source(store: Store, digest: str) -> bool:
    """Let a withdrawn source exist again if its files are there.

    Returns:
        Whether it exists now.
    """
    prefix = source_prefix(digest)
    _put_back(store, prefix)
    try:
        files = read_uploaded(store, prefix)
    except (InputMissing, DataError):
        return False
    is_back = is_whole(store, prefix, (file.path for file in files))
    if not is_back:
        store.delete([f"{prefix}/{COMMITTED}"])
    store.delete([f"{prefix}/{WITHDRAWN}"])
    return is_back


def remove_attempt(store: Store, kind: Kind, key: str, attempt: str) -> bool:
    """Remove every file of an attempt unless it is the committed one.

    Safe at any moment: an attempt that is alive after all finds out when it commits, and a
    removal that was interrupted can be repeated.

    Returns:
        Whether they are gone.
    """

    def is_committed() -> bool:
        present = read_manifest(store, kind, key)
        return present is not None and present.manifest.attempt == attempt

    prefix = attempt_prefix(kind, key, attempt)
    mark = removal_mark(prefix)
    store.put(mark, b"")
    is_gone = not is_committed()
    if is_gone:
        store.delete(item.key for item in store.list(f"{prefix}/"))
    # Last: until then a writer must see it, afterwards it sees that its files are gone.
    store.delete([mark])
    return is_gone


def remove_artifact(store: Store, kind: Kind, key: str, attempts: Iterable[str]) -> bool:
    """Remove the files of a withdrawn artifact, and of every other attempt at its key.

    Returns:
        Whether nothing is left; else it has come back in the meantime.
    """
    gone = [remove_attempt(store, kind, key, attempt) for attempt in attempts]
    store.delete([f"{artifact_prefix(kind, key)}/{WITHDRAWN}"])
    return all(gone)


def remove_source(store: Store, digest: str) -> bool:
    """Remove the files of a source that is not committed, whoever may be uploading it.

    Returns:
        Whether they are gone.
    """
    prefix = source_prefix(digest)
    mark = removal_mark(prefix)
    store.put(mark, b"")
    is_gone = store.head(f"{prefix}/{COMMITTED}") is None
    if is_gone:
        store.delete(item.key for item in store.list(f"{prefix}/"))
    store.delete([mark])
    return is_gone


def withdrawn_attempt(store: Store, prefix: str) -> str:
    """Name the attempt whose commit was withdrawn; empty where that cannot be read."""
    stored = store.get(f"{prefix}/{WITHDRAWN}")
    try:
        return "" if stored is None else Manifest.model_validate_json(stored.body).attempt
    except ValidationError:
        return ""


def _put_back(store: Store, prefix: str) -> None:
    stored = store.get(f"{prefix}/{WITHDRAWN}")
    if stored is None:
        return
    # It may have been made anew in the meantime, or put back by a request whose answer was lost.
    with suppress(PreconditionFailed):
        store.put(f"{prefix}/{COMMITTED}", stored.body, if_none_match=True)
