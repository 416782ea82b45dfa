"""Files on their way out of the store, into folders and buckets."""

import hashlib
import random
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmill.spec.errors import DigestMismatch, UnsafeArtifact, WouldBeLost
from modelmill.spec.records import FileRecord
from modelmill.store.address import open_source
from modelmill.store.artifact import Committed, attempt_prefix
from modelmill.store.crew import PART_BYTES
from modelmill.store.parcel import (
    SUMS,
    Destination,
    Item,
    Made,
    Parcel,
    into_bucket,
    into_folder,
)
from modelmill.store.s3 import Store
from tests.store.conftest import Publisher
from tests.store.proxy import Proxy

CARD = b"# A model\n"
FILES = {
    "model.safetensors": random.Random(5).randbytes(2 * PART_BYTES + 7),
    "config.json": b"{}",
    "measurements.json": b"stays",
}


def parcel_of(committed: Committed, *names: str) -> Parcel:
    """Pack some files of an artifact."""
    manifest = committed.manifest
    prefix = attempt_prefix(manifest.kind, manifest.key, manifest.attempt)
    files = [file for file in manifest.files if file.path in names]
    return Parcel(tuple(Item(file, f"{prefix}/{file.path}") for file in files), {"README.md": CARD})


@pytest.fixture
def parcel(store: Store, publish: Publisher) -> Parcel:
    """Pack what is wanted of an artifact."""
    return parcel_of(publish(store, "abcdef", FILES), "model.safetensors", "config.json")


@pytest.fixture
def other(store: Store, publish: Publisher) -> Parcel:
    """Pack another model, of other files."""
    files = {"model-1.safetensors": b"w", "config.json": b"[]"}
    return parcel_of(publish(store, "012345", files), *files)


@pytest.fixture
def bucket(store: Store) -> str:
    """Name a place of the bucket that is not the store's."""
    return f"s3://{store.bucket}/{uuid.uuid4().hex}/a model"


def in_bucket(url: str) -> dict[str, bytes]:
    """Read everything that is there."""
    place, key = open_source(url)
    stored = {each.key.removeprefix(f"{key}/"): place.get(each.key) for each in place.list(key)}
    return {name: each.body for name, each in stored.items() if each is not None}


def in_folder(folder: Path) -> dict[str, bytes]:
    """Read everything that is there, hidden files too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def expected(parcel: Parcel) -> dict[str, bytes]:
    """List what a place holds after all went well."""
    wanted = {path: FILES[path] for path in parcel.paths if path in FILES}
    return {**wanted, "README.md": CARD, SUMS: parcel.sums}


def test_folder_holds_what_leaves_and_nothing_else(
    store: Store, parcel: Parcel, tmp_path: Path
) -> None:
    """Files, card and sums, which sha256sum finds right."""
    into_folder(store, parcel, tmp_path / "model")
    assert in_folder(tmp_path / "model") == expected(parcel)
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", SUMS],
        cwd=tmp_path / "model",
        check=True,
        capture_output=True,
        text=True,
    )
    assert checked.stdout.splitlines() == [f"{path}: OK" for path in sorted(parcel.paths)]


def test_folder_goes_on_after_an_interruption(
    behind: Store, proxy: Proxy, parcel: Parcel, tmp_path: Path
) -> None:
    """What is there and right is not fetched again; what is wrong is."""
    folder = tmp_path / "model"
    into_folder(behind, parcel, folder)
    (folder / "config.json").write_bytes(b"[]")
    (folder / "README.md").unlink()
    before = proxy.seen["GetObject"]
    into_folder(behind, parcel, folder)
    assert proxy.seen["GetObject"] - before == 1
    assert in_folder(folder) == expected(parcel)


@pytest.mark.parametrize("is_earlier_export", [True, False])
def test_folder_with_something_else_is_refused(
    store: Store, parcel: Parcel, other: Parcel, tmp_path: Path, is_earlier_export: bool
) -> None:
    """Whatever it is, it stays as it was."""
    folder = tmp_path / "model"
    if is_earlier_export:
        into_folder(store, other, folder)
    else:
        folder.mkdir()
        (folder / "letter.txt").write_bytes(b"dear")
    before = in_folder(folder)
    with pytest.raises(WouldBeLost, match="There is something else already"):
        into_folder(store, parcel, folder)
    assert in_folder(folder) == before


def test_forced_folder_has_no_mixture(
    store: Store, parcel: Parcel, other: Parcel, tmp_path: Path
) -> None:
    """Weights of the earlier export go; a file that no export brought stays."""
    folder = tmp_path / "model"
    into_folder(store, other, folder)
    (folder / "letter.txt").write_bytes(b"dear")
    into_folder(store, parcel, folder, is_forced=True)
    assert in_folder(folder) == {**expected(parcel), "letter.txt": b"dear"}


def test_sums_of_a_stranger_remove_nothing_outside(
    store: Store, parcel: Parcel, tmp_path: Path
) -> None:
    """A list that names files elsewhere is followed only into the folder."""
    (tmp_path / "outside").write_bytes(b"mine")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / SUMS).write_text(f"{'0' * 64}  ../outside\n", encoding="ascii")
    into_folder(store, parcel, folder, is_forced=True)
    assert (tmp_path / "outside").read_bytes() == b"mine"


def test_folder_that_is_a_file(store: Store, parcel: Parcel, tmp_path: Path) -> None:
    """A file is not overwritten, forced or not."""
    (tmp_path / "model").write_bytes(b"mine")
    with pytest.raises(WouldBeLost):
        into_folder(store, parcel, tmp_path / "model", is_forced=True)


def test_damaged_bytes_do_not_leave(
    store: Store, parcel: Parcel, bucket: str, tmp_path: Path
) -> None:
    """Neither a folder nor a bucket gets a file whose digest is wrong."""
    (item,) = [each for each in parcel.items if each.record.path == "config.json"]
    store.put(item.key, b"[]")
    with pytest.raises(DigestMismatch):
        into_folder(store, parcel, tmp_path / "model")
    with pytest.raises(DigestMismatch):
        into_bucket(store, parcel, bucket, tmp_path / "work")
    assert "config.json" not in {*in_folder(tmp_path / "model"), *in_bucket(bucket)}


def test_bucket_holds_what_leaves_and_nothing_else(
    store: Store, parcel: Parcel, bucket: str, tmp_path: Path
) -> None:
    """The same files as in a folder; nothing stays on the machine."""
    into_bucket(store, parcel, bucket, tmp_path / "work")
    assert in_bucket(bucket) == expected(parcel)
    assert in_folder(tmp_path / "work") == {}


def test_bucket_goes_on_after_an_interruption(
    behind: Store, proxy: Proxy, parcel: Parcel, bucket: str, tmp_path: Path
) -> None:
    """Only the file that is missing is sent again."""
    into_bucket(behind, parcel, bucket, tmp_path)
    place, key = open_source(bucket)
    place.delete([f"{key}/config.json"])
    before = proxy.seen["UploadPart"], proxy.seen["GetObject"]
    into_bucket(behind, parcel, bucket, tmp_path)
    sums_and_file = 2
    after = proxy.seen["UploadPart"], proxy.seen["GetObject"] - sums_and_file
    assert after == before
    assert in_bucket(bucket) == expected(parcel)


def test_bucket_with_something_else(
    store: Store, parcel: Parcel, other: Parcel, bucket: str, tmp_path: Path
) -> None:
    """Refused; forced, nothing of the earlier export is left."""
    into_bucket(store, other, bucket, tmp_path)
    before = in_bucket(bucket)
    with pytest.raises(WouldBeLost, match="There is something else already"):
        into_bucket(store, parcel, bucket, tmp_path)
    assert in_bucket(bucket) == before
    into_bucket(store, parcel, bucket, tmp_path, is_forced=True)
    assert in_bucket(bucket) == expected(parcel)


def test_forced_bucket_that_was_interrupted_has_no_mixture(
    store: Store, parcel: Parcel, publish: Publisher, bucket: str, tmp_path: Path
) -> None:
    """Weights of the earlier export have the size of the new ones, and are not taken for them."""
    size_bytes = len(FILES["model.safetensors"])
    earlier = {"model.safetensors": bytes(size_bytes), "config.json": b"{}"}
    into_bucket(store, parcel_of(publish(store, "fedcba", earlier), *earlier), bucket, tmp_path)
    gone = Item(parcel.items[0].record, "nowhere")
    with pytest.raises(DigestMismatch):
        # Its sums are those of the whole one, and its first file cannot be brought.
        into_bucket(
            store, Parcel((gone, *parcel.items[1:]), parcel.words), bucket, tmp_path, is_forced=True
        )
    into_bucket(store, parcel, bucket, tmp_path)
    assert in_bucket(bucket) == expected(parcel)


@pytest.mark.parametrize("inside", ["", "/artifacts/merge", "/a/"])
def test_place_inside_the_store_is_refused(
    store: Store, parcel: Parcel, inside: str, tmp_path: Path
) -> None:
    """Forced or not, an export cannot lie on what stages have committed."""
    with pytest.raises(WouldBeLost, match="inside the store"):
        into_bucket(store, parcel, store.url + inside, tmp_path, is_forced=True)


def test_two_files_of_one_name_cannot_leave() -> None:
    """A tokenizer's and an adapter's file that would be one are refused before anything is sent."""
    record = FileRecord(path="a.json", size_bytes=0, sha256=hashlib.sha256().hexdigest())
    with pytest.raises(UnsafeArtifact):
        Parcel((Item(record, "x/a.json"), Item(record, "y/a.json")), {})


@pytest.mark.parametrize(
    ("change", "may_be"),
    [
        (lambda sums: sums, True),
        (lambda sums: sums.replace(b"f" * 64, b"0" * 64), True),
        (lambda sums: sums.replace(b"  made.gguf", b"  other.gguf"), False),
        (lambda sums: sums.replace(b"f" * 64 + b"  made.gguf\n", b""), False),
        (lambda sums: sums.replace(hashlib.sha256(CARD).hexdigest().encode(), b"0" * 64), False),
        (lambda sums: sums + b"0" * 64 + b"  z\n", False),
        (lambda _: None, False),
    ],
)
def test_parcel_whose_file_is_not_made_yet(
    tmp_path: Path, change: Callable[[bytes], bytes | None], may_be: bool
) -> None:
    """Its own earlier export is known by everything but that file, anything else is refused."""
    promised = Parcel((), {"README.md": CARD}, to_make="made.gguf")
    record = FileRecord(path="made.gguf", size_bytes=1, sha256="f" * 64)
    made = promised.with_made(Made(record, tmp_path / "file"))
    there = Destination("there", {"README.md": len(CARD), SUMS: 1}, change(made.sums))
    if may_be:
        assert promised.check(there, is_forced=False) == ()
    else:
        with pytest.raises(WouldBeLost):
            promised.check(there, is_forced=False)
