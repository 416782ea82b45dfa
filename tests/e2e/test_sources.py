"""A model and rows from a hub and from here go through real fetch stages to the report."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from modelmill.stages.attempt import SPARE_BYTES
from modelmill.store.embedded import EmbeddedStore

from ..hub_server import TOKEN, HubServer
from ..workshop import Answer, Workshop, write_model

RUN = """\
model: {source: "hf:org/name"}
data:
  train:
    - {source: "hf:datasets/org/rows@v1/data/train-*.parquet", weight: 2}
    - {source: train.jsonl, weight: 0.5}
  test: hf:datasets/org/rows/test.csv
  template: {prompt: "{question}", completion: "{answer}"}
finetune: {}
"""


@pytest.fixture
def workshop(tmp_path: Path, hub: HubServer) -> Iterator[Workshop]:
    """Lay out local rows, a gated model and a private data set, and environments that tell."""
    workshop = Workshop(tmp_path / "made", {"HF_TOKEN": TOKEN})
    workshop.folder.mkdir()
    workshop.lay_out()
    (workshop.folder / "run.yaml").write_text(RUN, encoding="utf-8")
    model = write_model(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    hub.repository("model", "org/name", {**files, "pytorch_model.bin": b"x"}).is_gated = True
    rows = hub.repository("dataset", "org/rows", {"test.csv": csv(12)})
    rows.is_private = True
    shards = {f"data/train-{n}.parquet": parquet(n, 10) for n in range(2)}
    rows.commit({**shards, "load.py": b"code"}, "v1")
    with EmbeddedStore(workshop.home / "store"):
        yield workshop


def csv(count: int) -> bytes:
    """Write rows as CSV."""
    lines = [f'"test, {n}",answer {n}' for n in range(count)]
    return "\n".join(["question,answer", *lines]).encode()


def parquet(shard: int, count: int) -> bytes:
    """Write rows as Parquet."""
    rows = [{"question": f"hub {shard} {n}", "answer": f"{n}", "at": None} for n in range(count)]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def names_of_environment(workshop: Workshop) -> dict[str, set[str]]:
    """Read the names of the variables each stage had."""
    return {
        path.suffix.removeprefix("."): set(path.read_text(encoding="utf-8").split())
        for path in workshop.folder.glob("seen.*")
    }


def let_stages_tell(workshop: Workshop) -> None:
    """Let every stage write down which variables it has, with the value of one."""
    for name in ("light", "train", "quantize"):
        python = workshop.home / "environments" / name / "bin" / "python"
        head, line = python.read_text(encoding="utf-8").splitlines()
        seen = f'"{workshop.folder}/seen.$MODELMILL_STAGE"'
        tell = f'(env | cut -d= -f1; echo "OFFLINE=$HF_HUB_OFFLINE") > {seen}'
        python.write_text(f"{head}\n{tell}\n{line}\n", encoding="utf-8")


def places_of(word: str, workshop: Workshop, answer: Answer) -> set[str]:
    """Find everything that has a word in it: output, logs, plans, manifests, the store itself."""
    found = {
        path.name
        for path in workshop.folder.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes()
    }
    talked = {"stdout": answer.stdout, "stderr": answer.stderr}
    return found | {name for name, text in talked.items() if word in text}


def test_sources_from_everywhere_become_a_run(workshop: Workshop, hub: HubServer) -> None:
    """Pinned, fetched, mixed and reported; the token is where it is needed and nowhere else."""
    let_stages_tell(workshop)
    answer = workshop.modelmill("run", "run.yaml", "-o", "json")
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    model = hub.repositories["model", "org/name"].branches["main"]
    rows = hub.repositories["dataset", "org/rows"].branches
    assert {each["asked"]: each["pin"]["address"] for each in report["lineage"]["sources"]} == {
        "hf:org/name": f"hf:org/name@{model}",
        "hf:datasets/org/rows@v1/data/train-*.parquet": (
            f"hf:datasets/org/rows@{rows['v1']}/data/train-*.parquet"
        ),
        "hf:datasets/org/rows/test.csv": f"hf:datasets/org/rows@{rows['main']}/test.csv",
        "train.jsonl": next(
            each["pin"]["address"]
            for each in report["lineage"]["sources"]
            if each["asked"] == "train.jsonl"
        ),
    }
    data = {each["stage"]: each for each in report["data"]}
    assert data["fetch-test"]["rows"] == {"test": 12}
    mixed = {each["asked"].partition("@")[0]: each for each in data["fetch-data"]["mixed"]}
    on_hub, local = mixed["hf:datasets/org/rows"], mixed["train.jsonl"]
    assert on_hub["taken"] == 2 * on_hub["rows"]
    assert local["taken"] == round(local["rows"] / 2)
    page = (workshop.folder / "reports" / "made" / "report.html").read_text(encoding="utf-8")
    assert "source of train" in page

    seen = names_of_environment(workshop)
    assert {stage for stage, names in seen.items() if "HF_TOKEN" in names} == {
        *("fetch-model", "fetch-data", "fetch-test")
    }
    assert {stage for stage, names in seen.items() if "OFFLINE=1" in names} >= {
        *("finetune", "merge", "infer-base", "report")
    }
    assert places_of(TOKEN, workshop, answer) == set()
    assert places_of("Signature", workshop, answer) == set()
    # Negative control: what is not secret is found, in plans and in logs.
    assert {"stdout", "log"} & places_of(f"hf:org/name@{model}", workshop, answer)

    planned = workshop.modelmill("plan", "run.yaml")
    assert f"hf:org/name@{model}" in planned.stdout
    assert "20" in planned.stdout.splitlines()[-1]


def test_wrong_byte_from_the_hub_ends_with_65(workshop: Workshop, hub: HubServer) -> None:
    """The stage says which file, and commits nothing."""
    # The first is for who looks whether the run is possible, and does not mind.
    hub.plan("flip", "/resolve/.*/config.json", times=3)
    answer = workshop.modelmill("run", "run.yaml", "--name", "flipped")
    assert answer.returncode == 65
    assert "config.json is not what the hub says it is" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert workshop.states("flipped")["fetch-model"] == "failed"


def test_source_that_does_not_fit_is_not_begun(workshop: Workshop, hub: HubServer) -> None:
    """The hub says how large it is, so nothing is downloaded for nothing."""
    model = hub.repositories["model", "org/name"]
    model.commit({**model.commits[model.branches["main"]], "README.md": bytes(3 * 2**20)})
    limit = {"MODELMILL_WORK_BYTES": str(SPARE_BYTES + 2**20)}
    answer = workshop.modelmill("run", "run.yaml", "--name", "large", **limit)
    assert answer.returncode == 78
    assert "About 67 MiB of disk are needed" in answer.stderr
    assert not [path for path in hub.paths("/resolve/") if "README.md" in path]


REFUSED = {
    "pickles only": ("model.source=hf:org/pickles", {}, 76, "save_pretrained('model')"),
    "no token": ("seed=1", {"HF_TOKEN": ""}, 77, "set HF_TOKEN to a token that may read it"),
    "no revision": ("model.source=hf:org/name@v9", {}, 66, "has no revision 'v9'"),
    "offline": ("seed=1", {"HF_HUB_OFFLINE": "1"}, 66, "HF_HUB_OFFLINE is set"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pinned_starts_nothing(
    workshop: Workshop, hub: HubServer, case: str
) -> None:
    """Code, cause and cure, before there is a run."""
    hub.repository("model", "org/pickles", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    change, environment, code, words = REFUSED[case]
    answer = workshop.modelmill("run", "run.yaml", "--name", "r", "--set", change, **environment)
    assert answer.returncode == code, answer.stderr
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert hub.paths("/resolve/") == []
