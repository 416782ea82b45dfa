"""Sources on a hub are pinned to a commit, downloaded once, and believed only byte by byte."""

import re
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from modelmill.spec.errors import (
    DataError,
    DigestMismatch,
    HubUnreachable,
    InputMissing,
    ModelmillError,
    PermissionRefused,
    SpecError,
    UnsafeArtifact,
)
from modelmill.store.hub import check_token, hub_bytes, pin_hub, pull_hub

from ..hub_server import TOKEN, HubServer

BUDGET_SECONDS = 20
WEIGHTS = bytes(range(256)) * 20_000
"""More than one chunk, and more than a socket holds."""
MODEL = {
    ".gitattributes": b"hidden",
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "model.fp16.safetensors": b"a copy" * 1000,
    "consolidated.safetensors": b"a copy" * 1000,
    "pytorch_model.bin": b"a pickle" * 1000,
    "pytorch_model.bin.index.json": b"{}",
    "modeling_own.py": b"code",
    "onnx/model.onnx": b"a graph",
    "ggml.gguf": b"another copy",
    "tokenizer.json": b'{"model": {}}',
    "README.md": b"# words",
    "LICENSE": b"words",
}
WANTED = ["LICENSE", "README.md", "config.json", "model.safetensors", "tokenizer.json"]


def files_below(folder: Path) -> dict[str, bytes]:
    """Read everything in a folder, hidden files too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pull(address: str, folder: Path) -> dict[str, bytes]:
    """Pin and pull, and read what has come."""
    pull_hub(pin_hub(address, BUDGET_SECONDS), folder, BUDGET_SECONDS)
    return files_below(folder)


def test_real_client_accepts_the_server(hub: HubServer, tmp_path: Path) -> None:
    """huggingface_hub's own download works on it, so what passes here is its protocol."""
    hub.repository("model", "org/name", MODEL)
    for name in ("config.json", "model.safetensors"):
        path = hf_hub_download("org/name", name, local_dir=tmp_path, endpoint=hub.url)
        assert Path(path).read_bytes() == MODEL[name]


def test_model_is_its_safetensors_and_nothing_that_runs(hub: HubServer, tmp_path: Path) -> None:
    """Pickles, code, graphs and second copies are never asked for; no cache is left."""
    commit = hub.repository("model", "org/name", MODEL).branches["main"]
    pin = pin_hub("hf:org/name", BUDGET_SECONDS)
    counted: list[int] = []
    records = pull_hub(pin, tmp_path, BUDGET_SECONDS, counted.append)

    assert pin.address == f"hf:org/name@{commit}"
    assert files_below(tmp_path) == {name: MODEL[name] for name in WANTED}
    assert [record.path for record in records] == WANTED
    assert sum(counted) == sum(len(MODEL[name]) for name in WANTED)
    assert hub_bytes(pin, BUDGET_SECONDS) == sum(counted)
    resolved = {path.rpartition("/")[2] for path in hub.paths("/resolve/")}
    assert resolved == set(WANTED)


def test_sharded_model_is_taken_by_its_index(hub: HubServer, tmp_path: Path) -> None:
    """Shards of one set come with their index; another set beside them does not."""
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": b"{}",
        "model-00001-of-00002.safetensors": b"a",
        "model-00002-of-00002.safetensors": b"b",
        "consolidated-00001-of-00001.safetensors": b"a copy",
    }
    hub.repository("model", "org/name", files)
    assert pull("hf:org/name", tmp_path).keys() == {n for n in files if "consolidated" not in n}


@pytest.mark.parametrize("revision", ["v1", "refs/pr/3", "feature%2Fx"])
def test_revision_is_resolved_to_its_commit(hub: HubServer, revision: str) -> None:
    """Whatever is named is pinned by the 40 digits that cannot move."""
    repository = hub.repository("model", "org/name", MODEL)
    commit = repository.commit({**MODEL, "config.json": b"{ }"}, revision.replace("%2F", "/"))
    pin = pin_hub(f"hf:org/name@{revision}", BUDGET_SECONDS)
    assert pin.address == f"hf:org/name@{commit}"
    assert pin_hub(pin.address, BUDGET_SECONDS) == pin


def test_branch_that_moves_after_pinning(hub: HubServer, tmp_path: Path) -> None:
    """What was pinned is what is pulled."""
    repository = hub.repository("model", "org/name", MODEL)
    pin = pin_hub("hf:org/name@main", BUDGET_SECONDS)
    repository.commit({**MODEL, "config.json": b'{"other": 1}'})
    pull_hub(pin, tmp_path, BUDGET_SECONDS)
    assert (tmp_path / "config.json").read_bytes() == b"{}"
    assert pin_hub("hf:org/name@main", BUDGET_SECONDS) != pin


def test_commit_that_lists_other_files_than_when_pinned(hub: HubServer, tmp_path: Path) -> None:
    """A hub that rewrites a commit is not believed, even if its own digests agree."""
    repository = hub.repository("model", "org/name", MODEL)
    pin = pin_hub("hf:org/name", BUDGET_SECONDS)
    repository.commits[repository.branches["main"]] = {**MODEL, "config.json": b"[]"}
    with pytest.raises(DataError, match="lists other files") as caught:
        pull_hub(pin, tmp_path, BUDGET_SECONDS)
    assert "--repin" in caught.value.fix
    assert files_below(tmp_path) == {}


def test_commit_that_is_gone(hub: HubServer, tmp_path: Path) -> None:
    """A history that was rewritten is said as that."""
    repository = hub.repository("model", "org/name", MODEL)
    pin = pin_hub("hf:org/name", BUDGET_SECONDS)
    del repository.commits[repository.branches["main"]]
    with pytest.raises(InputMissing, match="has no revision") as caught:
        pull_hub(pin, tmp_path, BUDGET_SECONDS)
    assert "--repin" in caught.value.fix


ROWS = {
    "README.md": b"# words",
    "load.py": b"code",
    "data/train-00000-of-00002.parquet": b"PAR1 first" * 200,
    "data/train-00001-of-00002.parquet": b"PAR1 second",
    "data/test-00000-of-00001.parquet": b"PAR1 test",
    "data/words.txt": b"for people",
    "jsonl/all.jsonl": b"{}\n",
    "jsonl/deep/more.jsonl.gz": b"gz",
    "texts/a.txt": b"a text",
}


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("jsonl/all.jsonl", ["jsonl/all.jsonl"]),
        ("jsonl", ["jsonl/all.jsonl", "jsonl/deep/more.jsonl.gz"]),
        ("data/train-*.parquet", sorted(ROWS)[2:4]),
        ("*/t*.parquet", sorted(ROWS)[1:4]),
        ("data/", sorted(ROWS)[1:4]),
        ("texts", ["texts/a.txt"]),
    ],
)
def test_files_of_a_data_set(hub: HubServer, tmp_path: Path, path: str, names: list[str]) -> None:
    """A file, a folder or a pattern; never a script, and texts only where there are no tables."""
    repository = hub.repository("dataset", "org/rows", ROWS)
    hub.page_entries = 2
    commit = repository.branches["main"]
    pin = pin_hub(f"hf:datasets/org/rows/{path}", BUDGET_SECONDS)
    assert pin.address == f"hf:datasets/org/rows@{commit}/{path.rstrip('/')}"
    pull_hub(pin, tmp_path, BUDGET_SECONDS)
    assert files_below(tmp_path) == {name: ROWS[name] for name in names}


def test_adapter_is_fetched_like_a_model(hub: HubServer, tmp_path: Path) -> None:
    """Its weights are the one set there is; the Trainer's pickles stay where they are."""
    files = {"adapter_model.safetensors": b"x", "adapter_config.json": b"{}"}
    hub.repository("model", "org/adapter", {**files, "training_args.bin": b"x"})
    assert sorted(pull("hf:org/adapter", tmp_path)) == sorted(files)


NOT_THERE = {
    "no file": ("hf:datasets/org/rows/none.jsonl", InputMissing, "no such file"),
    "no folder": ("hf:datasets/org/rows/none", InputMissing, "has nothing there"),
    "no match": ("hf:datasets/org/rows/data/x-*", InputMissing, "train-00000-of-00002.parquet"),
    "a script": ("hf:datasets/org/rows/load.p[y]", InputMissing, "no files of rows"),
    "two formats": ("hf:datasets/org/rows/*/*", DataError, "more than one format"),
    "no repository": ("hf:org/none", InputMissing, "no model org/none for somebody without"),
    "a model as data": ("hf:datasets/org/name/x.csv", InputMissing, "no data set org/name"),
    "no revision": ("hf:org/name@none", InputMissing, "no revision 'none'"),
    "pickles only": ("hf:org/pickles", UnsafeArtifact, "from_pretrained('org/pickles')"),
    "no weights": ("hf:org/empty", InputMissing, "no model.safetensors"),
}


@pytest.mark.parametrize("case", NOT_THERE)
def test_what_is_not_there_is_said(hub: HubServer, case: str) -> None:
    """The message names what is wrong and what there is, before anything is downloaded."""
    hub.repository("dataset", "org/rows", ROWS)
    hub.repository("model", "org/name", MODEL)
    hub.repository("model", "org/pickles", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    hub.repository("model", "org/empty", {"config.json": b"{}"})
    address, kind, words = NOT_THERE[case]
    with pytest.raises(ModelmillError) as caught:
        pin_hub(address, BUDGET_SECONDS)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert hub.paths("/resolve/") == []


@pytest.mark.parametrize("gate", ["is_private", "is_gated"])
def test_closed_repository_wants_a_token(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    """Without one the message says how to give it; with one the download works."""
    setattr(hub.repository("model", "org/name", MODEL), gate, True)
    with pytest.raises(ModelmillError) as caught:
        pin_hub("hf:org/name", BUDGET_SECONDS)
    assert caught.value.exit_code == {"is_private": 66, "is_gated": 77}[gate]
    assert "HF_TOKEN" in caught.value.fix
    assert "profile.hub.token_secret" in caught.value.fix

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert sorted(pull("hf:org/name", tmp_path)) == WANTED


def test_token_goes_to_the_hub_only(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file is led to another host, and the token stays behind."""
    hub.repository("model", "org/name", MODEL)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pull("hf:org/name", tmp_path)
    at_cdn = [seen for seen in hub.seen if "Signature" in seen.path]
    assert at_cdn
    assert not any(seen.has_token for seen in at_cdn)
    assert all(seen.has_token for seen in hub.seen if seen not in at_cdn)


def test_token_that_is_not_accepted(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called by what it is, and not repeated."""
    hub.repository("model", "org/name", MODEL)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong0000")
    with pytest.raises(PermissionRefused, match="does not accept the token") as caught:
        pin_hub("hf:org/name", BUDGET_SECONDS)
    assert "hf_wrong0000" not in str(caught.value)


def test_token_is_tried_by_itself(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `doctor --pods` does in a pod: none, a wrong one, a good one."""
    with pytest.raises(PermissionRefused, match="no token"):
        check_token(BUDGET_SECONDS)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong0000")
    with pytest.raises(PermissionRefused, match="does not accept"):
        check_token(BUDGET_SECONDS)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_token(BUDGET_SECONDS)


@pytest.mark.parametrize("fault", ["503", "429", "drop"])
def test_hub_that_stumbles_is_asked_again(hub: HubServer, tmp_path: Path, fault: str) -> None:
    """Errors that pass cost a moment each, wherever they happen."""
    hub.repository("model", "org/name", MODEL)
    for path in ("/api/models/org/name$", "/tree/", "/resolve/.*config", "Signature"):
        hub.plan(fault, path)  # type: ignore[arg-type]
    assert sorted(pull("hf:org/name", tmp_path)) == WANTED
    assert hub.faults == []


def test_body_that_is_cut_goes_on_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    """Bytes that have come are not asked for again."""
    hub.repository("model", "org/name", MODEL)
    hub.plan("cut", "Signature", times=2)
    counted: list[int] = []
    pull_hub(pin_hub("hf:org/name", BUDGET_SECONDS), tmp_path, BUDGET_SECONDS, counted.append)
    assert files_below(tmp_path)["model.safetensors"] == WEIGHTS
    ranges = [seen.range for seen in hub.seen if "Signature" in seen.path]
    assert [bool(each) for each in ranges] == [False, True, True]
    assert min(counted) > 0
    assert sum(counted) == sum(len(MODEL[name]) for name in WANTED)


def test_range_that_is_not_honoured_starts_over(hub: HubServer, tmp_path: Path) -> None:
    """A whole answer to a question for the rest is taken from its beginning."""
    hub.repository("model", "org/name", MODEL)
    hub.plan("cut", "Signature")
    hub.plan("whole", "Signature")
    counted: list[int] = []
    pull_hub(pin_hub("hf:org/name", BUDGET_SECONDS), tmp_path, BUDGET_SECONDS, counted.append)
    assert files_below(tmp_path)["model.safetensors"] == WEIGHTS
    assert sum(counted) == sum(len(MODEL[name]) for name in WANTED)


@pytest.mark.parametrize("path", ["Signature", "/resolve/.*config"])
def test_one_wrong_byte_is_read_again(hub: HubServer, tmp_path: Path, path: str) -> None:
    """A bit that flipped on the way is not the end of a run."""
    hub.repository("model", "org/name", MODEL)
    hub.plan("flip", path)
    assert pull("hf:org/name", tmp_path) == {name: MODEL[name] for name in WANTED}


@pytest.mark.parametrize("path", ["Signature", "/resolve/.*config"])
def test_wrong_byte_that_stays_is_refused(hub: HubServer, tmp_path: Path, path: str) -> None:
    """Negative control: by SHA-256 for large files, by git's digest for small ones."""
    hub.repository("model", "org/name", MODEL)
    hub.plan("flip", path, times=2)
    with pytest.raises(DigestMismatch, match="is not what the hub says it is") as caught:
        pull("hf:org/name", tmp_path)
    assert caught.value.exit_code == 65
    assert not {"model.safetensors", "config.json"} <= files_below(tmp_path).keys()


def test_name_that_is_no_safe_path_is_refused(hub: HubServer, tmp_path: Path) -> None:
    """A hub cannot write outside the folder."""
    hub.repository("model", "org/name", {**MODEL, "sub\\evil.json": b"{}"})
    with pytest.raises(UnsafeArtifact):
        pull("hf:org/name", tmp_path)
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize("fault", ["503", "429", "drop"])
def test_hub_that_stays_away(hub: HubServer, fault: str) -> None:
    """When the budget is spent, or the hub asks for more than it, the answer is 74."""
    hub.repository("model", "org/name", MODEL)
    hub.retry_after_seconds = 3600
    hub.plan(fault, "", times=100)  # type: ignore[arg-type]
    with pytest.raises(HubUnreachable) as caught:
        pin_hub("hf:org/name", 0.5)
    assert caught.value.exit_code == 74
    assert {"503": "HTTP 503", "429": "to wait 3600 s", "drop": "RemoteProtocolError"}[
        fault
    ] in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [("http://127.0.0.1:9", HubUnreachable), ("ftp://host", SpecError), ("nonsense", SpecError)],
)
def test_endpoint_that_is_no_hub(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, endpoint: str, kind: type[ModelmillError]
) -> None:
    """Nobody there, or not an address."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(kind, match=re.escape(endpoint)):
        pin_hub("hf:org/name", 0.1)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_variable_is_named(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Whoever forbade it finds out why nothing is asked."""
    monkeypatch.setenv(variable, "1")
    with pytest.raises(InputMissing, match=f"{variable} is set"):
        pin_hub("hf:org/name", BUDGET_SECONDS)
    assert hub.seen == []


def test_messages_do_not_repeat_signed_addresses(hub: HubServer, tmp_path: Path) -> None:
    """An address that opens a file for whoever knows it is in no message."""
    hub.repository("model", "org/name", MODEL)
    pin = pin_hub("hf:org/name", BUDGET_SECONDS)
    hub.plan("503", "Signature", times=100)
    with pytest.raises(HubUnreachable) as caught:
        pull_hub(pin, tmp_path, 0.5)
    assert "Signature" not in str(caught.value)
