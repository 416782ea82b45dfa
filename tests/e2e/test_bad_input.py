"""Whatever is wrong with the input is said once, in words, and leaves nothing half-written."""

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelmill.conduct.following import Follower
from modelmill.conduct.standing import artifact_rows, run_row
from modelmill.spec.names import COMMITTED, artifact_prefix
from modelmill.store.address import open_store
from modelmill.store.artifact import attempt_prefix, read_manifest
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.runs import list_runs
from modelmill.store.s3 import Store

from ..store.attacks import TENSORS, gguf_with, injection, payload, torch_payload
from ..store.ordinary import ORDINARY
from ..workshop import ONE_TENSOR, Answer, Workshop, safetensors, write_model, write_rows

Fault = Callable[[Path], None]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Keep one store open, so that every command here joins it instead of starting one."""
    workshop = Workshop(tmp_path_factory.mktemp("bad-input"))
    workshop.lay_out()
    with EmbeddedStore(workshop.home / "store"):
        yield workshop


@pytest.fixture(scope="module")
def store(workshop: Workshop) -> Iterator[Store]:
    """Reach the same store from the test."""
    with (
        EmbeddedStore(workshop.home / "store") as embedded,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in embedded.environment.items():
            patch.setenv(name, value)
        yield open_store(embedded.url)


def check_words(answer: Answer, code: int, *words: str) -> None:
    """Make sure that a command ended with a code and says what, where and what to do."""
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr
    for each in words:
        assert each in answer.stderr


SPECS = {
    "misspelt key": ("sed: 1\n", ("line 6: ", "sed: unknown key", "did you mean 'seed'?")),
    "wrong type": ("infer: {batch_size: many}\n", ("line 6: ", "infer.batch_size", "'many'")),
    "impossible bits": ("quantize: [{method: gptq, bits: 5}]\n", ("quantize[0]", "2, 3, 4 or 8")),
    "gate on what is not computed": (
        "gate: {models: [base], metric: exact_match, against: base, max_worse: 0}\n",
        ("'exact_match' is not computed", "add it to infer.metrics", "against itself"),
    ),
}


@pytest.mark.parametrize("case", SPECS)
def test_wrong_spec_ends_with_64_before_there_is_a_store(tmp_path: Path, case: str) -> None:
    """Line, key, reason and suggestion; and not even the home folder is made."""
    more, words = SPECS[case]
    workshop = Workshop(tmp_path)
    workshop.write_run("run.yaml", more=more)
    check_words(workshop.modelmill("run", "run.yaml"), 64, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--name", "Not_A_Name"), 64, ("'Not_A_Name'", "lower-case letters")),
        (("--again", "infer-bse"), 64, ("infer-bse: no such stage", "infer-base")),
        (("--set", "model.source=nowhere"), 66, ("no file or folder", "nowhere", "correct")),
        (("--set", "data.test=nowhere.jsonl"), 66, ("no file or folder", "nowhere.jsonl")),
        (("--profile", "nothing.yaml"), 66, ("nothing.yaml", "no such file")),
    ],
)
def test_wrong_command_starts_nothing(
    workshop: Workshop,
    store: Store,
    arguments: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
) -> None:
    """What can be seen before the first stage leaves no run behind."""
    name = () if "--name" in arguments else ("--name", "wrong-command")
    check_words(workshop.modelmill("run", "run.yaml", *name, *arguments), code, *words)
    assert "wrong-command" not in list_runs(store)


QUESTIONS = [
    (("logs", "looked-at", "infer-bse"), 7, ("infer-bse: no such stage", "infer-base")),
    (("status", "No/Run"), 5, ("no run 'No/Run'", "choose from: ")),
    (("report", "No/Run"), 66, ("no run 'No/Run'", "choose from: ")),
    (("status", "looked-at", "--home", "run.yaml/home"), 7, ("cannot be made", "run.yaml/home")),
    (("run", "missing.yaml"), 66, ("no such file", "modelmill init")),
]


def test_wrong_questions_are_answered_in_words(workshop: Workshop) -> None:
    """What is mistyped is nobody's artifact, and nothing logged is not what is shown of it."""
    assert workshop.modelmill("run", "run.yaml", "--name", "looked-at").returncode == 0
    for arguments, code, words in QUESTIONS:
        check_words(workshop.modelmill(*arguments), code, *words)


def _without(name: str) -> Fault:
    return lambda model: (model / name).unlink()


def _with_file(name: str, body: bytes) -> Fault:
    return lambda model: (model / name).write_bytes(body) and None


def _weights(header: dict[str, object], body_bytes: int = 64) -> Fault:
    return _with_file("model.safetensors", safetensors(header, body_bytes))


CANARY = Path(tempfile.gettempdir(), "modelmill-canary")
OVERLAP = {**ONE_TENSOR, "v": {"dtype": "F32", "shape": [4], "data_offsets": [32, 48]}}
QUANTIZED = b'{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}'

MODELS: dict[str, tuple[Fault, int, tuple[str, ...]]] = {
    "no-config": (_without("config.json"), 66, ("has no config.json", "complete model folder")),
    "no-tokenizer": (_without("tokenizer.json"), 66, ("has no tokenizer files", "tokenizer.json")),
    "pickle": (
        _with_file("pytorch_model.bin", b"\x80\x04."),
        76,
        ("pytorch_model.bin is refused unread", "convert weights to safetensors"),
    ),
    "torch-pickle": (
        _with_file("pytorch_model.bin", torch_payload(CANARY)),
        76,
        ("pytorch_model.bin is refused unread", "would run posix.system"),
    ),
    "auto-map": (
        _with_file("config.json", b'{"model_type": "llama", "auto_map": {"AutoConfig": "m.Evil"}}'),
        76,
        ("config.json is refused unread: its key 'auto_map' makes libraries load code",),
    ),
    "kernel": (
        _with_file("config.json", b'{"a": {"_attn_implementation_internal": "evil/kernel"}}'),
        76,
        ("config.json", "'_attn_implementation_internal' makes libraries load code from a hub"),
    ),
    "injection": (
        _with_file("chat_template.jinja", injection(CANARY).encode()),
        76,
        ("chat_template.jinja", "a template that may not run", "'__globals__'"),
    ),
    "gguf": (
        _with_file("model.gguf", gguf_with((TENSORS, "<Q", 2**61))),
        76,
        ("model.gguf is refused unread: it counts 2,305,843,009,213,693,952 tensors",),
    ),
    "disguised": (
        _with_file("generation_config.json", payload(CANARY)),
        76,
        ("generation_config.json", "a pickle under another name"),
    ),
    "truncated": (_weights(ONE_TENSOR, 63), 65, ("truncated", "copy or save the file again")),
    "bad-length": (_with_file("model.safetensors", b"\xff" * 80), 65, ("its header would be",)),
    "bad-header": (_with_file("model.safetensors", b"\x04" + bytes(7) + b"{]}}"), 65, ("header",)),
    "overlap": (_weights(OVERLAP), 65, ("tensor 'v' overlaps", "model.safetensors")),
    "no-type": (
        _with_file("config.json", b"{}"),
        65,
        ("config.json does not describe a model", "model_type"),
    ),
    "quantized": (_with_file("config.json", QUANTIZED), 65, ("already quantized with gptq",)),
}


@pytest.mark.parametrize("case", MODELS)
def test_bad_model_fails_its_stage_and_nothing_else(
    workshop: Workshop, store: Store, case: str
) -> None:
    """The cause stands at the end, the rows are fetched all the same, the rest is skipped."""
    fault, code, words = MODELS[case]
    fault(write_model(workshop.folder / case))
    file = workshop.write_run(f"{case}.yaml", model=case)
    answer = workshop.modelmill("run", str(file))
    check_words(answer, code, f"fetch-model failed with {code}", *words)
    _check_failed_alone(answer, store, case, "fetch-model")
    assert not CANARY.exists()


def test_ordinary_folder_with_every_by_product_is_fetched(workshop: Workshop, store: Store) -> None:
    """What is left out is said as a warning, and is not in the artifact."""
    ORDINARY["falcon"].make(workshop.folder / "falcon")
    file = workshop.write_run("falcon.yaml", model="falcon")
    answer = workshop.modelmill("run", str(file))
    assert answer.returncode == 0, answer.stderr
    committed = read_manifest(store, "fetch-model", _key(store, "falcon", "fetch-model"))
    assert committed is not None
    kept = {each.path for each in committed.manifest.files}
    assert {"config.json", "tokenizer.json"} < kept
    assert not kept & ORDINARY["falcon"].left_out
    answer = workshop.modelmill("logs", "falcon", "fetch-model")
    assert "left out auto_map: transformers has falcon models itself" in answer.stdout


DATA: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "no-field": (
        b'{"question": "q", "answer": "a"}\n{"question": "q", "anwser": "a"}\n{}',
        ("2 of 3 rows are wrong", "row 2: no field 'answer'; it has 'question', 'anwser'", "row 3"),
    ),
    "latin-1": ('{"question": "é"}'.encode("latin-1"), ("row 1: not UTF-8 at byte",)),
    "not-json": (b"question,answer\nq,a\n", ("row 1: not JSON",)),
    "zero-rows": (b"\n\n", ("There are no rows", "one JSON object a line")),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_rows_fail_their_stage_and_nothing_else(
    workshop: Workshop, store: Store, case: str
) -> None:
    """Every wrong row is named by its number; model and training rows are fetched."""
    body, words = DATA[case]
    (workshop.folder / f"{case}.jsonl").write_bytes(body)
    file = workshop.write_run(f"{case}.yaml", test=f"{case}.jsonl")
    answer = workshop.modelmill("run", str(file))
    check_words(answer, 65, "fetch-test failed with 65", "at:  data.test", *words)
    _check_failed_alone(answer, store, case, "fetch-test")


def test_template_with_an_unknown_field_names_the_fields_there_are(
    workshop: Workshop, store: Store
) -> None:
    """Both files lack it, and both stages say so."""
    template = 'data.template={prompt: "{schema} {question}", completion: "{answer}"}'
    answer = workshop.modelmill("run", "run.yaml", "--name", "template", "--set", template)
    words = ("no field 'schema'; it has 'question', 'answer'", "at:  data.train", "at:  data.test")
    check_words(answer, 65, *words)
    states = {row.stage: row.state for row in run_row(store, "template").stages}
    assert states["fetch-model"] == "committed"


def test_data_folder_of_two_formats_is_refused(workshop: Workshop, store: Store) -> None:
    """Files of one format are one table; of two formats, nobody says which is meant."""
    (workshop.folder / "folder").mkdir()
    for name in ("a.jsonl", "b.csv"):
        write_rows(workshop.folder / "folder" / name, 8)
    answer = workshop.modelmill("run", workshop.write_run("folder.yaml", test="folder").name)
    check_words(answer, 65, "more than one format (csv, jsonl)", "keep one format in a folder")
    _check_failed_alone(answer, store, "folder", "fetch-test")


def _check_failed_alone(answer: Answer, store: Store, run: str, failed: str) -> None:
    """Make sure that one stage failed without a trace and its equals went on."""
    rows = {row.stage: row for row in run_row(store, run).stages}
    states = {name: row.state for name, row in rows.items()}
    fetches = {name: state for name, state in states.items() if name.startswith("fetch-")}
    assert fetches.pop(failed) == "failed"
    assert set(fetches.values()) == {"committed"}
    assert states["infer-base"] == "skipped"
    committed = {artifact.key for artifact in artifact_rows(store)}
    assert rows["fetch-data"].key in committed
    assert rows[failed].key not in committed
    [printed] = Follower(store, run, failed).look()
    assert b"ERROR" in printed.text
    assert b"Traceback" not in printed.text
    # A stranger reads the end: cause, log, the command that goes on.
    end = answer.stderr.split(f"\n\n{failed} failed with ")[1]
    assert f"  log: modelmill logs {run} {failed}\n" in end
    assert end.splitlines()[-1].startswith("To go on from what is committed: modelmill run ")
    html = Path(answer.stdout.splitlines()[-1])
    report = json.loads(html.with_suffix(".json").read_bytes())
    told = next(stage for stage in report["stages"] if stage["stage"] == failed)
    assert told["status"] == "failed"
    assert told["message"]


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


STORES = {
    "unreachable": (74, ("gave no usable answer", "AWS_ENDPOINT_URL")),
    "wrong-key": (77, ("does not know this access key", "s3://modelmill/x", "AWS_ACCESS_KEY_ID")),
    "wrong-secret": (77, ("does not belong to the access key", "AWS_SECRET_ACCESS_KEY")),
    "no-credentials": (77, ("No credentials", "AWS_ACCESS_KEY_ID")),
    "no-bucket": (66, ("no such bucket", "s3://elsewhere/x", "create the bucket")),
    "no-s3-url": (64, ("not an address of the form s3://bucket/prefix",)),
}


FOLDERS = {
    "unnamed": ("reports/unnamed", "reports", "it is in the store"),
    "below": ("file", "file/reports", "name another folder"),
}
"""A file that is in the way, and where the report is to go."""


@pytest.mark.parametrize("run", FOLDERS)
def test_report_that_cannot_be_brought_leaves_the_run_as_it_ended(
    workshop: Workshop, store: Store, tmp_path: Path, run: str
) -> None:
    """What can be known before is said before anything is computed."""
    file, folder, words = FOLDERS[run]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("somebody's\n", encoding="utf-8")
    place = str(tmp_path / folder)
    answer = workshop.modelmill("run", "run.yaml", "--name", run, "--report-folder", place)
    check_words(answer, 77, "The folder cannot be made", words)
    assert (tmp_path / file).read_text(encoding="utf-8") == "somebody's\n"
    assert [name for name in list_runs(store) if name == run] == [run] * (run == "unnamed")
    if run == "unnamed":
        assert run_row(store, run).exit_code == 0
        assert "SQL execution" in answer.stdout or "NLL" in answer.stdout


@pytest.mark.parametrize("case", STORES)
def test_store_that_cannot_be_used_is_said_before_anything_is_sent(
    workshop: Workshop, store: Store, case: str
) -> None:
    """The code tells a wrong address from a refusal; no stage is started."""
    good = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    changes: dict[str, dict[str, str]] = {
        "unreachable": {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{_closed_port()}"},
        "wrong-key": {"AWS_ACCESS_KEY_ID": "nobody"},
        "wrong-secret": {"AWS_SECRET_ACCESS_KEY": "guessed"},
        "no-credentials": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
    }
    url = {"no-bucket": "s3://elsewhere/x", "no-s3-url": "modelmill/x"}.get(
        case, "s3://modelmill/x"
    )
    environment = {**good, "AWS_EC2_METADATA_DISABLED": "true", **changes.get(case, {})}
    answer = workshop.modelmill("run", "run.yaml", "--store", url, **environment)
    code, words = STORES[case]
    check_words(answer, code, *words)
    assert list(store.list("x/")) == []


def test_damaged_artifact_ends_with_65_and_the_printed_fix_mends_it(
    workshop: Workshop, store: Store
) -> None:
    """Who reads it names it and the stage to make again; the run file stays as it is."""
    write_rows(workshop.folder / "damaged.jsonl", 9)
    words = ("run", workshop.write_run("damaged.yaml", test="damaged.jsonl").name)
    assert workshop.modelmill(*words).returncode == 0
    key = _key(store, "damaged", "fetch-test")
    _damage(store, key, "test.jsonl")

    verified = workshop.modelmill("artifacts", "verify", key)
    assert verified.returncode == 65
    assert "test.jsonl" in verified.stdout
    answer = workshop.modelmill(*words, "--again", "infer-base")
    check_words(answer, 65, key, "SHA-256", "--again fetch-test")
    mended = workshop.modelmill(*words, "--again", "fetch-test")
    assert mended.returncode == 0, mended.stderr
    assert "infer-base committed" in mended.stderr


def _key(store: Store, run: str, stage: str) -> str:
    return next(row.key for row in run_row(store, run).stages if row.stage == stage)


def _damage(store: Store, key: str, path: str) -> None:
    """Flip a bit of a committed file, as a failing disk would."""
    committed = read_manifest(store, "fetch-test", key)
    assert committed is not None
    name = f"{attempt_prefix('fetch-test', key, committed.manifest.attempt)}/{path}"
    stored = store.get(name)
    assert stored is not None
    store.put(name, bytes([stored.body[0] ^ 1]) + stored.body[1:])


def test_broken_lineage_ends_with_65_and_the_printed_command_mends_it(
    workshop: Workshop, store: Store
) -> None:
    """Only what was made from the replaced input itself is blamed; what follows is mended too."""
    shutil.copytree(workshop.folder / "model", workshop.folder / "other-model")
    (workshop.folder / "other-model" / "README.md").write_text("other", encoding="utf-8")
    more = "finetune: {r: 4}\n"
    file = workshop.write_run("lineage.yaml", model="other-model", more=more)
    assert workshop.modelmill("run", file.name).returncode == 0
    key = _key(store, "lineage", "fetch-model")
    store.delete([f"{artifact_prefix('fetch-model', key)}/{COMMITTED}"])
    gone = workshop.modelmill("run", file.name)
    check_words(gone, 65, "finetune was made from a model", "is no longer committed")

    answer = workshop.modelmill("run", file.name)
    check_words(answer, 65, "made from a model (fetch-model) that has been replaced since")
    assert "merge skipped" in answer.stderr
    rows = {row["stage"]: row["state"] for row in workshop.read("plan", file.name)}
    assert (rows["fetch-model"], rows["finetune"]) == ("committed", "lineage broken")
    assert "merge failed" not in answer.stderr
    command = answer.stderr.splitlines()[-1].partition(": modelmill ")[2]
    assert command.endswith("--again finetune --again infer-base --again infer-base-own")
    mended = workshop.modelmill(*command.split())
    assert mended.returncode == 0, mended.stderr
    assert "infer-merged committed" in mended.stderr
