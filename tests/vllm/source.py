"""Fetch vLLM's source, the version and the hash that `images/infer-vllm` pins.

    python -m tests.vllm.source FOLDER

The sources are a seventh of the wheel, and the whole environment is 8 GB.  The index is the one
that uv is configured for; what comes from there counts only with the lock's own hash.
"""

import hashlib
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
from io import BytesIO
from pathlib import Path

from modelmill.spec.vllm import VERSION

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "images/infer-vllm/requirements.lock"

LAYERS = "vllm/model_executor/layers/quantization"
KERNELS = "vllm/model_executor/kernels/linear/mixed_precision"
REGISTRY = "vllm/model_executor/models/registry.py"
BLOOM = "vllm/model_executor/models/bloom.py"
LLM = "vllm/entrypoints/llm.py"
ARGUMENTS = "vllm/engine/arg_utils.py"
SAMPLING = "vllm/sampling_params.py"
SWITCHES = "vllm/envs.py"
FILES = (
    "vllm/scalar_type.py",
    f"{LAYERS}/auto_gptq.py",
    f"{LAYERS}/base_config.py",
    f"{LAYERS}/utils/gptq_utils.py",
    f"{LAYERS}/utils/marlin_utils.py",
    f"{KERNELS}/MPLinearKernel.py",
    f"{KERNELS}/marlin.py",
    REGISTRY,
    BLOOM,
    LLM,
    ARGUMENTS,
    SAMPLING,
    SWITCHES,
)
"""What decides whether a checkpoint in GPTQ's format is read, and what vLLM can be told."""

OPTIONS = ("--no-deps", "--quiet", "--format", "pylock.toml")
"""So that uv says where the index has a package."""


def pinned_hashes() -> frozenset[str]:
    """Read the hashes that the lock accepts for vLLM."""
    _, _, rest = LOCK.read_text(encoding="utf-8").partition(f"\nvllm=={VERSION} ")
    lines = rest.splitlines()[1:]
    count = next(number for number, line in enumerate(lines) if "--hash=" not in line)
    return frozenset(line.split("sha256:")[1].split()[0] for line in lines[:count])


def fetch(folder: Path) -> None:
    """Unpack the files into a folder; those that are there already stay."""
    if all((folder / name).exists() for name in FILES):
        return
    archive = _download()
    digest = hashlib.sha256(archive).hexdigest()
    if digest not in pinned_hashes():
        msg = f"{digest} is none of the hashes that {LOCK.relative_to(ROOT)} accepts"
        raise SystemExit(msg)
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if name in FILES:
                member.name = name
                tar.extract(member, folder, filter="data")


def _download() -> bytes:
    found = subprocess.run(
        [ROOT / "images/uv.sh", "pip", "compile", "-", *OPTIONS],
        input=f"vllm=={VERSION}\n",
        check=True,
        capture_output=True,
        text=True,
    )
    url = tomllib.loads(found.stdout)["packages"][0]["sdist"]["url"]
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - the index's own address
        content: bytes = answer.read()
    return content


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
