"""Removing and committing at once: in every order of their requests nothing is half there."""

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from modelmill.spec.errors import Interrupted, StoreUnreachable
from modelmill.spec.names import artifact_prefix, source_prefix
from modelmill.spec.records import Manifest
from modelmill.store.artifact import (
    Published,
    attempt_id,
    attempt_prefix,
    commit,
    read_manifest,
    stage_files,
    verify,
)
from modelmill.store.removal import (
    remove_artifact,
    remove_attempt,
    remove_source,
    restore,
    restore_source,
    withdraw,
)
from modelmill.store.s3 import Store
from modelmill.store.sources import is_uploaded, pin_local, pull_source, upload_source

from .conftest import ManifestMaker, Publisher
from .turns import play, schedules

REMOVE, COMMIT = 5, 4
"""Requests of the one and of the other at most."""


@pytest.fixture
def staged(store: Store, make_manifest: ManifestMaker, tmp_path: Path) -> Manifest:
    """Upload what an attempt has made; nothing is committed."""
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    attempt = attempt_id()
    files = stage_files(store, attempt_prefix("merge", "k", attempt), tmp_path)
    return make_manifest("k", files, attempt=attempt)


def _is_half(store: Store) -> bool:
    present = read_manifest(store, "merge", "k")
    return present is not None and bool(verify(store, present))


def test_removal_and_commit_in_every_order(store: Store, staged: Manifest, tmp_path: Path) -> None:
    """Either the attempt commits and keeps its files, or they go and it says so."""
    ends = set()
    for schedule in schedules(REMOVE, COMMIT):
        own = replace(store, prefix=uuid4().hex)
        stage_files(own, attempt_prefix("merge", "k", staged.attempt), tmp_path)

        removed, committed = play(
            own,
            schedule,
            lambda each: remove_attempt(each, "merge", "k", staged.attempt),
            lambda each: commit(each, staged),
        )

        assert not _is_half(own), schedule
        is_there = read_manifest(own, "merge", "k") is not None
        assert isinstance(committed, Published) == is_there, schedule
        assert isinstance(committed, Published | Interrupted), committed
        assert not (removed and is_there), schedule
        assert not list(own.list(f"{attempt_prefix('merge', 'k', staged.attempt)}.removing"))
        ends.add((removed, is_there))
    # In some order each is the faster one.
    assert ends >= {(True, False), (False, True)}


def test_removal_without_the_mark_fails_in_the_same_harness(
    store: Store, staged: Manifest, tmp_path: Path
) -> None:
    """Negative control: who looks first and removes then leaves a commit without its files."""

    def careless(each: Store) -> None:
        if read_manifest(each, "merge", "k") is None:
            prefix = f"{attempt_prefix('merge', 'k', staged.attempt)}/"
            each.delete(item.key for item in each.list(prefix))

    halves = 0
    for schedule in schedules(3, COMMIT):
        own = replace(store, prefix=uuid4().hex)
        stage_files(own, attempt_prefix("merge", "k", staged.attempt), tmp_path)
        play(own, schedule, careless, lambda each: commit(each, staged))
        halves += _is_half(own)
    assert halves > 0


def test_lost_attempt_of_another_commit_goes(
    store: Store, publish: Publisher, staged: Manifest
) -> None:
    """The files of a committed attempt stay, those of another at the same key go."""
    winner = publish(store, "k", {"a": b"1"})

    assert remove_attempt(store, "merge", "k", staged.attempt)
    assert not remove_attempt(store, "merge", "k", winner.manifest.attempt)

    assert verify(store, winner) == ()
    left = [item.key for item in store.list("artifacts/merge/k/attempts/")]
    assert left == [f"{attempt_prefix('merge', 'k', winner.manifest.attempt)}/a"]


def test_withdrawn_artifact_comes_back_the_same(store: Store, publish: Publisher) -> None:
    """Its manifest has the same bytes, so what was made from it stays sound."""
    committed = publish(store, "k", {"a": b"1"})
    assert withdraw(store, artifact_prefix("merge", "k"))
    assert read_manifest(store, "merge", "k") is None
    assert not withdraw(store, artifact_prefix("merge", "k"))

    assert restore(store, "merge", "k")

    assert read_manifest(store, "merge", "k") == committed
    assert [item.key.rpartition("/")[2] for item in store.list("artifacts/merge/k/")] == [
        "COMMITTED.json",
        "a",
    ]


def test_removal_and_return_in_every_order(store: Store, publish: Publisher) -> None:
    """Two who clear the store at once: a withdrawn artifact is whole again, or gone."""
    for schedule in [*schedules(6, 3)][::3]:
        own = replace(store, prefix=uuid4().hex)
        attempt = publish(own, "k", {"a": b"1", "b": b"2"}).manifest.attempt
        withdraw(own, artifact_prefix("merge", "k"))

        play(
            own,
            schedule,
            lambda each, attempt=attempt: remove_artifact(each, "merge", "k", [attempt]),
            lambda each: restore(each, "merge", "k"),
        )

        assert not _is_half(own), schedule


def test_source_goes_and_comes_in_every_order(store: Store, tmp_path: Path) -> None:
    """An upload during a removal ends with a source that can be read, or says that it failed."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "rows.jsonl").write_bytes(b"{}\n")
    (source / "more.jsonl").write_bytes(b"{}\n")
    pin = pin_local(source)
    refused = 0
    for number, schedule in enumerate([*schedules(5, 6)][::35]):
        own = replace(store, prefix=uuid4().hex)
        upload_source(own, source)
        withdraw(own, source_prefix(pin.digest))

        _, uploaded = play(
            own,
            schedule,
            lambda each: remove_source(each, pin.digest),
            lambda each: upload_source(each, source),
        )

        if isinstance(uploaded, StoreUnreachable):
            refused += 1
            uploaded = upload_source(own, source)
        assert uploaded == pin, schedule
        assert len(pull_source(own, pin, tmp_path / "pulled" / str(number))) == 2
    assert refused < number / 2


def test_withdrawn_source_comes_back(store: Store, tmp_path: Path) -> None:
    """And one whose files are gone does not."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n")
    pin = upload_source(store, path)
    withdraw(store, source_prefix(pin.digest))
    assert not is_uploaded(store, pin)

    assert restore_source(store, pin.digest)
    assert pull_source(store, pin, tmp_path / "pulled")

    withdraw(store, source_prefix(pin.digest))
    assert remove_source(store, pin.digest)
    assert not restore_source(store, pin.digest)
    assert list(store.list("sources/")) == []
