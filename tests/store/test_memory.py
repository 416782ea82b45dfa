"""What a transfer takes of the memory, measured by the kernel."""

import subprocess
import sys
from pathlib import Path

import pytest

from modelmill.store.s3 import Store

FILES = 2
FILE_BYTES = 512 * 2**20
BOUND_BYTES = 256 * 2**20

MEASURE = """
import sys
from pathlib import Path
from modelmill.store.address import open_store
from modelmill.store.transfer import download_many, upload_many

def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

url, folder, work = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
store = open_store(url)
store.put("warm", bytes(2**20))
store.get("warm")
Path("/proc/self/clear_refs").write_text("5")
before = peak_bytes()
if work == "move":
    records = upload_many(store, {path.name: path for path in sorted(folder.iterdir())})
    download_many(store, [(each, each.path, folder / "pulled" / each.path) for each in records])
else:
    whole = sorted(folder.iterdir())[0].read_bytes()
print(peak_bytes() - before)
"""


@pytest.fixture
def big_files(tmp_path: Path) -> Path:
    """Make files that take no room until they are read."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(FILES):
        with (folder / str(number)).open("wb") as file:
            file.truncate(FILE_BYTES)
    return folder


@pytest.mark.parametrize(("work", "is_bounded"), [("move", True), ("read", False)])
def test_memory_of_moving_a_gibibyte(
    store: Store, big_files: Path, work: str, is_bounded: bool
) -> None:
    """Pushing and pulling 1 GiB takes no more than 256 MiB; reading half of it whole is seen."""
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, store.url, str(big_files), work],
        check=True,
        stdout=subprocess.PIPE,
    )

    assert (int(measured.stdout) < BOUND_BYTES) is is_bounded, f"{int(measured.stdout):,} bytes"
