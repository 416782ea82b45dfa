"""Models as GGUF files: written by us, read back by the gguf package and by transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType, quants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelmill.models.gguf import read_outline, write_gguf
from modelmill.models.gguf.writing import interleaved
from modelmill.spec.errors import DataError, SpecError
from modelmill.spec.names import GGUFS, Gguf
from modelmill.store.gguf import read_gguf_header

from ..tiny_stages import Family

Models = Callable[[Family], Path]
CONVERTED: tuple[Family, ...] = ("llama", "mistral", "qwen2")
LAYERS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
TEXT = "table t17 column\nsql: select column where b = 9"


def convert(folder: Path, path: Path, asked: Gguf) -> GGUFReader:
    """Write a model's file, and open it with its format's own reader."""
    write_gguf(read_outline(folder, "tiny"), folder, path, asked)
    return GGUFReader(path)


def changed(model: Path, folder: Path, **changes: object) -> Path:
    """Copy a model and say other things in its config."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


def expected_of(name: str, weights: dict[str, torch.Tensor], *, is_llama: bool) -> np.ndarray:
    """Say what a tensor has to be, row by row; heads have 16 rows."""
    stem, _, suffix = name.rpartition(".")
    layer = stem.rpartition(".")[2]
    number = stem.split(".")[1] if stem.startswith("blk.") else ""
    inner = f"model.layers.{number}.{LAYERS[layer]}" if number else WHOLE[layer]
    rows = weights[f"{inner}.{suffix}"].float().numpy()
    if not is_llama or layer not in ("attn_q", "attn_k"):
        return rows
    order = [
        start + half * 8 + pair
        for start in range(0, len(rows), 16)
        for pair in range(8)
        for half in (0, 1)
    ]
    return rows[order]


@pytest.mark.parametrize("asked", GGUFS)
@pytest.mark.parametrize("family", CONVERTED)
def test_every_tensor_is_the_models_own(
    model_of: Models, tmp_path: Path, family: Family, asked: Gguf
) -> None:
    """In llama.cpp's order: half precision's nearest, or within half a step of a block's scale."""
    folder = changed(model_of(family), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    # A model that was never trained has equal norms and no biases: nothing would mix them up.
    for number, (name, tensor) in enumerate(weights.items()):
        if tensor.dim() == 1:
            weights[name] = torch.arange(len(tensor)) / 64 + number
    save_file(weights, folder / "model.safetensors")
    reader = convert(folder, tmp_path / "file.gguf", asked)
    assert len(reader.tensors) == len(weights)
    for tensor in reader.tensors:
        wanted = expected_of(tensor.name, weights, is_llama=family != "qwen2")
        found = quants.dequantize(tensor.data, tensor.tensor_type)
        assert found.shape == wanted.shape
        if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            is_vector = tensor.tensor_type == GGMLQuantizationType.F32
            nearest = wanted if is_vector else wanted.astype(np.float16)
            np.testing.assert_array_equal(found, nearest)
            continue
        np.testing.assert_array_equal(tensor.data, quants.quantize(wanted, tensor.tensor_type))
        blocks = wanted.reshape(-1, 32)
        steps = 127 if tensor.tensor_type == GGMLQuantizationType.Q8_0 else 8
        largest = np.abs(blocks).max(axis=1, keepdims=True) / steps
        # Four bits reach to 7 and -8: what is opposite to the largest may be a whole step off.
        # The scale itself is half precision.
        reach = (0.5 if steps == 127 else 1) + steps / 2048
        assert (np.abs(found.reshape(-1, 32) - blocks) <= reach * largest).all()


@pytest.mark.parametrize(
    ("asked", "is_tied", "kinds"),
    [
        ("f16", True, {"F16", "F32"}),
        ("q8_0", True, {"Q8_0", "F32"}),
        ("q4_0", True, {"Q4_0", "Q8_0", "F32"}),
        ("q4_0", False, {"Q4_0", "Q8_0", "F32"}),
    ],
)
def test_logits_keep_eight_bits(
    model_of: Models, tmp_path: Path, *, asked: Gguf, is_tied: bool, kinds: set[str]
) -> None:
    """Of four: the head, or the embedding that is one; vectors stay float32."""
    folder = model_of("llama" if is_tied else "mistral")
    reader = convert(folder, tmp_path / "file.gguf", asked)
    held = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert set(held.values()) == kinds
    assert ("output.weight" in held) is not is_tied
    assert held.get("output.weight", held["token_embd.weight"]) in ("F16", "Q8_0")
    assert held["output_norm.weight"] == "F32"


@pytest.mark.parametrize("family", CONVERTED)
def test_another_reader_computes_the_same(model_of: Models, tmp_path: Path, family: Family) -> None:
    """transformers, which reads GGUF by code of its own, gives the model's logits and ids."""
    folder = model_of(family)
    convert(folder, tmp_path / "file.gguf", "f16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="file.gguf", dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=1e-4, rtol=0)
    if family != "qwen2":  # It splits text as Qwen does, whatever a qwen2's file says.
        reread = AutoTokenizer.from_pretrained(tmp_path, gguf_file="file.gguf")
        assert reread(TEXT).input_ids == tokenizer(TEXT).input_ids


def test_file_says_how_the_model_computes(model_of: Models, tmp_path: Path) -> None:
    """All settings of a tiny model but its vocabulary, as they are kept here."""
    folder = model_of("mistral")
    convert(folder, tmp_path / "file.gguf", "q8_0")
    header = read_gguf_header(tmp_path / "file.gguf")
    vocabulary = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
    said = {name: value for name, value in header.settings.items() if name not in vocabulary}
    assert said == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tiny",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "llama.vocab_size": 361,
        # Of 256 positions, for llama.cpp does not know the window of 64.
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 192,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }
    kinds = header.settings["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    assert kinds == [TokenType.CONTROL] * 2 + [TokenType.NORMAL] * 359


def test_equal_models_give_equal_bytes(model_of: Models, tmp_path: Path) -> None:
    """So that an interrupted export finds what is there already."""
    for name in ("a", "b"):
        convert(model_of("qwen2"), tmp_path / name, "q4_0")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.integers(0, 3))
def test_interleaving_is_undone_by_the_readers_own(heads: int, half: int, columns: int) -> None:
    """Whatever the shape, a matrix or a bias: what a reader takes apart is what there was."""
    shape = (heads * 2 * half, *((columns,) if columns else ()))
    rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    turned = interleaved(rows, heads)
    back = turned.reshape(heads, half, 2, *shape[1:]).swapaxes(2, 1).reshape(shape)
    np.testing.assert_array_equal(back, rows)
    assert half == 1 or not np.array_equal(turned, rows)


def test_slowed_positions_are_those_of_transformers(model_of: Models, tmp_path: Path) -> None:
    """Of a llama 3.1 and later: its frequencies are the plain ones over the file's factors."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = changed(model_of("llama"), tmp_path / "model", rope_parameters=rope)
    reader = convert(folder, tmp_path / "file.gguf", "f16")
    (factors,) = [each.data for each in reader.tensors if each.name == "rope_freqs.weight"]
    plain = 1 / 500_000.0 ** (np.arange(0, 16, 2) / 16)
    wanted = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(folder)).inv_freq.numpy()
    np.testing.assert_allclose(plain / factors, wanted, rtol=1e-6)
    assert len(set(factors.tolist())) > 2


def test_config_of_older_versions_says_the_same(model_of: Models, tmp_path: Path) -> None:
    """Before transformers 5 positions were told in two keys."""
    rope = {"type": "linear", "factor": 2.0}
    folder = changed(
        model_of("llama"), tmp_path / "m", rope_parameters=None, rope_scaling=rope, rope_theta=5e5
    )
    convert(folder, tmp_path / "file.gguf", "f16")
    settings = read_gguf_header(tmp_path / "file.gguf").settings
    assert settings["llama.rope.freq_base"] == 5e5
    assert settings["llama.rope.scaling.type"] == "linear"
    assert settings["llama.rope.scaling.factor"] == 2.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "a gpt2 is not converted, only llama, mistral, qwen2"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "scaled by 'yarn'"),
        ({"hidden_act": "gelu"}, "its activation is 'gelu'"),
    ],
)
def test_model_that_llama_cpp_would_compute_otherwise(
    model_of: Models, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    """Refused from its config, before there are weights."""
    folder = changed(model_of("llama"), tmp_path / "model", **changes)
    (folder / "model.safetensors").unlink()
    with pytest.raises(SpecError, match=words):
        read_outline(folder, "tiny")


@pytest.mark.parametrize("what", ["missing", "unknown", "shape", "infinite"])
def test_weights_that_are_not_the_configs(model_of: Models, tmp_path: Path, what: str) -> None:
    """Each is named; nothing is left out of the file, or rounded to infinity."""
    folder = changed(model_of("llama"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    match what:
        case "missing":
            del weights[name]
        case "unknown":
            weights["model.layers.1.mlp.extra.weight"] = torch.zeros(1)
        case "shape":
            weights[name] = weights[name].T.contiguous()
        case "infinite":
            weights[name][3, 4] = 70_000
    save_file(weights, folder / "model.safetensors")
    words = {
        "missing": f"{name} is missing",
        "unknown": "extra.weight has no place",
        "shape": r"is \[64, 192\], not \[192, 64\]",
        "infinite": "blk.1.ffn_up.weight has values that half precision does not hold",
    }
    with pytest.raises(DataError, match=words[what]):
        convert(folder, tmp_path / "file.gguf", "f16")


def test_several_ends_of_an_answer(model_of: Models, tmp_path: Path) -> None:
    """Each has its place in the file; more than there are places are refused."""
    folder = changed(model_of("llama"), tmp_path / "model")
    generation = folder / "generation_config.json"
    generation.write_text('{"eos_token_id": [1, 7, 9]}', encoding="utf-8")
    convert(folder, tmp_path / "file.gguf", "f16")
    settings = read_gguf_header(tmp_path / "file.gguf").settings
    ends = [settings[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")]
    assert ends == [1, 7, 9]
    generation.write_text('{"eos_token_id": [1, 7, 9, 11]}', encoding="utf-8")
    with pytest.raises(SpecError, match="4 tokens end its answers"):
        read_outline(folder, "tiny")


def test_piece_without_a_row(model_of: Models, tmp_path: Path) -> None:
    """A special one, such as a pad, is left out; with a word it is another model's tokenizer."""
    folder = changed(model_of("llama"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    convert(folder, tmp_path / "file.gguf", "f16")
    settings = read_gguf_header(tmp_path / "file.gguf").settings
    assert "<pad>" not in str(settings["tokenizer.ggml.tokens"])
    assert settings["tokenizer.ggml.padding_token_id"] == 1  # as the model's config says
    tokenizer.add_tokens(["word"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(DataError, match="has a piece 362, and the model has rows for 361"):
        read_outline(folder, "tiny")


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_as(step: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """Split by a rule before bytes are made."""
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([step, as_bytes])


@pytest.mark.parametrize(
    ("step", "is_whole_first", "pre"),
    [
        (pre_tokenizers.Split(Regex(LLAMA3), "isolated"), True, "llama-bpe"),
        (pre_tokenizers.Split(Regex(LLAMA3), "isolated"), False, None),
        (pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"), False, "qwen2"),
        (pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "{1,2}")), "isolated"), True, None),
        (pre_tokenizers.Split(Regex(LLAMA3), "removed"), True, None),
        (pre_tokenizers.Whitespace(), False, None),
    ],
)
def test_splitting_of_text_is_recognised_or_refused(
    model_of: Models,
    tmp_path: Path,
    *,
    step: pre_tokenizers.PreTokenizer,
    is_whole_first: bool,
    pre: str | None,
) -> None:
    """By the rule itself: one that is nearly a known one gives other ids."""
    folder = changed(model_of("llama"), tmp_path / "model")
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.pre_tokenizer = split_as(step)
    core.model.ignore_merges = is_whole_first
    core.save(str(folder / "tokenizer.json"))
    if pre is None:
        with pytest.raises(SpecError, match="no name for how its tokenizer splits text"):
            read_outline(folder, "tiny")
    else:
        assert read_outline(folder, "tiny").vocabulary.pre == pre


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
LETTERS = ["\u2581", "t", "a", "b", "l", "e"]
MERGES = [("\u2581", "t"), ("a", "b"), ("l", "e"), ("ab", "le"), ("\u2581t", "able")]


def pieces_tokenizer(folder: Path, merges: list[tuple[str, str]]) -> None:
    """Write a tokenizer of the kind that Llama 2 and Mistral have."""
    names = [*PIECES, *LETTERS, *dict.fromkeys(map("".join, merges))]
    core = Tokenizer(
        models.BPE(
            vocab={name: number for number, name in enumerate(names)},
            merges=merges,
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.save(str(folder / "tokenizer.json"))


def test_pieces_of_sentencepiece_get_their_scores_back(model_of: Models, tmp_path: Path) -> None:
    """Its byte pieces are marked, and a piece that is merged first scores best."""
    folder = changed(model_of("mistral"), tmp_path / "model")
    pieces_tokenizer(folder, MERGES)
    convert(folder, tmp_path / "file.gguf", "f16")
    settings = read_gguf_header(tmp_path / "file.gguf").settings
    tokens, kinds = settings["tokenizer.ggml.tokens"], settings["tokenizer.ggml.token_type"]
    scores = settings["tokenizer.ggml.scores"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    assert isinstance(scores, list)
    assert settings["tokenizer.ggml.model"] == "llama"
    assert settings["tokenizer.ggml.add_space_prefix"] is True
    assert kinds[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert kinds[259:270] == [TokenType.NORMAL] * 11
    assert (tokens[270], kinds[270]) == ("[PAD270]", TokenType.UNUSED)
    assert tokens[265:270] == ["\u2581t", "ab", "le", "able", "\u2581table"]
    assert scores[265:270] == [0, -1, -2, -3, -4]
    assert max(scores[259:265]) == -5


def test_merges_that_no_scores_give(model_of: Models, tmp_path: Path) -> None:
    """A piece that is made early from two parts and late from others is not SentencePiece's."""
    folder = changed(model_of("mistral"), tmp_path / "model")
    pieces_tokenizer(folder, [*MERGES, ("b", "le"), ("a", "ble")])
    with pytest.raises(SpecError, match="no name for how"):
        read_outline(folder, "tiny")
