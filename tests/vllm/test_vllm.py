"""What is said of vLLM is what vLLM's own code does with the files that quantize writes.

That code runs here, without a GPU and without vLLM's environment; `ask.py` says what is real.
"""

import ast
import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modelmill.models.families import linear_in_features
from modelmill.models.gptq import open_unpacked
from modelmill.models.vllm.job import Job, engine_arguments, sampling_arguments
from modelmill.models.weights import tensor_shapes
from modelmill.spec.grouping import CHOICES
from modelmill.spec.vllm import BORROWED, FAMILIES, UNSERVED, packing_problems
from modelmill.stages.infer.vllm_engine import ENVIRONMENT

from ..quantize.running import autoround, gptq, quantize, rtn
from ..tiny_stages import make_model, make_rows, write_rows
from .conftest import Ask
from .source import ARGUMENTS, BLOOM, LLM, REGISTRY, SAMPLING, SWITCHES

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine's own

MAKERS = {"gptq": gptq, "autoround": autoround, "rtn": rtn}
GOOD = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "quant_method": "gptq"}
NEEDED = tuple(GOOD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny llama and rows."""
    made = tmp_path_factory.mktemp("vllm")
    make_model("llama", made / "model")
    write_rows(make_rows(60, 1), made / "data/train.jsonl")
    return made


def write(folder: Path, name: str, spec: Any) -> Path:
    """Run the stage."""
    quantize(spec, folder / "model", folder / "data", folder / name)
    return folder / name


def said(written: Path) -> dict[str, Any]:
    """Read what a checkpoint says of itself, in the file that vLLM reads."""
    config: dict[str, Any] = json.loads((written / "config.json").read_text())
    packed: dict[str, Any] = config["quantization_config"]
    return packed


def layers_of(written: Path, bits: int) -> Iterator[tuple[str, list[int]]]:
    """List layers with inputs and outputs."""
    model = open_unpacked(written, bits=bits, dtype=torch.float32)
    for name, inputs in linear_in_features(model).items():
        yield name, [inputs, model.get_submodule(name).out_features]


@pytest.mark.parametrize("name", ["gptq-4", "autoround-4", "rtn-8"])
def test_vllm_makes_room_for_every_tensor_that_is_written(
    name: str, folder: Path, ask: Ask
) -> None:
    """Names and shapes of a whole checkpoint agree; `g_idx` is what vLLM drops itself."""
    method, _, bits = name.partition("-")
    written = write(folder, name, MAKERS[method](int(bits), compat=["vllm"]))
    layers = dict(layers_of(written, int(bits)))
    (answer,) = ask({"read": [{"config": said(written), "layers": layers}]})
    assert answer["refused"] == ""
    stored = {
        f"{layer}.{part}": shape
        for layer, parts in answer["tensors"].items()
        for part, shape in parts.items()
    }
    packed = {
        tensor: list(shape)
        for tensor, shape in tensor_shapes(written).items()
        if tensor.rpartition(".")[0] in layers and not tensor.endswith(".g_idx")
    }
    assert stored == packed


def test_vllm_reads_what_the_rules_say_and_nothing_else(folder: Path, ask: Ask) -> None:
    """Every combination that can be asked for, said as the stage says it."""
    config = said(write(folder, "rtn-4", rtn(4)))
    asked = list(product((2, 3, 4, 8), (True, False), (True, False), CHOICES))
    layers = {"layer": [512, 192]}
    changes = [
        {"bits": bits, "sym": sym, "desc_act": reorders, "group_size": group}
        for bits, sym, reorders, group in asked
    ]
    answers = ask({"read": [{"config": {**config, **each}, "layers": layers} for each in changes]})
    for (bits, sym, reorders, group), answer in zip(asked, answers, strict=True):
        is_read = not any(packing_problems(bits, sym=sym, reorders=reorders))
        assert is_read is not bool(answer["refused"]), (bits, sym, reorders, group, answer)


def test_vllm_needs_each_key_that_is_written(ask: Ask) -> None:
    """Negative control: without one of them the checkpoint is not read."""
    lacking = [{name: each for name, each in GOOD.items() if name != key} for key in NEEDED]
    answers = ask({"read": [{"config": each, "layers": {}} for each in (GOOD, *lacking)]})
    assert [not each["refused"] for each in answers] == [True, *([False] * len(NEEDED))]


def test_vllm_refuses_a_group_that_does_not_divide(ask: Ask) -> None:
    """Inputs that do not fill a tile are padded, a group is not: falcon-7b has 71 times 64."""
    layers = {"falcon": [4544, 4672]}
    asked = [{"config": {**GOOD, "group_size": size}, "layers": layers} for size in (64, 128)]
    whole, broken = ask({"read": asked})
    assert whole["tensors"]["falcon"]["scales"] == [71, 4672]
    assert "not divisible by group_size = 128" in broken["refused"]


def test_vllm_has_no_room_for_zero_points_that_do_not_fill_a_word(ask: Ask) -> None:
    """What `layer_problem` refuses: the last of 100 outputs would have no zero point."""
    asked = [{"config": {**GOOD, "bits": bits}, "layers": {"odd": [64, 100]}} for bits in (4, 8)]
    four, eight = (each["tensors"]["odd"]["qzeros"][1] for each in ask({"read": asked}))
    assert four * 8 == 96
    assert eight * 4 == 100


def test_families_are_as_in_the_registry(source: Path, ask: Ask) -> None:
    """Each is served by a model of vLLM's own, with transformers' code, or not at all."""
    wanted = {
        **dict.fromkeys(FAMILIES, "own"),
        **dict.fromkeys(BORROWED, "borrowed"),
        **dict.fromkeys(UNSERVED, "neither"),
    }
    names = {family: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family] for family in wanted}
    found = ask({"families": list(names.values())})
    assert {family: found[name] for family, name in names.items()} == wanted
    # The condition under which code of transformers is run, repeated by `ask.py`.
    registry = (source / REGISTRY).read_text(encoding="utf-8")
    condition = (
        "transformers_model_cls.is_backend_compatible()\n"
        "            or transformers_model_cls._can_set_attn_implementation()\n"
    )
    assert condition in registry


def test_bloom_is_read_in_16_bits_only(source: Path) -> None:
    """Its loader reorders the first axis, which is the outputs of a plain weight alone."""
    tree = ast.parse((source / BLOOM).read_text(encoding="utf-8"))
    [loader] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "_repack_qkv"
    ]
    names: dict[str, Any] = {"torch": torch, "Iterable": Iterable}
    exec(compile(ast.Module([loader], []), BLOOM, "exec"), names)  # noqa: S102 - a pinned source
    model = SimpleNamespace(config=SimpleNamespace(num_attention_heads=4))
    layer = "h.0.self_attention.query_key_value"
    plain, packed = torch.zeros(768, 256), torch.zeros(32, 768, dtype=torch.int32)
    [(_, read)] = names["_repack_qkv"](model, [(f"{layer}.weight", plain)])
    assert read.shape == plain.shape
    with pytest.raises(RuntimeError, match="invalid for input"):
        list(names["_repack_qkv"](model, [(f"{layer}.qweight", packed)]))


JOB = Job(
    model="model",
    dtype="bfloat16",
    prompts=((5, 6),),
    max_new_tokens=4,
    eos=(1,),
    stop_text="end",
    memory_share=0.5,
)


def parsed(source: Path, name: str) -> ast.Module:
    """Parse a file of vLLM's."""
    return ast.parse((source / name).read_text(encoding="utf-8"))


def fields(tree: ast.Module, name: str) -> dict[str, str]:
    """List the fields of a class with their types as they are written."""
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return {
        ast.unparse(each.target): ast.unparse(each.annotation)
        for each in found.body
        if isinstance(each, ast.AnnAssign)
    }


def parameters(tree: ast.Module, owner: str, name: str) -> set[str]:
    """List what a method is called with by name."""
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner]
    [method] = [
        node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    return {each.arg for each in (*method.args.args, *method.args.kwonlyargs)}


def test_vllm_takes_every_argument_of_the_speed_engine(source: Path) -> None:
    """What `LLM` does not name itself it hands to `EngineArgs`; a name that is gone is noticed."""
    llm = parsed(source, LLM)
    handed = (
        parameters(llm, "LLM", "__init__") | fields(parsed(source, ARGUMENTS), "EngineArgs").keys()
    )
    assert set(engine_arguments(JOB)) <= handed
    assert parameters(llm, "LLM", "generate") >= {"use_tqdm", "sampling_params"}
    known = fields(parsed(source, SAMPLING), "SamplingParams")
    asked = sampling_arguments(JOB)
    assert set(asked) <= set(known)
    assert known["max_tokens"] == "int | None"
    assert "list[int]" in known["stop_token_ids"]
    assert "n_beams" not in known  # negative control


def test_vllm_reads_every_switch_of_the_speed_engine(source: Path) -> None:
    """A variable that it does not know would be set for nothing."""
    text = (source / SWITCHES).read_text(encoding="utf-8")
    switches = [name for name in ENVIRONMENT if name.startswith("VLLM_")]
    assert switches
    assert all(f'"{name}": lambda' in text for name in switches)
