"""Uploads in parts whose ids got lost: an answer that never came, a stop in between.

They cost space, show up in no listing of objects, and nobody could finish or drop them later.
"""

import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from modelmill.spec.errors import ModelmillError
from modelmill.spec.names import source_prefix

if TYPE_CHECKING:
    from modelmill.store.s3 import Store

PATIENCE_SECONDS = 5.0
"""Only tidying up, perhaps because the store is gone."""


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
