"""Credentials and prompts are nowhere but where they belong."""

import base64
import gzip
import os
from collections.abc import Iterator

from modelmill.spec.records import Row
from modelmill.store.address import open_store

from .team import Team, instead, small

PROMPT = "canary-7c0ffee5"
"""A word of a row that must not leave the data."""
ANSWER = "canary-5eaf00d5"


def places(team: Team, run: str) -> Iterator[tuple[str, str]]:
    """Read everything a curious colleague can: by name, its text."""
    for kind in ("pods", "jobs", "events", "configmaps", "workloads"):
        yield kind, team.kubectl("get", kind, "-o", "json")
    for config in team.objects("configmaps", "owner=helm"):
        yield "release", gzip.decompress(base64.b64decode(config["data"]["release"])).decode()
    for pod in team.objects("pods"):
        name = pod["metadata"]["name"]
        yield f"log {name}", team.kubectl("logs", name)
    ended = team.modelmill("logs", run)
    yield "logs", ended.stdout + ended.stderr
    assert team.modelmill("report", run).returncode == 0
    for path in (team.folder / "reports" / run).iterdir():
        yield path.name, path.read_text(encoding="utf-8", errors="replace")
    store = open_store(team.store)
    for item in store.list(f"runs/{run}/"):
        stored = store.get(item.key)
        assert stored is not None
        yield item.key, stored.body.decode("utf-8", errors="replace")


def test_canaries_are_found_nowhere(team: Team) -> None:
    """No pod, event, log, Helm release or report knows a key, a prompt or an answer."""
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    rows = [
        Row(row=n, prompt=f"{PROMPT} {n}: ", completion=f"{ANSWER} {n}", fields={})
        for n in range(8)
    ]
    team.write_rows("test", rows)
    team.write_rows("train", rows)
    team.write_run(
        data={**team.run()["data"], "train": "train.jsonl"},
        finetune={"num_train_epochs": 1, "learning_rate": 1e-2, "batch_size": 4},
        quantize=[],
        report={"samples": 0},
    )
    ended = team.submit("--name", "quiet", "--wait")
    assert ended.returncode == 0, ended.stderr
    canaries = (secret, PROMPT, ANSWER)
    texts = dict(places(team, "quiet"))
    assert {"pods", "events", "release", "report.html", "report.json", "logs"} <= texts.keys()
    found = [(name, word) for name, text in texts.items() for word in canaries if word in text]
    assert found == []


def test_eyes_see_what_is_there(team: Team) -> None:
    """Negative control: a stage that prints its credentials is caught."""
    blab = instead("cat $AWS_SHARED_CREDENTIALS_FILE; exec $stage")
    team.write_profile(stages={"fetch-test": small(blab)})
    team.write_run(quantize=[])
    ended = team.submit("--name", "loud", "--wait")
    assert ended.returncode == 0, ended.stderr
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    found = {name for name, text in places(team, "loud") if secret in text}
    assert {"logs"} < found
