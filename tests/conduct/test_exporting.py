"""Which model of a run may leave, which files go with it, and what is said where it may not."""

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from modelmill.conduct.conductor import Conducted
from modelmill.conduct.exporting import Asked, Exported, export
from modelmill.conduct.glance import Glance
from modelmill.conduct.standing import run_row
from modelmill.evaluate.scale import SCALES
from modelmill.report.document import (
    GateEntry,
    Lineage,
    ModelEntry,
    ReportDocument,
    Samples,
    Verdict,
)
from modelmill.spec.errors import (
    GateFailed,
    InputMissing,
    ModelmillError,
    NoSuchRun,
    SpecError,
    WouldBeLost,
)
from modelmill.spec.names import report_key
from modelmill.spec.plan import report_digest
from modelmill.spec.records import Device, Manifest
from modelmill.store.address import open_source
from modelmill.store.artifact import (
    attempt_id,
    attempt_prefix,
    commit,
    read_manifest,
    record_input,
    stage_bytes,
)
from modelmill.store.gguf import read_gguf_header
from modelmill.store.parcel import SUMS
from modelmill.store.removal import withdraw
from modelmill.store.s3 import Store

from ..hub_server import TOKEN, HubServer
from .conftest import Preparer

CONFIG = b'{"model_type": "llama"}'
MODEL = {
    "config.json": CONFIG,
    "generation_config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "prompt.json": b"{}",
    "measurements.json": b"where and how long",
}


def tiny_llama() -> Mapping[str, bytes]:
    """Make a llama of one block, and a tokenizer of bytes, without a model library."""
    hidden, inner, pieces = 32, 64, sorted(ByteLevel.alphabet())
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": len(pieces),
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    shapes = {
        **{f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"},
        **{f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")},
        "mlp.down_proj": (hidden, inner),
        **{f"{name}_layernorm": (hidden,) for name in ("input", "post_attention")},
    }
    named = {
        **{f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()},
        "model.embed_tokens.weight": (len(pieces), hidden),
        "model.norm.weight": (hidden,),
    }
    draw = np.random.default_rng(0)
    weights = {n: draw.standard_normal(shape).astype(np.float16) for n, shape in named.items()}
    core = Tokenizer(BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[]))
    core.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return {
        **MODEL,
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(weights),
        "tokenizer.json": core.to_str().encode(),
    }


FILES: Mapping[str, Mapping[str, bytes]] = {
    "fetch-model": {
        **MODEL,
        "README.md": b"---\nlicense: mit\n---\n# The base\n",
        "LICENSE.txt": b"MIT",
    },
    "finetune": {
        "adapter/adapter_config.json": b"{}",
        "adapter/adapter_model.safetensors": b"adapter",
        "tokenizer/tokenizer.json": b"{}",
        "prompt.json": b"{}",
        "probe.jsonl": b"rows of the data",
        "measurements.json": b"where and how long",
    },
    "merge": {**tiny_llama(), "merge-proof.jsonl": b"what was proved"},
    "quantize-nf4": {**MODEL, "model.safetensors": b"fewer bits"},
}
OF_A_MODEL = {
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
    *("prompt.json", "LICENSE.txt", "README.md", SUMS),
}


def make(given: Conducted, stage: str) -> None:
    """Commit what a stage makes."""
    planned = given.plan.stage(stage)
    inputs = {}
    for each in planned.inputs:
        committed = read_manifest(given.store, each.kind, each.key)
        assert committed is not None
        inputs[each.role] = record_input(committed)
    publish(given, stage, planned.key, FILES.get(stage, {"predictions.jsonl": b""}), inputs)


def publish(
    given: Conducted, stage: str, key: str, files: Mapping[str, bytes], inputs: Mapping = {}
) -> None:
    """Commit files."""
    kind = "report" if stage == "report" else given.plan.stage(stage).kind
    attempt = attempt_id()
    prefix = attempt_prefix(kind, key, attempt)
    commit(
        given.store,
        Manifest(
            kind=kind,
            key=key,
            stage=stage,
            run=given.run,
            attempt=attempt,
            created="2026-01-01T00:00:00+00:00",
            settings={},
            inputs=inputs,
            versions={"transformers": "5"},
            device=Device(accelerator="cpu", name="test"),
            files=tuple(stage_bytes(given.store, prefix, *each) for each in files.items()),
        ),
    )


def entry(
    model: str, verdict: Verdict | None, *, gated: bool = False, problem: str = ""
) -> ModelEntry:
    """Say how a model was judged."""
    return ModelEntry(
        model=model,
        method="none",
        bits=16,
        size_bytes=7,
        tokens_per_second=None,
        metrics={},
        verdict=verdict,
        gated=gated,
        problem=problem,
    )


def report(given: Conducted, *judged: ModelEntry) -> None:
    """Commit a report on everything that is committed now."""
    document = ReportDocument(
        run=given.run,
        created="2026-01-01",
        outcome="ungated",
        headline="",
        stages=(),
        models=(entry("base", "bad"), entry("merged", None), *judged),
        gate=GateEntry(
            metric="nll",
            against="merged",
            max_worse=1,
            models=("nf4",),
            outcome="failed",
            sentence="Gate failed: nf4 is bad (+9.000).",
        ),
        slice=None,
        scales={"nll": SCALES["nll"]},
        data=(),
        samples=Samples(rows=(), metric=None),
        controls=(),
        lineage=Lineage(
            plan_sha256=given.plan_sha256,
            created="",
            accelerator="cpu",
            dtype="float32",
            sources=(),
            settings={},
        ),
        notes=(),
    )
    digests = {}
    for stage in given.plan.stages:
        committed = read_manifest(given.store, stage.kind, stage.key)
        assert committed is not None
        digests[stage.name] = committed.sha256
    key = report_key(given.run, report_digest(given.plan_sha256, digests))
    publish(
        given, "report", key, {"report.json": document.model_dump_json(ensure_ascii=True).encode()}
    )


Finisher = Callable[[str, ModelEntry | None], Conducted]


@pytest.fixture(scope="module")
def finished(prepared: Preparer) -> Finisher:
    """Make runs with an adapter, a merged and a quantized model; with a report or without."""

    def run(name: str, nf4: ModelEntry | None) -> Conducted:
        given = prepared(
            name,
            finetune="{}",
            quantize="[{method: bitsandbytes}]",
            gate="{models: [nf4], max_worse: 1}",
            seed=len(name),
        )
        for stage in given.plan.stages:
            if read_manifest(given.store, stage.kind, stage.key) is None:
                make(given, stage.name)
        if nf4 is not None:
            report(given, nf4)
        return given

    return run


@pytest.fixture(scope="module")
def good(finished: Finisher) -> Conducted:
    """Give a run whose gated model is good."""
    return finished("good", entry("nf4", "good", gated=True))


def leave(given: Conducted, model: str, place: Path | str, **accepted: bool) -> Exported:
    """Export a model; one that goes to a folder needs no other."""
    asked = Asked(given.run, model, str(place), **accepted)
    return export(given.store, asked, Path("/nowhere"))


def names_in(folder: Path) -> set[str]:
    """List what is there."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("model", ["merged", "nf4"])
def test_model_leaves_with_what_a_reader_needs(good: Conducted, tmp_path: Path, model: str) -> None:
    """Neither rows nor measurements nor the base's own card; but its licence."""
    exported = leave(good, model, tmp_path / "sql-writer")
    assert names_in(tmp_path / "sql-writer") == OF_A_MODEL
    assert exported.files == len(OF_A_MODEL)
    card = (tmp_path / "sql-writer" / "README.md").read_text(encoding="utf-8")
    assert "# sql-writer" in card
    assert "license: mit" in card


def test_adapter_leaves_in_one_folder(good: Conducted, tmp_path: Path) -> None:
    """PEFT and transformers look for its files beside each other; training rows stay."""
    leave(good, "adapter", tmp_path / "out")
    assert names_in(tmp_path / "out") == {
        *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "prompt.json"),
        *("LICENSE.txt", "README.md", SUMS),
    }


@pytest.mark.parametrize(
    ("name", "judged", "refusal", "words"),
    [
        ("failing", entry("nf4", "bad", gated=True), GateFailed, "nf4 failed the gate"),
        ("unjudged", entry("nf4", None, gated=True), InputMissing, "could not be judged"),
        ("lost", entry("nf4", None, problem="infer-nf4 failed"), InputMissing, "infer-nf4 failed"),
        ("unfinished", None, InputMissing, "no report on what is committed now"),
    ],
)
def test_model_that_nobody_found_good_stays(
    finished: Finisher,
    tmp_path: Path,
    *,
    name: str,
    judged: ModelEntry | None,
    refusal: type[ModelmillError],
    words: str,
) -> None:
    """The gate's own exit code where it failed; `--force` is named, and lets it go."""
    given = finished(name, judged)
    with pytest.raises(refusal, match=words) as refused:
        leave(given, "nf4", tmp_path / "out")
    assert "--force" in refused.value.fix
    assert not (tmp_path / "out").exists()
    leave(given, "nf4", tmp_path / "out", is_forced=True)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "\n> **" in card


def test_adapter_of_a_merged_model_that_failed_stays(finished: Finisher, tmp_path: Path) -> None:
    """It is the same model in two parts."""
    given = finished("bad-merge", entry("merged", "bad", gated=True))
    with pytest.raises(GateFailed, match="merged failed the gate"):
        leave(given, "adapter", tmp_path / "out")
    leave(given, "adapter", tmp_path / "out", is_forced=True)


def test_adapter_that_was_asked_itself_does_not_leave_for_that(
    finished: Finisher, tmp_path: Path
) -> None:
    """Its own row is not gated, and does not stand for the merged model's."""
    given = finished("both-asked", None)
    report(given, entry("merged", "bad", gated=True), entry("adapter", "good"))
    with pytest.raises(GateFailed, match="merged failed the gate"):
        leave(given, "adapter", tmp_path / "out")


@pytest.mark.parametrize("verdict", ["good", "undecided"])
def test_model_that_is_not_known_to_be_bad_may_leave(
    finished: Finisher, tmp_path: Path, verdict: Verdict
) -> None:
    """Too few rows end no run, and keep no model."""
    given = finished(f"is-{verdict}", entry("nf4", verdict, gated=True))
    leave(given, "nf4", tmp_path / "out")


def test_report_on_another_state_counts_for_nothing(finished: Finisher, tmp_path: Path) -> None:
    """A model made anew since is not the one that was judged."""
    given = finished("made-anew", entry("nf4", "good", gated=True))
    for name in ("infer-nf4", "quantize-nf4"):
        stage = given.plan.stage(name)
        withdraw(given.store, f"artifacts/{stage.kind}/{stage.key}")
    for name in ("quantize-nf4", "infer-nf4"):
        make(given, name)
    with pytest.raises(InputMissing, match="no report on what is committed now"):
        leave(given, "nf4", tmp_path / "out")


@pytest.mark.parametrize(
    ("run", "model", "place", "refusal"),
    [
        ("nobody", "merged", "out", NoSuchRun),
        ("good", "base", "out", SpecError),
        ("good", "gptq-4", "out", SpecError),
        ("good", "merged", "gs://bucket/model", SpecError),
        ("good", "merged", "hf:name", SpecError),
        ("good", "merged", "hf:org/name@v1", SpecError),
        ("good", "merged", "hf:datasets/org/name/x", SpecError),
    ],
)
def test_what_cannot_be_exported(
    good: Conducted,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    run: str,
    model: str,
    place: str,
    refusal: type[ModelmillError],
) -> None:
    """Said in words, forced or not, before anything is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(refusal):
        export(store, Asked(run, model, place, is_forced=True), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_model_that_is_not_made_yet(prepared: Preparer, tmp_path: Path) -> None:
    """Forced or not, there is nothing to export."""
    given = prepared("begun", quantize="[{method: bitsandbytes}]", seed=99)
    with pytest.raises(InputMissing, match="nf4 of run 'begun' is not committed") as caught:
        leave(given, "nf4", tmp_path / "out", is_forced=True)
    assert "modelmill run FILE --name begun" in caught.value.fix


def test_status_says_where_each_model_is_committed(good: Conducted, store: Store) -> None:
    """At the address there is a model whose files a server can read in place."""
    places = {each.model: each.uri for each in run_row(store, good.run).models}
    assert set(places) == {"base", "adapter", "merged", "nf4"}
    config = {"adapter": "adapter_config.json"}
    for model, uri in places.items():
        bucket, key = open_source(uri)
        assert bucket.head(f"{key}/{config.get(model, 'config.json')}") is not None


def test_shell_completes_models_that_were_made(good: Conducted, store: Store) -> None:
    """Those that can be exported, so not the base."""
    glance = Glance(Path("/nowhere"), store.url, 120)
    assert set(glance.models(good.run)) == {"adapter", "merged", "nf4"}
    assert glance.models("no-such-run") == ()


def test_model_goes_to_a_hub(
    good: Conducted, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Into a private repository, under whose name the card opens it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    asked = Asked(good.run, "merged", "hf:org/sql-writer")
    exported = export(good.store, asked, tmp_path)
    assert exported.at == "hf:org/sql-writer"
    repository = hub.repositories["model", "org/sql-writer"]
    files = repository.commits[repository.branches["main"]]
    assert repository.is_private
    assert set(files) == {*OF_A_MODEL, ".gitattributes"}
    assert 'AutoTokenizer.from_pretrained("org/sql-writer")' in files["README.md"].decode()
    assert json.loads(files["config.json"])["model_type"] == "llama"


def test_model_leaves_as_one_gguf_file(good: Conducted, tmp_path: Path) -> None:
    """With the contract, the base's licence and a card; the sums hold, and nothing is left over."""
    asked = Asked(good.run, "merged", str(tmp_path / "sql-writer"), gguf="q8_0")
    exported = export(good.store, asked, tmp_path / "work")
    file = "sql-writer-Q8_0.gguf"
    assert names_in(tmp_path / "sql-writer") == {
        *(file, "prompt.json", "LICENSE.txt", "README.md", SUMS)
    }
    assert exported.files == 5
    subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=tmp_path / "sql-writer", check=True)
    header = read_gguf_header(tmp_path / "sql-writer" / file)
    assert header.settings["general.name"] == "sql-writer"
    card = (tmp_path / "sql-writer" / "README.md").read_text(encoding="utf-8")
    assert f"llama-cli -m ./sql-writer/{file}" in card
    assert list((tmp_path / "work").iterdir()) == []


def test_gguf_file_is_the_same_everywhere(
    good: Conducted, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a bucket is what is in a folder, and on a hub the same file."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    good.store.client.create_bucket(Bucket="elsewhere")
    folder, url, work = tmp_path / "llama", "s3://elsewhere/out/llama", tmp_path / "work"
    for place in (str(folder), url, "hf:org/llama"):
        export(good.store, Asked(good.run, "merged", place, gguf="f16"), work)
    bucket, prefix = open_source(url)
    assert {item.key for item in bucket.list("")} == {f"{prefix}/{n}" for n in names_in(folder)}
    for name in names_in(folder):
        stored = bucket.get(f"{prefix}/{name}")
        assert stored is not None
        assert stored.body == (folder / name).read_bytes()
    repository = hub.repositories["model", "org/llama"]
    uploaded = repository.commits[repository.branches["main"]]
    assert uploaded["llama-F16.gguf"] == (folder / "llama-F16.gguf").read_bytes()
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nf4", "quantized already.*; export merged with --gguf"),
        ("adapter", "no model without its base; export merged with --gguf"),
    ],
)
def test_model_that_no_gguf_file_is_made_of(
    good: Conducted, tmp_path: Path, model: str, words: str
) -> None:
    """Said with the way out, before anything is fetched."""
    asked = Asked(good.run, model, str(tmp_path / "out"), is_forced=True, gguf="q4_0")
    with pytest.raises(SpecError, match=words):
        export(good.store, asked, tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["folder", "bucket", "hub"])
def test_place_that_is_taken_is_refused_before_a_gguf_file_is_made(
    good: Conducted,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    place: str,
) -> None:
    """Nothing is fetched to be converted; what is known of the same export lets it go on."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    name, work = f"taken-{place}", tmp_path / "work"
    if place == "bucket":
        good.store.client.create_bucket(Bucket=name)
    at = {"folder": str(tmp_path / name), "bucket": f"s3://{name}/a", "hub": f"hf:org/{name}"}[
        place
    ]
    first, other = (Asked(good.run, "merged", at, gguf=each) for each in ("q8_0", "q4_0"))
    export(good.store, first, work)
    work.rmdir()
    with pytest.raises(WouldBeLost, match="something else already"):
        export(good.store, other, work)
    assert not work.exists()
    export(good.store, first, work)
    assert work.exists()
