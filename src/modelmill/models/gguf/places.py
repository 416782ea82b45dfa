"""Where each tensor of a model goes: llama.cpp's name, its order of rows, and in how many bits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from gguf import GGMLQuantizationType

from modelmill.models.gguf.outline import Config
from modelmill.spec.names import Gguf

BLOCK: Final = 32
"""Weights that share a scale; a row has to be whole blocks."""

_KINDS: Final[Mapping[Gguf, GGMLQuantizationType]] = {
    "f16": GGMLQuantizationType.F16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
}


@dataclass(frozen=True)
class Place:
    """Where a tensor goes."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0
    """How many heads' rows are interleaved; 0 where rows stay as they are."""
    is_head: bool = False
    """Its rows give the logits."""

    def kind(self, asked: Gguf) -> GGMLQuantizationType:
        """Choose how it is held.

        Vectors stay as they are, for they weigh nothing; what gives the logits keeps 8 bits, as it
        keeps more than the rest in the files of llama.cpp's own quantizer.
        """
        if len(self.shape) == 1:
            return GGMLQuantizationType.F32
        if self.shape[-1] % BLOCK:
            return GGMLQuantizationType.F16
        return _KINDS["q8_0" if self.is_head and asked == "q4_0" else asked]


def places(config: Config) -> Mapping[str, Place]:
    """Say where every tensor of a model goes, in the order of the file."""
    embedding = (config.vocab_size, config.hidden_size)
    is_tied = config.tie_word_embeddings
    found = {"model.embed_tokens.weight": Place("token_embd.weight", embedding, is_head=is_tied)}
    for number in range(config.num_hidden_layers):
        for name, place in _in_block(config):
            moved = Place(f"blk.{number}.{place.name}", place.shape, place.heads)
            found[f"model.layers.{number}.{name}"] = moved
    found["model.norm.weight"] = Place("output_norm.weight", (config.hidden_size,))
    if not is_tied:
        found["lm_head.weight"] = Place("output.weight", embedding, is_head=True)
    return found


def _in_block(config: Config) -> Iterator[tuple[str, Place]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_attention_heads, config.kv_heads
    asked, kept = heads * config.head_dim, kv_heads * config.head_dim
    layers = {
        "self_attn.q_proj": ("attn_q", asked, hidden),
        "self_attn.k_proj": ("attn_k", kept, hidden),
        "self_attn.v_proj": ("attn_v", kept, hidden),
        "self_attn.o_proj": ("attn_output", hidden, asked),
        "mlp.gate_proj": ("ffn_gate", inner, hidden),
        "mlp.up_proj": ("ffn_up", inner, hidden),
        "mlp.down_proj": ("ffn_down", hidden, inner),
    }
    # transformers turns the two halves of a head against each other.  So does llama.cpp with a
    # qwen2; in what it calls a llama it turns neighbours.
    is_llama = config.architecture == "llama"
    turned = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads} if is_llama else {}
    for name, (layer, rows, columns) in layers.items():
        yield f"{name}.weight", Place(f"{layer}.weight", (rows, columns), turned.get(name, 0))
        if _has_bias(config, name):
            yield f"{name}.bias", Place(f"{layer}.bias", (rows,), turned.get(name, 0))
    yield "input_layernorm.weight", Place("attn_norm.weight", (hidden,))
    yield "post_attention_layernorm.weight", Place("ffn_norm.weight", (hidden,))


def _has_bias(config: Config, layer: str) -> bool:
    if config.model_type == "qwen2":
        return layer.startswith("self_attn.") and not layer.endswith("o_proj")
    return config.attention_bias if layer.startswith("self_attn.") else config.mlp_bias
