"""Small files that are what their names say: weights, settings, vocabularies, other formats."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

Files = Mapping[str, bytes | str | object]
"""By path; what is neither bytes nor text is written as JSON."""


def safetensors(*names: str) -> bytes:
    """Write one number under each name."""
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]}
        for n, name in enumerate(names or ("w",))
    }
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4 * len(header))


def torch_file(content: object = None) -> bytes:
    """Write what torch.save writes: an archive whose index is a pickle."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content or {"step": 1}, protocol=2))
        archive.writestr("archive/data/0", bytes(64))
        archive.writestr("archive/version", "3\n")
    return body.getvalue()


def old_torch_file(content: object = None) -> bytes:
    """Write the form from before torch 1.6: pickles one behind the other, then the data."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, content or {"step": 1}, [])
    return b"".join(pickle.dumps(each, protocol=2) for each in parts) + bytes(64)


def sentencepiece(*pieces: str) -> bytes:
    """Write a vocabulary as SentencePiece does."""
    fields = [b"\x0a" + bytes([len(each)]) + each for each in map(str.encode, pieces or ("a",))]
    return b"".join(b"\x0a" + bytes([len(each)]) + each for each in fields) + b"\x12\x02\x18\x01"


def gguf(
    settings: Mapping[str, str | int] | None = None,
    tensors: Mapping[str, tuple[int, ...]] | None = None,
    data_bytes: int = 4096,
) -> bytes:
    """Write texts and 32-bit numbers as settings, and 32-bit tensors of zeros."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    settings, tensors = settings or {}, tensors or {}
    body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings))
    for key, value in settings.items():
        body += text(key)
        body += (
            struct.pack("<I", 8) + text(value)
            if isinstance(value, str)
            else struct.pack("<II", 4, value)
        )
    for number, (name, shape) in enumerate(tensors.items()):
        body += text(name) + struct.pack("<I", len(shape))
        body += struct.pack(f"<{len(shape)}QIQ", *shape, 0, 1024 * number)
    return body + bytes(-len(body) % 32) + bytes(data_bytes)


def lay_out(folder: Path, files: Files) -> Path:
    """Write files, and the folders they are in."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        body = content if isinstance(content, str | bytes) else json.dumps(content, indent=2)
        path.write_bytes(body.encode() if isinstance(body, str) else body)
    return folder


def minimal_model(folder: Path) -> Path:
    """Write the smallest folder that is a model."""
    return lay_out(
        folder,
        {
            "config.json": {"model_type": "llama", "torch_dtype": "bfloat16"},
            "tokenizer.json": {"model": {"vocab": {"auto_map": 1}}},
            "model.safetensors": safetensors(),
        },
    )


def minimal_adapter(folder: Path) -> Path:
    """Write the smallest folder that is an adapter."""
    return lay_out(
        folder,
        {
            "adapter_config.json": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]},
            "adapter_model.safetensors": safetensors(),
        },
    )
