"""Chat templates as many families publish them, from the installed trl, and a conversation."""

import importlib.util
from pathlib import Path
from typing import Final

CHAT: Final = (
    {"role": "system", "content": "be  brief"},
    {"role": "user", "content": " Hi \u00e9 <b>\n"},
    {"role": "assistant", "content": "<think>\nwell\n</think>\n\nyes "},
    {"role": "user", "content": "and?"},
)
TOKENS: Final = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def published_templates() -> dict[str, str]:
    """Read every template by its file's name; imports nothing of trl."""
    found = importlib.util.find_spec("trl")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "chat_templates"
    return {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.jinja"))}
