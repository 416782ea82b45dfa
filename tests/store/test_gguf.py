"""GGUF headers are read as they are, and nothing of them is believed before it fits the file."""

import struct
from pathlib import Path

import pytest

from modelmill.spec.errors import UnsafeArtifact
from modelmill.store import gguf as reader
from modelmill.store.gguf import GgufTensor, read_gguf_header

from .layouts import gguf


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def test_header_of_a_sound_file(tmp_path: Path) -> None:
    """Settings with their values, tensors with their places, and which settings are programs."""
    settings = {"tokenizer.chat_template": "{{ a }}", "general.alignment": 64, "a.count": 7}
    (tmp_path / "a.gguf").write_bytes(gguf(settings, {"w": (32, 2), "v": (8,)}))
    found = read_gguf_header(tmp_path / "a.gguf")
    assert found.settings == settings
    assert found.tensors == {
        "w": GgufTensor(0, (32, 2), 0, 256),
        "v": GgufTensor(0, (8,), 1024, 32),
    }
    assert found.chat_templates() == {"tokenizer.chat_template": "{{ a }}"}


def test_header_with_every_kind_of_value(tmp_path: Path) -> None:
    """Numbers of every width, truth, text, and arrays of numbers and of texts."""
    values = [
        (0, "<B", 255), (1, "<b", -1), (2, "<H", 65535), (3, "<h", -2), (4, "<I", 2**32 - 1),
        (5, "<i", -3), (6, "<f", 0.5), (7, "<?", True), (10, "<Q", 2**64 - 1), (11, "<q", -4),
        (12, "<d", 0.25),
    ]  # fmt: skip
    body = b"GGUF" + struct.pack("<IQQ", 2, 0, len(values) + 2)
    for kind, form, value in values:
        body += _text(f"k{kind}") + struct.pack("<I", kind) + struct.pack(form, value)
    body += _text("texts") + struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("b")
    body += _text("numbers") + struct.pack("<IIQ3h", 9, 3, 3, 1, -1, 0)
    (tmp_path / "a.gguf").write_bytes(body)
    found = read_gguf_header(tmp_path / "a.gguf").settings
    assert [found[f"k{kind}"] for kind, _, _ in values] == [value for _, _, value in values]
    assert (found["texts"], found["numbers"]) == (["a", "b"], [1, -1, 0])


def test_quantized_tensor_has_whole_blocks(tmp_path: Path) -> None:
    """Q4_0 has 18 bytes for 32 elements of a row, and no row ends inside a block."""
    body = bytearray(gguf({}, {"w": (64, 2)}))
    struct.pack_into("<i", body, 24 + 9 + 4 + 16, 2)
    (tmp_path / "a.gguf").write_bytes(body)
    assert read_gguf_header(tmp_path / "a.gguf").tensors["w"].size_bytes == 4 * 18

    struct.pack_into("<QQ", body, 24 + 9 + 4, 16, 8)
    (tmp_path / "a.gguf").write_bytes(body)
    with pytest.raises(UnsafeArtifact, match="no whole blocks"):
        read_gguf_header(tmp_path / "a.gguf")


def test_array_that_would_fill_the_memory(tmp_path: Path) -> None:
    """A file that is large enough for it is no reason to read it."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _text("a")
    with (tmp_path / "a.gguf").open("wb") as file:
        file.write(head + struct.pack("<IIQ", 9, 0, 2**32))
        file.truncate(2**33)
    with pytest.raises(UnsafeArtifact, match="would have 4,294,967,296 values"):
        read_gguf_header(tmp_path / "a.gguf")


def test_header_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that go on for ever are given up."""
    monkeypatch.setattr(reader, "LONGEST_HEADER_BYTES", 256)
    (tmp_path / "a.gguf").write_bytes(gguf({f"key.{n}": "x" * 32 for n in range(9)}))
    with pytest.raises(UnsafeArtifact, match=r"not end|bytes long"):
        read_gguf_header(tmp_path / "a.gguf")
