"""Artifacts on their way to a folder of the user's."""

import random
from pathlib import Path

import pytest

from modelmill.conduct.getting import get_artifact
from modelmill.spec.errors import DoesNotFit
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
