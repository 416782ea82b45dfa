"""A namespace of a real cluster, prepared as k8s/ says, and what a laptop does with it.

Takes whatever cluster KUBECONFIG names, with `kubectl` and `helm` on PATH.  The store is
told by the AWS SDK's variables and MODELMILL_STORE, the images by MODELMILL_TEST_REGISTRY
and MODELMILL_TEST_TAG; `make test-cluster` sets all of them for the cluster of `make cluster`.
"""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from modelmill.store.address import open_store

from ..tiny_stages import make_model, make_rows
from .team import ROOT, Team, run_command


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
    run_command(["kubectl", "apply", "--kustomize", str(overlay)])
    credentials = "[default]\n" + "".join(
        f"{name.lower()} = {os.environ[name]}\n"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    )
    (tmp_path / "credentials").write_text(credentials, encoding="utf-8")
    team.kubectl(
        *("create", "secret", "generic", "modelmill-store"), f"--from-file={tmp_path}/credentials"
    )
    (tmp_path / "model").symlink_to(tiny_model)
    team.write_rows("train", make_rows(24, 1))
    team.write_rows("test", make_rows(8, 2))
    team.write_profile()
    team.write_run()
    yield team
    # Grace periods are for stages that have something to lose.
    team.kubectl("delete", "jobs,pods", "--all", "--force", "--grace-period=0", "--wait=false")
    run_command(["kubectl", "delete", "namespace", team.namespace, "--wait=false"])


@pytest.fixture
def uploaded(team: Team) -> Team:
    """Put model and rows where pods reach them, as `helm install` needs it."""
    store = open_store(team.store)
    for path in sorted(team.folder.glob("model/*")):
        store.put(f"data/model/{path.name}", path.read_bytes())
    for name in ("train.jsonl", "test.jsonl"):
        store.put(f"data/{name}", (team.folder / name).read_bytes())
    return team


@pytest.fixture
def queue(team: Team) -> Iterator[str]:
    """Make the queues of k8s/queues for one GPU and this namespace."""
    objects = list(YAML(typ="safe").load_all(ROOT / "k8s" / "queues" / "queues.yaml"))
    flavor, cluster, local = objects
    local["metadata"]["namespace"] = team.namespace
    for each in (flavor, cluster):
        each["metadata"]["name"] = team.namespace
    local["spec"]["clusterQueue"] = team.namespace
    namespaces = cluster["spec"]["namespaceSelector"]["matchLabels"]
    namespaces["kubernetes.io/metadata.name"] = team.namespace
    [resources] = cluster["spec"]["resourceGroups"]
    resources["flavors"][0]["name"] = team.namespace
    gpus = resources["flavors"][0]["resources"][-1]
    assert gpus["name"] == "nvidia.com/gpu"
    gpus["nominalQuota"] = "1"
    everything = {"apiVersion": "v1", "kind": "List", "items": objects}
    run_command(["kubectl", "apply", "-f", "-"], json.dumps(everything))
    yield local["metadata"]["name"]
    names = [f"clusterqueue/{team.namespace}", f"resourceflavor/{team.namespace}"]
    run_command(["kubectl", "delete", "--wait=false", *names])
