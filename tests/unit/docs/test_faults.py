"""The page about faults names all of them, and only tests that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \|(.*)\|$", PAGE, re.MULTILINE)
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)))


def is_there(path: str, name: str) -> bool:
    """Tell whether a file has a test of that name."""
    file = ROOT / path
    return file.is_file() and f"def {name}(" in file.read_text(encoding="utf-8")


def test_every_fault_has_a_row_with_a_test_or_is_open() -> None:
    """All forty, in order."""
    assert [int(number) for number, _ in ROWS] == list(range(1, 41))
    assert [number for number, row in ROWS if not re.search(r"::test_| open $", row)] == []


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_test_that_is_named_exists(path: str, name: str) -> None:
    """A test that is renamed is renamed on the page too."""
    assert is_there(path, name)


def test_search_for_tests_can_fail() -> None:
    """A name that is not there is not found."""
    assert not is_there("tests/unit/docs/test_faults.py", "test_of_nothing")
    assert not is_there("tests/nowhere.py", "test_of_nothing")
