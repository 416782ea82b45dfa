"""A part of the proof table is proved again, and what is recorded of the rest is in bounds."""

import json
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from ..tiny_stages import Family
from .families import METHODS, RECORD, Cell, Proof, amiss, prove, record, spoil_scale

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own

QUICK = {name: METHODS[name] for name in ("gptq-4", "rtn-4", "nf4", "int8")}


@pytest.mark.parametrize("family", ["falcon", "gpt2", "opt"])
def test_family_goes_through_every_stage(family: str, tmp_path: Path) -> None:
    """Trained on NF4, merged, quantized and read back, all numbers are in their bounds."""
    proof = prove(family, QUICK, tmp_path)
    assert proof.merge_difference < 0.1
    before = recorded(family)
    wrong = {cell.method: amiss(cell, before[cell.method]) for cell in proof.cells}
    assert wrong == {name: [] for name in QUICK}


def test_damaged_scale_is_amiss(tmp_path: Path) -> None:
    """Negative control: a scale that is wrong in the file shows in the numbers of each method."""
    proof = prove("gpt2", QUICK, tmp_path, spoil_scale)
    before = recorded("gpt2")
    assert all(amiss(cell, before[cell.method]) for cell in proof.cells), proof.cells


def test_every_recorded_cell_is_in_bounds() -> None:
    """Nothing that is amiss is in the table, and every layer of a family is counted."""
    for family in get_args(Family):
        cells = recorded(family)
        assert list(cells) == list(METHODS)
        assert {name: amiss(cell) for name, cell in cells.items()} == {name: [] for name in METHODS}


def test_recording_one_cell_leaves_the_others(tmp_path: Path) -> None:
    """A table can be made in parts."""
    path = tmp_path / "families.json"
    record([Proof("gpt2", "A", 0.0, (Cell("nf4", 4), Cell("int8", 8)))], path)
    record([Proof("llama", "B", 0.0, (Cell("nf4", 4),))], path)
    record([Proof("gpt2", "A", 0.0, (Cell("nf4", 4, layers=3), Cell("gptq-8", 8)))], path)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert [each["family"] for each in document["families"]] == ["llama", "gpt2"]
    cells = cells_of(document, "gpt2")
    assert {name: cell.layers for name, cell in cells.items()} == {"gptq-8": 0, "nf4": 3, "int8": 0}
    assert list(cells) == ["gptq-8", "nf4", "int8"]


def recorded(family: str) -> dict[str, Cell]:
    """Read what is recorded of a family, by method."""
    return cells_of(json.loads(RECORD.read_text(encoding="utf-8")), family)


def cells_of(document: dict, family: str) -> dict[str, Cell]:
    """Read what a document says of a family, by method."""
    [found] = [each for each in document["families"] if each["family"] == family]
    names = {each.name for each in fields(Cell)}
    assert all(set(cell) == names for cell in found["cells"])
    return {cell["method"]: Cell(**cell) for cell in found["cells"]}
