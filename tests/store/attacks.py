"""Attacks as bytes: pickles, modules, templates, archives and headers that would touch a canary."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .layouts import (
    gguf,
    lay_out,
    minimal_adapter,
    minimal_model,
    old_torch_file,
    torch_file,
)

Change = Callable[[Path, Path], object]
"""Makes a sound folder hostile; the second path is the canary."""


@dataclass(frozen=True)
class Hostile:
    """One way to attack."""

    number: str
    change: Change
    words: str
    """What the refusal says."""
    file: str
    """Which file it names."""
    kind: Literal["model", "adapter"] = "model"

    def make(self, folder: Path, canary: Path) -> Path:
        """Write the folder."""
        (minimal_model if self.kind == "model" else minimal_adapter)(folder)
        self.change(folder, canary)
        return folder


def files(content: dict[str, object]) -> Change:
    """Add or replace files; a function is given the canary."""

    def change(folder: Path, canary: Path) -> None:
        lay_out(
            folder,
            {name: each(canary) if callable(each) else each for name, each in content.items()},
        )

    return change


def only_pickled(name: str, body: Callable[[Path], bytes]) -> Change:
    """Leave no other weights than these."""

    def change(folder: Path, canary: Path) -> None:
        for path in folder.glob("*.safetensors"):
            path.unlink()
        (folder / name).write_bytes(body(canary))

    return change


def config(**keys: object) -> Change:
    """Give the config more keys."""
    return files({"config.json": {"model_type": "llama", **keys}})


def auto_map(model_type: str, name: str, **more: object) -> Change:
    """Point at a module beside the config."""
    return files(
        {
            "config.json": {
                "model_type": model_type,
                "auto_map": {"AutoConfig": f"{name}"},
                **more,
            },
            f"{name.partition('.')[0]}.py": script,
        }
    )


class _Touch:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self._canary}'",)


def payload(canary: Path) -> bytes:
    """Pickle an attack."""
    return pickle.dumps(_Touch(canary))


def script(canary: Path) -> str:
    """Write an attack as a module."""
    return f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass Config: pass\n"


def injection(canary: Path) -> str:
    """Write an attack as a template."""
    return "{{ cycler.__init__.__globals__.os.system(\"touch '" + str(canary) + "'\") }}"


def torch_payload(canary: Path) -> bytes:
    """Put an attack where torch keeps the index of its weights."""
    return torch_file(_Touch(canary))


def old_torch_payload(canary: Path) -> bytes:
    """Do the same in torch's older form."""
    return old_torch_file(_Touch(canary))


def archive(name: str, kind: bytes, linkname: str = "", mode: str = "w") -> bytes:
    """Write a tar file with one member of a kind."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode=mode) as tar:  # type: ignore[call-overload]
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, linkname
        tar.addfile(member)
    return body.getvalue()


def link_chain() -> bytes:
    """Write the links of CVE-2025-4517: a path so long that its resolution is cut short."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        path = ""
        for letter in "abcdefghijklmnop":
            part = "d" * 247
            folder = tarfile.TarInfo(f"{path}{part}")
            folder.type = tarfile.DIRTYPE
            link = tarfile.TarInfo(f"{path}{letter}")
            link.type, link.linkname = tarfile.SYMTYPE, part
            tar.addfile(folder)
            tar.addfile(link)
            path += f"{part}/"
        escape = tarfile.TarInfo("/".join("abcdefghijklmnop") + "/" + "l" * 254)
        escape.type, escape.linkname = tarfile.SYMTYPE, "../" * 16
        tar.addfile(escape)
    return body.getvalue()


def bomb() -> bytes:
    """Zip ten megabytes of zeros."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("0", bytes(10_000_000))
    return body.getvalue()


def gguf_with(*changes: tuple[int, str, int], body: bytes | None = None) -> bytes:
    """Overwrite numbers of a sound GGUF file: offset, form and value."""
    found = bytearray(gguf({"general.name": "x"}, {"w": (4, 4)}) if body is None else body)
    for offset, form, value in changes:
        struct.pack_into(form, found, offset, value)
    return bytes(found)


TENSORS, SETTINGS, KEY, KIND = 8, 16, 24, 44
"""Where in `gguf_with` the counts, the first key's length and its value's type stand."""
NAME = 57
"""Where the tensor's name's length stands; behind it 1 byte, dimensions, shape, type, offset."""
SHAPE, TYPE, OFFSET = NAME + 13, NAME + 29, NAME + 33

GGUF_SEEDS: Final = (
    gguf({"general.name": "x"}, {"w": (4, 4)}, data_bytes=64),
    gguf({"tokenizer.chat_template": "{{ messages }}"}, data_bytes=0),
    gguf(data_bytes=0),
)
"""Sound files that a fuzzer starts from."""
