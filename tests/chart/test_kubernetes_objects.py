"""Every field we write is one that Kubernetes' own models know, in its place and of its type."""

import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from modelmill.spec.loading import parse_yaml

from .conftest import EVERYTHING, Render, values

K8S = Path(__file__).parents[2] / "k8s"

MODELS = {
    "ConfigMap": "V1ConfigMap",
    "Job": "V1Job",
    "Namespace": "V1Namespace",
    "NetworkPolicy": "V1NetworkPolicy",
    "ResourceQuota": "V1ResourceQuota",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "ServiceAccount": "V1ServiceAccount",
}


def as_kubernetes_reads(document: dict[str, Any]) -> Any:
    """Read an object with the official client and write it again; what it does not know is lost."""
    api = client.ApiClient()
    model = MODELS[document["kind"]]
    read = api.deserialize(json.dumps(document), model, "application/json")
    return api.sanitize_for_serialization(read)


def documents(path: Path) -> list[Any]:
    """Parse every document of a file."""
    parts = path.read_text(encoding="utf-8").split("\n---\n")
    read = [parse_yaml(part, path.name)[0] for part in parts]
    return [each for each in read if each is not None]


FILES = [
    path
    for path in sorted([*K8S.glob("base/*.yaml"), *K8S.glob("jobs/*.yaml")])
    if path.name not in {"kustomization.yaml", "profile.yaml"}
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_file_is_read_whole(path: Path) -> None:
    """Manifests of the namespace and example Jobs have no field in the wrong place."""
    for document in documents(path):
        assert as_kubernetes_reads(document) == document


@pytest.mark.parametrize("profile", [{}, EVERYTHING], ids=["least", "everything"])
def test_release_is_read_whole(render: Render, profile: dict[str, Any]) -> None:
    """The chart's objects too, with nothing on and with everything on."""
    switches = {"create": bool(profile)}
    for document in render(values(profile, rbac=switches)):
        assert as_kubernetes_reads(document) == document


def test_misplaced_field_is_noticed() -> None:
    """The comparison can fail."""
    [job] = documents(K8S / "jobs/merge.yaml")
    job["spec"]["restartPolicy"] = "Never"
    assert as_kubernetes_reads(job) != job
