"""A model's sizes are read off its config and its headers, whoever wrote them."""

from typing import Any

import pytest

from modelmill.spec.shape import shape_of

from .models import LLAMA, Tensor, falcon, llama, llama_tensors


def test_shape_of_llama_2_7b() -> None:
    """The published number of parameters, and half as many bytes twice."""
    shape = llama()
    assert shape.parameters == 6_738_415_616
    assert shape.weight_bytes == 2 * shape.parameters
    assert (shape.kv_heads, shape.head_dim, shape.is_gated) == (32, 128, True)
    assert {each.count for each in shape.linears} == {32}
    assert shape.in_features()["model.layers.*.mlp.down_proj"] == 11008


def test_shape_of_falcon_has_one_head_of_keys() -> None:
    """`multi_query` says it, and no number does."""
    shape = falcon()
    assert (shape.kv_heads, shape.inner, shape.is_gated) == (1, 4 * 4544, False)
    assert shape.tied


def test_head_that_repeats_the_embeddings_counts_once() -> None:
    """Files may hold a copy of a tied matrix, which a reader drops."""
    config = {**LLAMA, "tie_word_embeddings": True}
    tied = shape_of(config, llama_tensors())
    assert tied.parameters == llama().parameters - 32000 * 4096
    assert tied.weight_bytes == llama().weight_bytes


def test_gpt2_stores_its_layers_the_other_way_round() -> None:
    """`Conv1D` is (in, out)."""
    tensors = {
        "wte.weight": Tensor((100, 8)),
        "h.0.attn.c_attn.weight": Tensor((8, 24)),
        "h.0.mlp.c_proj.weight": Tensor((32, 8)),
    }
    config: dict[str, Any] = {
        "model_type": "gpt2",
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": 100,
    }
    widths = shape_of(config, tensors).in_features()
    assert widths == {"h.*.attn.c_attn": 8, "h.*.mlp.c_proj": 32}


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_config_without_a_number_is_not_guessed_at(missing: str) -> None:
    """What is not understood is said, with the spellings that were looked for."""
    config = {name: value for name, value in LLAMA.items() if name != missing}
    with pytest.raises(ValueError, match=missing):
        shape_of(config, llama_tensors())


def test_text_model_inside_a_larger_one_is_the_one_that_counts() -> None:
    """A config may hold the language model's own in `text_config`."""
    outer: dict[str, Any] = {"model_type": "outer", "text_config": LLAMA}
    assert shape_of(outer, llama_tensors()).parameters == llama().parameters


@pytest.mark.parametrize(
    "said",
    [
        {"alibi": True},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}},
    ],
)
def test_what_reaches_beyond_the_number_stated_is_not_held_to_it(said: dict[str, Any]) -> None:
    """An estimate that cut rows there would be too small for what is answered."""
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    assert llama(**said).positions is None
    assert llama(**plain).positions == llama(rope_scaling=None).positions == 4096


@pytest.mark.parametrize(
    ("said", "is_alone"),
    [
        ({}, False),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, False),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, True),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, True),
        ({"model_type": "qwen3_5_text"}, True),
    ],
)
def test_model_that_a_forward_changes_answers_one_batch_at_a_time(
    said: dict[str, Any], is_alone: bool
) -> None:
    """Memory is counted for as many batches as will be answered at once."""
    assert shape_of({**LLAMA, **said}, llama_tensors()).answers_alone is is_alone
