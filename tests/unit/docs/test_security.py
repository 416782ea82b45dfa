"""The page about attacks names tests that exist, and every hostile folder there is."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.store.hostile import HOSTILE

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "security.md"


@dataclass(frozen=True)
class Listed:
    """A row of a table of attacks."""

    numbers: tuple[str, ...]
    what: str
    refuser: str
    test: str


def _listed() -> list[Listed]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if "::test_" in line
    ]
    return [Listed(tuple(row[0].split(", ")), *row[1:]) for row in rows]


def _exists(test: str) -> bool:
    file, _, function = test.partition("::")
    path = ROOT / "tests" / file
    defined = rf"^(?:async )?def {re.escape(function)}\("
    return path.is_file() and re.search(defined, path.read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize("row", _listed(), ids=lambda row: row.numbers[0])
def test_attack_has_a_test_that_exists(row: Listed) -> None:
    """Each row says what, what refuses it, and which test shows it."""
    assert row.what
    assert row.refuser
    assert _exists(row.test)


def test_every_hostile_folder_is_listed() -> None:
    """No class of attack is tested that the page does not tell of."""
    told = {number for row in _listed() for number in row.numbers}
    assert {hostile.number for hostile in HOSTILE.values()} - told == set()


def test_attack_that_hostile_folders_show_has_one() -> None:
    """A row that points at the hostile folders has at least one of its own."""
    shown = {hostile.number for hostile in HOSTILE.values()}
    rows = [row for row in _listed() if row.test.endswith("::test_hostile_folder_is_refused")]
    assert [row.numbers for row in rows if not shown & set(row.numbers)] == []


def test_missing_test_would_be_noticed() -> None:
    """The checks above can fail."""
    assert not _exists("store/test_hostile.py::test_that_nobody_wrote")
    assert not _exists("store/nothing.py::test_hostile_folder_is_refused")
