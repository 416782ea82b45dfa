"""What a model is made of is read from the beginnings of its files, wherever they are."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from modelmill.spec.errors import DataError, InputMissing
from modelmill.spec.settings import Pin
from modelmill.store.beginning import FIRST_BYTES, DistantFile, distant_tensors
from modelmill.store.s3 import Store
from modelmill.store.sources import look_local, look_source, pin_source, upload_source
from modelmill.store.tensors import read_safetensors_header

from ..hub_server import HubServer
from ..workshop import safetensors, write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a model of two files, one of them with a header longer than a first read."""
    folder = write_model(tmp_path / "model")
    names = [f"model.layers.{number:05}.weight" for number in range(4000)]
    header = {
        name: {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8 * n, 8 * n + 8]}
        for n, name in enumerate(names)
    }
    assert len(json.dumps(header)) > FIRST_BYTES
    body = safetensors(header, 8 * len(names))
    (folder / "model-00002-of-00002.safetensors").write_bytes(body)
    return folder


def truth(folder: Path) -> dict[str, object]:
    """Read the headers the long way."""
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in read_safetensors_header(path).items()
    }


def counted(files: tuple[DistantFile, ...]) -> tuple[list[DistantFile], list[int]]:
    """Count what is read of files."""
    reads: list[int] = []

    def counting(file: DistantFile) -> DistantFile:
        def first(length: int) -> bytes:
            reads.append(length)
            return file.first(length)

        return replace(file, first=first)

    return [counting(each) for each in files], reads


def test_headers_of_a_local_folder_take_one_or_two_reads_a_file(model: Path) -> None:
    """The second one only where the header is longer than the first."""
    files, reads = counted(look_local(model))
    assert distant_tensors(files) == truth(model)
    assert len(reads) == 3


def test_headers_of_an_uploaded_source_are_those_of_its_files(store: Store, model: Path) -> None:
    """By ranged reads of the store."""
    files, reads = counted(look_source(store, upload_source(store, model)))
    assert distant_tensors(files) == truth(model)
    assert len(reads) == 3


def test_headers_of_a_bucket_are_those_of_its_files(store: Store, model: Path) -> None:
    """Nothing else is read than how the weight files begin."""
    for path in model.iterdir():
        store.put(f"bucket-model/{path.name}", path.read_bytes())
    pin = pin_source(store, f"{store.url}/bucket-model")
    files, reads = counted(look_source(store, pin))
    assert distant_tensors(files) == truth(model)
    assert len(reads) == 3


def test_headers_of_a_hub_are_those_of_its_files(store: Store, model: Path, hub: HubServer) -> None:
    """Even where the hub would rather send all of a file."""
    whole = {"model.safetensors": (model / "model-00002-of-00002.safetensors").read_bytes()}
    hub.repository("model", "org/name", whole)
    pin = pin_source(store, "hf:org/name")
    expected = read_safetensors_header(model / "model-00002-of-00002.safetensors")
    assert distant_tensors(look_source(store, pin)) == expected
    assert next(seen.range for seen in hub.seen if "/resolve/" in seen.path).startswith("bytes=0-")


def test_broken_header_far_away_is_refused_as_here(store: Store, model: Path) -> None:
    """A file that lies about its size is no basis for an estimate."""
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        distant_tensors(look_source(store, upload_source(store, model)))


def test_source_that_is_gone_is_said(store: Store) -> None:
    """Words, no traceback."""
    digest = "0" * 64
    with pytest.raises(InputMissing, match="not in this store"):
        look_source(store, Pin(address=f"sources/{digest}", digest=digest))
