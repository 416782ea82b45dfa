"""Files that are known before their tensors are."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from modelmill.models.layout import Form, lay_out, write_index, write_shards
from modelmill.models.shards import DTYPE_OF, open_tensors
from modelmill.spec.errors import DataError
from modelmill.store.tensors import read_safetensors_header

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1)
FORMS = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(list(DTYPE_OF.values())), st.lists(st.integers(0, 5), max_size=3)),
    min_size=1,
    max_size=12,
).map(lambda found: [Form(name, dtype, tuple(shape)) for name, (dtype, shape) in found.items()])


def value_of(form: Form) -> torch.Tensor:
    """Make a tensor that no other form has."""
    return torch.arange(form.elements).add(len(form.name)).reshape(form.shape).to(form.dtype)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(forms=FORMS)
def test_file_equals_what_safetensors_writes(forms: list[Form], tmp_path: Path) -> None:
    """Any names, dtypes and shapes come to the bytes of the reference implementation."""
    (shard,) = lay_out(forms)
    (tmp_path / shard.name).unlink(missing_ok=True)
    written = [form.name for form in write_shards([shard], tmp_path, value_of)]
    assert sorted(written) == sorted(form.name for form in forms)
    tensors = {form.name: value_of(form) for form in forms}
    save_file(tensors, tmp_path / "reference", metadata={"format": "pt"})
    assert (tmp_path / shard.name).read_bytes() == (tmp_path / "reference").read_bytes()
    assert read_safetensors_header(tmp_path / shard.name).keys() == tensors.keys()


@given(forms=FORMS, limit=st.integers(1, 200))
def test_every_tensor_is_in_one_shard_of_bounded_size(forms: list[Form], limit: int) -> None:
    """A shard is larger than asked for only if it holds a single tensor that is."""
    shards = lay_out(forms, limit)
    placed = [form for shard in shards for form in shard.forms]
    assert sorted(form.name for form in placed) == sorted(form.name for form in forms)
    assert len({shard.name for shard in shards}) == len(shards)
    for shard in shards:
        size_bytes = sum(form.size_bytes for form in shard.forms)
        assert size_bytes <= limit or len([each for each in shard.forms if each.size_bytes]) == 1


def test_tensors_are_read_from_any_file_of_a_folder(tmp_path: Path) -> None:
    """A tensor's place is found by its name, and its bytes are its own."""
    forms = [Form(f"t{number}", torch.bfloat16, (3, number)) for number in range(5)]
    shards = lay_out(forms, 30)
    assert len(shards) > 2
    list(write_shards(shards, tmp_path, value_of))
    write_index(shards, tmp_path, 7)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": 7, "total_size": 60}
    with open_tensors(tmp_path) as source:
        for form in forms:
            assert torch.equal(source.read(form.name), value_of(form))
        assert set(index["weight_map"]) == set(source.tensors)


def test_weights_that_are_there_twice_are_read_once(tmp_path: Path) -> None:
    """What another library's file beside the model's own holds is not looked at."""
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"tok_embeddings": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    with open_tensors(tmp_path) as source:
        assert source.tensors.keys() == {"weight"}
    forms = [Form(f"t{number}", torch.bfloat16, (3, 4)) for number in range(3)]
    shards = lay_out(forms, 30)
    list(write_shards(shards, tmp_path, value_of))
    write_index(shards, tmp_path, 36)
    (tmp_path / "model.safetensors").unlink()
    with open_tensors(tmp_path) as source:
        assert source.tensors.keys() == {"t0", "t1", "t2"}


def test_file_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    """A tensor is never read as whatever was in memory before."""
    save_file({"weight": torch.ones(64)}, tmp_path / "model.safetensors")
    with open_tensors(tmp_path) as source:
        with (tmp_path / "model.safetensors").open("r+b") as file:
            file.truncate(200)
        with pytest.raises(DataError, match="ends at byte"):
            source.read("weight")
