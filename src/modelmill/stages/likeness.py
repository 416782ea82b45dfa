"""Which rows say the same: by digest, so that splits can be compared without their text.

Knows rows; knows nothing about files.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

from modelmill.spec.names import NEAR_PRINTS, field_prints
from modelmill.spec.records import Row

_WORDS: Final = re.compile(r"[^\W\d_]+|\d+")


def fingerprint(text: str) -> str:
    """Name a text by what it says: case and spacing do not count.

    64 bits: among a million rows, two different ones collide with probability 3e-8.
    """
    return _digest(" ".join(text.casefold().split()))


def near_fingerprint(text: str) -> str:
    """Name a text by roughly what it says: of its words, in any order, numbers all alike.

    So two questions that differ in a number, a name's place or punctuation are near
    duplicates; where another word stands, they are two questions.
    """
    words = _WORDS.findall(text.casefold())
    return _digest(" ".join(sorted("0" if word.isdigit() else word for word in words)))


def prompt_print(row: Row) -> str:
    """Fingerprint what a row asks; a row that is only text asks all of it."""
    return fingerprint(row.prompt or row.completion)


def duplicates(rows: Sequence[Row]) -> int:
    """Count the rows that say what an earlier one said."""
    return len(rows) - len({(fingerprint(row.prompt), fingerprint(row.completion)) for row in rows})


def overlap(rows: Sequence[str], others: Sequence[str]) -> int:
    """Count the fingerprints that stand among others."""
    known = set(others)
    return sum(each in known for each in rows)


def fingerprints(splits: Mapping[str, Sequence[Row]]) -> dict[str, list[str]]:
    """Fingerprint splits, so that leaks between them can be counted elsewhere.

    Returns:
        By split, every prompt; by `near/<split>`, every prompt roughly; and by
        `field/<name>/<split>`, the different values of every field that holds text, such as
        the schema that questions are about.
    """
    prints: dict[str, list[str]] = {}
    for split, rows in splits.items():
        prints[split] = [prompt_print(row) for row in rows]
        near = {near_fingerprint(row.prompt or row.completion) for row in rows}
        prints[f"{NEAR_PRINTS}/{split}"] = sorted(near)
        for name in sorted({name for row in rows for name in row.fields}):
            texts = {value for row in rows if isinstance(value := row.fields.get(name), str)}
            if texts:
                prints[field_prints(name, split)] = sorted({fingerprint(text) for text in texts})
    return prints


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
