"""One tiny model of each family and one set of training rows for the whole folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ..tiny_stages import Family, made_once, make_rows, write_rows


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Give a function that makes a family's model once."""
    return made_once(tmp_path_factory)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write training rows."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(make_rows(60, 1), folder / "train.jsonl")
    return folder
