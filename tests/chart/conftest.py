"""A real Helm engine, in this process: no cluster, no `helm` on PATH."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import helm_python
import pytest

from modelmill.spec.loading import parse_yaml

CHART = Path(__file__).parents[2] / "helm/modelmill"

RUN: dict[str, Any] = {
    "model": {"source": "s3://data/model"},
    "data": {
        "train": "s3://data/train.jsonl",
        "test": "s3://data/test.jsonl",
        "template": {"prompt": "### {{ .Values }} <b>\n{question}\n", "completion": "{answer}"},
    },
    "finetune": {"learning_rate": 2e-4, "r": 8},
    "quantize": [{"method": "gptq"}, {"method": "bitsandbytes"}],
}
PROFILE: dict[str, Any] = {
    "images": {"registry": "registry.example.com/team"},
    "store": {"url": "s3://models/team"},
}
EVERYTHING: dict[str, Any] = {
    "accelerator": "cuda",
    "queue": "team",
    "images": {
        "registry": "localhost:5000/team",
        "tag": "9",
        "digests": {"light": f"sha256:{'0' * 64}"},
        "pull_policy": "Always",
        "pull_secrets": ["registry"],
    },
    "store": {
        "url": "s3://models/team",
        "endpoint_url": "https://s3.example.com",
        "region": "eu-1",
        "credentials_secret": "keys",
    },
    "webhook": {"secret": "hook"},
    "hub": {"endpoint_url": "https://hub.example.com", "token_secret": "reader"},
    "ca_bundle": {"config_map": "site-ca", "key": "all.pem"},
    "proxy": {"https_proxy": "http://proxy:3128", "no_proxy": "s3.example.com"},
    "pods": {
        "node_selector": {"zone": "a", "pool": "any"},
        "tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 3}],
        "priority_class_name": "low",
        "runtime_class_name": "nvidia",
        "labels": {"team": "a", "modelmill/run": "other"},
        "annotations": {"example.com/note": 'a "b": c'},
        "fs_group": 2000,
    },
    "conductor": {
        "node_selector": {"pool": "cpu"},
        "tolerations": [{"key": "b", "operator": "Exists", "effect": "NoSchedule"}],
        "priority_class_name": "high",
        "cpu": "200m",
        "memory": "512Mi",
        "queue": "conductors",
    },
    "stages": {"merge": {"memory": "64Gi", "work_volume": "ephemeral"}},
}

Object: TypeAlias = dict[str, Any]
Render: TypeAlias = Callable[..., list[Object]]


@pytest.fixture(scope="session")
def chart() -> Iterator[helm_python.Chart]:
    """Load the chart as it stands."""
    with helm_python.Chart.load(CHART) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def render(chart: helm_python.Chart) -> Render:
    """Render the chart as `helm install` would, and parse every object."""

    def rendered(
        values: Mapping[str, Any], *, name: str = "my-run", revision: int = 1
    ) -> list[Object]:
        # Helm's own reader of values, so that numbers come as it makes them.
        read = helm_python.values_from_yaml(json.dumps(values, ensure_ascii=False))
        texts = chart.render(read, name=name, namespace="team", revision=revision)
        parts = [
            part
            for path, text in sorted(texts.items())
            if path.endswith(".yaml")
            for part in text.split("\n---\n")
        ]
        objects: list[Any] = [parse_yaml(part, "rendered")[0] for part in parts]
        return [each for each in objects if each is not None]

    return rendered


def values(profile: Mapping[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """Write values that are right, or a little different."""
    return {"run": RUN, "profile": {**PROFILE, **(profile or {})}, **others}


def one(objects: list[Object], kind: str, name: str = "") -> Object:
    """Find the only object of a kind, or that whose name has these words in it."""
    [found] = [
        each for each in objects if each["kind"] == kind and name in each["metadata"]["name"]
    ]
    return found
