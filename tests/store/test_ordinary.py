"""Ordinary folders of many families pass, and lose exactly what nothing here reads."""

from pathlib import Path

import pytest

from modelmill.store.safety import check_adapter, check_model

from .families import CHATML, STRICT, config
from .layouts import lay_out
from .ordinary import ORDINARY


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_folder_passes(tmp_path: Path, name: str) -> None:
    """Nothing is refused, what is left out is said, and a second look finds nothing more."""
    ordinary = ORDINARY[name]
    folder = ordinary.make(tmp_path / "folder")
    before = _names(folder)

    check = check_model if ordinary.kind == "model" else check_adapter
    notes = check(folder)

    assert before - _names(folder) == ordinary.left_out
    assert bool(notes) or not ordinary.left_out
    assert check(folder) == ()


def test_map_to_code_that_transformers_has_is_left_out(tmp_path: Path) -> None:
    """The rest of the config stays as it is, and the note says whose code it was."""
    folder = ORDINARY["falcon"].make(tmp_path / "falcon")
    note = check_model(folder)[0]
    [text] = config("falcon", "FalconForCausalLM", alibi=False).values()
    assert lay_out(tmp_path, {"wanted.json": text})
    kept = (folder / "config.json").read_text().strip()
    assert kept == (tmp_path / "wanted.json").read_text()
    assert note == "left out auto_map: transformers has falcon models itself"


def test_many_files_are_left_out_in_one_sentence(tmp_path: Path) -> None:
    """A repository with every format there is does not fill the screen."""
    notes = check_model(ORDINARY["gpt2"].make(tmp_path / "gpt2"))
    names = "64-8bits.tflite, 64-fp16.tflite, 64.tflite and 5 more"
    assert notes == (f"left out {names}: the same weights in formats that can hold code",)


def test_templates_of_the_fixtures_are_different_kinds() -> None:
    """One takes any conversation; the other refuses all but strict turns, which is no attack."""
    assert "raise_exception" in STRICT
    assert "raise_exception" not in CHATML
