"""The file itself, written tensor by tensor through the gguf package."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from gguf import (
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    quants,
)
from numpy.typing import NDArray

from modelmill.models.gguf.outline import Config, Outline
from modelmill.models.gguf.places import Place, places
from modelmill.spec.errors import DataError
from modelmill.spec.names import Gguf
from modelmill.store.tensors import TensorInfo, read_safetensors_header

LARGEST: Final = float(np.finfo(np.float16).max)
"""Both weights of 16 bits and scales are half precision."""

_FILE_TYPES: Final[Mapping[Gguf, LlamaFileType]] = {
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
_STORED: Final = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}
_RECOMPUTED: Final = ".rotary_emb.inv_freq"
"""Old checkpoints keep what follows from the config."""

_SHOWN: Final = 5

Floats = NDArray[np.float32]


def write_gguf(outline: Outline, folder: Path, path: Path, asked: Gguf) -> None:
    """Write a model as one GGUF file, tensor by tensor; equal models give equal bytes.

    Args:
        outline: what `read_outline` has found in the folder.
        folder: the model, with its weights in 16 or 32 bits.
        path: the file.
        asked: how weights are held.

    Raises:
        DataError: tensors are missing, of another shape than the config says, or beyond what
            half precision holds.
    """
    wanted = places(outline.config)
    source = _found(folder)
    _check(wanted, source, folder)
    writer = GGUFWriter(path, outline.config.architecture)
    try:
        _tell(writer, outline, asked)
        turns = _turns(outline.config)
        for name, array in turns.items():
            writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
        for place in wanted.values():
            _announce(writer, place, place.kind(asked))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in turns.values():
            writer.write_tensor_data(array)
        for name, place in wanted.items():
            writer.write_tensor_data(_held(source[name].read(), place, asked))
    finally:
        writer.close()


@dataclass(frozen=True)
class _Source:
    """A tensor in a file."""

    path: Path
    offset: int
    info: TensorInfo

    def read(self) -> Floats:
        """Read it, exactly, as float32."""
        stored = np.fromfile(
            self.path, np.dtype(_STORED[self.info.dtype]), self.info.elements, offset=self.offset
        )
        if self.info.dtype == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32, copy=False).reshape(self.info.shape)


def _found(folder: Path) -> Mapping[str, _Source]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = read_safetensors_header(path)
        behind = path.stat().st_size - max((each.end for each in tensors.values()), default=0)
        for name, info in tensors.items():
            found[name] = _Source(path, behind + info.start, info)
    return found


def _check(wanted: Mapping[str, Place], source: Mapping[str, _Source], folder: Path) -> None:
    """Make sure that every tensor has its place, and every place its tensor."""
    over = {name for name in source if not name.endswith(_RECOMPUTED)} - set(wanted)
    # A tied head may be there a second time, for readers that do not tie.
    problems = [f"{name} has no place in it" for name in sorted(over - {"lm_head.weight"})]
    for name, place in wanted.items():
        info = source[name].info if name in source else None
        if info is None:
            problems.append(f"{name} is missing")
        elif info.shape != place.shape:
            problems.append(f"{name} is {list(info.shape)}, not {list(place.shape)}")
        elif info.dtype not in _STORED:
            problems.append(f"{name} is of {info.dtype}")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        shown = "; ".join(problems[:_SHOWN]) + more
        raise DataError(
            f"the weights are not those of the config: {shown}",
            at=str(folder),
            fix="export it without --gguf, and use llama.cpp's own convert_hf_to_gguf.py",
        )


def _tell(writer: GGUFWriter, outline: Outline, asked: Gguf) -> None:
    """Say everything that is not a tensor."""
    config, vocabulary = outline.config, outline.vocabulary
    writer.add_type("model")
    writer.add_name(outline.name)
    writer.add_file_type(_FILE_TYPES[asked])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.theta)
    if config.rope.rope_type == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope.factor)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.has_space_prefix)
    writer.add_token_merges(vocabulary.merges)
    vocabulary.special.add_to_gguf(writer, quiet=True)


def _turns(config: Config) -> Mapping[str, Floats]:
    """Compute by how much each pair of features turns slower, of a llama 3.1 and later.

    transformers' `_compute_llama3_parameters`, as factors: fast pairs stay, slow ones are slowed
    down by the whole factor, and in between it grows smoothly.
    """
    rope = config.rope
    if rope.rope_type != "llama3":
        return {}
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    turned = rope.original_max_position_embeddings / (2 * np.pi * config.theta**pairs)
    width = rope.high_freq_factor - rope.low_freq_factor
    share = np.clip((turned - rope.low_freq_factor) / width, 0, 1)
    factors = 1 / ((1 - share) / rope.factor + share)
    return {"rope_freqs.weight": factors.astype(np.float32)}


def _announce(writer: GGUFWriter, place: Place, kind: GGMLQuantizationType) -> None:
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        dtype = np.dtype(np.float32 if kind == GGMLQuantizationType.F32 else np.float16)
        size_bytes = dtype.itemsize * int(np.prod(place.shape))
        writer.add_tensor_info(place.name, place.shape, dtype, size_bytes)
        return
    shape = quants.quant_shape_to_byte_shape(place.shape, kind)
    writer.add_tensor_info(
        place.name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind
    )


def _held(values: Floats, place: Place, asked: Gguf) -> NDArray[np.generic]:
    """Put rows in order, and weights into so many bits."""
    kind = place.kind(asked)
    # Said so that what is no number is found too.
    if kind != GGMLQuantizationType.F32 and not np.abs(values).max() <= LARGEST:
        raise DataError(
            f"{place.name} has values that half precision does not hold, the largest is "
            f"{np.abs(values).max():.3g}",
            fix="export it without --gguf",
        )
    rows = interleaved(values, place.heads) if place.heads else values
    held: NDArray[np.generic] = quants.quantize(rows, kind)
    return held


def interleaved(rows: Floats, heads: int) -> Floats:
    """Put the two halves of each head's rows between each other: 0, n, 1, n+1, ...

    Args:
        rows: of all heads, one after the other; a matrix, or a bias.
        heads: how many there are.
    """
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
