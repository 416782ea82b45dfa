"""A merge from store to store that ends in between: what it has sent is not made again."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modelmill.models.layout import lay_out
from modelmill.models.merging import Merging
from modelmill.spec.names import checkpoint_prefix
from modelmill.spec.records import Manifest
from modelmill.stages import in_store, pulse
from modelmill.stages.ledger import SENT
from modelmill.stages.merge import streamed
from modelmill.stages.stop import StopRequested
from modelmill.store.address import open_store
from modelmill.store.checkpoint import restore_checkpoints
from modelmill.store.crew import PART_BYTES, OnBytes
from modelmill.store.s3 import Store
from modelmill.store.sent import Sent

from ..tiny_stages import make_tokenizer
from .merge_scene import Scene, digests
from .test_merge import adapter_of

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own

SHARD_BYTES = 3 * PART_BYTES + 1
"""So that a file is complete, and the next one begun, before all is merged."""
ENOUGH_PARTS = 5

CHECKOUT = Path(__file__).parents[2]
ELSEWHERE = """
import sys
from tests.models.test_merge_goes_on import merge_elsewhere
merge_elsewhere(*sys.argv[1:])
"""

End = Literal["killed", "stopped", "stopped in the proof"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a base whose merge takes eight parts in three files, and an adapter."""
    base, tuned = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("tuned")
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=20,
        num_attention_heads=8,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    return base, adapter_of(base, tuned)


@pytest.fixture(scope="module", autouse=True)
def _small_files_kept_at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        yield


def prepare(patch: pytest.MonkeyPatch) -> None:
    """Let a small model be as a large one."""
    patch.setattr(pulse, "SAVE_SECONDS", 0)
    patch.setattr(streamed, "lay_out", partial(lay_out, shard_bytes=SHARD_BYTES))


@pytest.fixture(scope="module")
def scene(
    opened: Store, large: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Scene:
    """Have a merge to make."""
    return Scene(opened, *large, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def with_files(scene: Scene) -> Manifest:
    """Make it another way, at once."""
    return scene.merge(scene.store(), None)


@dataclass
class Seen:
    """What this process has asked of the store, and made."""

    calls: Counter[str] = field(default_factory=Counter)
    verified: int = 0
    """Files of the base."""

    def forget(self) -> None:
        """Begin anew."""
        self.calls.clear()
        self.verified = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Look on."""
    found = Seen()

    def count(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def call(*given: object) -> object:
            found.calls[name] += 1
            return method(*given)

        monkeypatch.setattr(owner, name, call)

    count(Store, "put_part")
    count(Store, "copy_part")
    count(Merging, "merged")
    digests_of_pieces = in_store.digests_of_pieces

    def verify(store: Store, files: list[object], on_bytes: OnBytes) -> object:
        found.verified += len(files)
        return digests_of_pieces(store, files, on_bytes)

    monkeypatch.setattr(in_store, "digests_of_pieces", verify)
    return found


def sent(resume: Path) -> list[Sent]:
    """Read what a later attempt will know of."""
    return [Sent.model_validate_json(path.read_bytes()) for path in resume.glob(f"*{SENT}")]


def end(how: End, resume: Path, note: str, share: float) -> None:
    """End an attempt when a file is complete and another is not, or when all are."""
    if how == "stopped in the proof":
        is_there = note == "proof" and share >= 0.5
    else:
        is_there = note == "save" and sum(len(each.parts) for each in sent(resume)) >= ENOUGH_PARTS
    if is_there and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if is_there:
        raise StopRequested


def merge_elsewhere(url: str, base: str, tuned: str, work: str, how: End) -> None:
    """Merge in this process, which does not see the end of it."""
    prepare(pytest.MonkeyPatch())
    store = open_store(url, retry_budget_seconds=20)
    scene = Scene(store, Path(base), Path(tuned), Path(work), partial(end, how))
    scene.merge(store, scene.tight_bytes)


def interrupt(scene: Scene, store: Store, how: End) -> None:
    """Make an attempt that ends too early."""
    if how != "killed":
        with pytest.raises(StopRequested):
            replace(scene, watch=partial(end, how)).merge(store, scene.tight_bytes)
        return
    given = (store.url, scene.base, scene.tuned, scene.work, how)
    process = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *map(str, given)], cwd=CHECKOUT, check=False
    )
    assert process.returncode == -signal.SIGKILL


def saved(scene: Scene, store: Store, folder: Path) -> list[Sent]:
    """Read what the next attempt will find."""
    assert next(restore_checkpoints(store, scene.plan.stage("merge").key, folder))
    return sent(folder)


def parts_of(manifest: Manifest) -> int:
    """Count the parts of the weights."""
    sizes = [f.size_bytes for f in manifest.files if f.path.endswith(".safetensors")]
    return sum(-(-size // PART_BYTES) for size in sizes if size > PART_BYTES)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_nothing_is_done_twice(
    scene: Scene, with_files: Manifest, seen: Seen, tmp_path: Path, how: End
) -> None:
    """What has been sent is copied, what has been verified is known; the bytes are the same."""
    store = scene.store()
    interrupt(scene, store, how)
    assert how == "killed" or list(store.unfinished()) == []
    known = sum(len(each.parts) for each in saved(scene, store, tmp_path))
    assert known >= ENOUGH_PARTS
    seen.forget()
    merged = scene.merge(store, scene.tight_bytes)
    assert digests(merged) == digests(with_files)
    assert seen.verified == 0
    assert seen.calls["copy_part"] == known
    assert seen.calls["copy_part"] + seen.calls["put_part"] == parts_of(merged)
    # What a killed process had only just begun is for the collector.
    assert how == "killed" or list(store.unfinished()) == []
    assert list(store.list(checkpoint_prefix(scene.plan.stage("merge").key))) == []


def test_attempt_that_gets_no_further_leaves_what_it_found(
    scene: Scene, with_files: Manifest, seen: Seen
) -> None:
    """And does not look as if it had got anywhere, so that it is not repeated forever."""
    store, key = scene.store(), scene.plan.stage("merge").key
    interrupt(scene, store, "stopped in the proof")
    before = [item.key for item in store.list(checkpoint_prefix(key))]
    interrupt(scene, store, "stopped in the proof")
    seen.forget()
    assert [item.key for item in store.list(checkpoint_prefix(key))] == before
    merged = scene.merge(store, scene.tight_bytes)
    assert digests(merged) == digests(with_files)
    assert (seen.calls["put_part"], seen.calls["merged"]) == (0, 0)


@pytest.mark.parametrize("change", ["damaged", "removed"])
def test_what_is_not_there_any_more_is_made_again(
    scene: Scene, with_files: Manifest, seen: Seen, tmp_path: Path, change: str
) -> None:
    """Whatever has become of it, the result is the same."""
    store = scene.store()
    interrupt(scene, store, "stopped")
    known = saved(scene, store, tmp_path)
    complete = min(known, key=lambda each: each.path)
    seen.forget()
    expected = sum(len(each.parts) for each in known)
    match change:
        case "damaged":
            stored = store.get(complete.key)
            assert stored is not None
            at = PART_BYTES + 7
            flipped = bytes([stored.body[at] ^ 1])
            store.put(complete.key, stored.body[:at] + flipped + stored.body[at + 1 :])
            expected += 1 - len(complete.parts)
        case _:
            store.delete(each.key for each in known)
            expected = 0
    merged = scene.merge(store, scene.tight_bytes)
    assert digests(merged) == digests(with_files)
    assert seen.calls["copy_part"] == expected
