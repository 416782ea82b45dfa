"""Write the example's conversations, made of the rows of text-to-sql: train.jsonl and test.jsonl.

Questions about one table follow on each other; the schema stands in the first one only, so
whoever answers the second has to have read the first.  The same rows give the same bytes.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

TURNS = 2
SYSTEM = "You answer questions about tables with one SQL query and nothing else."

Fields = dict[str, Any]


def conversations(rows: list[Fields]) -> Iterator[Fields]:
    """Put up to `TURNS` questions about one table behind each other."""
    by_table = sorted(rows, key=lambda row: str(row["context"]))
    for context, group in groupby(by_table, key=lambda row: str(row["context"])):
        questions = list(group)
        for start in range(0, len(questions), TURNS):
            asked = questions[start : start + TURNS]
            messages = [{"role": "system", "content": SYSTEM}]
            for place, row in enumerate(asked):
                schema = f"{context}\n\n" if place == 0 else ""
                messages.append({"role": "user", "content": f"{schema}{row['question']}"})
                messages.append({"role": "assistant", "content": row["answer"]})
            yield {"messages": messages, "context": context, "turns": len(asked)}


def main() -> None:
    """Read the arguments and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=Path, required=True, help="folder of text-to-sql's rows")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in ("train.jsonl", "test.jsonl"):
        lines = (asked.rows / name).read_text(encoding="utf-8").splitlines()
        made = conversations([json.loads(line) for line in lines])
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (asked.out / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
