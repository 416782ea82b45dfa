"""The stage on tiny random models, read back without the engine that wrote them."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelmill.models.gptq import check_files, open_unpacked
from modelmill.models.open import open_config
from modelmill.models.prompt import load_contract
from modelmill.spec.errors import DataError, Interrupted, SpecError
from modelmill.spec.figures import Quantized
from modelmill.spec.quantize import BitsandbytesSpec, GptqSpec, QuantizeSpec, bits_of
from modelmill.spec.settings import ContractSettings
from modelmill.stages.infer.opened import open_any
from modelmill.stages.quantize.evidence import calibrate_on
from modelmill.stages.stage import Folders

from ..tiny_stages import (
    Family,
    RecordingPulse,
    make_model,
    make_rows,
    make_texts,
    write_rows,
)
from .running import (
    FILES,
    ModelOf,
    autoround,
    gptq,
    quantize,
    rtn,
    settings_for,
    worst_weight_error,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own

Made = Callable[[QuantizeSpec, Family], tuple[Path, Quantized]]


@pytest.fixture(scope="module")
def made(model_of: ModelOf, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Give a function that quantizes a family's model once; nobody changes what it wrote."""
    known: dict[tuple[QuantizeSpec, Family], tuple[Path, Quantized]] = {}

    def make(spec: QuantizeSpec, family: Family) -> tuple[Path, Quantized]:
        if (spec, family) not in known:
            folder = tmp_path_factory.mktemp("made") / "out"
            known[spec, family] = folder, quantize(spec, model_of(family), data, folder)
        return known[spec, family]

    return make


def test_gptq_writes_what_every_reader_needs(
    model_of: ModelOf, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete configs in both places, readable files, nothing of the engine's left around."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    pulse = RecordingPulse()
    figures = quantize(gptq(4), model_of("llama"), data, tmp_path / "out", pulse)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"quantize_config.json"}
    assert list(elsewhere.iterdir()) == []
    for path in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    stored = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert config["quantization_config"] == stored
    assert config["dtype"] == "float16"
    expected = {
        "bits": 4,
        "group_size": 64,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
    }
    assert expected.items() <= stored.items()
    assert load_contract(tmp_path / "out").eos == (1,)
    assert figures.modules == 14
    assert figures.group_size == 64
    assert figures.size_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert figures.bits_per_weight == pytest.approx(8 * figures.size_bytes / figures.parameters)
    assert (figures.calibration_tokens, figures.calibration_text_tokens) == (512, 0)
    assert figures.calibration_rows + figures.calibration_unused == 60
    assert pulse.told[-1] == (2, 2, "layers")
    assert "wants at least 768" in pulse.warnings[0]


def test_gptq_leaks_neither_text_nor_paths(
    model_of: ModelOf,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A canary in every row and text is in no file and no line of the log; no path in a file."""
    rows = [
        row.model_copy(update={"prompt": f"canary {row.prompt}", "completion": "canary"})
        for row in make_rows(40, 2)
    ]
    write_rows(rows, tmp_path / "secret" / "train.jsonl")
    write_rows(make_texts("canary", 40), tmp_path / "secret" / "text.jsonl")
    half = gptq(4, calibration={"tokens": 600, "text": "canary.txt", "text_share": 0.5})
    figures = quantize(half, model_of("llama"), tmp_path / "secret", tmp_path / "out")
    assert 0 < figures.calibration_text_tokens < figures.calibration_tokens
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert b"canary" not in content, path.name
        assert str(tmp_path).encode() not in content, path.name
        assert b"/tmp" not in content, path.name
    told = capfd.readouterr()
    assert "quant" in told.out + told.err  # the engine does talk
    assert "canary" not in told.out + told.err + caplog.text


@pytest.mark.parametrize(
    ("family", "changes"), [("gpt2", {}), ("falcon-rw", {"max_position_embeddings": 256})]
)
def test_calibration_ends_at_the_last_position(
    family: Family, changes: dict[str, int], tmp_path: Path
) -> None:
    """No sequence is longer than what the config states, under whatever name: engines cut there."""
    model = make_model(family, tmp_path / "model", **changes)
    write_rows(make_rows(40, 2), tmp_path / "train.jsonl")
    settings = settings_for(gptq(4)).model_copy(
        update={"contract": ContractSettings(max_length=1024)}
    )
    folders = Folders({"model": model, "data": tmp_path}, tmp_path, tmp_path)
    chosen = calibrate_on(gptq(4), settings, folders)
    assert {len(each) for each in chosen.sequences} == {256}


@pytest.mark.parametrize("quantizer", [gptq, autoround])
def test_calibration_text_alone_needs_no_training_rows(
    quantizer: Callable[..., QuantizeSpec], model_of: ModelOf, tmp_path: Path
) -> None:
    """A text is enough, it is counted, and another one makes another model."""
    made = []
    for name in ("first", "second"):
        write_rows(make_texts(name, 60), tmp_path / name / "text.jsonl")
        spec = quantizer(4, calibration={"tokens": 600, "text": f"{name}.txt"})
        out = tmp_path / f"{name}-out"
        figures = quantize(spec, model_of("llama"), tmp_path / name, out)
        assert figures.calibration_text_tokens == figures.calibration_tokens > 256
        assert figures.calibration_rows + figures.calibration_unused == 60
        made.append((out / "model.safetensors").read_bytes())
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("spec", "worst"),
    [
        (gptq(8), 0.02),
        (gptq(4, sym=False), 0.2),
        (gptq(3, desc_act=True), 0.4),
        (gptq(2, group_size=32), 0.8),
    ],
)
def test_gptq_reads_back_by_another_reader(
    spec: GptqSpec, worst: float, model_of: ModelOf, made: Made
) -> None:
    """Our own unpacking of format v1 finds weights as near as the bits allow."""
    folder, _ = made(spec, "llama")
    model = open_unpacked(folder, bits=spec.bits, dtype=torch.float32)
    error = worst_weight_error(model_of("llama"), model)
    assert worst / 20 < error < worst


@pytest.mark.parametrize("family", ["bloom", "falcon", "falcon-rw", "llama"])
def test_gptq_families_in_one_process(family: Family, model_of: ModelOf, made: Made) -> None:
    """Every block's layers are quantized, and close to what they were."""
    folder, figures = made(gptq(4), family)
    assert figures.modules == (14 if family == "llama" else 8)
    model = open_unpacked(folder, bits=4, dtype=torch.float32)
    assert 0.01 < worst_weight_error(model_of(family), model) < 0.2


def test_gptq_kernels_agree_with_the_files(made: Made) -> None:
    """The engine's own layers give the logits of the weights we unpack."""
    from gptqmodel import BACKEND

    from modelmill.stages.infer.gptq_engine import open_packed

    folder, _ = made(gptq(4), "falcon")
    ours = open_unpacked(folder, bits=4, dtype=torch.float32)
    engine, name = open_packed(folder, torch.float16, backend=BACKEND.GPTQ_TORCH, device="cpu")
    ids = torch.arange(20, 60).reshape(2, 20)
    # The kernel compiles itself at the first call: a minute for the same numbers.
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        expected = ours(ids).logits
        difference = (engine(ids).logits.float() - expected).norm() / expected.norm()
    assert difference < 0.01
    assert name.startswith("gptqmodel ")


def test_gptq_group_size_is_refused_before_the_engine_runs(
    model_of: ModelOf, data: Path, tmp_path: Path
) -> None:
    """A width of 64 cannot be cut into groups of 128."""
    with pytest.raises(SpecError, match=r"128 does not divide .*\(64\)"):
        quantize(gptq(4, group_size=128), model_of("llama"), data, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("quantizer", [gptq, rtn])
def test_outputs_that_do_not_pack_are_refused_before_the_engine_runs(
    quantizer: Callable[..., QuantizeSpec], data: Path, tmp_path: Path
) -> None:
    """Zero points of 3 bits for 16 outputs fill one word and a half."""
    narrow = make_model("gemma", tmp_path / "narrow", head_dim=16)
    with pytest.raises(SpecError, match=r"3 bits do not pack .*k_proj \(16\)"):
        quantize(quantizer(3), narrow, data, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_outputs_that_autoround_leaves_out_are_refused_before_it_runs(
    data: Path, tmp_path: Path
) -> None:
    """Its engine keeps a layer of 16 outputs in 16 bits, even where they would pack."""
    narrow = make_model("gemma", tmp_path / "narrow", head_dim=16)
    with pytest.raises(SpecError, match=r"AutoRound leaves out .*k_proj \(16\)"):
        quantize(autoround(4), narrow, data, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_gptq_interrupted_stops_between_layers(
    model_of: ModelOf, data: Path, tmp_path: Path
) -> None:
    """Asked to stop, the stage ends with that, not with the engine's own error."""
    pulse = RecordingPulse(stop_after=2, stop_with=Interrupted("asked to stop"))
    with pytest.raises(Interrupted):
        quantize(gptq(4), model_of("llama"), data, tmp_path / "out", pulse)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_gptq_file_without_a_tensor_is_refused(
    model_of: ModelOf, made: Made, tmp_path: Path
) -> None:
    """Negative control: the check after writing sees a lost scale and an unquantized layer."""
    shutil.copytree(made(gptq(4), "llama")[0], tmp_path / "out")
    config = open_config(model_of("llama"))
    path = tmp_path / "out" / "model.safetensors"
    whole = load_file(path)
    assert check_files(tmp_path / "out", config) == 14
    lost = "model.layers.1.mlp.up_proj.scales"
    save_file({name: each for name, each in whole.items() if name != lost}, path)
    with pytest.raises(DataError, match=lost):
        check_files(tmp_path / "out", config)
    layer = lost.removesuffix(".scales")
    plain = {name: each for name, each in whole.items() if not name.startswith(layer)}
    save_file({**plain, f"{layer}.weight": torch.zeros(192, 64)}, path)
    with pytest.raises(DataError, match=f"{layer}.weight"):
        check_files(tmp_path / "out", config)


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        (gptq(8), "gptq"),
        (gptq(2, group_size=32), "gptq"),
        (rtn(4, sym=False), "rtn"),
        (autoround(4), "autoround"),
        (BitsandbytesSpec(method="bitsandbytes"), "bitsandbytes-nf4"),
        (BitsandbytesSpec(method="bitsandbytes", type="fp4"), "bitsandbytes-fp4"),
        (BitsandbytesSpec(method="bitsandbytes", type="int8"), "bitsandbytes-int8"),
    ],
)
def test_infer_opens_what_quantize_wrote(
    spec: QuantizeSpec, method: str, model_of: ModelOf, made: Made
) -> None:
    """Method, bits, size and true parameter count; it computes in the dtype of the run."""
    bits = bits_of(spec)
    folder, figures = made(spec, "llama")
    opened = open_any(folder, torch.float32, torch.device("cpu"))
    assert (opened.method, opened.bits, opened.parameters) == (method, bits, figures.parameters)
    plain = open_any(model_of("llama"), torch.float32, torch.device("cpu"))
    assert (plain.method, plain.bits, plain.parameters) == ("none", 16, figures.parameters)
    ids = torch.arange(20, 60).reshape(2, 20)
    with torch.inference_mode():
        expected = plain.model(ids).logits
        logits = opened.model(ids).logits
    assert logits.dtype == torch.float32
    difference = ((logits - expected).norm() / expected.norm()).item()
    assert {8: 0.0001, 4: 0.02, 2: 0.1}[bits] < difference < {8: 0.05, 4: 0.6, 2: 1.5}[bits]


def test_width_that_no_group_divides_is_refused(data: Path, tmp_path: Path) -> None:
    """48 input features leave only bitsandbytes."""
    odd = make_model("llama", tmp_path / "odd", intermediate_size=48)
    with pytest.raises(SpecError, match="bitsandbytes"):
        quantize(gptq(4), odd, data, tmp_path / "out")
