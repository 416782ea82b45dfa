"""One tiny llama, one GPTQ and one NF4 copy of it, and rows, for the whole folder."""

from pathlib import Path

import pytest

from ..tiny_stages import make_model, make_rows, write_rows


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model."""
    return make_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write test, train and eval rows."""
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("test", 19, 1), ("train", 30, 2), ("eval", 6, 3)):
        write_rows(make_rows(count, seed), folder / f"{name}.jsonl")
    return folder
