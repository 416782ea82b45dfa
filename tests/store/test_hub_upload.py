"""A parcel on its way to a hub."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from modelmill.spec.errors import DigestMismatch, HubUnreachable, PermissionRefused, WouldBeLost
from modelmill.spec.sources import HubAddress
from modelmill.store.artifact import attempt_prefix
from modelmill.store.hub import pin_hub, pull_hub
from modelmill.store.hub_upload import Wishes, into_hub
from modelmill.store.parcel import SUMS, Item, Parcel
from modelmill.store.s3 import Store
from tests.hub_server import TOKEN, HubServer
from tests.store.conftest import Publisher

ADDRESS = HubAddress("model", "org/name")
WEIGHTS = random.Random(3).randbytes(300_000)
CARD = b"# A model\n"
FILES = {"model.safetensors": WEIGHTS, "config.json": b"{}"}

Sender = Callable[..., None]


@pytest.fixture
def token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be somebody who may write."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def send(store: Store, publish: Publisher, tmp_path: Path) -> Sender:
    """Send files that are committed first."""

    def run(files: dict[str, bytes] = FILES, *, public: bool = False, force: bool = False) -> None:
        parcel = pack(store, publish, files)
        into_hub(store, parcel, ADDRESS, tmp_path / "work", Wishes(public, force))

    return run


def pack(store: Store, publish: Publisher, files: dict[str, bytes]) -> Parcel:
    """Commit files and pack them."""
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    committed = publish(store, digest, files)
    manifest = committed.manifest
    prefix = attempt_prefix(manifest.kind, manifest.key, manifest.attempt)
    items = tuple(Item(file, f"{prefix}/{file.path}") for file in manifest.files)
    return Parcel(items, {"README.md": CARD})


def on_main(hub: HubServer) -> dict[str, bytes]:
    """Read what the default branch holds."""
    repository = hub.repositories["model", "org/name"]
    return repository.commits[repository.branches["main"]]


def test_repository_is_private_and_whole(
    hub: HubServer, token: None, send: Sender, tmp_path: Path
) -> None:
    """One commit holds everything; this package and the hub's own read it back."""
    send()
    repository = hub.repositories["model", "org/name"]
    assert repository.is_private
    assert len(repository.commits) == 2
    assert {**FILES, "README.md": CARD}.items() <= on_main(hub).items()
    assert set(on_main(hub)) == {*FILES, "README.md", SUMS, ".gitattributes"}
    pull_hub(pin_hub("hf:org/name", 5), tmp_path / "back", 5)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == WEIGHTS
    told = HfApi(hub.url, TOKEN).model_info("org/name")
    assert told.private
    assert not list((tmp_path / "work").iterdir())


def test_repository_is_public_where_that_is_wished(
    hub: HubServer, token: None, send: Sender
) -> None:
    """Only then."""
    send(public=True)
    assert not hub.repositories["model", "org/name"].is_private


def test_large_file_in_parts(hub: HubServer, token: None, send: Sender) -> None:
    """The hub names the parts; they come together to the same bytes."""
    hub.uploads.chunk_bytes = 70_000
    send()
    assert len(hub.paths("?part=")) == 5
    assert on_main(hub)["model.safetensors"] == WEIGHTS


def test_token_stays_with_the_hub(hub: HubServer, token: None, send: Sender) -> None:
    """The signed address of a large file sees none (it refuses one), the hub sees it always."""
    send()
    assert {each.has_token for each in hub.seen if each.method == "PUT"} == {False}
    assert {each.has_token for each in hub.seen if each.method == "POST"} == {True}


@pytest.mark.parametrize("fault", ["503", "drop"])
@pytest.mark.parametrize("place", ["create", "preupload", "batch", "^/[0-9a-f]{64}", "commit"])
def test_request_that_fails_once(
    hub: HubServer, token: None, send: Sender, fault: str, place: str
) -> None:
    """Each is repeated."""
    hub.plan(fault, place)  # type: ignore[arg-type]
    send()
    assert on_main(hub)["model.safetensors"] == WEIGHTS


def test_what_the_hub_has_is_not_sent_again(
    hub: HubServer, token: None, store: Store, publish: Publisher, tmp_path: Path
) -> None:
    """Cut off before the commit nothing is to be seen, and only the commit is left to do."""
    parcel, wishes = pack(store, publish, FILES), Wishes(is_public=False, is_forced=False)
    hub.plan("503", "/commit/", 100)
    impatient = store.__class__(store.bucket, store.prefix, store.connection, 0.2)
    with pytest.raises(HubUnreachable):
        into_hub(impatient, parcel, ADDRESS, tmp_path, wishes)
    assert set(on_main(hub)) == {".gitattributes"}
    hub.faults.clear()
    hub.seen.clear()
    into_hub(store, parcel, ADDRESS, tmp_path, wishes)
    assert [each.method for each in hub.seen].count("PUT") == 0
    assert on_main(hub)["model.safetensors"] == WEIGHTS


def test_same_export_twice(hub: HubServer, token: None, send: Sender) -> None:
    """The second makes no commit."""
    send()
    send()
    assert len(hub.repositories["model", "org/name"].commits) == 2


def test_other_export_into_the_repository(hub: HubServer, token: None, send: Sender) -> None:
    """Refused; forced, a commit replaces the first one's files, and history keeps them."""
    send()
    other = {"model-1.safetensors": WEIGHTS, "config.json": b"[]"}
    with pytest.raises(WouldBeLost, match="something else already"):
        send(other)
    send(other, force=True)
    assert set(on_main(hub)) == {*other, "README.md", SUMS, ".gitattributes"}
    assert on_main(hub)["config.json"] == b"[]"
    assert len(hub.repositories["model", "org/name"].commits) == 3


def test_repository_that_everybody_sees(hub: HubServer, token: None, send: Sender) -> None:
    """What is to be private does not get there, forced or not."""
    repository = hub.repository("model", "org/name", {".gitattributes": b""})
    with pytest.raises(PermissionRefused, match="everybody sees"):
        send(force=True)
    assert len(repository.commits) == 1


def test_hub_that_makes_a_public_repository(hub: HubServer, token: None, send: Sender) -> None:
    """A hub that does not do what it is asked gets nothing."""
    hub.uploads.is_deaf = True
    with pytest.raises(PermissionRefused, match="everybody sees"):
        send()
    assert set(on_main(hub)) == {".gitattributes"}


def test_without_a_token(hub: HubServer, send: Sender) -> None:
    """Said before anything is asked."""
    with pytest.raises(PermissionRefused, match="no token") as refused:
        send()
    assert "HF_TOKEN" in refused.value.fix
    assert hub.seen == []


def test_token_that_may_only_read(hub: HubServer, token: None, send: Sender) -> None:
    """The words are about writing."""
    hub.writers.clear()
    with pytest.raises(PermissionRefused, match="does not let this token write to org/name"):
        send()


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_library_uploads_to_this_hub_as_well(
    hub: HubServer, token: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What plays the hub here speaks what huggingface_hub's own upload expects."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.uploads.chunk_bytes = 70_000
    for name, body in FILES.items():
        (tmp_path / name).write_bytes(body)
    library = HfApi(hub.url, TOKEN)
    library.create_repo("org/name", private=True)
    library.upload_folder(repo_id="org/name", folder_path=tmp_path)
    assert FILES.items() <= on_main(hub).items()


def test_damaged_file_is_not_committed(
    hub: HubServer, token: None, store: Store, publish: Publisher, tmp_path: Path
) -> None:
    """A file whose bytes have changed in the store does not leave."""
    parcel = pack(store, publish, FILES)
    key = next(item.key for item in parcel.items if item.record.path == "model.safetensors")
    store.put(key, WEIGHTS[:-1] + b"x")
    with pytest.raises(DigestMismatch):
        into_hub(store, parcel, ADDRESS, tmp_path, Wishes(is_public=False, is_forced=False))
    assert set(on_main(hub)) == {".gitattributes"}
