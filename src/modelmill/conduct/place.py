"""Open the store a command works with: the one that is named, or the embedded one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelmill.conduct.local import Place
from modelmill.spec.profile import Profile
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store, open_store

FIRST_ANSWER_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Opened:
    """A store that answers, and the place stages can reach it from."""

    store: Store
    place: Place


@contextmanager
def opened(home: Path, url: str | None) -> Iterator[Opened]:
    """Open a store for as long as the context lasts.

    Args:
        home: where the embedded store keeps its data.
        url: `s3://bucket/prefix`; None for the embedded store, which is started, or shared
            if it runs already.

    Raises:
        ModelmillError: it cannot be reached, or refuses us, in words of its own.
    """
    if url is not None:
        # A mistyped address is said at once; a store that was there may be away for a while.
        open_store(url, retry_budget_seconds=FIRST_ANSWER_SECONDS).check()
        yield Opened(open_store(url), Place(home.resolve(), url, {}))
        return
    with EmbeddedStore(home / "store") as embedded:
        before = dict(os.environ)
        # boto3 has no other way to be told by one name per setting.
        os.environ.update(embedded.environment)
        try:
            place = Place(home.resolve(), embedded.url, embedded.environment)
            yield Opened(open_store(embedded.url), place)
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def opened_as_pods_see_it(profile: Profile, url: str | None) -> Iterator[Store]:
    """Open the store of a cluster from here, by the profile's address unless another is named.

    The endpoint is the SDK's own variable where that is set: outside the cluster the store
    may have another address.

    Raises:
        ModelmillError: it cannot be reached, or refuses us.
    """
    endpoint = profile.store.endpoint_url
    before = dict(os.environ)
    if endpoint:
        os.environ.setdefault("AWS_ENDPOINT_URL", endpoint)
    if profile.store.region:
        os.environ.setdefault("AWS_DEFAULT_REGION", profile.store.region)
    try:
        address = url or profile.store.url
        open_store(address, retry_budget_seconds=FIRST_ANSWER_SECONDS).check()
        yield open_store(address)
    finally:
        os.environ.clear()
        os.environ.update(before)
