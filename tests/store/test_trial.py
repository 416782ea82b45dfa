"""Trials tell a store that keeps its promises from one that only says so."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest

from modelmill.conduct.store_doctor import examine_store
from modelmill.spec.errors import PermissionRefused
from modelmill.store.objects import Unfinished
from modelmill.store.s3 import PreconditionFailed, Store


def _as(kind: type[Store], store: Store) -> Store:
    return kind(**{each.name: getattr(store, each.name) for each in fields(store)})


class Slow(Store):
    """Looks first and writes then, as SeaweedFS 4.16 did under concurrency."""

    def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """Check the condition in a request of its own."""
        present = self.head(key)
        if (if_none_match and present) or (if_match and present and present.etag != if_match):
            raise PreconditionFailed
        return super().put(key, body)


class Forgetful(Store):
    """Does not list what goes on."""

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """List nothing."""
        return iter(())


class Undying(Store):
    """Answers a deletion and does not do it."""

    def delete(self, keys: Any) -> None:
        """Delete nothing."""


class ReadOnly(Store):
    """Lets its users read."""

    def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """Refuse."""
        raise PermissionRefused("The credentials do not allow this", at=self.url_of(key))


def test_store_that_keeps_its_promises(store: Store) -> None:
    """Everything is good, with numbers, and nothing is left."""
    findings = {each.check: each for each in examine_store(store)}
    assert {each.state for each in findings.values()} == {"good"}
    assert findings["store conditions"].words == "8 races of 16 writers had one winner each"
    assert "MB/s up" in findings["store speed"].words
    assert list(store.list()) == []
    assert list(store.unfinished()) == []


@pytest.mark.parametrize(
    ("kind", "check", "words"),
    [
        (Slow, "store conditions", "writers that create one object at once"),
        (Forgetful, "store uploads", "could never be found"),
        (Undying, "store", "deleted can still be read"),
        (ReadOnly, "store", "do not allow this"),
    ],
)
def test_store_that_breaks_one(store: Store, kind: type[Store], check: str, words: str) -> None:
    """It is refused by the name of the problem, and the other checks go on."""
    findings = {each.check: each for each in examine_store(_as(kind, store))}
    bad = [each.check for each in findings.values() if each.state == "bad"]
    assert bad == [check]
    assert words in findings[check].words
    assert findings[check].fix or kind is ReadOnly
    if check != "store":
        assert findings["store speed"].state == "good"


def test_single_writer_needs_no_conditions(store: Store, aws: pytest.MonkeyPatch) -> None:
    """What the store does not check is looked at before the write."""
    sent: list[dict[str, object]] = []
    real: Callable[..., Any] = store.client.put_object

    def note(**asked: object) -> Any:
        sent.append(asked)
        return real(**asked)

    aws.setattr(store.client, "put_object", note)
    single = Store(store.bucket, store.prefix, store.connection, 20, is_single_writer=True)
    etag = single.put("a", b"1", if_none_match=True)
    with pytest.raises(PreconditionFailed):
        single.put("a", b"2", if_none_match=True)
    newer = single.put("a", b"2", if_match=etag)
    for wrong in (etag, '"x"'):
        with pytest.raises(PreconditionFailed):
            single.put("a", b"3", if_match=wrong)
    with pytest.raises(PreconditionFailed):
        single.put("b", b"3", if_match=newer)
    assert single.put("a", b"4")
    assert all(not {"IfNoneMatch", "IfMatch"} & set(asked) for asked in sent)
