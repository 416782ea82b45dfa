"""A merge on a volume that cannot hold the weights: they stay in the store, from which it reads."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from modelmill.models.open import open_model
from modelmill.spec.errors import DigestMismatch, DoesNotFit
from modelmill.spec.layout import make_plan, sources_of
from modelmill.spec.plan import Plan
from modelmill.spec.profile import Facts
from modelmill.spec.records import Device, Manifest
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import Pin
from modelmill.stages.attempt import SPARE_BYTES, Assignment, carry_out
from modelmill.stages.pulse import LivePulse, Outlets, Told
from modelmill.stages.stop import Stop
from modelmill.stages.workplace import Workplace
from modelmill.store import ranges
from modelmill.store.address import open_store
from modelmill.store.artifact import (
    attempt_id,
    attempt_prefix,
    commit,
    read_manifest,
    stage_files,
)
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store

from ..tiny_stages import Family, make_tokenizer
from .test_merge import CPU, adapter_of, fused_experts

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own

RUN = {
    "model": {"source": "s3://bucket/model"},
    "data": {
        "test": "s3://bucket/test.jsonl",
        "template": {"prompt": "{question}", "completion": "{answer}"},
    },
    "finetune": {"adapter": "s3://bucket/adapter"},
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Run one real store."""
    with (
        EmbeddedStore(tmp_path_factory.mktemp("store")) as embedded,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in embedded.environment.items():
            patch.setenv(name, value)
        yield open_store(embedded.url, retry_budget_seconds=20)


@dataclass(frozen=True)
class Scene:
    """A base and an adapter, to be merged in a store where nothing is committed yet."""

    opened: Store
    base: Path
    tuned: Path
    work: Path

    @property
    def plan(self) -> Plan:
        """Plan a run that merges."""
        run = RunSpec.model_validate(RUN)
        pins = {source: Pin(address=source, digest="0") for source in sources_of(run)}
        return make_plan(run, Facts(accelerator="cpu", dtype="float32"), pins)

    @property
    def tight_bytes(self) -> int:
        """Limit a volume halfway between what the rest takes and what everything would."""
        folders = (self.base, self.tuned)
        sizes = {p: p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file()}
        weights = sum(size for p, size in sizes.items() if p.match("base/*.safetensors"))
        return 2 * sum(sizes.values()) - weights + SPARE_BYTES

    def store(self) -> Store:
        """Commit the inputs at a new place."""
        store = replace(self.opened, prefix=uuid.uuid4().hex)
        for given in self.plan.stage("merge").inputs:
            attempt = attempt_id()
            root = self.base if given.role == "model" else self.tuned
            files = stage_files(store, attempt_prefix(given.kind, given.key, attempt), root)
            commit(
                store,
                Manifest(
                    kind=given.kind,
                    key=given.key,
                    stage=given.stage,
                    run="run",
                    attempt=attempt,
                    created="2026-01-01T00:00:00+00:00",
                    settings={},
                    inputs={},
                    versions={},
                    device=Device(accelerator="cpu", name="test"),
                    files=files,
                ),
            )
        return store

    def merge(self, store: Store, limit_bytes: int | None) -> Manifest:
        """Carry out the stage in a volume of some size."""
        own = self.work / uuid.uuid4().hex
        own.mkdir(parents=True)
        plan = self.plan
        stage = plan.stage("merge")
        attempt = attempt_id()
        told = Told(lambda _: None, lambda *_, **__: None)
        pulse = LivePulse(stage.name, attempt, Outlets(None, told, print), Stop())
        given = Assignment(store, "run", plan, stage, attempt, Workplace(own, None), limit_bytes)
        with pulse:
            published = carry_out(given, pulse)
        assert published is not None
        # What lies there at the end is what lay there at most: nothing is removed before.
        lying = sum(path.stat().st_blocks * 512 for path in own.rglob("*") if path.is_file())
        assert limit_bytes is None or lying < limit_bytes
        return published.committed.manifest


def in_shards(source: Path, folder: Path) -> Path:
    """Write a model in several files."""
    model = open_model(source, dtype=torch.float32, device=CPU)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    make_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def digests(manifest: Manifest) -> Mapping[str, str]:
    """Name what was committed, but for what every attempt measures anew."""
    return {f.path: f.sha256 for f in manifest.files if f.path != "measurements.json"}


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
