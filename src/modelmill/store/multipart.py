"""Uploads in parts whose ids got lost: an answer that never came, a stop in between.

They cost space, show up in no listing of objects, and nobody could finish or drop them later.
"""

import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from botocore.exceptions import ClientError

from modelmill.spec.errors import ModelmillError, StoreUnreachable
from modelmill.spec.names import source_prefix
from modelmill.store.failures import is_upload_missing

if TYPE_CHECKING:
    from modelmill.store.s3 import Store


T = TypeVar("T")


class UploadLost(Exception):
    """The store does not know an upload in parts: its id was damaged on the way, or it is gone."""


PATIENCE_SECONDS = 5.0
"""Only tidying up, perhaps because the store is gone."""


def unless_lost(request: Callable[[], T]) -> T:
    """Make a request about an upload, and say so if the store does not know it.

    Raises:
        UploadLost: start it again.
    """
    try:
        return request()
    except ClientError as error:
        if is_upload_missing(error):
            raise UploadLost from error
        raise


def once_more_if_lost(
    store: "Store",
    keys: Collection[str],
    send: Callable[["Store"], None],
    stop: threading.Event | None = None,
) -> None:
    """Send files, and send what is left once more if the store loses an upload in parts.

    Args:
        store: where to.
        keys: of the files.
        send: sends what has not been sent.
        stop: ends it when somebody sets it; then `Stopped` is raised.  What fails sets it too, so
            nothing is sent again.

    Raises:
        StoreUnreachable: it has done so twice, or once where nothing is sent again.
    """
    try:
        send(store.stoppable() if stop is None else replace(store, stop=stop))
    except UploadLost as error:
        for key in keys:
            abandon_unknown(store, key, "")
        if stop is not None:
            raise _loses(store) from error
    else:
        return
    try:
        send(store.stoppable())
    except UploadLost as error:
        raise _loses(store) from error


def _loses(store: "Store") -> StoreUnreachable:
    return StoreUnreachable(
        "The store loses an upload in parts while it is being sent",
        at=store.url,
        fix="see whether a rule of the bucket aborts uploads, then run the same command again",
    )


def abandon_unknown(store: "Store", key: str, known: str) -> None:
    """Drop every upload to a key but the known one, where one attempt alone writes to it.

    A courtesy that is not worth an error: listing uploads is a permission of its own.
    """
    if key.startswith(source_prefix("")):
        # Addressed by content: somebody else may be sending the same.
        return
    brief = replace(store, stop=threading.Event(), retry_budget_seconds=PATIENCE_SECONDS)
    with suppress(ModelmillError):
        for upload in brief.open_uploads(key):
            if upload != known:
                brief.abandon_multipart(key, upload)
