"""Artifacts on their way to a folder of the user's, begun once and gone on with until complete."""

from collections.abc import Iterable
from pathlib import Path

from modelmill.conduct.lookup import find_artifact
from modelmill.spec.errors import WouldBeLost
from modelmill.spec.records import FileRecord
from modelmill.store.artifact import files_of, pull
from modelmill.store.kept import KEPT, Kept
from modelmill.store.parcel import is_whole
from modelmill.store.s3 import Store
from modelmill.store.space import check_space


def get_artifact(store: Store, beginning: str, folder: Path) -> tuple[Path, ...]:
    """Download an artifact; what an interrupted call has fetched is not fetched again.

    Args:
        store: where it is.
        beginning: its key, or as much of it as is unique.
        folder: where it goes; made if need be.

    Raises:
        DoesNotFit: the folder's volume cannot hold it.
        InputMissing: none, or more than one, begins like that.
        PermissionRefused: the folder cannot be written to.
        WouldBeLost: another file has the name of one of the artifact's.
    """
    committed = find_artifact(store, beginning)
    files, kept = files_of(committed), Kept(folder / KEPT)
    _check_names(folder, files)
    needed_bytes = sum(file.size_bytes for file in files)
    present_bytes = kept.present_bytes(files)
    kept.tidy(files, needed_bytes - present_bytes)
    check_space(folder, needed_bytes, present_bytes=present_bytes)
    pull(store, committed, folder, kept=kept)
    kept.drop(files)
    return tuple(folder / file.path for file in files)


def _check_names(folder: Path, files: Iterable[FileRecord]) -> None:
    """Let nothing be replaced but what an earlier call has brought."""
    there = [file for file in files if (folder / file.path).exists()]
    others = [file.path for file in there if not is_whole(folder, file)]
    if others:
        raise WouldBeLost(
            f"There is something else already: {', '.join(others)}",
            at=str(folder),
            fix="name another folder, or remove what is there",
        )
