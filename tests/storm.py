"""A fine-tune on machines that are taken away: real processes, a real store, real signals.

The same recipe is trained once in calm and once in a storm of kills, under two prefixes of one
store; what both have committed can be compared byte for byte.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from modelmill.conduct.conductor import Conducted
from modelmill.conduct.local import interpreter
from modelmill.conduct.prepare import Asked, prepare
from modelmill.spec.loading import load_run
from modelmill.spec.names import (
    ENV_ATTEMPT,
    ENV_CHECKPOINT_SECONDS,
    ENV_GRACE_SECONDS,
    ENV_PLAN_SHA256,
    ENV_PROGRESS_FILE,
    ENV_RUN,
    ENV_STAGE,
    ENV_STORE,
    ENV_WORK,
    ENVIRONMENT_OF,
    kind_of,
)
from modelmill.spec.plan import Stage
from modelmill.spec.profile import Profile
from modelmill.spec.records import Progress
from modelmill.store.address import open_store
from modelmill.store.artifact import attempt_id, attempt_prefix, read_manifest
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store

from .tiny_stages import make_model, make_rows

RUN = """\
model: {{source: model}}
data:
  train: train.jsonl
  eval: 0.1
  test: test.jsonl
  template: {{prompt: "{{prompt}}", completion: "{{completion}}"}}
  max_length: 64
finetune: {{r: 4, num_train_epochs: {epochs}, batch_size: 8, micro_batch_size: 4,
            lora_dropout: 0.1, learning_rate: 1e-3, precision: float32}}
"""
HOME = Path(__file__).parents[1] / ".modelmill"
ROWS = 64
LOOK_SECONDS = 0.05


@dataclass
class Attempt:
    """One process at the fine-tune."""

    handle: "subprocess.Popen[bytes]"
    folder: Path

    def steps(self) -> int:
        """Read how many steps are done, those of earlier attempts among them."""
        try:
            text = (self.folder / "progress").read_text(encoding="utf-8")
        except OSError:
            return self.begun_at()
        progress = Progress.model_validate_json(text)
        return progress.done if progress.part == "work" else self.begun_at()

    def log(self) -> str:
        """Read what it has printed."""
        return (self.folder / "log").read_text(encoding="utf-8")

    def begun_at(self) -> int:
        """Find the step it went on after."""
        found = re.search(r"going on from a checkpoint after step (\d+)", self.log())
        return int(found[1]) if found else 0


@dataclass
class Place:
    """Where the recipe is trained: a prefix of the store."""

    given: Conducted
    home: Path
    checkpoint_seconds: int
    grace_seconds: int = 60
    attempts: list[Attempt] = field(default_factory=list)
    most_steps: list[int] = field(default_factory=list)
    """By attempt."""

    @property
    def store(self) -> Store:
        """The store."""
        return self.given.store

    @property
    def stage(self) -> Stage:
        """The fine-tune."""
        return self.given.plan.stage("finetune")

    def start(self, stage: str = "finetune", **more: str) -> Attempt:
        """Start a process, with more variables."""
        attempt = attempt_id()
        folder = self.home / self.given.run / attempt
        folder.mkdir(parents=True)
        told = {
            ENV_STORE: self.store.url,
            ENV_RUN: self.given.run,
            ENV_STAGE: stage,
            ENV_PLAN_SHA256: self.given.plan_sha256,
            ENV_ATTEMPT: attempt,
            ENV_WORK: str(folder),
            ENV_PROGRESS_FILE: str(folder / "progress"),
            ENV_CHECKPOINT_SECONDS: str(self.checkpoint_seconds),
            ENV_GRACE_SECONDS: str(self.grace_seconds),
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
            **more,
        }
        with (folder / "log").open("wb") as log:
            handle = subprocess.Popen(
                [str(interpreter(HOME, ENVIRONMENT_OF[kind_of(stage)])), "-m", "modelmill.stages"],
                env={**os.environ, **told},
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
        return Attempt(handle, folder)

    def train(self, is_time: Callable[[Attempt], bool], number: signal.Signals) -> int:
        """Run an attempt that gets a signal when it is time; return its exit code."""
        attempt = self.start()
        self.attempts.append(attempt)
        while attempt.handle.poll() is None:
            if is_time(attempt):
                attempt.handle.send_signal(number)
                break
            time.sleep(LOOK_SECONDS)
        code = attempt.handle.wait()
        # Whoever has finished tells of its upload last, and no more of its steps.
        most = attempt.steps() if code else int(str(self.figures()["steps"]))
        self.most_steps.append(most)
        return code

    def stalls(self) -> list[float]:
        """List for how many seconds training stood still for each checkpoint."""
        logs = "".join(attempt.log() for attempt in self.attempts)
        return [float(each) for each in re.findall(r"stood still for ([0-9.]+) s", logs)]

    def adapter(self) -> dict[str, bytes]:
        """Read what was committed, but what names the attempt."""
        committed = read_manifest(self.store, "finetune", self.stage.key)
        assert committed is not None
        manifest = committed.manifest
        prefix = attempt_prefix("finetune", manifest.key, manifest.attempt)
        found = {}
        for record in manifest.files:
            if record.path != "measurements.json":
                stored = self.store.get(f"{prefix}/{record.path}")
                assert stored is not None
                found[record.path] = stored.body
        return found

    def figures(self) -> dict[str, object]:
        """Read what the fine-tune measured of itself."""
        return dict(json.loads(self._measurements())["figures"])

    def work_seconds(self) -> float:
        """Read how long the committed attempt has trained."""
        parts = json.loads(self._measurements())["parts"]
        return float(next(part["seconds"] for part in parts if part["name"] == "work"))

    def _measurements(self) -> bytes:
        committed = read_manifest(self.store, "finetune", self.stage.key)
        assert committed is not None
        prefix = attempt_prefix("finetune", self.stage.key, committed.manifest.attempt)
        stored = self.store.get(f"{prefix}/measurements.json")
        assert stored is not None
        return stored.body

    def checkpoints(self) -> list[str]:
        """List what lies beside the artifact."""
        return [item.key for item in self.store.list(f"checkpoints/{self.stage.key}/")]

    @property
    def steps_all(self) -> int:
        """Steps that were computed, some of them more than once."""
        return sum(
            most - attempt.begun_at()
            for attempt, most in zip(self.attempts, self.most_steps, strict=True)
        )


def lay_out(folder: Path, epochs: int, tests: int = 8, more: str = "") -> None:
    """Write a tiny model, rows and a run, with more lines at its end."""
    make_model("llama", folder / "model")
    for name, count, seed in (("train", ROWS, 1), ("test", tests, 2)):
        rows = (
            json.dumps({"prompt": row.prompt, "completion": row.completion})
            for row in make_rows(count, seed)
        )
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "run.yaml").write_text(RUN.format(epochs=epochs) + more, encoding="utf-8")


def fetched(folder: Path, name: str, checkpoint_seconds: int) -> Place:
    """Prepare a run under a prefix of its own and fetch what the fine-tune reads.

    The embedded store's variables have to be set.
    """
    store = open_store(f"{EmbeddedStore.url}/{name}")
    given = prepare(store, load_run(folder / "run.yaml"), Profile(), Asked(name, folder))
    place = Place(given, folder / "attempts", checkpoint_seconds)
    for stage in ("fetch-model", "fetch-data"):
        attempt = place.start(stage)
        assert attempt.handle.wait() == 0, attempt.log()
    return place


def torn_uploads(embedded: EmbeddedStore) -> Iterable[str]:
    """List uploads in parts that nobody finished or gave up."""
    import boto3

    bucket = EmbeddedStore.url.removeprefix("s3://")
    client = boto3.client("s3", endpoint_url=embedded.environment["AWS_ENDPOINT_URL"])
    listed = client.list_multipart_uploads(Bucket=bucket)
    return [upload["Key"] for upload in listed.get("Uploads", [])]
