"""What one pull leaves and the next one goes on from."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmill.spec.records import FileRecord
from modelmill.store.crew import PART_BYTES
from modelmill.store.kept import OLD_SECONDS, Kept
from modelmill.store.landing import journal_of, take
from modelmill.store.s3 import Store
from modelmill.store.transfer import download_many, upload
from tests.store.proxy import Proxy

PARTS = 4
PULL = """
import os, signal, sys
from pathlib import Path
from modelmill.spec.records import FileRecord
from modelmill.store import crew
from modelmill.store.kept import Kept
from modelmill.store.address import open_store
from modelmill.store.transfer import download_many

url, key, size, sha256, folder = sys.argv[1:]
crew.THREADS = 1
left = 2

def count(moved):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

record = FileRecord(path=key, size_bytes=int(size), sha256=sha256)
folder = Path(folder)
download_many(open_store(url), [(record, key, folder / "dead")], count, Kept(folder / "kept"))
"""


@pytest.fixture(scope="module")
def body() -> bytes:
    """Make a file of four parts."""
    return random.Random(1).randbytes(PARTS * PART_BYTES - 1000)


@pytest.fixture
def sent(store: Store, body: bytes, tmp_path: Path) -> FileRecord:
    """Have the file in the store."""
    source = tmp_path / "source"
    source.write_bytes(body)
    return upload(store, "model", source)


@pytest.fixture
def pull(behind: Store, sent: FileRecord, tmp_path: Path) -> Callable[[], int]:
    """Pull it in this process, and count what was told."""

    def run() -> int:
        told: list[int] = []
        kept = Kept(tmp_path / "kept")
        download_many(behind, [(sent, "model", tmp_path / "model")], told.append, kept)
        return sum(told)

    return run


@pytest.fixture
def killed(store: Store, sent: FileRecord, tmp_path: Path) -> Path:
    """Pull in a process that is killed after its second part, and name what it has left."""
    ended = subprocess.run(
        [
            *(sys.executable, "-c", PULL, store.url, sent.path),
            *(str(sent.size_bytes), sent.sha256, str(tmp_path)),
        ],
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    return tmp_path / "kept" / sent.sha256


def test_pull_after_a_kill(
    killed: Path, proxy: Proxy, pull: Callable[[], int], tmp_path: Path, body: bytes
) -> None:
    """What a killed process has written is hashed again, and only the rest is fetched."""
    present = sum(journal_of(killed).read_bytes())
    assert 2 <= present < PARTS

    assert pull() == len(body)

    assert (tmp_path / "model").read_bytes() == body
    assert proxy.seen == {"HeadObject": 1, "GetObject": PARTS - present}


def test_pull_of_what_is_all_there(
    proxy: Proxy, pull: Callable[[], int], tmp_path: Path, body: bytes
) -> None:
    """A pull after a whole one asks the store for nothing, and both files are one on the disk."""
    pull()
    first = (tmp_path / "model").stat().st_ino
    asked = proxy.seen.total()

    pull()

    assert (tmp_path / "model").read_bytes() == body
    assert (tmp_path / "model").stat().st_ino == first
    assert proxy.seen.total() == asked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "model", "source"]


def test_pull_of_damaged_parts(
    killed: Path, pull: Callable[[], int], tmp_path: Path, body: bytes
) -> None:
    """Parts that are not what they should be cost a second reading, and nothing else."""
    with killed.open("r+b") as file:
        file.write(b"damage")

    pull()

    assert (tmp_path / "model").read_bytes() == body


def test_input_that_its_stage_has_changed(
    sent: FileRecord, pull: Callable[[], int], tmp_path: Path, body: bytes
) -> None:
    """A file that somebody else works with is neither believed nor written to."""
    pull()
    other = tmp_path / "other"
    (tmp_path / "model").rename(other)
    with other.open("r+b") as file:
        file.write(b"changed")
    changed = other.read_bytes()

    pull()

    assert (tmp_path / "model").read_bytes() == body
    assert other.read_bytes() == changed


def test_pull_while_another_process_has_the_file(
    sent: FileRecord, pull: Callable[[], int], tmp_path: Path, body: bytes
) -> None:
    """Two live processes do not write to one file: the second fetches for itself."""
    fd = take(tmp_path / "kept" / sent.sha256)
    pull()
    os.close(fd)

    assert (tmp_path / "model").read_bytes() == body
    assert (tmp_path / "kept" / sent.sha256).stat().st_size == 0


def test_drop_leaves_nothing(sent: FileRecord, pull: Callable[[], int], tmp_path: Path) -> None:
    """After success only the file that was asked for is left."""
    pull()
    kept = Kept(tmp_path / "kept")
    assert kept.present_bytes([sent]) >= sent.size_bytes

    kept.drop([sent])

    assert not (tmp_path / "kept").exists()
    assert (tmp_path / "model").stat().st_size == sent.size_bytes


def test_tidy(tmp_path: Path) -> None:
    """The old goes, what is wanted or used stays, and without room all that is unwanted goes."""
    kept = Kept(tmp_path / "kept")
    for name in ("old", "young", "wanted", "used"):
        os.close(take(kept.folder / name))
    day_ago = time.time() - OLD_SECONDS - 1
    for name in ("old", "wanted", "used"):
        os.utime(kept.folder / name, (day_ago, day_ago))
    wanted = [FileRecord(path="wanted", size_bytes=0, sha256="wanted")]
    used = take(kept.folder / "used")

    def names() -> set[str]:
        return {path.name for path in kept.folder.iterdir()}

    kept.tidy(wanted, 0)
    assert names() == {"young", "wanted", "used"}
    kept.tidy(wanted, 2**62)
    assert names() == {"wanted", "used"}
    os.close(used)


def test_kept_folder_that_cannot_be_made(
    behind: Store, sent: FileRecord, tmp_path: Path, body: bytes
) -> None:
    """A pull does not need it."""
    (tmp_path / "file").touch()
    kept = Kept(tmp_path / "file" / "kept")

    download_many(behind, [(sent, "model", tmp_path / "model")], kept=kept)

    assert (tmp_path / "model").read_bytes() == body
