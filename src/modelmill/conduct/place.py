"""Open the store a command works with: the one that is named, or the embedded one."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelmill.conduct.local import Place
from modelmill.spec.names import ENV_SINGLE_WRITER
from modelmill.spec.profile import Profile
from modelmill.store.address import open_store
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store

FIRST_ANSWER_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Opened:
    """A store that answers, and the place stages can reach it from."""

    store: Store
    place: Place


@contextmanager
def opened(home: Path, url: str | None, *, is_single_writer: bool = False) -> Iterator[Opened]:
    """Open a store for as long as the context lasts.

    Args:
        home: where the embedded store keeps its data.
        url: `s3://bucket/prefix`; None for the embedded store, which is started, or shared
            if it runs already.
        is_single_writer: nobody else writes there, so it needs no conditional writes.

    Raises:
        ModelmillError: it cannot be reached, or refuses us, in words of its own.
    """
    if url is not None:
        # A mistyped address is said at once; a store that was there may be away for a while.
        open_store(url, retry_budget_seconds=FIRST_ANSWER_SECONDS).check()
        with _environment({ENV_SINGLE_WRITER: "1"} if is_single_writer else {}) as added:
            yield Opened(open_store(url), Place(home.resolve(), url, added))
        return
    with EmbeddedStore(home / "store") as embedded, _environment(embedded.environment) as added:
        yield Opened(open_store(embedded.url), Place(home.resolve(), embedded.url, added))


@contextmanager
def opened_as_pods_see_it(profile: Profile, url: str | None) -> Iterator[Store]:
    """Open the store of a cluster from here, by the profile's address unless another is named.

    The endpoint is the SDK's own variable where that is set: outside the cluster the store
    may have another address.

    Raises:
        ModelmillError: it cannot be reached, or refuses us.
    """
    told = {
        "AWS_ENDPOINT_URL": profile.store.endpoint_url,
        "AWS_DEFAULT_REGION": profile.store.region,
    }
    added = {name: value for name, value in told.items() if value and name not in os.environ}
    with _environment(added):
        address = url or profile.store.url
        open_store(address, retry_budget_seconds=FIRST_ANSWER_SECONDS).check()
        yield open_store(address)


@contextmanager
def _environment(added: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Set variables of this process for a while: boto3 is told by one name per setting."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield added
    finally:
        os.environ.clear()
        os.environ.update(before)
