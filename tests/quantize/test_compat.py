"""What readers of another age need beyond the format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CodeGenConfig

from modelmill.conduct.base_model import shape_in
from modelmill.models.gptq import check_files, open_unpacked, store_tied_heads
from modelmill.models.open import open_config
from modelmill.spec.errors import SpecError
from modelmill.spec.memory import quantized_bytes
from modelmill.store.sources import look_local

from ..tiny_stages import Family, make_model
from .running import ModelOf, quantize, rtn

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine's own

HEAD = "lm_head.weight"


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon"])
def test_tied_head_is_stored_once_more_for_auto_gptq(
    family: Family, model_of: ModelOf, tmp_path: Path
) -> None:
    """The copy is all that changes, the size is foretold, and later readers do not mind."""
    spec = rtn(4, compat=["auto-gptq"])
    with_copy = quantize(spec, model_of(family), tmp_path, tmp_path / "with")
    without = quantize(rtn(4), model_of(family), tmp_path, tmp_path / "without")
    stored = load_file(tmp_path / "with/model.safetensors")
    plain = load_file(tmp_path / "without/model.safetensors")
    assert stored.keys() - plain.keys() == {HEAD}
    assert all(torch.equal(stored[name], each) for name, each in plain.items())
    model = open_unpacked(tmp_path / "with", bits=4, dtype=torch.float32)
    assert model.config.tie_word_embeddings
    assert torch.equal(model.get_input_embeddings().weight.half(), stored[HEAD])
    shape = shape_in(look_local(model_of(family)))
    told = quantized_bytes(shape, spec, 64) - quantized_bytes(shape, rtn(4), 64)
    copied = with_copy.size_bytes - without.size_bytes
    assert told == stored[HEAD].nbytes <= copied < told + 200


def test_untied_head_is_left_alone(tmp_path: Path) -> None:
    """Where the head is a tensor of its own there is nothing to copy."""
    model = make_model("llama", tmp_path / "model", tie_word_embeddings=False)
    for name, compat in (("with", ["auto-gptq"]), ("without", [])):
        quantize(rtn(4, compat=compat), model, tmp_path, tmp_path / name)
    stored = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without")]
    assert stored[0] == stored[1]


def test_copy_is_named_in_the_index_of_shards(model_of: ModelOf, tmp_path: Path) -> None:
    """A model in several files stays whole: the index says where the copy is."""
    quantize(rtn(4), model_of("llama"), tmp_path, tmp_path / "one")
    folder = shutil.copytree(tmp_path / "one", tmp_path / "two")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    embedded = {name: each for name, each in tensors.items() if "embed" in name}
    rest = {name: each for name, each in tensors.items() if name not in embedded}
    shards = {"model-1.safetensors": embedded, "model-2.safetensors": rest}
    for name, held in shards.items():
        save_file(held, folder / name, metadata={"format": "pt"})
    places = {name: shard for shard, held in shards.items() for name in held}
    total = sum(each.nbytes for each in tensors.values())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    config = open_config(model_of("llama"))
    store_tied_heads(folder, config)
    told = json.loads(index.read_text())
    assert told["weight_map"] == {**places, HEAD: "model-1.safetensors"}
    copied = load_file(folder / "model-1.safetensors")[HEAD]
    assert told["metadata"]["total_size"] == total + copied.nbytes
    assert check_files(folder, config) == 14


def test_family_that_vllm_does_not_know_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    """The plan refuses it too, where it can see the model; without weights nothing could run."""
    CodeGenConfig().save_pretrained(tmp_path / "model")
    with pytest.raises(SpecError, match="vLLM has no model for codegen"):
        quantize(rtn(4, compat=["vllm"]), tmp_path / "model", tmp_path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
