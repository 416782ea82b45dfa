"""Artifacts on their way to a folder of the user's, begun once and gone on with until complete."""

from pathlib import Path

from modelmill.conduct.standing import find_artifact
from modelmill.store.artifact import files_of, pull
from modelmill.store.kept import KEPT, Kept
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
    """
    committed = find_artifact(store, beginning)
    files, kept = files_of(committed), Kept(folder / KEPT)
    needed_bytes = sum(file.size_bytes for file in files)
    present_bytes = kept.present_bytes(files)
    kept.tidy(files, needed_bytes - present_bytes)
    check_space(folder, needed_bytes, present_bytes=present_bytes)
    pull(store, committed, folder, kept=kept)
    kept.drop(files)
    return tuple(folder / file.path for file in files)
