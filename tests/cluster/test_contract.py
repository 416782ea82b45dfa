"""Jobs of a real cluster keep the contract of backends."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from modelmill.conduct.cluster import ClusterBackend
from modelmill.conduct.jobs import Release
from modelmill.conduct.kubernetes import from_kubeconfig
from modelmill.conduct.prepare import Asked, prepare
from modelmill.spec.loading import load_run
from modelmill.spec.names import kind_of
from modelmill.spec.profile import Profile, cluster_facts
from modelmill.store.address import open_store

from ..conduct.backend_contract import *  # noqa: F403 - the tests of every backend
from ..conduct.backend_contract import Bench
from ..conduct.conftest import wait_until
from ..workshop import write_model, write_rows
from .team import Json, Team, instead, small

STAND_IN = (Path(__file__).parents[1] / "stand_in.py").read_text(encoding="utf-8")
CONTAINER = "/spec/template/spec/containers/0"


@dataclass
class ClusterBehaviour:
    """Changes what the Jobs of a kind will be; stages are played in the light image."""

    team: Team
    backend: ClusterBackend

    def __call__(self, stage: str, asked: dict[str, Any]) -> None:
        """Let a stand-in do what is asked of it."""
        told = {"name": "MODELMILL_STAND_IN", "value": json.dumps({stage: asked})}
        self._become(stage, stand_in(), {"op": "add", "path": f"{CONTAINER}/env/-", "value": told})

    def script(self, stage: str, script: str) -> None:
        """Let a shell script run instead of the stage."""
        self._become(stage, instead(script))

    def _become(self, stage: str, *patch: Json) -> None:
        profile = profile_of(self.team, {kind_of(stage): played(self.team, *patch)})
        self.backend.release = replace(self.backend.release, profile=profile)


def stand_in() -> Json:
    """Start the stand-in where the stage would be."""
    return {"op": "replace", "path": f"{CONTAINER}/args", "value": ["python", "-c", STAND_IN]}


def played(team: Team, *patch: Json) -> Json:
    """Ask for a pod of the light image."""
    images = team.profile()["images"]
    image = f"{images['registry']}/modelmill-light:{images['tag']}"
    light = {"op": "replace", "path": f"{CONTAINER}/image", "value": image}
    return small(light, *patch, termination_grace_period_seconds=10)


def profile_of(team: Team, changed: dict[str, Json]) -> Profile:
    """Describe the cluster, with stand-ins for whatever needs a model library."""
    kinds = ("finetune", "merge", "quantize", "infer")
    stages = {kind: played(team, stand_in()) for kind in kinds}
    return Profile.model_validate(team.profile(stages | changed))


@pytest.fixture
def bench(team: Team) -> Iterator[Bench]:
    """Make a backend as a conductor has it, on this machine, and fetch what stages read."""
    (team.folder / "model").unlink()
    write_model(team.folder / "model")
    for name, count in (("train", 20), ("test", 12)):
        write_rows(team.folder / f"{name}.jsonl", count)
    template = {"prompt": "{question}", "completion": "{answer}"}
    team.write_run(
        data={"train": "train.jsonl", "test": "test.jsonl", "template": template},
        infer={"max_new_tokens": random.SystemRandom().randrange(1, 65536)},
        finetune={},
        quantize=[],
    )
    team.kubectl("create", "configmap", "bench-anchor")
    namespace = from_kubeconfig(None, team.namespace)
    profile = profile_of(team, {})
    anchor = namespace.read_anchor("bench-anchor").metadata.uid
    release = Release("bench", team.namespace, "1-0", "bench-anchor", anchor, profile)
    spec = load_run(team.folder / "run.yaml", [])
    asked = Asked("bench", team.folder, facts=cluster_facts(profile))
    given = prepare(open_store(team.store), spec, profile, asked)
    backend = ClusterBackend(namespace, release, datetime.now(UTC) - timedelta(minutes=1))
    made = Bench(given, backend, ClusterBehaviour(team, backend))
    for stage in ("fetch-model", "fetch-data", "fetch-test"):
        backend.start(made.order(stage))
    wait_until(lambda: not any(attempt.is_live for attempt in backend.attempts()))
    assert [attempt.exit_code for attempt in backend.attempts()] == [0, 0, 0]
    yield made
    namespace.close()
