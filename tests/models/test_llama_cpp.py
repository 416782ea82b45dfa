"""Models as GGUF files: read, divided into tokens and answered by llama.cpp itself."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelmill.models.gguf import read_outline, write_gguf
from modelmill.spec.names import Gguf

from ..tiny_stages import Family
from .test_gguf import CONVERTED, changed

Models = Callable[[Family], Path]

TEXTS = ("table t17 column\nsql: select", "a", "where b = 9 and c = 'x y'", "Grüße, 你好 🙂 12345")
SHORT_OF_BEST: dict[Gguf, float] = {"f16": 0.05, "q8_0": 0.5, "q4_0": 0.5}
"""By how much a token's logit may be below the best one's: llama.cpp rounds what goes into a
product to 16 bits, or to 8.  Measured: up to 0.003, 0.09 and 0.10; a mistake costs above 7."""

WRONG = 2.0

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def prepared(model: Path, folder: Path, **changes: object) -> Path:
    """Copy a model, with norms and biases that are not all alike, and the tokenizer of its kind."""
    changed(model, folder, **changes)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            weights[name] = tensor + torch.randn_like(tensor) / 4
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def short_of_best(reference: Path, path: Path, *, is_rounded: bool = False) -> float:
    """Let llama.cpp answer, and say how far its worst choice is below transformers' best.

    Args:
        reference: a model's folder, whose ids are to be those of llama.cpp.
        path: the file that llama.cpp reads.
        is_rounded: whether transformers takes the weights of the file, too.
    """
    script = Path(__file__).with_name("llama_cpp.py")
    done = subprocess.run(
        [sys.executable, str(script), str(path), *TEXTS],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    tokenizer = AutoTokenizer.from_pretrained(reference)
    assert [each["ids"] for each in told] == [tokenizer(text).input_ids for text in TEXTS]
    place = {"gguf_file": path.name} if is_rounded else {}
    model = AutoModelForCausalLM.from_pretrained(
        path.parent if is_rounded else reference, dtype=torch.float32, **place
    )
    worst = 0.0
    for ids, new in ((each["ids"], each["next"]) for each in told):
        with torch.no_grad():
            logits = model(torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1]
        logits[:, tokenizer.eos_token_id] = -torch.inf  # it goes on behind the end
        taken = logits.gather(1, torch.tensor(new)[:, None])[:, 0]
        worst = max(worst, float((logits.max(1).values - taken).max()))
    return worst


@pytest.mark.parametrize("asked", SHORT_OF_BEST)
@pytest.mark.parametrize("family", CONVERTED)
def test_llama_cpp_takes_the_models_best_tokens(
    model_of: Models, tmp_path: Path, family: Family, asked: Gguf
) -> None:
    """And divides texts as the model's tokenizer does; of a special piece without a row, too."""
    folder = prepared(model_of(family), tmp_path / "model")
    write_gguf(read_outline(folder, "tiny"), folder, tmp_path / "file.gguf", asked)
    short = short_of_best(folder, tmp_path / "file.gguf", is_rounded=asked != "f16")
    assert short <= SHORT_OF_BEST[asked]


def test_llama_cpp_slows_positions_as_the_model_does(model_of: Models, tmp_path: Path) -> None:
    """Of a llama 3.1; with the settings of another it takes other tokens."""
    folder = prepared(model_of("llama"), tmp_path / "model", rope_parameters=LLAMA3)
    write_gguf(read_outline(folder, "tiny"), folder, tmp_path / "file.gguf", "f16")
    assert short_of_best(folder, tmp_path / "file.gguf") <= SHORT_OF_BEST["f16"]
    other = changed(folder, tmp_path / "other", rope_parameters={**LLAMA3, "factor": 64.0})
    assert short_of_best(other, tmp_path / "file.gguf") > WRONG


def test_rows_in_another_order_are_noticed(
    model_of: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: with heads as transformers has them, other tokens are taken."""
    folder = prepared(model_of("llama"), tmp_path / "model")
    monkeypatch.setattr("modelmill.models.gguf.writing.interleaved", lambda rows, _: rows)
    write_gguf(read_outline(folder, "tiny"), folder, tmp_path / "file.gguf", "f16")
    assert short_of_best(folder, tmp_path / "file.gguf") > WRONG
