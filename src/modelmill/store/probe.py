"""Prove that a store keeps the promise the commit protocol rests on.

A store that ignores conditions answers every write with success, and two attempts would
both believe to have committed.  Only trying tells: Garage, old SeaweedFS and some gateways
drop the header.
"""

import secrets

from modelmill.spec.errors import StoreUnreachable
from modelmill.store.s3 import PreconditionFailed, Store


def check_conditional_writes(store: Store) -> None:
    """Create an object twice, change it with a wrong ETag, and remove it.

    Raises:
        StoreUnreachable: the store let a write through whose condition did not hold.
        ModelmillError: it cannot be reached, or refuses us.
    """
    key = f"probes/{secrets.token_hex(8)}"
    etag = store.put(key, b"first", if_none_match=True)
    try:
        _must_be_refused(store, key, "If-None-Match: *", if_none_match=True)
        store.put(key, b"second", if_match=etag)
        _must_be_refused(store, key, "If-Match", if_match=etag)
    finally:
        store.delete([key])


def _must_be_refused(
    store: Store, key: str, header: str, *, if_none_match: bool = False, if_match: str | None = None
) -> None:
    try:
        store.put(key, b"third", if_none_match=if_none_match, if_match=if_match)
    except PreconditionFailed:
        return
    raise StoreUnreachable(
        f"The store ignores the condition of a write ({header})",
        at=store.url_of(key),
        fix="use a store that has conditional writes, or a newer version of this one: without "
        "them two attempts could both commit",
    )
