"""A model on its way out of the store: committed files under other names, and words beside them.

A file may also be made for its journey, on this machine.

`SHA256SUMS` is written first, and says by its content which export a place holds: one that was
interrupted goes on, another one is not overwritten.  Knows folders and buckets; `hub_upload`
knows hubs.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from modelmill.spec.errors import WouldBeLost
from modelmill.spec.records import FileRecord
from modelmill.store.address import open_source
from modelmill.store.kept import KEPT, Kept
from modelmill.store.keys import check_paths
from modelmill.store.landing import final_name
from modelmill.store.s3 import Store
from modelmill.store.space import check_space
from modelmill.store.transfer import download, download_many, upload

SUMS: Final = "SHA256SUMS"

_LINE: Final = re.compile(r"^[0-9a-f]{64}  (.+)$", re.MULTILINE)
_SHOWN: Final = 3


@dataclass(frozen=True)
class Item:
    """A committed file that leaves."""

    record: FileRecord
    """Its path is the one it gets outside."""
    key: str
    """Where it is in the store."""


@dataclass(frozen=True)
class Made:
    """A file that is made of committed ones, and leaves in their place."""

    record: FileRecord
    file: Path
    """Where it is on this machine."""


@dataclass(frozen=True)
class Destination:
    """Where a parcel is to go, and what is there."""

    at: str
    sizes: Mapping[str, int]
    """In bytes, by path."""
    sums: bytes | None
    """What is there as `SHA256SUMS`."""


@dataclass(frozen=True)
class Parcel:
    """Everything that leaves together."""

    items: tuple[Item | Made, ...]
    words: Mapping[str, bytes]
    """Small files that are made for whoever gets it, by path."""
    to_make: str = ""
    """Path of a file that is still to be made; of it only this is known."""

    def __post_init__(self) -> None:
        """Refuse paths that cannot all exist side by side."""
        check_paths([*self.paths, SUMS])

    @property
    def paths(self) -> tuple[str, ...]:
        """Name every file but the sums."""
        made = (*(item.record.path for item in self.items), *self.words)
        return (*made, self.to_make) if self.to_make else made

    @property
    def size_bytes(self) -> int:
        """Add up all files but the sums."""
        return sum(i.record.size_bytes for i in self.items) + sum(map(len, self.words.values()))

    def with_made(self, made: Made) -> "Parcel":
        """Put in what was still to be made."""
        return replace(self, items=(made, *self.items), to_make="")

    @cached_property
    def sums(self) -> bytes:
        """List all files that are made the way `sha256sum -c` reads it."""
        digests = {item.record.path: item.record.sha256 for item in self.items}
        digests |= {path: hashlib.sha256(body).hexdigest() for path, body in self.words.items()}
        return "".join(f"{digests[path]}  {path}\n" for path in sorted(digests)).encode()

    def check(self, destination: Destination, *, is_forced: bool) -> tuple[str, ...]:
        """Find out what has to go from a destination before this comes there.

        Args:
            destination: what is there.
            is_forced: whether files of the same name may be replaced.

        Returns:
            What another export has brought there and this one does not replace: left lying, it
            would be read beside this one.

        Raises:
            WouldBeLost: something else is there.
        """
        present, sums = destination.sizes, destination.sums or b""
        if not present or self._may_be(sums):
            return ()
        if not is_forced:
            names = sorted(present)
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise WouldBeLost(
                f"There is something else already: {', '.join(names[:_SHOWN])}{more}",
                at=destination.at,
                fix="choose another place, or say --force: it replaces an earlier export, and "
                "files of the same names",
            )
        listed = _LINE.findall(sums.decode(errors="replace"))
        return tuple(sorted(set(listed) & set(present) - set(self.paths)))

    def _may_be(self, sums: bytes) -> bool:
        """Tell whether these are its sums, as far as its files are made."""
        if not self.to_make:
            return sums == self.sums
        lines = sums.splitlines(keepends=True)
        made = [line for line in lines if not line.endswith(f"  {self.to_make}\n".encode())]
        return len(made) == len(lines) - 1 and b"".join(made) == self.sums


def look_into_folder(folder: Path) -> Destination:
    """See what a folder holds.

    Raises:
        WouldBeLost: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise WouldBeLost("There is a file of this name", at=str(folder), fix="choose another")
    sums = (folder / SUMS).read_bytes() if (folder / SUMS).is_file() else None
    return Destination(str(folder), _sizes(folder), sums)


def into_folder(store: Store, parcel: Parcel, folder: Path, *, is_forced: bool = False) -> None:
    """Bring a parcel into a folder and check every byte; interrupted, go on the next time.

    Raises:
        DoesNotFit: the folder's volume cannot hold it.
        WouldBeLost: something else is there.
    """
    destination = look_into_folder(folder)
    for path in parcel.check(destination, is_forced=is_forced):
        (folder / path).unlink()
    is_begun = destination.sums == parcel.sums
    left = [i for i in parcel.items if not (is_begun and is_whole(folder, i.record))]
    files, kept = [item.record for item in left], Kept(folder / KEPT)
    needed_bytes = sum(file.size_bytes for file in files)
    present_bytes = kept.present_bytes(files)
    check_space(folder, needed_bytes, present_bytes=present_bytes)
    _write(folder / SUMS, parcel.sums)
    committed = [item for item in left if isinstance(item, Item)]
    download_many(store, [(i.record, i.key, folder / i.record.path) for i in committed], kept=kept)
    for item in left:
        if isinstance(item, Made):
            with item.file.open("rb") as made, final_name(folder / item.record.path) as file:
                shutil.copyfileobj(made, file)
    for path, body in parcel.words.items():
        _write(folder / path, body)
    kept.drop(item.record for item in parcel.items)


def look_into_bucket(store: Store, url: str) -> Destination:
    """See what is below an address of a bucket.

    Raises:
        WouldBeLost: it is a place of the store itself.
    """
    if f"{url.rstrip('/')}/".startswith(f"{store.url}/"):
        raise WouldBeLost("This is inside the store", at=url, fix="choose a place outside of it")
    bucket, prefix = _below(store, url)
    sizes = {each.key.removeprefix(prefix): each.size_bytes for each in bucket.list(prefix)}
    stored = bucket.get(prefix + SUMS)
    return Destination(url, sizes, None if stored is None else stored.body)


def into_bucket(
    store: Store, parcel: Parcel, url: str, work: Path, *, is_forced: bool = False
) -> None:
    """Bring a parcel below an address of a bucket, file by file through this machine.

    Every byte is checked on its way.  Interrupted, go on at the file the next time.

    Args:
        store: where the files are.
        parcel: what leaves.
        url: `s3://bucket/prefix`.
        work: a folder for one file at a time.
        is_forced: whether files of the same name may be replaced.

    Raises:
        DoesNotFit: the largest file has no room here.
        WouldBeLost: something else is there, or it is a place of the store itself.
    """
    destination = look_into_bucket(store, url)
    stale = parcel.check(destination, is_forced=is_forced)
    bucket, prefix = _below(store, url)
    is_begun = destination.sums == parcel.sums
    # What is replaced goes too: beside these sums, its size alone could pass for the new file's.
    replaced = () if is_begun else set(parcel.paths) & set(destination.sizes)
    bucket.delete(prefix + path for path in (*stale, *replaced))
    bucket.put(prefix + SUMS, parcel.sums)
    for item in parcel.items:
        # An object is there as a whole or not at all.
        size_bytes = destination.sizes.get(item.record.path)
        if not (is_begun and size_bytes == item.record.size_bytes):
            with brought(store, item, work) as file:
                upload(bucket, prefix + item.record.path, file)
    for path, body in parcel.words.items():
        bucket.put(prefix + path, body)


@contextmanager
def brought(store: Store, item: Item | Made, work: Path) -> Iterator[Path]:
    """Have one file on this machine for a while, every byte of it checked.

    Raises:
        DoesNotFit: there is no room for it.
    """
    if isinstance(item, Made):
        yield item.file
        return
    check_space(work, item.record.size_bytes)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="export-", dir=work) as folder:
        path = Path(folder) / "file"
        download(store, item.key, path, item.record)
        yield path


def _below(store: Store, url: str) -> tuple[Store, str]:
    bucket, name = open_source(url, retry_budget_seconds=store.retry_budget_seconds)
    return bucket, f"{name}/" if name else ""


def _sizes(folder: Path) -> Mapping[str, int]:
    """List what is in a folder, but for what an interrupted transfer has kept there."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    below = ((path.relative_to(folder), path.lstat().st_size) for path in files)
    return {path.as_posix(): size for path, size in below if path.parts[0] != KEPT}


def is_whole(folder: Path, record: FileRecord) -> bool:
    """Tell whether a folder has a file as it is recorded, by its bytes."""
    path = folder / record.path
    if not path.is_file() or path.stat().st_size != record.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256


def _write(path: Path, body: bytes) -> None:
    with final_name(path) as file:
        file.write(body)
