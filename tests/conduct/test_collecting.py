"""What gc does to a real store: kills leave nothing behind, and runs lose nothing."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from modelmill.conduct.collecting import collect, find_due
from modelmill.spec.names import Kind, live_name, report_key
from modelmill.spec.records import Device, Live, Manifest, Progress, RunRecord
from modelmill.spec.settings import Pin
from modelmill.store.artifact import (
    Committed,
    attempt_id,
    attempt_prefix,
    commit,
    read_manifest,
    stage_bytes,
    verify,
)
from modelmill.store.checkpoint import put_live, save_checkpoint
from modelmill.store.runs import drop_run, put_progress, update_run
from modelmill.store.s3 import Store
from modelmill.store.sources import is_uploaded, upload_source

from ..store.turns import play
from ..workshop import Workshop

WEEK, DAY = timedelta(days=7), timedelta(days=1)

SENDER = """
import sys
from pathlib import Path
from modelmill.store.artifact import stage_files
from modelmill.store.address import open_store
stage_files(open_store(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
"""


@pytest.fixture
def own(store: Store) -> Store:
    """Use a prefix that no other test uses."""
    return replace(store, prefix=uuid4().hex)


def _publish(store: Store, key: str, kind: Kind = "merge") -> Committed:
    attempt = attempt_id()
    record = stage_bytes(store, attempt_prefix(kind, key, attempt), "a", b"1")
    manifest = Manifest(
        kind=kind,
        key=key,
        stage="merge",
        run="r",
        attempt=attempt,
        created="2026-01-01T00:00:00Z",
        settings={},
        inputs={},
        versions={},
        device=Device(accelerator="cpu", name="x"),
        files=(record,),
    )
    return commit(store, manifest).committed


def _need(store: Store, run: str, key: str, pin: Pin | None = None) -> None:
    record = RunRecord(
        name=run,
        created="2026-01-01T00:00:00Z",
        keys={"merge": key},
        pins={} if pin is None else {"rows.jsonl": pin},
    )
    update_run(store, run, lambda _: record)


def _later(age: timedelta) -> datetime:
    return datetime.now(UTC) + age


def _collect(store: Store, age: timedelta) -> list[str]:
    due = find_due(store, _later(age), WEEK)
    collect(store, due)
    return [f"{row.step} {row.what}" for row in due.garbage]


def _keys(store: Store) -> list[str]:
    return [item.key for item in store.list()]


def test_killed_upload_leaves_nothing_after_one_gc(own: Store, tmp_path: Path) -> None:
    """A real writer, a real SIGKILL: neither parts nor files are left, committed ones stay."""
    committed = _publish(own, "k")
    _need(own, "r", "k")
    before = _keys(own)
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "small.json").write_bytes(b"{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(1 << 30)
    prefix = attempt_prefix("merge", "k", attempt_id())
    sender = subprocess.Popen([sys.executable, "-c", SENDER, own.url, prefix, str(folder)])
    while not (list(own.unfinished()) and len(_keys(own)) > len(before)):
        assert sender.poll() is None, "It ended before it could be killed"
        time.sleep(0.05)
    os.kill(sender.pid, signal.SIGKILL)
    sender.wait()
    assert _collect(own, timedelta()) == []

    assert _collect(own, timedelta(minutes=3)) == ["abort upload", "remove attempt"]

    assert list(own.unfinished()) == []
    assert _keys(own) == before
    assert verify(own, committed) == ()


def test_what_no_run_needs_goes_in_two_steps_and_comes_back_in_between(
    own: Store, tmp_path: Path
) -> None:
    """Artifact, source and checkpoints of a forgotten run."""
    committed = _publish(own, "k")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n")
    pin = upload_source(own, path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "adapter.safetensors").write_bytes(b"1")
    save_checkpoint(own, "unfinished", "a", tmp_path / "state")
    _need(own, "r", "k", pin)
    assert _collect(own, 8 * DAY) == ["remove checkpoint"]
    drop_run(own, "r")

    assert _collect(own, 6 * DAY) == []
    assert _collect(own, 8 * DAY) == ["withdraw artifact", "withdraw source"]
    assert read_manifest(own, "merge", "k") is None
    assert not is_uploaded(own, pin)
    _need(own, "s", "k", pin)
    assert _collect(own, timedelta()) == ["restore artifact", "restore source"]
    assert read_manifest(own, "merge", "k") == committed
    assert is_uploaded(own, pin)

    drop_run(own, "s")
    _collect(own, 8 * DAY)
    assert _collect(own, timedelta(hours=23)) == []
    assert _collect(own, timedelta(hours=25)) == ["remove artifact", "remove source"]
    assert _keys(own) == []


def test_inputs_of_what_is_needed_are_needed(own: Store) -> None:
    """Also where no plan names them any more."""
    model = _publish(own, "m")
    manifest = _publish(own, "tmp").manifest
    own.delete(["artifacts/merge/tmp/COMMITTED.json"])
    given = {"model": {"kind": "merge", "key": "m", "manifest_sha256": model.sha256}}
    body = manifest.model_dump(mode="json") | {"key": "k", "inputs": given}
    own.put(
        "artifacts/merge/k/COMMITTED.json", Manifest.model_validate(body).model_dump_json().encode()
    )
    _need(own, "r", "k")
    assert "withdraw artifact" not in _collect(own, 8 * DAY)
    drop_run(own, "r")
    assert _collect(own, 8 * DAY).count("withdraw artifact") == 2


def test_report_stays_with_its_run(own: Store) -> None:
    """Whatever its age; with the run it goes."""
    _need(own, "r", "k")
    report = _publish(own, report_key("r", "d"), "report")
    assert _collect(own, 90 * DAY) == []
    assert verify(own, report) == ()
    put_progress(own, "r", Progress(stage="merge", attempt="a", time="", part="work"))
    own.delete(["runs/r/run.json"])
    assert _collect(own, 2 * DAY) == ["remove run"]
    assert _keys(own) == []


def test_live_attempt_keeps_everything_it_has(own: Store, tmp_path: Path) -> None:
    """Its files, its upload, its checkpoints; a day later it has died."""
    now = _later(timedelta(hours=1))
    prefix = attempt_prefix("merge", "k", "a")
    stage_bytes(own, prefix, "x", b"1")
    own.start_multipart(f"{prefix}/y")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "x").write_bytes(b"1")
    save_checkpoint(own, "k", "a", tmp_path / "state")
    put_live(own, "k", Live(run="r", attempt="a", time=now.isoformat()))
    before = _keys(own)

    assert find_due(own, now, WEEK).garbage == ()
    assert find_due(own, now + 9 * DAY, WEEK).garbage
    assert _keys(own) == before
    assert live_name("k") in before


@pytest.mark.parametrize("requests", range(0, 48, 2))
def test_run_that_adopts_while_gc_runs_keeps_what_it_saw(own: Store, requests: int) -> None:
    """Whenever it looks: what a run has seen committed stays, or comes back."""
    _publish(own, "k")

    def adopt(store: Store) -> Committed | None:
        # As a conductor does: what is needed is written down first.
        _need(store, "r", "k")
        return read_manifest(store, "merge", "k")

    _, adopted = play(
        own,
        [0] * requests + [1] * 4,
        lambda store: collect(store, find_due(store, _later(8 * DAY), WEEK)),
        adopt,
    )

    assert not isinstance(adopted, Exception)
    if adopted is not None:
        assert read_manifest(own, "merge", "k") == adopted
        assert verify(own, adopted) == ()


def test_gc_on_the_command_line(workshop: Workshop, store: Store) -> None:
    """Dry by default, with the command that does it; then done; JSON for programs."""
    _publish(store, "unneeded")
    dry = workshop.modelmill("gc", "--keep-days", "0", "-o", "plain")
    assert "what: artifact\nstep: withdraw\nat: merge unneeded" in dry.stdout
    assert read_manifest(store, "merge", "unneeded") is not None
    command = dry.stderr.rpartition("to do it: modelmill ")[2].split()
    assert command == ["gc", "--keep-days", "0", "--yes"]

    done = workshop.modelmill(*command)
    assert done.returncode == 0, done.stderr
    assert read_manifest(store, "merge", "unneeded") is None
    left = workshop.read("gc", "--keep-days", "0")
    assert "unneeded" not in [
        row["names"][1] for row in left["garbage"] if row["what"] == "artifact"
    ]
    assert left["is_done"] is False
