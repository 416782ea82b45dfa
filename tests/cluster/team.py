"""What a team does in its namespace: submit, look, break; and what it then finds."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmill.spec.plan import Plan
from modelmill.spec.records import Manifest, Row, RunRecord
from modelmill.spec.writing import yaml_text
from modelmill.store.address import open_store
from modelmill.store.artifact import read_manifest
from modelmill.store.runs import get_plan, read_run

ROOT = Path(__file__).parents[2]
KINDS = ("fetch-model", "fetch-data", "fetch-test", "finetune", "merge", "quantize", "infer")
KINDS_AND_REPORT = (*KINDS, "report")

Json = dict[str, Any]

_PATIENCE = "--timeout=900s"
LONGEST_SECONDS = 900
"""No command of a test takes longer; one that does hangs."""


def small(*patch: Json, **changes: Any) -> Json:
    """Ask for a pod that fits a small node several times, and may use all of its cores."""
    shared = {
        "op": "replace",
        "path": "/spec/template/spec/containers/0/resources/requests/cpu",
        "value": "100m",
    }
    sizes = {"cpu": 2, "memory": "1536Mi", "work": "256Mi", "tmp": "256Mi"}
    return {**sizes, "patch": [shared, *patch], **changes}


def instead(script: str) -> Json:
    """Let a shell script run where the stage would; it may `exec $stage` after all.

    `$HOSTNAME` is the pod's name, in which `-a1-` is the first attempt.
    """
    # Kubernetes makes one dollar of two.
    text = f'stage="python -m modelmill.stages"; {script}'.replace("$$", "$$$$")
    return {
        "op": "replace",
        "path": "/spec/template/spec/containers/0/args",
        "value": ["sh", "-c", text],
    }


def run_command(command: Sequence[str], stdin: str | None = None) -> str:
    """Run a command that must succeed, and return what it prints."""
    ended = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
    return ended.stdout


@dataclass(frozen=True)
class Team:
    """One namespace, its part of the store, and a folder with a run file."""

    namespace: str
    folder: Path

    @property
    def store(self) -> str:
        """The namespace's own prefix."""
        return f"{os.environ['MODELMILL_STORE']}/{self.namespace}"

    @property
    def environment(self) -> dict[str, str]:
        """What a person of the team has in the shell."""
        return {
            **os.environ,
            "HELM_DRIVER": "configmap",
            "MODELMILL_STORE": self.store,
            "MODELMILL_NAMESPACE": self.namespace,
        }

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return run_command(["kubectl", "--namespace", self.namespace, *words], stdin)

    def code_of(self, *words: str) -> int:
        """Run kubectl in the namespace, and return what it exits with."""
        command = ["kubectl", "--namespace", self.namespace, *words]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def objects(self, kind: str, selector: str = "") -> list[Json]:
        """List objects of the namespace."""
        labels = ("--selector", selector) if selector else ()
        found: list[Json] = json.loads(self.kubectl("get", kind, *labels, "-o", "json"))["items"]
        return found

    def pods_of(self, run: str, stage: str = "") -> list[Json]:
        """List the pods of a run's stages, or of its conductor's."""
        stages = {"": "modelmill/stage", "conductor": "modelmill/role=conductor"}
        selector = stages.get(stage, f"modelmill/stage={stage}")
        return self.objects("pods", f"modelmill/run={run},{selector}")

    def modelmill(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours, as on a laptop."""
        return subprocess.run(
            [sys.executable, "-m", "modelmill", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_SECONDS,
        )

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Submit the folder's run."""
        return self.modelmill("submit", "run.yaml", "--profile", "profile.yaml", *words)

    def submitted(self, run: str, *words: str) -> None:
        """Submit and do not wait."""
        ended = self.submit("--name", run, *words)
        assert ended.returncode == 0, ended.stderr

    def helm(self, *words: str) -> str:
        """Run helm in the namespace, with values from `values.json` if words end with it."""
        ended = subprocess.run(
            ["helm", "--namespace", self.namespace, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def wait(self, run: str) -> int:
        """Wait for the end of a run, and return what the command exits with."""
        return self.modelmill("wait", run).returncode

    def ended(self, run: str) -> str:
        """Wait until the live conductor's Job is complete, and return Helm's number of it."""
        labels = f"modelmill/run={run},modelmill/role=conductor"
        self.kubectl("wait", "jobs", "--selector", labels, "--for=condition=Complete", _PATIENCE)
        [job] = self.objects("jobs", labels)
        revision: str = job["metadata"]["labels"]["modelmill/revision"]
        return revision.partition("-")[0]

    def status(self, run: str) -> Json:
        """Read where a run is."""
        ended = self.modelmill("status", run, "-o", "json")
        assert ended.returncode == 0, ended.stderr
        found: Json = json.loads(ended.stdout)[0]
        return found

    def stage(self, run: str, name: str) -> Json:
        """Read where a stage of a run is."""
        return next(row for row in self.status(run)["stages"] if row["stage"] == name)

    def states(self, run: str) -> dict[str, str]:
        """Read where the stages of a run are."""
        return {row["stage"]: row["state"] for row in self.status(run)["stages"]}

    def record(self, run: str) -> RunRecord:
        """Read the store's record of a run, faster than a command does."""
        record = read_run(open_store(self.store), run)
        assert record is not None
        return record

    def committed(self, run: str) -> set[str]:
        """List the stages of a run's live plan that are committed."""
        store, record = open_store(self.store), self.record(run)
        plan = Plan.model_validate_json(get_plan(store, run, record.plan_sha256))
        return {s.name for s in plan.stages if read_manifest(store, s.kind, s.key) is not None}

    def manifest(self, run: str, stage: str) -> Manifest:
        """Read what a committed stage of a run's live plan says of itself."""
        store, record = open_store(self.store), self.record(run)
        planned = Plan.model_validate_json(get_plan(store, run, record.plan_sha256)).stage(stage)
        committed = read_manifest(store, planned.kind, planned.key)
        assert committed is not None
        return committed.manifest

    def anchor_uid(self, run: str) -> str:
        """Read the UID of what owns a run's Jobs."""
        found: str = json.loads(self.kubectl("get", "configmap", f"{run}-anchor", "-o", "json"))[
            "metadata"
        ]["uid"]
        return found

    def starts_of(self, run: str) -> dict[str, int]:
        """Count the Jobs of each stage that are in the namespace."""
        counts: dict[str, int] = {}
        for job in self.objects("jobs", f"modelmill/run={run},modelmill/stage"):
            stage = job["metadata"]["labels"]["modelmill/stage"]
            counts[stage] = counts.get(stage, 0) + 1
        return counts

    def is_running(self, run: str, stage: str) -> bool:
        """Tell whether the container of a stage runs."""
        return any(
            "running" in status["state"]
            for pod in self.pods_of(run, stage)
            if "deletionTimestamp" not in pod["metadata"]
            for status in pod["status"].get("containerStatuses", [])
        )

    def write_rows(self, name: str, rows: Sequence[Row]) -> None:
        """Write rows as a user has them."""
        lines = [json.dumps({"prompt": r.prompt, "completion": r.completion}) for r in rows]
        (self.folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def profile(self, stages: Mapping[str, Json] | None = None, **changes: Any) -> Json:
        """Describe this cluster."""
        return {
            "accelerator": "cpu",
            "dtype": "float32",
            "node_lost_after_seconds": 10,
            "images": {
                "registry": os.environ.get("MODELMILL_TEST_REGISTRY", "localhost:5001"),
                "tag": os.environ["MODELMILL_TEST_TAG"],
                # An image of that name may have been rebuilt since the node pulled it.
                "pull_policy": "Always",
            },
            "store": {
                "url": self.store,
                "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
                "region": os.environ["AWS_REGION"],
                "credentials_secret": "modelmill-store",
            },
            "stages": {kind: small() for kind in KINDS_AND_REPORT} | dict(stages or {}),
            **changes,
        }

    def write_profile(self, stages: Mapping[str, Json] | None = None, **changes: Any) -> None:
        """Write the profile of this cluster; what is given for a kind replaces its part."""
        text = yaml_text([self.profile(stages, **changes)])
        (self.folder / "profile.yaml").write_text(text, encoding="utf-8")

    def run(self, sources: str = "", **changes: Any) -> Json:
        """Describe a short run: fetch, nf4, infer, report."""
        return {
            "model": {"source": f"{sources}model"},
            "data": {
                "test": f"{sources}test.jsonl",
                "template": {"prompt": "{prompt}", "completion": "{completion}"},
                "max_length": 128,
            },
            "quantize": [{"method": "bitsandbytes"}],
            "infer": {"max_new_tokens": 4, "batch_size": 4, "metrics": {"nll": {}}},
            **changes,
        }

    def write_run(self, **changes: Any) -> None:
        """Write a short run; without `quantize` it is shorter still."""
        text = yaml_text([self.run(**changes)])
        (self.folder / "run.yaml").write_text(text, encoding="utf-8")

    def write_values(self, run: Json, profile: Json) -> None:
        """Write values for helm."""
        text = json.dumps({"run": run, "profile": profile})
        (self.folder / "values.json").write_text(text, encoding="utf-8")

    @property
    def chart(self) -> tuple[str, ...]:
        """The chart and the values, as helm takes them."""
        return (str(ROOT / "helm" / "modelmill"), "--values", "values.json")


def wait_until(is_true: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for something the cluster does."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.5)
