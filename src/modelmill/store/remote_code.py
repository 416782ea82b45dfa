"""Models whose repositories bring code that nobody needs any more.

Falcon, Phi-3, CodeGen2, MPT and others were published with their own Python and an `auto_map`
in config.json that points at it; transformers has had the same classes itself for long.  Such a
repository is an ordinary one, and its owner will not change it.  So of these families the map
and the code are left out of our copy: nothing is run, nothing is lost.  Any other map is refused:
a model that needs its own code cannot be opened here, and one that claims to is not trusted.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import JsonValue

NATIVE: Final[Mapping[str, str]] = {
    "bitnet": "BitNet",
    "codegen": "CodeGen",
    "dbrx": "Dbrx",
    "deepseek_v2": "DeepseekV2",
    "deepseek_v3": "DeepseekV3",
    "dots1": "Dots1",
    "ernie4_5": "Ernie4_5_",
    "ernie4_5_moe": "Ernie4_5_Moe",
    "falcon": "Falcon",
    "gpt_bigcode": "GPTBigCode",
    "jamba": "Jamba",
    "minimax_m2": "MiniMaxM2",
    "mpt": "MPT",
    "nemotron_h": "NemotronH",
    "phi": "Phi",
    "phi3": "Phi3",
    "phimoe": "PhiMoE",
    "stablelm": "StableLm",
}
"""By `model_type`: how the published classes are called.  The type decides what transformers
opens; the names make sure that it is what the repository means."""

_REFERENCE: Final = re.compile(r"(?:[\w.-]+/[\w.-]+--)?[A-Za-z]\w*\.(?P<name>[A-Za-z]\w*)")
"""`module.Class`, or the same in another repository, as saving a fine-tune writes it."""
_KINDS: Final = r"(?:Config|Model|PreTrainedModel|For[A-Z]\w*)"


def leave_out_map(path: Path, document: JsonValue) -> str:
    """Write a config.json anew without a map to code that transformers has itself.

    Args:
        path: a private copy.
        document: what it holds; the map is removed from it too.

    Returns:
        Whose code it was; nothing if the file stays as it is.
    """
    if not isinstance(document, dict) or not _is_native(document):
        return ""
    del document["auto_map"]
    # A new file: the old one may be mapped into memory, or have other names.
    path.unlink()
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return str(document["model_type"])


def _is_native(config: Mapping[str, JsonValue]) -> bool:
    code = config.get("auto_map")
    stem = NATIVE.get(str(config.get("model_type")))
    if stem is None or not isinstance(code, dict) or not code:
        return False
    return all(_is_known(auto, reference, stem) for auto, reference in code.items())


def _is_known(auto: str, reference: JsonValue, stem: str) -> bool:
    if not isinstance(reference, str):
        return False
    if auto == "AutoTokenizer":
        # Phi-4-mini says whose vocabulary it has; a reference to code has a dot before its class.
        return "--" not in reference and re.fullmatch(r"[\w.-]+/[\w.-]+", reference) is not None
    found = _REFERENCE.fullmatch(reference)
    return found is not None and re.fullmatch(stem + _KINDS, found["name"]) is not None
