"""One tiny model of each family and one set of training rows for the whole folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ..tiny_stages import Family, make_model, make_rows, write_rows


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Make a family's model once."""
    made: dict[Family, Path] = {}

    def model(family: Family) -> Path:
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return model


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write training rows."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(make_rows(60, 1), folder / "train.jsonl")
    return folder
