"""A merge on a volume that cannot hold the weights: they stay in the store, from which it reads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modelmill.models.open import open_model
from modelmill.spec.errors import DigestMismatch, DoesNotFit
from modelmill.stages.attempt import SPARE_BYTES
from modelmill.store import ranges
from modelmill.store.artifact import (
    attempt_prefix,
    read_manifest,
)
from modelmill.store.s3 import Store

from ..tiny_stages import Family, make_tokenizer
from .merge_scene import Scene, digests
from .test_merge import CPU, adapter_of, fused_experts

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own


def in_shards(source: Path, folder: Path) -> Path:
    """Write a model in several files."""
    model = open_model(source, dtype=torch.float32, device=CPU)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    make_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def scene(opened: Store, model_of: Callable[[Family], Path], tmp_path: Path) -> Scene:
    """Make a base in shards and an adapter for it."""
    base = in_shards(model_of("llama"), tmp_path / "base")
    return Scene(opened, base, adapter_of(base, tmp_path / "tuned"), tmp_path / "work")


def test_merge_without_room_commits_the_same_bytes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From files or from ranges, what comes out is one and the same, and says how it was made."""
    monkeypatch.setattr(ranges, "PIECE_BYTES", 10_000)
    with_files = scene.merge(scene.store(), None)
    without = scene.merge(scene.store(), scene.tight_bytes)
    assert digests(without) == digests(with_files)
    assert without.effective["weights"] == "in the store, without files"
    assert "weights" not in with_files.effective
    assert without.effective["logits"] == "layer by layer"


def test_damaged_base_is_refused_before_anything_is_made(scene: Scene) -> None:
    """The whole file is compared with its record, although only ranges of it are used."""
    store = scene.store()
    given = next(each for each in scene.plan.stage("merge").inputs if each.role == "model")
    committed = read_manifest(store, given.kind, given.key)
    assert committed is not None
    file = next(f for f in committed.manifest.files if f.path.endswith(".safetensors"))
    prefix = attempt_prefix(given.kind, given.key, committed.manifest.attempt)
    stored = store.get(f"{prefix}/{file.path}")
    assert stored is not None
    store.put(f"{prefix}/{file.path}", stored.body[:-1] + bytes([stored.body[-1] ^ 1]))
    with pytest.raises(DigestMismatch):
        scene.merge(store, scene.tight_bytes)
    stage = scene.plan.stage("merge")
    assert read_manifest(store, stage.kind, stage.key) is None


def test_merge_in_memory_needs_the_room(opened: Store, tmp_path: Path) -> None:
    """What must be opened as a whole is told why, instead of being read from a hole."""
    base, tuned = fused_experts(tmp_path)
    scene = Scene(opened, base, tuned, tmp_path / "work")
    with pytest.raises(DoesNotFit, match=r"no room for the weights, .*experts"):
        scene.merge(scene.store(), scene.tight_bytes)


def test_volume_without_room_for_the_adapter_is_too_small(scene: Scene) -> None:
    """Only weights of the base may stay where they are."""
    with pytest.raises(DoesNotFit, match="of disk are needed"):
        scene.merge(scene.store(), SPARE_BYTES)
