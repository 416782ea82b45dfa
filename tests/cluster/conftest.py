"""A namespace of a real cluster, prepared as k8s/ says, and what a laptop does with it.

Takes whatever cluster KUBECONFIG names, with `kubectl` and `helm` on PATH.  The store is
told by the AWS SDK's variables and MODELMILL_STORE, the images by MODELMILL_TEST_REGISTRY
and MODELMILL_TEST_TAG; `make test-cluster` sets all of them for the cluster of `make cluster`.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelmill.spec.writing import yaml_text

from ..tiny_stages import make_model, make_rows

ROOT = Path(__file__).parents[2]
SMALL = {"cpu": "500m", "memory": "2Gi", "work": "1Gi", "tmp": "1Gi"}
KINDS = ("fetch-model", "fetch-data", "fetch-test", "finetune", "merge", "quantize", "infer")


@dataclass(frozen=True)
class Team:
    """One namespace, its part of the store, and a folder with a run file."""

    namespace: str
    folder: Path

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return _run(["kubectl", "--namespace", self.namespace, *words], stdin)

    def objects(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """List objects of the namespace."""
        labels = ("--selector", selector) if selector else ()
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, *labels, "-o", "json"))[
            "items"
        ]
        return found

    def modelmill(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours, as on a laptop."""
        return subprocess.run(
            [sys.executable, "-m", "modelmill", *words],
            cwd=self.folder,
            env={**os.environ, "HELM_DRIVER": "configmap", "MODELMILL_STORE": self.store},
            capture_output=True,
            text=True,
            check=False,
        )

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Submit the folder's run."""
        return self.modelmill(
            *("submit", "run.yaml", "--profile", "profile.yaml"),
            *("--namespace", self.namespace, *words),
        )

    def status(self, run: str) -> dict[str, Any]:
        """Read where a run is."""
        ended = self.modelmill("status", run, "-o", "json")
        assert ended.returncode == 0, ended.stderr
        found: dict[str, Any] = json.loads(ended.stdout)[0]
        return found

    def stage(self, run: str, name: str) -> dict[str, Any]:
        """Read where a stage of a run is."""
        return next(row for row in self.status(run)["stages"] if row["stage"] == name)

    @property
    def store(self) -> str:
        """The namespace's own prefix."""
        return f"{os.environ['MODELMILL_STORE']}/{self.namespace}"

    def write_profile(self, **changes: Any) -> None:
        """Write the profile of this cluster."""
        profile = {
            "accelerator": "cpu",
            "dtype": "float32",
            "node_lost_after_seconds": 10,
            "images": {
                "registry": os.environ.get("MODELMILL_TEST_REGISTRY", "localhost:5001"),
                "tag": os.environ["MODELMILL_TEST_TAG"],
            },
            "store": {
                "url": self.store,
                "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
                "region": os.environ["AWS_REGION"],
                "credentials_secret": "modelmill-store",
            },
            "stages": dict.fromkeys(KINDS, SMALL),
            **changes,
        }
        (self.folder / "profile.yaml").write_text(yaml_text([profile]), encoding="utf-8")

    def write_run(self, **changes: Any) -> None:
        """Write a short run: fetch, nf4, infer, report."""
        run = {
            "model": {"source": "model"},
            "data": {
                "test": "test.jsonl",
                "template": {"prompt": "{prompt}", "completion": "{completion}"},
                "max_length": 128,
            },
            "quantize": [{"method": "bitsandbytes"}],
            "infer": {"max_new_tokens": 4, "batch_size": 4, "metrics": {"nll": {}}},
            **changes,
        }
        (self.folder / "run.yaml").write_text(yaml_text([run]), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model for every run."""
    return make_model("llama", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def team(tmp_path: Path, tiny_model: Path) -> Iterator[Team]:
    """Prepare a namespace as an admin does, and remove it."""
    team = Team(f"test-{uuid.uuid4().hex[:8]}", tmp_path)
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    base = os.path.relpath(ROOT / "k8s" / "base", overlay)
    kustomization = {"namespace": team.namespace, "resources": [base]}
    (overlay / "kustomization.yaml").write_text(json.dumps(kustomization), encoding="utf-8")
    _run(["kubectl", "apply", "--kustomize", str(overlay)], None)
    credentials = "[default]\n" + "".join(
        f"{name.lower()} = {os.environ[name]}\n"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    )
    (tmp_path / "credentials").write_text(credentials, encoding="utf-8")
    team.kubectl(
        *("create", "secret", "generic", "modelmill-store"), f"--from-file={tmp_path}/credentials"
    )
    (tmp_path / "model").symlink_to(tiny_model)
    for name, rows in (("train", make_rows(24, 1)), ("test", make_rows(8, 2))):
        lines = [json.dumps({"prompt": r.prompt, "completion": r.completion}) for r in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    team.write_profile()
    team.write_run()
    yield team
    _run(["kubectl", "delete", "namespace", team.namespace, "--wait=false"], None)


def wait_until(is_true: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something the cluster does."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.5)


def _run(command: list[str], stdin: str | None) -> str:
    ended = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
    return ended.stdout
