"""What is removed takes everything made from it along, and nothing that a run still needs."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.conduct.collecting import collect, find_due
from modelmill.conduct.removing import Removal, made_from, plan_removal, remove_artifacts
from modelmill.spec.errors import InputMissing, WouldBeLost
from modelmill.spec.names import COMMITTED, artifact_prefix
from modelmill.spec.records import Device, InputRecord, Live, Manifest, RunRecord
from modelmill.store.artifact import Committed, attempt_id, list_artifacts, read_manifest, verify
from modelmill.store.checkpoint import put_live
from modelmill.store.runs import drop_run, read_run, update_run
from modelmill.store.s3 import Store

from ..processes import wait_for
from ..store.turns import play
from ..workshop import Workshop, write_rows
from .conftest import Preparer, publish


@pytest.fixture
def run(prepared: Preparer, store: Store, request: pytest.FixtureRequest) -> str:
    """Commit every stage of a run with fine-tuning, whose keys no other test has."""
    number = crc32(request.node.name.encode())
    given = prepared(f"r{number:08x}", **{"finetune.r": 4, "seed": number % 100_000})
    for stage in given.plan.stages:
        if read_manifest(store, stage.kind, stage.key) is None:
            publish(given, stage.name, stage.key, attempt_id(), given.run)
    change(store, given.run, exit_code=0)
    return given.run


def keys_of(store: Store, run: str) -> dict[str, str]:
    """Read the keys of a run by stage."""
    record = read_run(store, run)
    assert record is not None
    return dict(record.keys)


def change(store: Store, run: str, **changes: object) -> None:
    """Change the record of a run."""

    def changed(record: RunRecord | None) -> RunRecord:
        assert record is not None
        return record.model_copy(update=changes)

    update_run(store, run, changed)


def stages_of(removal: Removal) -> list[str]:
    """List what goes, in its order."""
    return [row.stage for row in removal.artifacts]


def test_artifact_goes_with_everything_that_was_made_from_it(
    workshop: Workshop, store: Store, run: str
) -> None:
    """Dry by default; with `--yes` manifests and data go, and the rest stays."""
    keys = keys_of(store, run)
    before = set(list_artifacts(store))
    dry = workshop.read("artifacts", "rm", keys["finetune"][:12])
    assert [row["stage"] for row in dry["artifacts"]] == ["infer-merged", "merge", "finetune"]
    assert {tuple(row["used_in"]) for row in dry["artifacts"]} == {(run,)}
    assert all(row["size_bytes"] > 0 for row in dry["artifacts"])
    assert (dry["is_done"], dry["needed_by"]) == (False, [])
    assert set(list_artifacts(store)) == before

    words = workshop.modelmill("artifacts", "rm", keys["finetune"], "-o", "plain")
    assert "stage: infer-merged\nmade by: " in words.stdout
    command = words.stderr.rpartition("to remove it: modelmill ")[2].split()
    assert command == ["artifacts", "rm", keys["finetune"], "--yes"]
    done = workshop.modelmill(*command)
    assert done.returncode == 0, done.stderr
    assert "3 artifacts, " in done.stderr
    assert ": removed" in done.stderr
    gone = {("infer", keys["infer-merged"]), ("merge", keys["merge"])}
    gone.add(("finetune", keys["finetune"]))
    assert set(list_artifacts(store)) == before - gone
    for kind, key in gone:
        assert list(store.list(f"{artifact_prefix(kind, key)}/")) == []
    states = workshop.states(run)
    assert (states["fetch-data"], states["merge"], states["infer-base"]) == (
        *("committed", "waiting", "committed"),
    )
    with pytest.raises(InputMissing, match="No artifact"):
        plan_removal(store, keys["finetune"])


def test_nothing_goes_while_a_run_has_no_end(workshop: Workshop, store: Store, run: str) -> None:
    """A run that adopted an artifact needs it as much as the one that made it."""
    keys = keys_of(store, run)
    change(store, run, exit_code=None)
    adopted = plan_removal(store, keys["fetch-model"])
    assert run in {need.run for need in adopted.needed_by}
    refused = workshop.modelmill("artifacts", "rm", keys["finetune"], "--yes")
    assert refused.returncode == 77
    assert f"Run '{run}' has no end yet and needs finetune, infer-merged, merge" in refused.stderr
    assert f"fix: modelmill wait {run} or modelmill cancel {run} or modelmill rm {run}" in (
        refused.stderr
    )
    assert read_manifest(store, "finetune", keys["finetune"]) is not None
    seen = workshop.modelmill("artifacts", "rm", keys["finetune"])
    assert seen.returncode == 0
    assert f"In the way: run '{run}' has no end yet" in seen.stderr

    change(store, run, exit_code=75)
    assert remove_artifacts(store, plan_removal(store, keys["finetune"])).is_done


def test_nothing_goes_while_an_attempt_lives(store: Store, run: str) -> None:
    """Also where its run has ended and it works on another stage: it may be reading this one.

    Who has been silent for long has died, and who has committed is over.
    """
    keys = keys_of(store, run)
    for age, is_needed in ((timedelta(), True), (timedelta(minutes=5), False)):
        time = (datetime.now(UTC) - age).isoformat(timespec="milliseconds")
        put_live(store, keys["infer-base"], Live(run=run, attempt="a", time=time))
        removal = plan_removal(store, keys["finetune"])
        assert bool(removal.needed_by) == is_needed
        if is_needed:
            assert removal.needed_by[0].reason == "is at work on infer-base"
            with pytest.raises(WouldBeLost, match="is at work on infer-base"):
                remove_artifacts(store, removal)
    committed = read_manifest(store, "infer", keys["infer-base"])
    assert committed is not None
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    late = Live(run=run, attempt=committed.manifest.attempt, time=time)
    put_live(store, keys["infer-base"], late)
    assert plan_removal(store, keys["finetune"]).needed_by == ()


def test_attempt_of_a_plan_that_was_left_behind_counts_too(store: Store, run: str) -> None:
    """No run has its key any more, but it is alive."""
    keys = keys_of(store, run)
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    put_live(store, keys["merge"], Live(run="elsewhere", attempt="a", time=time))
    change(store, run, keys={})
    [need] = plan_removal(store, keys["finetune"]).needed_by
    assert (need.run, need.reason) == ("elsewhere", f"is at work on {keys['merge']}")


def test_real_run_at_work_is_in_the_way(workshop: Workshop, store: Store) -> None:
    """The whole of it: a command that works, and one that would pull the floor from under it."""
    write_rows(workshop.folder / "at-work.jsonl", 9)
    file = workshop.write_run("at-work.yaml", test="at-work.jsonl")
    process = workshop.start("run", file.name, MODELMILL_STAND_IN='{"infer-base": {"dawdle": 600}}')
    wait_for(process, "infer-base started")
    key = keys_of(store, "at-work")["fetch-test"]
    refused = workshop.modelmill("artifacts", "rm", key, "--yes")
    process.terminate()
    process.communicate()
    assert refused.returncode == 77
    assert "Run 'at-work' " in refused.stderr
    assert read_manifest(store, "fetch-test", key) is not None
    assert workshop.modelmill("artifacts", "rm", key, "--yes").returncode == 0
    assert read_manifest(store, "fetch-test", key) is None


def test_interrupted_removal_leaves_what_is_sound_and_gc_finishes_it(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every manifest goes before any data, dependents before what they were made from."""
    keys = keys_of(store, run)
    removal = plan_removal(store, keys["finetune"])
    order: list[str] = []
    real = Store.delete

    def failing(self: Store, names: Iterable[str]) -> None:
        listed = list(names)
        order.extend(listed)
        if any(f"merge/{keys['merge']}/attempts" in name for name in listed):
            raise ConnectionError
        real(self, listed)

    monkeypatch.setattr(Store, "delete", failing)
    with pytest.raises(ConnectionError):
        remove_artifacts(store, removal)
    monkeypatch.undo()
    assert order[:3] == [
        f"{artifact_prefix(row.kind, row.key)}/{COMMITTED}" for row in removal.artifacts
    ]
    names = [(row.kind, row.key) for row in removal.artifacts]
    assert [read_manifest(store, *name) for name in names] == [None, None, None]
    assert list(store.list(f"artifacts/merge/{keys['merge']}/attempts/"))

    # A run that is over needs nothing that its user has removed.
    later = datetime.now(UTC) + timedelta(days=2)
    drop_run(store, run)
    collect(store, find_due(store, later, timedelta(days=365)))
    left = [item.key for name in names for item in store.list(f"{artifact_prefix(*name)}/")]
    assert left == []


@pytest.mark.parametrize("requests", range(0, 60, 2))
def test_run_that_adopts_while_something_is_removed_keeps_it(
    store: Store, run: str, requests: int
) -> None:
    """Whenever it looks: what a run has seen committed stays, or comes back."""
    keys = keys_of(store, run)
    change(store, run, exit_code=0)
    key = keys["merge"]
    other = f"x{run[1:]}"

    def adopt(own: Store) -> Committed | None:
        # As a conductor does: what is needed is written down first.
        update_run(
            own,
            other,
            lambda _: RunRecord(name=other, created="2026-01-01T00:00:00Z", keys={"merge": key}),
        )
        return read_manifest(own, "merge", key)

    removed, adopted = play(
        store,
        [0] * requests + [1] * 3,
        lambda own: remove_artifacts(own, plan_removal(own, key)),
        adopt,
    )

    present = read_manifest(store, "merge", key)
    if isinstance(adopted, Committed):
        assert isinstance(removed, WouldBeLost)
        assert present == adopted
        assert verify(store, adopted) == ()
    else:
        assert adopted is None
    drop_run(store, other)


def _committed(key: str, inputs: list[str]) -> Committed:
    given = {
        str(n): InputRecord(kind="merge", key=k, manifest_sha256="") for n, k in enumerate(inputs)
    }
    manifest = Manifest(
        kind="merge",
        key=key,
        stage="merge",
        run="r",
        attempt="a",
        created="",
        settings={},
        inputs=given,
        versions={},
        device=Device(accelerator="cpu", name="x"),
        files=(),
    )
    return Committed(manifest, key)


@given(
    edges=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30),
    root=st.integers(0, 9),
)
def test_closure_is_everything_below_in_an_order_that_stays_sound(
    edges: list[tuple[int, int]], root: int
) -> None:
    """In any graph: exactly what was made from the root, each after all that was made of it."""
    inputs: dict[int, set[int]] = {number: set() for number in range(10)}
    for one, other in edges:
        if one != other:
            inputs[max(one, other)].add(min(one, other))
    committed = {n: _committed(str(n), [str(i) for i in ins]) for n, ins in inputs.items()}
    manifests = {("merge", str(n)): each for n, each in committed.items()}
    order = [int(each.manifest.key) for each in made_from(manifests, committed[root])]
    expected = {root}
    for number in range(10):
        if inputs[number] & expected:
            expected.add(number)
    assert set(order) == expected
    assert len(order) == len(expected)
    for position, number in enumerate(order):
        assert not inputs[number] & set(order[:position])
    assert order[-1] == root
