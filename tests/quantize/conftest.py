"""One tiny model of each family and one set of training rows for the whole folder."""

from pathlib import Path

import pytest

from ..models.conftest import model_of
from ..tiny_stages import make_rows, write_rows

__all__ = ["model_of"]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write training rows."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(make_rows(60, 1), folder / "train.jsonl")
    return folder
