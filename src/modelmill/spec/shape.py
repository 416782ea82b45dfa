"""What a model is made of, by its config and its files' headers.  Pure.

Knows the spellings that architectures have for the same number; must not know where files are,
and opens no model.  What is not understood is said, so that nothing rests on a guess.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from pydantic import JsonValue

from modelmill.spec.batching import STATEFUL, UPDATED_ROPES
from modelmill.spec.closed import Spec

TRANSPOSED: Final = frozenset({"gpt2", "openai-gpt", "imagegpt"})
"""Families whose layers store `(in, out)`: transformers' `Conv1D`."""

_SPELLINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len"),
}

_IN_BLOCK: Final = re.compile(r"^(?P<before>.*?\.)?(?P<number>\d+)\.(?P<name>.+)\.weight$")
_HEADS: Final = ("lm_head.weight", "embed_out.weight")
_MATRIX: Final = 2


class StoredTensor(Protocol):
    """What a file's header says of a tensor."""

    @property
    def dtype(self) -> str:
        """As safetensors spell it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        ...

    @property
    def start(self) -> int:
        """Its first byte."""
        ...

    @property
    def end(self) -> int:
        """The byte behind it."""
        ...


class LinearShape(Spec):
    """A linear layer that every decoder block has."""

    name: str
    """With a `*` for the number of the block."""
    in_features: int
    out_features: int
    count: int
    """Of blocks that have one of this shape."""

    @property
    def parameters(self) -> int:
        """Of all of them, without biases."""
        return self.in_features * self.out_features * self.count


class ModelShape(Spec):
    """Sizes that memory, disk and group sizes follow from."""

    model_type: str
    parameters: int
    """A tied matrix counts once."""
    embedding_parameters: int
    """Of the vocabulary's matrix."""
    bytes_by_dtype: Mapping[str, int]
    """Of the weight files."""
    largest_tensor: str
    largest_parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """Features between the two halves of a feed-forward network."""
    vocabulary: int
    positions: int | None
    """Tokens that can be told apart; None where nothing says so."""
    tied: bool
    linears: tuple[LinearShape, ...]
    answers_alone: bool = False
    """Whether a forward changes the model, so that it answers one batch at a time."""
    quantized_with: str = ""
    """What the files are quantized with already; empty for a plain model."""

    @property
    def weight_bytes(self) -> int:
        """Of the files."""
        return sum(self.bytes_by_dtype.values())

    @property
    def linear_parameters(self) -> int:
        """Of the layers that quantizers and adapters work on."""
        return sum(each.parameters for each in self.linears)

    @property
    def is_gated(self) -> bool:
        """Whether two layers lead into the feed-forward network, one of them its gate."""
        into = {
            each.name
            for each in self.linears
            if each.out_features == self.inner and each.in_features == self.hidden
        }
        return len(into) > 1

    def in_features(self) -> Mapping[str, int]:
        """Map each kind of linear layer to its width, for the choice of a group size."""
        return {each.name: each.in_features for each in self.linears}

    def out_features(self) -> Mapping[str, int]:
        """Map each kind of linear layer to its outputs, for what packs them."""
        return {each.name: each.out_features for each in self.linears}


def shape_of(config: Mapping[str, JsonValue], tensors: Mapping[str, StoredTensor]) -> ModelShape:
    """Read a model's sizes.

    Args:
        config: `config.json`.
        tensors: every tensor of the weight files, by name.

    Raises:
        ValueError: in words, where something that is needed is not said.
    """
    inner_config = config.get("text_config")
    text = {**config, **inner_config} if isinstance(inner_config, dict) else config
    numbers = {name: _number(text, spellings) for name, spellings in _SPELLINGS.items()}
    hidden, layers, heads = (_needed(numbers, name) for name in ("hidden", "layers", "heads"))
    vocabulary = _needed({"vocab_size": _number(text, ("vocab_size",))}, "vocab_size")
    if not tensors:
        raise ValueError("the weight files hold no tensors")
    model_type = str(text.get("model_type", ""))
    tied = text.get("tie_word_embeddings", True) is not False or not _has_head(tensors)
    # Files may hold a copy of a tied matrix under the head's name, which a reader drops.
    counted = {name: each for name, each in tensors.items() if not (tied and _is_head(name))}
    if not counted:
        counted = dict(tensors)
    largest = max(counted, key=lambda name: (counted[name].elements, name))
    return ModelShape(
        model_type=model_type,
        parameters=sum(each.elements for each in counted.values()),
        embedding_parameters=max(
            (
                each.elements
                for name, each in counted.items()
                if len(each.shape) == _MATRIX and each.shape[0] >= vocabulary and not _is_head(name)
            ),
            default=vocabulary * hidden,
        ),
        bytes_by_dtype=_bytes_by_dtype(tensors.values()),
        largest_tensor=largest,
        largest_parameters=counted[largest].elements,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(text, numbers["kv_heads"], heads),
        head_dim=_number(text, ("head_dim",)) or hidden // heads,
        inner=numbers["inner"] or 4 * hidden,
        vocabulary=vocabulary,
        positions=None if _reaches_beyond(text) else numbers["positions"],
        tied=tied,
        linears=_linears(tensors, layers, is_transposed=model_type in TRANSPOSED),
        answers_alone=model_type.removesuffix("_text") in STATEFUL or bool(_ropes(text)),
        quantized_with=_quantized_with(config),
    )


def _reaches_beyond(config: Mapping[str, JsonValue]) -> bool:
    """Tell whether more tokens than the config states can be told apart: ALiBi, stretched rotary.

    How many is a question of each kind of stretching, and an estimate need not ask it.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict):
        return config.get("alibi") is True
    return any("factor" in each for each in (rope, *rope.values()) if isinstance(each, dict))


def _ropes(config: Mapping[str, JsonValue]) -> frozenset[str]:
    """Collect the kinds of rotary positions that change with what they see."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict):
        return frozenset()
    told = (each for each in (rope, *rope.values()) if isinstance(each, dict))
    return UPDATED_ROPES & {str(each.get("rope_type") or each.get("type")) for each in told}


def _number(config: Mapping[str, JsonValue], spellings: Iterable[str]) -> int | None:
    for name in spellings:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _needed(numbers: Mapping[str, int | None], name: str) -> int:
    number = numbers[name]
    if number is None:
        spelled = " or ".join(_SPELLINGS.get(name, (name,)))
        msg = f"config.json says no {spelled}"
        raise ValueError(msg)
    return number


def _kv_heads(config: Mapping[str, JsonValue], said: int | None, heads: int) -> int:
    # Falcon's first layout has one head of keys for all queries, whatever the number says.
    if config.get("multi_query") is True and config.get("new_decoder_architecture") is not True:
        return 1
    return said or heads


def _is_head(name: str) -> bool:
    return name.endswith(_HEADS)


def _has_head(tensors: Iterable[str]) -> bool:
    return any(map(_is_head, tensors))


def _bytes_by_dtype(tensors: Iterable[StoredTensor]) -> Mapping[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for each in tensors:
        counts[each.dtype] += each.end - each.start
    return dict(sorted(counts.items()))


def _linears(
    tensors: Mapping[str, StoredTensor], layers: int, *, is_transposed: bool
) -> tuple[LinearShape, ...]:
    """Find the matrices of the numbered list that is as long as there are blocks."""
    lists: dict[str, set[int]] = defaultdict(set)
    found: dict[tuple[str, str, int, int], int] = defaultdict(int)
    for name, tensor in tensors.items():
        match = _IN_BLOCK.match(name)
        if match is None:
            continue
        before = match["before"] or ""
        lists[before].add(int(match["number"]))
        if len(tensor.shape) == _MATRIX:
            rows, columns = tensor.shape
            wide, narrow = (columns, rows) if is_transposed else (rows, columns)
            found[before, match["name"], narrow, wide] += 1
    blocks = {before for before, numbers in lists.items() if len(numbers) == layers}
    return tuple(
        LinearShape(name=f"{before}*.{name}", in_features=narrow, out_features=wide, count=count)
        for (before, name, narrow, wide), count in found.items()
        if before in blocks
    )


def _quantized_with(config: Mapping[str, JsonValue]) -> str:
    said = config.get("quantization_config")
    if not isinstance(said, dict):
        return ""
    return str(said.get("quant_method") or "something")
