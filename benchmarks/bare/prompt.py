"""The prompt of examples/text-to-sql, as the bare scripts write it."""

import json
from pathlib import Path

PROMPT = "### Schema\n{context}\n### Question\n{question}\n### SQL\n"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
