"""What an unfinished stage can go on from: saved beside artifacts, committed the same way.

A checkpoint is complete when its manifest exists; the newest complete one whose bytes are
right is used, else the one before.  Knows nothing about what is in it.
"""

import logging
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from modelmill.spec.canonical import canonical_json
from modelmill.spec.errors import DataError, UnsafeArtifact
from modelmill.spec.names import COMMITTED, checkpoint_prefix, live_name
from modelmill.spec.records import FileRecord, Live, Record
from modelmill.store.artifact import stage_files
from modelmill.store.crew import OnBytes, no_progress
from modelmill.store.keys import check_paths
from modelmill.store.objects import ListedObject
from modelmill.store.s3 import Store
from modelmill.store.transfer import download_many

logger = logging.getLogger(__name__)

KEPT = 2
"""Complete checkpoints of a key: the newest, and one to fall back on."""

SAVED = "SAVED"
"""What is left of an attempt whose states are old."""

SHARD = "shard-"
"""Begins the folder of a state that holds one shard's part of the work."""


class Checkpoint(Record):
    """The manifest of one saved state."""

    format: Literal[1] = 1
    key: str
    attempt: str
    number: int
    created: str
    files: tuple[FileRecord, ...]


def save_checkpoint(
    store: Store, key: str, attempt: str, root: Path, on_bytes: OnBytes = no_progress
) -> int:
    """Save a folder as the newest state of an attempt, and return its number.

    Older complete states of any attempt but one are deleted afterwards: machines that are
    taken away often would fill the store.  What another attempt is writing is left alone.
    """
    mine = f"{checkpoint_prefix(key)}/{attempt}/"
    present = [item for item in store.list(f"{checkpoint_prefix(key)}/") if _is_whole_work(item)]
    number = 1 + max((_number(item) for item in present if item.key.startswith(mine)), default=0)
    _save(store, f"{mine}{number:06d}", _empty(key, attempt, number), root, on_bytes)
    _drop_older(store, present, mine)
    return number


def save_shard(
    store: Store, key: str, attempt: str, root: Path, on_bytes: OnBytes = no_progress
) -> int:
    """Save a folder as what an attempt has done of its part of the work; returns its number.

    What the attempt has saved before is deleted afterwards, and nothing of any other: that may
    be another part.
    """
    mine = f"{checkpoint_prefix(key)}/{attempt}/"
    present = [item for item in store.list(mine) if _is_of_a_state(item)]
    number = 1 + max(map(_number, present), default=0)
    _save(store, f"{mine}{SHARD}{number:06d}", _empty(key, attempt, number), root, on_bytes)
    _drop(store, present)
    return number


def restore_all(store: Store, key: str, destination: Path) -> tuple[Path, ...]:
    """Fetch every complete and undamaged state of a key, each into a folder of its own.

    What is there from an earlier call is not fetched again: a state never changes.

    Returns:
        The folders, the newest state first.
    """
    found = []
    for item in _manifests(store, key):
        folder = item.key.removesuffix(f"/{COMMITTED}")
        local = destination / folder.removeprefix(f"{checkpoint_prefix(key)}/").replace("/", "=")
        if local.exists() or _is_pulled(store, key, folder, local):
            found.append(local)
    return tuple(found)


def restore_checkpoints(
    store: Store, key: str, destination: Path, on_bytes: OnBytes = no_progress
) -> Iterator[bool]:
    """Fill a folder with one complete and undamaged state of a key after the other.

    The newest comes first, whichever attempt saved it.  Every byte has been compared with the
    manifest before a state is handed out.

    Yields:
        True for each state; after the last one the folder is empty.
    """
    for item in _manifests(store, key):
        folder = item.key.removesuffix(f"/{COMMITTED}")
        _clear(destination)
        if _is_pulled(store, key, folder, destination, on_bytes):
            yield True
    _clear(destination)


def has_checkpoint(store: Store, key: str, attempt: str) -> bool:
    """Tell whether an attempt has left a complete state, be it gone by now."""
    present = store.list(f"{checkpoint_prefix(key)}/{attempt}/")
    return any(_is_manifest(each.key) or each.key.endswith(f"/{SAVED}") for each in present)


def put_live(store: Store, key: str, live: Live) -> None:
    """Say who works on a key; renewed while it lives."""
    store.put(live_name(key), canonical_json(live.model_dump(mode="json")))


def read_live(store: Store, key: str) -> Live | None:
    """Read who said last that it works on a key."""
    stored = store.get(live_name(key))
    if stored is None:
        return None
    try:
        return Live.model_validate_json(stored.body)
    except ValidationError:
        # Only a courtesy: two attempts at one key are safe, they are merely a waste.
        return None


def drop_live(store: Store, key: str, attempt: str) -> None:
    """Say no more that an attempt works on a key."""
    live = read_live(store, key)
    if live is not None and live.attempt == attempt:
        store.delete([live_name(key)])


def drop_checkpoints(store: Store, key: str) -> None:
    """Delete every saved state of a key: its artifact is committed."""
    found = list(store.list(f"{checkpoint_prefix(key)}/"))
    _drop(store, found)


def _drop(store: Store, items: list[ListedObject]) -> None:
    """Manifests go first, so that no torso looks complete."""
    store.delete(item.key for item in items if _is_manifest(item.key))
    store.delete(item.key for item in items if not _is_manifest(item.key))


def _empty(key: str, attempt: str, number: int) -> Checkpoint:
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Checkpoint(key=key, attempt=attempt, number=number, created=created, files=())


def _save(store: Store, folder: str, empty: Checkpoint, root: Path, on_bytes: OnBytes) -> None:
    files = stage_files(store, folder, root, on_bytes)
    manifest = empty.model_copy(update={"files": files})
    store.put(f"{folder}/{COMMITTED}", canonical_json(manifest.model_dump(mode="json")))


def _manifests(store: Store, key: str) -> list[ListedObject]:
    """List the manifests of all states of a key, the newest first."""
    found = [item for item in store.list(f"{checkpoint_prefix(key)}/") if _is_manifest(item.key)]
    return sorted(found, key=_age, reverse=True)


def _is_pulled(
    store: Store, key: str, folder: str, destination: Path, on_bytes: OnBytes = no_progress
) -> bool:
    """Pull a state; of one that is not whole nothing is left where there was nothing before."""
    is_new = not destination.exists()
    try:
        _pull(store, key, folder, destination, on_bytes)
    except (DataError, UnsafeArtifact) as error:
        if is_new:
            shutil.rmtree(destination, ignore_errors=True)
        logger.warning("the checkpoint %s is passed over: %s", folder, error.what)
        return False
    logger.info("found the checkpoint %s", folder)
    return True


def _pull(store: Store, key: str, folder: str, destination: Path, on_bytes: OnBytes) -> None:
    name = f"{folder}/{COMMITTED}"
    stored = store.get(name)
    if stored is None:
        raise DataError("The checkpoint has just been deleted", at=store.url_of(name))
    try:
        manifest = Checkpoint.model_validate_json(stored.body)
    except ValidationError as error:
        raise DataError("The checkpoint's manifest is unreadable", at=store.url_of(name)) from error
    if manifest.key != key:
        raise DataError("The checkpoint belongs to another key", at=store.url_of(name))
    check_paths(file.path for file in manifest.files)
    download_many(
        store,
        [(file, f"{folder}/{file.path}", destination / file.path) for file in manifest.files],
        on_bytes,
    )


def _drop_older(store: Store, present: list[ListedObject], mine: str) -> None:
    """Keep what was the newest before."""
    complete = sorted((item for item in present if _is_manifest(item.key)), key=_age)
    old = {_folder_of(item) for item in complete[: 1 - KEPT]}
    given_up = {_folder_of(item) for item in present if item.key.startswith(mine)}
    given_up -= {_folder_of(item) for item in complete}
    for attempt in {folder.rpartition("/")[0] for folder in old}:
        # Who counts attempts that got nowhere still sees that this one did.
        store.put(f"{attempt}/{SAVED}", b"")
    _drop(store, [item for item in present if _folder_of(item) in old | given_up])


def _age(item: ListedObject) -> tuple[datetime, str]:
    """Order by the store's clock, which is one clock; attempts' own are many.  Keys break ties."""
    return item.last_modified, item.key


def _folder_of(item: ListedObject) -> str:
    """Read `checkpoints/<key>/<attempt>/<number>` from the key of something in it."""
    return "/".join(item.key.split("/")[:4])


def _number(item: ListedObject) -> int:
    """Read the number from `checkpoints/<key>/<attempt>/<number>/<path>`."""
    segment = item.key.split("/")[3].removeprefix(SHARD)
    return int(segment) if segment.isdecimal() else 0


def _is_of_a_state(item: ListedObject) -> bool:
    """Tell a file of a state from what is said beside states."""
    return item.key.count("/") >= _MANIFEST_DEPTH


def _is_whole_work(item: ListedObject) -> bool:
    """Tell a file of a state that holds all that is done from one of a shard's."""
    return _is_of_a_state(item) and not item.key.split("/")[3].startswith(SHARD)


def _is_manifest(key: str) -> bool:
    return key.count("/") == _MANIFEST_DEPTH and key.endswith(f"/{COMMITTED}")


_MANIFEST_DEPTH = 4


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
