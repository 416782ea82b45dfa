"""Who commits and who removes see each other, whoever is faster, without a clock.

Whoever removes files sets a mark first and then looks whether they are committed.  Whoever
commits does so first and then looks for the mark and for the files.  In every order of these
four steps one of the two sees the other, and gives way.
"""

from collections.abc import Iterable

from modelmill.store.s3 import Store


def removal_mark(prefix: str) -> str:
    """Name the object that says that a folder's files are being removed; it stands beside."""
    return f"{prefix}.removing"


def is_whole(store: Store, prefix: str, paths: Iterable[str]) -> bool:
    """Tell whether a folder has these files and nobody is removing them."""
    found = {item.key for item in store.list(prefix)}
    if removal_mark(prefix) in found:
        return False
    expected = {f"{prefix}/{path}" for path in paths}
    # A listing that lags behind must not cost finished work.
    return all(store.head(key) is not None for key in sorted(expected - found))
