"""Files that are sent while a stage still works."""

import hashlib
import time
from pathlib import Path
from random import Random

import pytest

from modelmill.spec.records import FileRecord
from modelmill.stages.ahead import Ahead
from modelmill.store.artifact import stage_files
from modelmill.store.s3 import Store
from modelmill.store.transfer import PART_BYTES
from tests.store.proxy import Proxy

WEIGHTS = Random(0).randbytes(2 * PART_BYTES + 5)
PREFIX = "artifacts/merge/k/attempts/a"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Write what a stage has written when it starts to check it."""
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_bytes(b"{}")
    return folder


def publish(store: Store, output: Path, ahead: Ahead) -> tuple[tuple[FileRecord, ...], int]:
    """Send the rest as a stage does; returns all records, and how many bytes were told about."""
    told: list[int] = []
    files = stage_files(store, PREFIX, output, told.append, ahead.sent(told.append))
    for file in files:
        body = (output / file.path).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(body), hashlib.sha256(body).hexdigest())
        stored = store.get(f"{PREFIX}/{file.path}")
        assert stored is not None
        assert stored.body == body
    return files, sum(told)


def test_file_that_was_sent_ahead_is_not_sent_again(
    behind: Store, proxy: Proxy, output: Path
) -> None:
    """Every byte goes once, and every byte is told about."""
    with Ahead(behind, PREFIX, output) as ahead:
        ahead.send(output / "model.safetensors", len(WEIGHTS))
        files, told_bytes = publish(behind, output, ahead)
    assert [file.path for file in files] == ["config.json", "model.safetensors"]
    assert (proxy.seen["UploadPart"], proxy.seen["PutObject"]) == (3, 1)
    assert told_bytes == len(WEIGHTS) + 2


def test_file_that_grows_is_sent_while_it_does(behind: Store, proxy: Proxy, output: Path) -> None:
    """Parts that are there do not wait for the rest, and the whole is what was written."""
    path = output / "model.safetensors"
    path.unlink()
    with Ahead(behind, PREFIX, output) as ahead, path.open("xb", buffering=0) as file:
        ahead.send(path, len(WEIGHTS))
        file.write(WEIGHTS[: PART_BYTES + 1])
        while not proxy.seen["UploadPart"]:
            time.sleep(0.01)
        file.write(WEIGHTS[PART_BYTES + 1 :])
        files, told_bytes = publish(behind, output, ahead)
    assert (proxy.seen["UploadPart"], proxy.seen["PutObject"]) == (3, 1)
    assert [file.size_bytes for file in files] == [2, len(WEIGHTS)]
    assert told_bytes == len(WEIGHTS) + 2


def test_file_that_stops_growing_leaves_no_upload_open(behind: Store, output: Path) -> None:
    """Its writer has failed: nobody waits for the rest."""
    path = output / "model.safetensors"

    def work() -> None:
        with Ahead(behind, PREFIX, output) as ahead:
            ahead.send(path, len(WEIGHTS) + 1)
            raise RuntimeError("no more bytes")

    with pytest.raises(RuntimeError, match="no more bytes"):
        work()
    assert behind.open_uploads(f"{PREFIX}/model.safetensors") == ()


def test_file_that_changes_afterwards_is_sent_with_the_rest(store: Store, output: Path) -> None:
    """What is published is what lies there at the end."""
    with Ahead(store, PREFIX, output) as ahead:
        ahead.send(output / "config.json", 2)
        ahead.sent(lambda _: None)
        (output / "config.json").write_bytes(b'{"a": 1}')
        files, _ = publish(store, output, ahead)
    assert files[0].size_bytes == 8


def test_file_that_cannot_be_sent_ahead_is_sent_with_the_rest(
    behind: Store, proxy: Proxy, output: Path
) -> None:
    """Sending early is only for speed, so its failure fails nothing."""
    proxy.plan("CreateMultipartUpload", "skewed")
    with Ahead(behind, PREFIX, output) as ahead:
        ahead.send(output / "model.safetensors", len(WEIGHTS))
        assert ahead.sent(lambda _: None) == {}
        _, told_bytes = publish(behind, output, ahead)
    assert told_bytes == len(WEIGHTS) + 2


def test_stage_that_ends_early_leaves_no_upload_open(
    behind: Store, proxy: Proxy, output: Path
) -> None:
    """An error in the stage ends what is still being sent, at once."""
    key = f"{PREFIX}/model.safetensors"
    proxy.always("UploadPart", "503")

    def work() -> None:
        with Ahead(behind, PREFIX, output) as ahead:
            ahead.send(output / "model.safetensors", len(WEIGHTS))
            while not proxy.seen["UploadPart"]:
                time.sleep(0.01)
            raise RuntimeError("not proved")

    with pytest.raises(RuntimeError, match="not proved"):
        work()
    assert behind.get(key) is None
    assert behind.open_uploads(key) == ()
