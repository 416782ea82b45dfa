"""Tables in Markdown, and the places in a page that they are put into."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

PLACE: Final = "<!-- table: {} -->"


def filled(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Put every table in its place.

    Raises:
        ValueError: a table has no place, or a place no table.
    """
    for name, make in tables.items():
        before, place, after = text.partition(PLACE.format(name))
        if not place:
            raise ValueError(name)
        text = f"{before}{make()}{after}"
    start, _, _ = PLACE.partition("{")
    if start in text:
        raise ValueError(text[text.index(start) :][:40])
    return text


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Write a table.

    Args:
        columns: the heads.
        rows: of cells.
        words: so many columns are words; the others are numbers, aligned right.
    """
    rule = [*["---"] * words, *["---:"] * (len(columns) - words)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, rule, *rows])
