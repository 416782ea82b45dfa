"""AutoRound: GPTQ's format, nearer to the model than plain rounding where bits are few."""

from pathlib import Path

import pytest
import torch

from modelmill.models.gptq import open_unpacked
from modelmill.models.open import open_model
from modelmill.spec.errors import Interrupted, SpecError

from ..tiny_stages import Family, RecordingPulse, make_rows, write_rows
from .running import FILES, ModelOf, autoround, quantize, rtn, worst_weight_error

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine's own


def lost(folder: Path, plain: Path, bits: int) -> float:
    """Measure how far the logits are from those of the plain model; relative."""
    ids = torch.arange(20, 84).reshape(2, 32)
    original = open_model(plain, dtype=torch.float32, device=torch.device("cpu"))
    with torch.inference_mode():
        expected = original(ids).logits
        found = open_unpacked(folder, bits=bits, dtype=torch.float32)(ids).logits
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("bits", [2, 3])
def test_few_bits_keep_more_than_by_rounding(
    bits: int, model_of: ModelOf, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning which way to round pays, on other text too; nothing is left lying around."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    pulse = RecordingPulse()
    model = model_of("llama")
    figures = quantize(autoround(bits, iters=60), model, data, tmp_path / "out", pulse)
    quantize(rtn(bits), model, tmp_path, tmp_path / "rtn")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"quantize_config.json"}
    assert (figures.method, figures.bits, figures.group_size) == ("autoround", bits, 64)
    assert (figures.modules, figures.calibration_tokens) == (14, 1024)
    assert pulse.told[-1] == (2, 2, "layers")
    assert lost(tmp_path / "out", model, bits) < 0.95 * lost(tmp_path / "rtn", model, bits)
    same = (tmp_path / "rtn/model.safetensors").stat().st_size
    assert figures.size_bytes == pytest.approx(same, rel=0.05)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("family", ["bloom", "falcon", "falcon-rw"])
def test_every_family_is_quantized(
    family: Family, model_of: ModelOf, data: Path, tmp_path: Path
) -> None:
    """Layers of other classes and names are found, and stay near what they were."""
    figures = quantize(autoround(4, sym=False), model_of(family), data, tmp_path / "out")
    assert figures.modules == 8
    model = open_unpacked(tmp_path / "out", bits=4, dtype=torch.float32)
    assert 0.01 < worst_weight_error(model_of(family), model) < 0.3


def test_equal_seeds_give_equal_bytes(model_of: ModelOf, data: Path, tmp_path: Path) -> None:
    """Nothing in the files depends on when or where they were written."""
    for name in ("one", "two"):
        quantize(autoround(2), model_of("llama"), data, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_neither_text_nor_paths_leak(
    model_of: ModelOf, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A canary in every training row is in no file and no line of the log; no path in a file."""
    rows = [
        row.model_copy(update={"prompt": f"canary {row.prompt}", "completion": "canary"})
        for row in make_rows(40, 2)
    ]
    write_rows(rows, tmp_path / "secret" / "train.jsonl")
    quantize(autoround(4), model_of("llama"), tmp_path / "secret", tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert b"canary" not in content, path.name
        assert b"/tmp" not in content, path.name
    told = capfd.readouterr()
    assert "canary" not in told.out + told.err


def test_interrupted_stops_in_the_middle_of_a_block(
    model_of: ModelOf, data: Path, tmp_path: Path
) -> None:
    """Asked to stop, the stage ends with that, not with the engine's own error."""
    pulse = RecordingPulse(stop_after=5, stop_with=Interrupted("asked to stop"))
    with pytest.raises(Interrupted):
        quantize(autoround(2), model_of("llama"), data, tmp_path / "out", pulse)
    assert list((tmp_path / "out").iterdir()) == []


def test_group_size_is_refused_before_the_engine_runs(
    model_of: ModelOf, data: Path, tmp_path: Path
) -> None:
    """The rule is GPTQ's: a width of 64 cannot be cut into groups of 128."""
    with pytest.raises(SpecError, match=r"128 does not divide .*\(64\)"):
        quantize(autoround(2, group_size=128), model_of("llama"), data, tmp_path / "out")
