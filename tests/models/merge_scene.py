"""A merge as a stage of a run: with a store, in a volume of some size."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from modelmill.spec.layout import make_plan, sources_of
from modelmill.spec.plan import Plan
from modelmill.spec.profile import Facts
from modelmill.spec.records import Device, Manifest
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import Pin
from modelmill.stages import entrypoint
from modelmill.stages.attempt import SPARE_BYTES, Assignment
from modelmill.stages.pulse import LivePulse, Outlets, Told
from modelmill.stages.stop import Stop
from modelmill.stages.workplace import Workplace
from modelmill.store.artifact import attempt_id, attempt_prefix, commit, stage_files
from modelmill.store.checkpoint import save_checkpoint
from modelmill.store.s3 import Store

RUN = {
    "model": {"source": "s3://bucket/model"},
    "data": {
        "test": "s3://bucket/test.jsonl",
        "template": {"prompt": "{question}", "completion": "{answer}"},
    },
    "finetune": {"adapter": "s3://bucket/adapter"},
}


Watch = Callable[[Path, str, float], None]
"""Told the folder `resume`, what the stage does, and how far it is."""


class Watched(LivePulse):
    """Lets somebody look on, who may end it all."""

    watch: Callable[[str, float], None]

    def save(self) -> None:
        """Say that something is kept, when it is."""
        super().save()
        self.watch("save", 0)

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Say how far it is."""
        super().progress(done, total, unit, note)
        self.watch(note, done / total)


@dataclass(frozen=True)
class Scene:
    """A base and an adapter, to be merged in a store where nothing is committed yet."""

    opened: Store
    base: Path
    tuned: Path
    work: Path
    watch: Watch = lambda *_: None

    @property
    def plan(self) -> Plan:
        """Plan a run that merges."""
        run = RunSpec.model_validate(RUN)
        pins = {source: Pin(address=source, digest="0") for source in sources_of(run)}
        return make_plan(run, Facts(accelerator="cpu", dtype="float32"), pins)

    @property
    def tight_bytes(self) -> int:
        """Limit a volume halfway between what the rest takes and what everything would."""
        paths = [path for folder in (self.base, self.tuned) for path in folder.rglob("*")]
        weights = sum(path.stat().st_size for path in self.base.glob("*.safetensors"))
        return 2 * sum(p.stat().st_size for p in paths if p.is_file()) - weights + SPARE_BYTES

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

        def save(*_: object, **__: object) -> None:
            save_checkpoint(store, stage.key, attempt, own / "resume")

        told = Told(lambda _: None, save)
        pulse = Watched(stage.name, attempt, Outlets(None, told, print), Stop())
        pulse.watch = partial(self.watch, own / "resume")
        given = Assignment(store, "run", plan, stage, attempt, Workplace(own, None), limit_bytes)
        with pulse:
            published = entrypoint._published(given, pulse, save)
        assert published is not None
        # What lies there at the end is what lay there at most: nothing is removed before.
        lying = sum(path.stat().st_blocks * 512 for path in own.rglob("*") if path.is_file())
        assert limit_bytes is None or lying < limit_bytes
        return published.committed.manifest


def digests(manifest: Manifest) -> Mapping[str, str]:
    """Name what was committed, but for what every attempt measures anew."""
    return {f.path: f.sha256 for f in manifest.files if f.path != "measurements.json"}
