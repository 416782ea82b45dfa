import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.spec.errors import DataError, InputMissing, ModelmillError, UnsafeArtifact
from modelmill.store.safety import (
    TensorInfo,
    check_adapter,
    check_model,
    read_safetensors_header,
)

from .layouts import sentencepiece, torch_file


def _safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(start: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> object:
    return {
        "dtype": dtype,
        "shape": [(end - start) // 4] if shape is None else shape,
        "data_offsets": [start, end],
    }


GOOD = _safetensors({"__metadata__": {"format": "pt"}, "w": _tensor(0, 8)}, b"\0" * 8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Make the smallest folder that is a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "torch_dtype": "bfloat16"}')
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"auto_map": 1}}}')
    (folder / "model.safetensors").write_bytes(GOOD)
    return folder


def test_header_of_a_sound_file(tmp_path: Path) -> None:
    """Names, dtypes and shapes are read in the order of the bytes."""
    header = {
        "b": _tensor(8, 16, "BF16", [2, 2]),
        "a": _tensor(0, 8),
        "scalar": _tensor(16, 20, "F32", []),
        "empty": _tensor(20, 20, "I64", [0, 3]),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(_safetensors(header, b"\0" * 20))

    tensors = read_safetensors_header(path)

    assert list(tensors) == ["a", "b", "scalar", "empty"]
    assert tensors["b"] == TensorInfo("BF16", (2, 2), 8, 16)
    assert [tensor.elements for tensor in tensors.values()] == [2, 4, 1, 0]


BROKEN = {
    "empty file": (b"", "truncated"),
    "half a length": (b"\1\0\0", "truncated"),
    "half a header": (GOOD[:20], "truncated inside its header"),
    "one byte short": (GOOD[:-1], "truncated"),
    "one byte more": (GOOD + b"\0", "too long"),
    "endless header": (_safetensors({}, length=2**62), "would be"),
    "no JSON": (_safetensors(b"{nonsense"), "cannot be read"),
    "no object": (_safetensors([]), "not a JSON object"),
    "nested": (_safetensors(b'{"a":' + b"[" * 100_000), "cannot be read"),
    "twice": (_safetensors(b'{"w":{},"w":{}}'), "occurs twice"),
    "dtype": (_safetensors({"w": _tensor(0, 4, "F31")}, b"\0" * 4), "unknown dtype"),
    "size": (_safetensors({"w": _tensor(0, 4, shape=[2])}, b"\0" * 4), "cannot have"),
    "negative": (_safetensors({"w": _tensor(0, 4, shape=[-1])}, b"\0" * 4), "wrong at"),
    "huge": (_safetensors({"w": _tensor(0, 4, shape=[2**62, 8])}, b"\0" * 4), "cannot have"),
    "backwards": (_safetensors({"w": _tensor(4, 0, shape=[1])}, b"\0" * 4), "cannot have"),
    "beyond": (_safetensors({"w": _tensor(0, 8)}, b"\0" * 4), "truncated"),
    "overlap": (
        _safetensors({"a": _tensor(0, 8), "b": _tensor(4, 12)}, b"\0" * 12),
        "overlaps",
    ),
    "hole": (_safetensors({"a": _tensor(0, 4), "b": _tensor(8, 12)}, b"\0" * 12), "hole"),
    "extra field": (_safetensors({"w": {"dtype": "F32", "code": "x"}}), "wrong at"),
    "metadata": (_safetensors({"__metadata__": {"a": 1}}), "wrong at"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_header_of_a_broken_file(model: Path, name: str) -> None:
    """Each way to be truncated or corrupt is 65 and names the file and the reason."""
    body, words = BROKEN[name]
    (model / "model.safetensors").write_bytes(body)

    with pytest.raises(DataError, match=words) as caught:
        check_model(model)

    assert caught.value.exit_code == 65
    assert caught.value.at == str(model / "model.safetensors")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_header_with_any_byte_changed(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: int
) -> None:
    """No change makes the parser fail in another way or describe bytes the file lacks."""
    body = bytearray(GOOD)
    body[position] ^= change
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(body)

    try:
        tensors = read_safetensors_header(path)
    except DataError:
        return
    assert sum(tensor.end - tensor.start for tensor in tensors.values()) == 8


def test_model_of_an_ordinary_layout(model: Path) -> None:
    """What model hubs and trainers write is accepted, and unread files are named and dropped."""
    (model / "README.md").write_text("# hello")
    (model / "LICENSE").write_text("free")
    (model / "merges.txt").write_text("a b")
    (model / "tokenizer.model").write_bytes(sentencepiece())
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')
    (model / "config.json").write_text(
        '{"model_type": "llama", "_attn_implementation_autoset": true, "auto_map": null,'
        ' "trust_remote_code": false}'
    )
    (model / "training_args.bin").write_bytes(torch_file())
    (model / "figure.png").write_bytes(b"\x89PNG")

    notes = check_model(model)

    assert len(notes) == 2
    assert not (model / "training_args.bin").exists()
    assert not (model / "figure.png").exists()


def test_model_in_shards(model: Path) -> None:
    """An index may name shards beside it that hold what it says."""
    index = {"metadata": {}, "weight_map": {"w": "model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))

    assert check_model(model) == ()


def _write(name: str, body: bytes | str) -> Callable[[Path], None]:
    def write(model: Path) -> None:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(body if isinstance(body, bytes) else body.encode())

    return write


UNSAFE: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        name: (_write(name, b"\x80\x02."), "can hold code")
        for name in (
            "model.pt", "data.pkl", "a.ckpt",
            "modeling_falcon.py", "x.so", "MODEL.BIN", "weights.zip", "model.tar.gz",
        )
    },
    "link": (lambda model: (model / "vocab.txt").symlink_to("/etc/passwd"), "link or a device"),
    "linked folder": (lambda model: (model / "sub").symlink_to("/etc"), "link or a device"),
    "fifo": (lambda model: os.mkfifo(model / "vocab.txt"), "link or a device"),
    "auto_map": (_write("config.json", '{"auto_map": {"AutoModel": "m.M"}}'), "auto_map"),
    "nested key": (
        _write("config.json", '{"a": [{"trust_remote_code": true}]}'), "trust_remote_code"
    ),
    "kernel": (
        _write("config.json", '{"_attn_implementation_internal": "org/repo"}'),
        "_attn_implementation_internal",
    ),
    "key twice": (_write("config.json", '{"auto_map": {"a": "b"}, "auto_map": {}}'), "auto_map"),
    "tokenizer": (_write("tokenizer_config.json", '{"auto_map": {"a": "b"}}'), "auto_map"),
    "deep": (_write("config.json", "[" * 70 + "]" * 70), "nested"),
    "very deep": (_write("config.json", "[" * 100_000), "nested"),
    "index": (
        _write("model.safetensors.index.json", '{"weight_map": {"w": "../x.safetensors"}}'),
        "not a file beside it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_model_that_is_unsafe(model: Path, name: str) -> None:
    """Each way to run code or to lead elsewhere is 76 and names the file and the rule."""
    make, words = UNSAFE[name]
    make(model)

    with pytest.raises(UnsafeArtifact, match=words) as caught:
        check_model(model)

    assert caught.value.exit_code == 76
    assert str(model) in caught.value.at


def test_model_of_several_gigabytes_of_settings(model: Path) -> None:
    """JSON of a size that no model needs is refused without reading it."""
    with (model / "config.json").open("wb") as file:
        file.truncate(2**31)

    with pytest.raises(UnsafeArtifact, match="more than any model needs"):
        check_model(model)


@pytest.mark.parametrize(
    ("name", "words"),
    [("config.json", "config.json"), ("tokenizer.json", "tokenizer"), ("model.safetensors", "wei")],
)
def test_model_that_is_incomplete(model: Path, name: str, words: str) -> None:
    """A folder without config, tokenizer or weights is 66 and names which."""
    (model / name).unlink()

    with pytest.raises(InputMissing, match=words) as caught:
        check_model(model)

    assert (caught.value.exit_code, caught.value.at) == (66, str(model))


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ('{"weight_map": {"w": "model-2.safetensors"}}', InputMissing),
        ('{"weight_map": {"v": "model.safetensors"}}', DataError),
        ('{"weight_map": {"w": 1}}', DataError),
        ("{}", DataError),
        ("[]", DataError),
        ("{", DataError),
    ],
)
def test_model_with_a_wrong_index(model: Path, index: str, error: type[ModelmillError]) -> None:
    """An index that does not fit the files is told before anything is loaded."""
    (model / "model.safetensors.index.json").write_text(index)

    with pytest.raises(error):
        check_model(model)


def test_adapter_in_the_place_of_a_model(tmp_path: Path) -> None:
    """The message says which of the two it is and where it belongs."""
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputMissing, match="adapter, not a model") as caught:
        check_model(tmp_path)
    assert "finetune.adapter" in caught.value.fix


def test_adapter(tmp_path: Path) -> None:
    """An adapter needs its config and weights; the Trainer's pickle is dropped with a note."""
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(GOOD)
    (tmp_path / "training_args.bin").write_bytes(torch_file())

    assert len(check_adapter(tmp_path)) == 1
    assert check_adapter(tmp_path) == ()

    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputMissing, match=r"adapter_model\.safetensors"):
        check_adapter(tmp_path)
