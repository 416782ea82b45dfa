"""Hostile folders whose files lie about their shape: headers, archives, names, links, documents."""

import os
import struct
import tarfile
from typing import Final

from .attacks import (
    KEY,
    KIND,
    NAME,
    OFFSET,
    SETTINGS,
    SHAPE,
    TENSORS,
    TYPE,
    Hostile,
    archive,
    bomb,
    files,
    gguf_with,
    link_chain,
    payload,
)
from .layouts import gguf, safetensors

GGUF: Final[dict[str, tuple[str, bytes, str]]] = {
    "tensors": ("CVE-2026-27940", gguf_with((TENSORS, "<Q", 2**61)), "counts"),
    "settings": ("CVE-2026-27940", gguf_with((SETTINGS, "<Q", 2**61)), "counts"),
    "length": ("CVE-2024-21802", gguf_with((KEY, "<Q", 2**63)), "bytes long"),
    "text": ("CVE-2024-23496", gguf_with((KIND + 4, "<Q", 2**64 - 1)), "bytes long"),
    "value type": ("CVE-2024-21802", gguf_with((KIND, "<i", -1)), "unknown type"),
    "tensor type": ("CVE-2024-21802", gguf_with((TYPE, "<i", -1)), "unknown type -1"),
    "dimensions": ("CVE-2024-21802", gguf_with((NAME + 9, "<I", 2**31)), "dimensions"),
    "offset": ("CVE-2026-27940", gguf_with((OFFSET, "<Q", 2**63)), "beyond the end"),
    "off alignment": ("CVE-2026-27940", gguf_with((OFFSET, "<Q", 7)), "alignment"),
    "alignment 0": (
        "CVE-2026-27940", gguf({"general.alignment": 0}, {"w": (4,)}), "no power of two",
    ),
    "alignment 3": (
        "CVE-2026-27940", gguf({"general.alignment": 3}, {"w": (4,)}), "no power of two",
    ),
    "array": (
        "CVE-2026-27940",
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**62)
        + bytes(64),
        "an array would have",
    ),
    "key twice": (
        "CVE-2026-27940",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
        + 2 * (struct.pack("<Q", 1) + b"a" + struct.pack("<II", 4, 1)) + bytes(64),
        "occurs twice",
    ),
    "dimensions lie": ("CVE-2026-7482", gguf_with((SHAPE, "<Q", 2**20)), "beyond the end"),
    "dimensions wrap": (
        "CVE-2026-7482",
        gguf_with((SHAPE, "<Q", 2**32), (SHAPE + 8, "<Q", 2**32)),
        "beyond the end",
    ),
    "cut off": ("CVE-2026-7482", gguf({}, {"w": (4, 4)}, data_bytes=32), "beyond the end"),
    "version": ("own: GGUF", gguf_with((4, "<I", 1)), "version is 1"),
}  # fmt: skip

SHAPES: Final[dict[str, Hostile]] = {
    # GGUF.
    **{
        f"gguf: {name}": Hostile(number, files({"model.gguf": body}), words, "model.gguf")
        for name, (number, body, words) in GGUF.items()
    },
    "gguf that is none": Hostile(
        "own: magic", files({"model.gguf": payload}), "a pickle under another name", "model.gguf",
    ),
    # Archives.
    **{
        f"tar with {what}": Hostile(number, files({name: body}), words, name)
        for number, what, name, body, words in (
            ("CVE-2025-4517", "a chain of links", "weights.tar", link_chain(), "can hold code"),
            ("CVE-2025-4330", "a link outside", "a.tar",
             archive("x", tarfile.SYMTYPE, "../../etc"), "can hold code"),
            ("CVE-2025-4138", "an absolute link", "b.tar",
             archive("x", tarfile.SYMTYPE, "/etc/passwd"), "can hold code"),
            ("CVE-2025-4138", "a hard link", "c.tar.gz",
             archive("x", tarfile.LNKTYPE, "/etc/passwd", "w:gz"), "can hold code"),
            ("CVE-2025-4138", "a device", "d.tgz",
             archive("x", tarfile.CHRTYPE, mode="w:gz"), "can hold code"),
            ("CVE-2025-62156", "a path outside", "e.tar",
             archive("../../etc/x", tarfile.REGTYPE), "can hold code"),
            ("CVE-2025-62156", "an absolute path, disguised", "vocab.txt",
             archive("/etc/x", tarfile.REGTYPE), "a tar archive under another name"),
        )
    },
    "zip bomb": Hostile("CVE-2025-4517", files({"a.zip": bomb()}), "can hold code", "a.zip"),
    "zip bomb in disguise": Hostile(
        "CVE-2025-4517", files({"vocab.json": bomb()}), "zip archive under another", "vocab.json",
    ),
    # Own classes: what a folder can hold that is no file of its own.
    "link": Hostile(
        "own: links", lambda folder, _: (folder / "vocab.txt").symlink_to("/etc/passwd"),
        "link or a device", "vocab.txt",
    ),
    "linked folder": Hostile(
        "own: links", lambda folder, _: (folder / "sub").symlink_to("/etc"),
        "link or a device", "sub",
    ),
    "dangling link": Hostile(
        "own: links", lambda folder, _: (folder / ".hidden").symlink_to("nowhere"),
        "link or a device", ".hidden",
    ),
    "pipe": Hostile(
        "own: links", lambda folder, _: os.mkfifo(folder / "vocab.txt"),
        "link or a device", "vocab.txt",
    ),
    **{
        f"name {name!r}": Hostile(
            "own: key grammar", files({name: "x"}), "every store|one file",
            "config.json" if "onfig" in name.lower() else name.rpartition("/")[2],
        )
        for name in (
            "a b.txt", "caf\u00e9.txt", "cafe\u0301.txt", "a\\b.txt", "a%2e.txt", "-rf.txt",
            "Config.json", "CONFIG.JSON", "x\n.txt", "sub/\u202etxt.exe.md",
        )
    },
    # Own classes: documents.
    "deep": Hostile("own: JSON", files({"config.json": "[" * 70 + "]" * 70}), "nested",
                    "config.json"),
    "very deep": Hostile("own: JSON", files({"config.json": "[" * 100_000}), "nested",
                         "config.json"),
    "deep vocabulary": Hostile(
        "own: JSON", files({"tokenizer.json": '{"a":' * 99 + "1" + "}" * 99}), "nested",
        "tokenizer.json",
    ),
    "key twice": Hostile(
        "own: JSON", files({"config.json": '{"auto_map": {}, "auto_map": {"a": "b"}}'}),
        "occurs twice", "config.json",
    ),
    "token twice": Hostile(
        "own: JSON", files({"vocab.json": '{"a": 1, "a": 2}', "merges.txt": ""}), "occurs twice",
        "vocab.json",
    ),
    "shard outside": Hostile(
        "own: weights",
        files({"model.safetensors.index.json": {"weight_map": {"w": "../x.safetensors"}}}),
        "not a file beside it", "model.safetensors.index.json",
    ),
    "template that is no text": Hostile(
        "own: settings", files({"tokenizer_config.json": {"chat_template": 1}}),
        "neither a text", "tokenizer_config.json",
    ),
    "endless template": Hostile(
        "CVE-2025-61620", files({"chat_template.jinja": "x" * 10**6}), "no template is that long",
        "chat_template.jinja",
    ),
    "endless template in settings": Hostile(
        "CVE-2025-61620", files({"tokenizer_config.json": {"chat_template": "x" * 200_000}}),
        "200,000 characters", "tokenizer_config.json",
    ),
    "program": Hostile("own: magic", files({"vocab.txt": b"\x7fELF\2\1\1"}),
                       "a program under another name", "vocab.txt"),
    "script": Hostile("own: magic", files({"LICENSE": "#!/bin/sh\ntouch x\n"}),
                      "a script under another name", "LICENSE"),
    "polyglot": Hostile(
        "own: magic", files({"tokenizer.model": b"#!/bin/sh\n\0"}),
        "a script under another name", "tokenizer.model",
    ),
    "weights with a tail": Hostile(
        "own: weights", files({"model.safetensors": safetensors() + bomb()}), "too long",
        "model.safetensors",
    ),
}  # fmt: skip
"""By what it is."""
