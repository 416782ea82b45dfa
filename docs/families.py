"""Fill the tables of docs/families.md from `measured/families.json`, which `make families` writes.

Knows numbers only; `tests/models/families.py` knows the models.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from docs.tables import filled, table

RECORD: Final = Path(__file__).parent / "measured" / "families.json"

NOTHING: Final = "–"  # noqa: RUF001 - as in reports


class _Measured(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(_Measured):
    """What one method made of one family; differences are relative, of logits."""

    method: str
    bits: int
    expected_layers: int
    layers: int
    lost: float | None
    from_plain: float | None
    readers: Mapping[str, float | str] | None
    answered: int
    refused: str
    seconds: float


class Family(_Measured):
    """What became of one family."""

    family: str
    architecture: str
    merge_difference: float
    cells: tuple[Cell, ...]

    def cell(self, method: str) -> Cell | None:
        """Find what a method made of it; None where that was not tried."""
        return next((cell for cell in self.cells if cell.method == method), None)


class Record(_Measured):
    """Everything that was proved."""

    versions: Mapping[str, str]
    families: tuple[Family, ...]

    def methods(self) -> tuple[str, ...]:
        """List the methods, in their order."""
        named = [cell.method for family in self.families for cell in family.cells]
        return tuple(dict.fromkeys(named))


def families_page(text: str) -> str:
    """Put every table in its place; a table without a place is an error."""
    record = Record.model_validate_json(RECORD.read_bytes())
    tables: Mapping[str, Callable[[Record], str]] = {
        "lost": _lost,
        "refused": _refused,
        "plain": _plain,
        "readers": _readers,
        "models": _models,
        "versions": _versions,
    }
    return filled(text, {name: partial(make, record) for name, make in tables.items()})


def _percent(share: float | None) -> str:
    """Write two digits that count; what float32 rounds is nothing."""
    return NOTHING if share is None else f"{float(f'{round(100 * share, 4):.2g}'):g} %"


def _lost(record: Record) -> str:
    methods = record.methods()
    return table(
        ("family", *methods),
        (
            (family.family, *(_outcome(family.cell(method)) for method in methods))
            for family in record.families
        ),
    )


def _outcome(cell: Cell | None) -> str:
    if cell is None:
        return "not tried"
    return "refused" if cell.refused else _percent(cell.lost)


def _refused(record: Record) -> str:
    lines = [
        f"- {family.family}, {cell.method}: {cell.refused}"
        for family in record.families
        for cell in family.cells
        if cell.refused
    ]
    return "\n".join(lines) or "Nothing was refused."


def _plain(record: Record) -> str:
    told = [
        method
        for method in record.methods()
        if any(
            (cell := each.cell(method)) and cell.from_plain is not None for each in record.families
        )
    ]
    return table(
        ("family", *told),
        (
            (
                family.family,
                *(
                    _percent(cell.from_plain if (cell := family.cell(each)) else None)
                    for each in told
                ),
            )
            for family in record.families
        ),
    )


def _readers(record: Record) -> str:
    readers = ("transformers", "GPTQModel")
    return table(
        ("method", *(words for each in readers for words in (each, "cannot open"))),
        (
            (method, *(words for each in readers for words in _read(record, method, each)))
            for method in record.methods()
        ),
    )


def _read(record: Record, method: str, reader: str) -> tuple[str, str]:
    apart: list[float] = []
    cannot: list[str] = []
    for family in record.families:
        cell = family.cell(method)
        found = None if cell is None or cell.readers is None else cell.readers.get(reader)
        if isinstance(found, str):
            cannot.append(f"{family.family} ({found})")
        elif found is not None:
            apart.append(found)
    return _percent(max(apart) if apart else None), ", ".join(cannot) or NOTHING


def _models(record: Record) -> str:
    return table(
        ("family", "layers", "class", "merged model differs from adapter model by"),
        (
            (
                family.family,
                str(max(cell.expected_layers for cell in family.cells)),
                f"`{family.architecture}`",
                f"{_percent(family.merge_difference)} of the adapter's effect",
            )
            for family in record.families
        ),
    )


def _versions(record: Record) -> str:
    named = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"Made with {named}, on CPUs."
