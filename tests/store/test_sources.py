from pathlib import Path

import pytest

from modelmill.spec.errors import DataError, DigestMismatch, InputMissing, UnsafeArtifact
from modelmill.spec.settings import Pin
from modelmill.store.s3 import Store
from modelmill.store.sources import (
    pin_local,
    pin_source,
    pull_source,
    source_bytes,
    upload_source,
)


def _folder(root: Path) -> Path:
    (root / "model" / "sub").mkdir(parents=True)
    (root / "model" / "config.json").write_text("{}")
    (root / "model" / "sub" / "a.txt").write_text("a")
    (root / "model" / ".gitattributes").write_text("hidden")
    return root / "model"


def test_upload_folder_twice(store: Store, tmp_path: Path) -> None:
    """Equal content is sent once and has one address, which is known beforehand."""
    folder = _folder(tmp_path)
    sent: list[int] = []

    first = upload_source(store, folder, sent.append)
    second = upload_source(store, folder, sent.append)

    assert first == second == pin_local(folder) == pin_source(store, first.address)
    assert source_bytes(store, first) == 3
    assert first.address == f"sources/{first.digest}"
    assert sum(sent) == 3


def test_upload_changed_folder(store: Store, tmp_path: Path) -> None:
    """Another content has another address."""
    folder = _folder(tmp_path)
    before = upload_source(store, folder)
    (folder / "config.json").write_text("{ }")

    assert upload_source(store, folder).address != before.address


def test_pull_uploaded_file(store: Store, tmp_path: Path) -> None:
    """An uploaded file comes back under its own name."""
    (tmp_path / "train.jsonl").write_text("{}\n")
    pin = upload_source(store, tmp_path / "train.jsonl")

    pulled = pull_source(store, pin, tmp_path / "out")

    assert pin.address == f"sources/{pin.digest}/train.jsonl"
    assert [file.path for file in pulled] == ["train.jsonl"]
    assert (tmp_path / "out" / "train.jsonl").read_text() == "{}\n"


def test_pull_uploaded_file_that_was_changed(store: Store, tmp_path: Path) -> None:
    """An uploaded source is verified like an artifact."""
    (tmp_path / "train.jsonl").write_text("{}\n")
    pin = upload_source(store, tmp_path / "train.jsonl")
    store.put(pin.address, b"[]\n")

    with pytest.raises(DigestMismatch):
        pull_source(store, pin, tmp_path / "out")


def test_pin_of_an_uploaded_source_that_is_gone(store: Store) -> None:
    """An address of another store is missing here."""
    with pytest.raises(InputMissing, match="not in this store"):
        pin_source(store, f"sources/{'0' * 64}")


def test_pull_foreign_folder(store: Store, tmp_path: Path) -> None:
    """A prefix of somebody's bucket is pinned by its listing and pulled as a folder."""
    store.put("data/config.json", b"{}")
    store.put("data/sub/a.txt", b"a")
    pin = pin_source(store, f"{store.url}/data")

    pulled = pull_source(store, pin, tmp_path / "out")

    assert source_bytes(store, pin) == 3
    assert [file.path for file in pulled] == ["config.json", "sub/a.txt"]
    assert (tmp_path / "out" / "sub" / "a.txt").read_text() == "a"


def test_pull_foreign_folder_with_hidden_files(store: Store, tmp_path: Path) -> None:
    """What a clone or a hub's cache keeps for itself is left out, as of a local folder."""
    for name in ("config.json", ".gitattributes", ".cache/huggingface/x.lock", "sub/.hidden"):
        key = f"{store.prefix}/data/{name}"
        store.client.put_object(Bucket=store.bucket, Key=key, Body=b"{}")
    pin = pin_source(store, f"{store.url}/data")

    assert [file.path for file in pull_source(store, pin, tmp_path)] == ["config.json"]
    assert source_bytes(store, pin) == 2


def test_pull_foreign_file(store: Store, tmp_path: Path) -> None:
    """A single object is pulled under the last part of its key."""
    store.put("data/train.jsonl", b"{}\n")

    pull_source(store, pin_source(store, f"{store.url}/data/train.jsonl"), tmp_path)

    assert (tmp_path / "train.jsonl").read_bytes() == b"{}\n"


def test_pull_foreign_source_that_changed(store: Store, tmp_path: Path) -> None:
    """A source that is not in the pinned state any more is refused."""
    store.put("data/train.jsonl", b"{}\n")
    pin = pin_source(store, f"{store.url}/data/train.jsonl")
    store.put("data/train.jsonl", b"[]\n")

    with pytest.raises(DataError, match="has changed since"):
        pull_source(store, pin, tmp_path)


def test_pull_foreign_source_with_a_hostile_key(store: Store, tmp_path: Path) -> None:
    """A key that is no safe local path is refused before anything is written."""
    name = f"{store.prefix}/data/~root/authorized_keys"
    store.client.put_object(Bucket=store.bucket, Key=name, Body=b"x")
    pin = pin_source(store, f"{store.url}/data")

    with pytest.raises(UnsafeArtifact):
        pull_source(store, pin, tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["nothing", "nothing.jsonl"])
def test_pin_of_nothing(store: Store, tmp_path: Path, path: str) -> None:
    """A source that is not there is 66, near and far."""
    with pytest.raises(InputMissing):
        pin_source(store, f"{store.url}/{path}")
    with pytest.raises(InputMissing):
        pin_local(tmp_path / path)


def test_pin_in_a_missing_bucket(store: Store) -> None:
    """A bucket that is not there is told as that."""
    with pytest.raises(InputMissing, match="bucket"):
        pin_source(store, "s3://nosuchbucket/data")


def test_pin_is_a_value(store: Store) -> None:
    """Pins of one state are equal."""
    store.put("data/train.jsonl", b"{}\n")
    address = f"{store.url}/data/train.jsonl"

    assert pin_source(store, address) == Pin(
        address=address, digest=pin_source(store, address).digest
    )
