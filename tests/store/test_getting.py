"""Artifacts on their way to a folder of the user's."""

import random
from pathlib import Path

import pytest

from modelmill.conduct.getting import get_artifact
from modelmill.spec.errors import DoesNotFit, PermissionRefused, WouldBeLost
from modelmill.store.artifact import pull
from modelmill.store.crew import PART_BYTES
from modelmill.store.kept import KEPT, Kept
from modelmill.store.s3 import Store
from tests.store.conftest import Publisher
from tests.store.proxy import Proxy

FILES = {
    "model.safetensors": random.Random(2).randbytes(3 * PART_BYTES),
    "config.json": b"{}",
}


def test_get_goes_on_after_an_interruption(
    store: Store, behind: Store, proxy: Proxy, publish: Publisher, tmp_path: Path
) -> None:
    """The same command fetches only the rest, and leaves nothing but the artifact."""
    committed = publish(store, "abcdef", FILES)
    folder = tmp_path / "out"

    def interrupt(count: int) -> None:
        if count == PART_BYTES:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(behind, committed, folder, (), interrupt, kept=Kept(folder / KEPT))
    before = proxy.seen["GetObject"]

    paths = get_artifact(behind, "abc", folder)

    parts_at_first = 3 + 1
    listing_and_manifest = 2
    assert proxy.seen["GetObject"] - before < parts_at_first + listing_and_manifest
    assert {path.name: path.read_bytes() for path in paths} == FILES
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_get_of_what_does_not_fit(
    store: Store, publish: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sizes are told before a byte is fetched."""
    publish(store, "abcdef", {"model": bytes(3 * 2**20)})
    monkeypatch.setattr("modelmill.store.space.free_bytes_of", lambda _: 2 * 2**20)

    with pytest.raises(DoesNotFit, match="About 3 MiB of disk are needed and 2 MiB are free"):
        get_artifact(store, "abc", tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_get_replaces_nothing_that_it_has_not_brought(
    store: Store, publish: Publisher, tmp_path: Path
) -> None:
    """Equal files may be there, of an earlier call or not; another one is somebody's."""
    publish(store, "abcdef", FILES)
    folder = tmp_path / "out"
    get_artifact(store, "abc", folder)
    get_artifact(store, "abc", folder)
    (folder / "config.json").write_bytes(b"[]")
    (folder / "model.safetensors").unlink()

    with pytest.raises(WouldBeLost, match=r"already: config\.json"):
        get_artifact(store, "abc", folder)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"config.json": b"[]"}


def test_get_into_what_is_no_folder(store: Store, publish: Publisher, tmp_path: Path) -> None:
    """The place is named."""
    publish(store, "abcdef", FILES)
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(PermissionRefused, match="cannot be made") as caught:
        get_artifact(store, "abc", tmp_path / "file" / "out")

    assert caught.value.at.startswith(str(tmp_path / "file"))
