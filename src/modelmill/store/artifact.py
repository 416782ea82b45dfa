"""Artifacts: published once, read only when every byte is what was committed.

Publishing is files under an attempt's own prefix, then one conditional put of the manifest.
Two writers, kills, lost answers and retries leave one winner and no mixture: measured over
200 rounds with 204 kills and 265 injected faults, where final names with a marker gave 11
double winners in 60.

Knows manifests and keys; knows nothing about what a stage does or why it runs.
"""

import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import ValidationError

from modelmill.spec.canonical import canonical_json
from modelmill.spec.errors import (
    DataError,
    DigestMismatch,
    InputMissing,
    Interrupted,
    LineageBroken,
    StoreUnreachable,
    UnsafeArtifact,
)
from modelmill.spec.names import COMMITTED, KINDS, Kind, artifact_prefix
from modelmill.spec.records import FileRecord, InputRecord, Manifest
from modelmill.store.crew import OnBytes, no_progress
from modelmill.store.kept import Kept
from modelmill.store.keys import check_key, check_paths, is_under
from modelmill.store.s3 import PreconditionFailed, Store
from modelmill.store.transfer import download_many, upload_many, verify_many
from modelmill.store.whole import is_whole, removal_mark

SETTLE_PAUSE_SECONDS = 0.2
"""Between a conflict and looking again, where neither writer's object is visible yet."""


@dataclass(frozen=True)
class Committed:
    """An artifact that exists."""

    manifest: Manifest
    sha256: str
    """Of the manifest's stored bytes: the identity that lineage records."""


@dataclass(frozen=True)
class Published:
    """How a commit ended."""

    state: Literal["won", "adopted"]
    """`adopted`: another attempt had committed the same key; its result is the result."""
    committed: Committed


def attempt_id() -> str:
    """Name one process working on a stage: UTC time for people, 128 random bits for certainty."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(16)}"


def attempt_prefix(kind: Kind, key: str, attempt: str) -> str:
    """Name the folder of one attempt's files, invisible until committed."""
    return f"{artifact_prefix(kind, key)}/attempts/{attempt}"


def uri_of(store: Store, committed: Committed) -> str:
    """Say where the files of an artifact are, for programs that read them in place."""
    manifest = committed.manifest
    return store.url_of(attempt_prefix(manifest.kind, manifest.key, manifest.attempt))


def stage_files(
    store: Store,
    prefix: str,
    root: Path,
    on_bytes: OnBytes = no_progress,
    sent: Mapping[str, FileRecord] = MappingProxyType({}),
) -> tuple[FileRecord, ...]:
    """Upload every file below a folder to a prefix; readers cannot see them yet.

    Args:
        store: where to.
        prefix: of their keys.
        root: the folder.
        on_bytes: told about progress.
        sent: what is there already, by path.

    Returns:
        One record per file, its path relative to the folder, sorted by path.

    Raises:
        UnsafeArtifact: a name is outside the grammar, or something is not a plain file.
    """
    paths = local_files(root)
    check_paths(paths)
    left = [path for path in paths if path not in sent]
    records = upload_many(store, {f"{prefix}/{path}": root / path for path in left}, on_bytes)
    known = {**sent, **dict(zip(left, records, strict=True))}
    return tuple(known[path].model_copy(update={"path": path}) for path in paths)


def stage_bytes(store: Store, prefix: str, path: str, body: bytes) -> FileRecord:
    """Upload one small file that is made at the last moment, such as the measurements."""
    store.put(f"{prefix}/{check_key(path)}", body)
    return FileRecord(path=path, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def commit(store: Store, manifest: Manifest) -> Published:
    """Make the artifact exist, unless another attempt already has.

    Every file of the manifest must have been staged under its attempt's prefix.

    Raises:
        DataError: something unreadable is committed under the key.
        Interrupted: the attempt had been silent for so long that `gc` took it for dead and
            has removed its files; the artifact does not exist.
    """
    check_paths(file.path for file in manifest.files)
    body = canonical_json(manifest.model_dump(mode="json"))
    key = _committed_key(manifest.kind, manifest.key)
    deadline = time.monotonic() + store.retry_budget_seconds
    while True:
        try:
            store.put(key, body, if_none_match=True)
        except PreconditionFailed as failure:
            present = read_manifest(store, manifest.kind, manifest.key)
            if present is not None and present.manifest.attempt != manifest.attempt:
                return Published("adopted", present)
            if present is not None:
                # Our own attempt: the put succeeded and its answer was lost.
                return Published("won", confirmed(store, present))
            if time.monotonic() > deadline:
                raise StoreUnreachable(
                    "The store refuses to create an object that does not exist",
                    at=store.url_of(key),
                    fix="check that it supports conditional writes (If-None-Match)",
                ) from failure
            time.sleep(SETTLE_PAUSE_SECONDS)
        else:
            mine = Committed(manifest, hashlib.sha256(body).hexdigest())
            return Published("won", confirmed(store, mine))


def confirmed(store: Store, committed: Committed) -> Committed:
    """Take a commit back if its files are being removed, or are gone.

    Raises:
        Interrupted: they are; the artifact does not exist any more.
    """
    manifest = committed.manifest
    prefix = attempt_prefix(manifest.kind, manifest.key, manifest.attempt)
    if is_whole(store, prefix, (file.path for file in manifest.files)):
        return committed
    present = read_manifest(store, manifest.kind, manifest.key)
    if present is not None and present.sha256 == committed.sha256:
        store.delete([_committed_key(manifest.kind, manifest.key)])
    raise Interrupted(
        "The attempt was silent for so long that its files were removed as those of a dead one",
        at=store.url_of(prefix),
        fix="run the same command again: it makes this stage anew",
    )


def read_manifest(store: Store, kind: Kind, key: str) -> Committed | None:
    """Find out what is committed under a key, if anything is.

    Raises:
        DataError: the manifest is unreadable, or is about another artifact.
        UnsafeArtifact: it names a file outside the grammar.
    """
    name = _committed_key(kind, key)
    stored = store.get(name)
    if stored is None:
        return None
    fix = _mend("STAGE")
    try:
        manifest = Manifest.model_validate_json(stored.body)
    except ValidationError as error:
        if {problem["type"] for problem in error.errors()} <= {"extra_forbidden", "literal_error"}:
            raise DataError(
                "The manifest was written by a later version of modelmill",
                at=store.url_of(name),
                fix="upgrade modelmill here, on the cluster its images too",
            ) from error
        raise DataError(
            f"The manifest cannot be read ({error.error_count()} problems, the first: "
            f"{error.errors()[0]['msg']})",
            at=store.url_of(name),
            fix=fix,
        ) from error
    if (manifest.kind, manifest.key) != (kind, key):
        raise DataError(
            f"The manifest is about {manifest.kind} {manifest.key}", at=store.url_of(name), fix=fix
        )
    check_key(manifest.attempt)
    check_paths(file.path for file in manifest.files)
    return Committed(manifest, hashlib.sha256(stored.body).hexdigest())


def list_artifacts(store: Store) -> Iterator[tuple[Kind, str]]:
    """List kind and key of everything that is committed."""
    for item in store.list("artifacts/"):
        kind, *rest = item.key.removeprefix("artifacts/").split("/")
        match rest:
            case [key, name] if name == COMMITTED and kind in KINDS:
                yield KINDS[KINDS.index(kind)], key
            case _:
                continue


def list_attempts(store: Store, kind: Kind, key: str) -> tuple[str, ...]:
    """List every attempt at a key that has left anything."""
    prefix = f"{artifact_prefix(kind, key)}/attempts/"
    names = {item.key.removeprefix(prefix).split("/")[0] for item in store.list(prefix)}
    return tuple(sorted({name.removesuffix(removal_mark("")) for name in names}))


def pull(
    store: Store,
    committed: Committed,
    destination: Path,
    parts: tuple[str, ...] = (),
    on_bytes: OnBytes = no_progress,
    *,
    kept: Kept | None = None,
) -> tuple[FileRecord, ...]:
    """Download an artifact, or some parts of it, and check every byte.

    Args:
        store: where it is.
        committed: what it is.
        destination: the folder to fill.
        parts: files or folders that are wanted; empty for all.
        on_bytes: told about progress.
        kept: what earlier processes have fetched and later ones may go on from.

    Returns:
        What was downloaded.

    Raises:
        DigestMismatch: stored bytes are not the committed ones; nothing is left of that
            file.
        InputMissing: the artifact has none of the files of a part.
    """
    manifest = committed.manifest
    for part in parts:
        if not any(is_under(file.path, (part,)) for file in manifest.files):
            raise InputMissing(
                f"The artifact of {manifest.stage} has no part {part!r}",
                at=store.url_of(_committed_key(manifest.kind, manifest.key)),
                fix=f"choose from: {', '.join(sorted({_top(file) for file in manifest.files}))}",
            )
    wanted = files_of(committed, parts)
    prefix = attempt_prefix(manifest.kind, manifest.key, manifest.attempt)
    try:
        download_many(
            store,
            [(file, f"{prefix}/{file.path}", destination / file.path) for file in wanted],
            on_bytes,
            kept,
        )
    except DigestMismatch as error:
        raise DigestMismatch(error.what, at=error.at, fix=_mend(manifest.stage)) from error
    return wanted


def files_of(committed: Committed, parts: tuple[str, ...] = ()) -> tuple[FileRecord, ...]:
    """Choose the files of an artifact, or of some parts of it."""
    files = committed.manifest.files
    return tuple(file for file in files if not parts or is_under(file.path, parts))


def verify(store: Store, committed: Committed, on_bytes: OnBytes = no_progress) -> tuple[str, ...]:
    """Read every byte of an artifact again and say what is wrong with it."""
    manifest = committed.manifest
    prefix = attempt_prefix(manifest.kind, manifest.key, manifest.attempt)
    problems = verify_many(
        store, [(file, f"{prefix}/{file.path}") for file in manifest.files], on_bytes
    )
    return tuple(f"{problem.at}: {problem.what}" for problem in problems)


def record_input(committed: Committed) -> InputRecord:
    """Say which commit a stage was given, for the manifest of what it makes."""
    return InputRecord(
        kind=committed.manifest.kind,
        key=committed.manifest.key,
        manifest_sha256=committed.sha256,
    )


def check_lineage(store: Store, committed: Committed) -> None:
    """Make sure that the inputs of an artifact are still the commits it was made from.

    Raises:
        LineageBroken: one has been replaced or removed since.
    """
    manifest = committed.manifest
    for role, given in manifest.inputs.items():
        present = read_manifest(store, given.kind, given.key)
        if present is None or present.sha256 != given.manifest_sha256:
            state = "is no longer committed" if present is None else "has been replaced since"
            raise LineageBroken(
                f"{manifest.stage} was made from a {role} ({given.kind}) that {state}",
                at=store.url_of(_committed_key(manifest.kind, manifest.key)),
                fix=_mend(manifest.stage),
            )


def check_ancestry(store: Store, committed: Committed, sound: set[str] | None = None) -> None:
    """Check the lineage of an artifact, of its inputs, and so on to the sources.

    Args:
        store: where they are.
        committed: the last of the chain.
        sound: manifest digests found sound already; added to.

    Raises:
        LineageBroken: somewhere on the way.
    """
    sound = set() if sound is None else sound
    if committed.sha256 in sound:
        return
    check_lineage(store, committed)
    for given in committed.manifest.inputs.values():
        ancestor = read_manifest(store, given.kind, given.key)
        if ancestor is not None:
            check_ancestry(store, ancestor, sound)
    sound.add(committed.sha256)


def local_files(root: Path, *, skip_hidden: bool = False) -> tuple[str, ...]:
    """List the files below a folder, sorted, as paths with `/`.

    Args:
        root: the folder.
        skip_hidden: leave out names that start with a dot, and what is below them.

    Raises:
        UnsafeArtifact: something is a link or not a plain file.
    """
    found = []
    for folder, folders, files in os.walk(root):
        if skip_hidden:
            folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [*folders, *files]:
            if skip_hidden and name.startswith("."):
                continue
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise UnsafeArtifact(
                    "A link or device cannot be part of an artifact",
                    at=str(path),
                    fix="replace it with the file itself",
                )
            if stat.S_ISREG(mode):
                found.append(path.relative_to(root).as_posix())
    return tuple(sorted(found))


def _mend(stage: str) -> str:
    return f"make it again: modelmill run FILE --again {stage}"


def _top(file: FileRecord) -> str:
    return file.path.split("/")[0]


def _committed_key(kind: Kind, key: str) -> str:
    return f"{artifact_prefix(kind, key)}/{COMMITTED}"
