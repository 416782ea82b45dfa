"""Prove that a store keeps the promise the commit protocol rests on.

A store that ignores conditions answers every write with success, and two attempts would
both believe to have committed.  Only trying tells: Garage, old SeaweedFS and some gateways
drop the header.
"""

import os
import secrets
import sys
from pathlib import Path
from typing import Final

from modelmill.spec.errors import ModelmillError, StoreUnfit
from modelmill.spec.names import ENV_STORE, ENV_TERMINATION, HUB_TOKENS
from modelmill.spec.records import Ending
from modelmill.store.address import open_store
from modelmill.store.s3 import PreconditionFailed, Store
from modelmill.store.trial import FIX_CONDITIONS

HUB_PATIENCE_SECONDS: Final = 30.0


def check_conditional_writes(store: Store) -> None:
    """Create an object twice, change it with a wrong ETag, and remove it.

    Raises:
        StoreUnfit: the store let a write through whose condition did not hold.
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
    raise StoreUnfit(
        f"The store ignores the condition of a write ({header})",
        at=store.url_of(key),
        fix=FIX_CONDITIONS,
    )


def main() -> int:
    """Try the store that the environment names, and the hub if there is a token for it."""
    try:
        check_conditional_writes(open_store(os.environ[ENV_STORE]))
        if any(os.environ.get(name) for name in ("HF_TOKEN_PATH", *HUB_TOKENS)):
            from modelmill.store.hub import check_token

            check_token(HUB_PATIENCE_SECONDS)
    except ModelmillError as error:
        sys.stderr.write(f"{error}\n")
        if path := os.environ.get(ENV_TERMINATION):
            ending = Ending(exit_code=error.exit_code, message=str(error))
            Path(path).write_text(ending.termination_message(), encoding="utf-8")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
