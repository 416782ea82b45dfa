"""Models as their headers tell them, made up by size: no file, no library."""

from dataclasses import dataclass
from math import prod
from typing import Any

from modelmill.spec.shape import ModelShape, shape_of


@dataclass(frozen=True)
class Tensor:
    """An entry of a header."""

    shape: tuple[int, ...]
    dtype: str = "BF16"
    start: int = 0

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def end(self) -> int:
        """Two bytes for each."""
        return self.start + 2 * self.elements


LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
"""Of Llama-2-7B."""


def llama_tensors(config: dict[str, Any] = LLAMA) -> dict[str, Tensor]:
    """List what a llama of this config stores."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    tensors = {
        "model.embed_tokens.weight": Tensor((config["vocab_size"], hidden)),
        "model.norm.weight": Tensor((hidden,)),
        "lm_head.weight": Tensor((config["vocab_size"], hidden)),
    }
    for number in range(config["num_hidden_layers"]):
        block = f"model.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{block}.self_attn.{name}.weight"] = Tensor((hidden, hidden))
        for name in ("gate_proj", "up_proj"):
            tensors[f"{block}.mlp.{name}.weight"] = Tensor((inner, hidden))
        tensors[f"{block}.mlp.down_proj.weight"] = Tensor((hidden, inner))
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}.{name}.weight"] = Tensor((hidden,))
    return tensors


def llama(**changes: Any) -> ModelShape:
    """Make the shape of a llama of seven billion parameters, or of another."""
    config = {**LLAMA, **changes}
    return shape_of(config, llama_tensors(config))


def falcon(hidden: int = 4544, layers: int = 2) -> ModelShape:
    """Make the shape of a falcon with one head of keys, of as many layers as matter."""
    tensors = {"transformer.word_embeddings.weight": Tensor((65024, hidden))}
    for number in range(layers):
        block = f"transformer.h.{number}"
        tensors |= {
            f"{block}.self_attention.query_key_value.weight": Tensor((hidden + 128, hidden)),
            f"{block}.self_attention.dense.weight": Tensor((hidden, hidden)),
            f"{block}.mlp.dense_h_to_4h.weight": Tensor((4 * hidden, hidden)),
            f"{block}.mlp.dense_4h_to_h.weight": Tensor((hidden, 4 * hidden)),
        }
    config: dict[str, Any] = {
        "model_type": "falcon",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "vocab_size": 65024,
        "multi_query": True,
    }
    return shape_of(config, tensors)
