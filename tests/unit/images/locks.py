"""Read the locks of the images."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "images"
ON_TORCH = ("finetune", "merge", "quantize", "infer")
IN_STEP = ("light", "torch", *ON_TORCH)
"""Images whose versions come from one resolution; infer-vllm has vLLM's own."""


@dataclass(frozen=True)
class Pin:
    """One line of a lock with its hashes."""

    line: str
    """Name, version and marker."""
    hashes: frozenset[str]

    @property
    def name(self) -> str:
        """The package."""
        return self.line.partition("==")[0]


Lock = Mapping[str, Pin]


def read(path: Path) -> Lock:
    """Read a lock by line: a package may be pinned twice, for different Pythons."""
    pins: dict[str, Pin] = {}
    line, hashes = "", set[str]()
    for text in [*path.read_text(encoding="utf-8").splitlines(), "end"]:
        if re.match(r"[A-Za-z0-9]", text):
            if line:
                pins[line] = Pin(line, frozenset(hashes))
            line, hashes = text.rstrip(" \\"), set()
        elif found := re.search(r"--hash=(sha256:[0-9a-f]{64})", text):
            hashes.add(found[1])
    return pins


def lock_of(image: str) -> Lock:
    """Read the lock an image ships."""
    return read(IMAGES / image / "requirements.lock")


def names(lock: Lock) -> set[str]:
    """Name the packages of a lock."""
    return {pin.name for pin in lock.values()}


def disagreements(locks: Mapping[str, Lock]) -> list[str]:
    """Name the packages that two locks pin differently."""
    pinned: dict[str, set[str]] = {}
    for lock in locks.values():
        for name in names(lock):
            lines = sorted(pin.line for pin in lock.values() if pin.name == name)
            pinned.setdefault(name, set()).add(" and ".join(lines))
    return sorted(name for name, lines in pinned.items() if len(lines) > 1)
