"""What estimates take for granted about stages is what the stages do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from modelmill.conduct.base_model import shape_in
from modelmill.models.families import expected_linears
from modelmill.models.open import open_config
from modelmill.models.parameters import model_parameters
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.memory import adapter_parameters
from modelmill.store.sources import look_local

from ..tiny_stages import Family
from .conftest import Tuned

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon", "falcon-rw"])
def test_shape_from_headers_is_what_the_library_would_build(
    family: Family, model_of: Callable[[Family], Path]
) -> None:
    """The same layers with the same widths, and as many parameters."""
    folder = model_of(family)
    shape = shape_in(look_local(folder))
    config = open_config(folder)
    assert shape.parameters == model_parameters(config)
    assert sum(each.count for each in shape.linears) == len(expected_linears(config))
    assert {each.in_features for each in shape.linears} == set(expected_linears(config).values())


def test_adapter_is_counted_as_peft_makes_it(
    tuned: Tuned, model_of: Callable[[Family], Path]
) -> None:
    """Every layer of every block has two thin matrices."""
    shape = shape_in(look_local(model_of("llama")))
    assert adapter_parameters(shape, FinetuneSpec()) == tuned.figures.trainable_parameters
