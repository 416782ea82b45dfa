"""Sources on a hub are pinned by whoever may ask it, once, and planned with what that said."""

import pytest

from modelmill.conduct.prepare import Asked, prepare, record_plan
from modelmill.spec.errors import InputMissing
from modelmill.spec.loading import load_run
from modelmill.spec.profile import Profile
from modelmill.spec.run import RunSpec
from modelmill.store.runs import read_run
from modelmill.store.s3 import Store

from ..hub_server import HubServer, Repository
from ..workshop import Workshop, write_model

ON_HUB = ("model.source=hf:org/name@main",)


@pytest.fixture
def repository(hub: HubServer, workshop: Workshop) -> Repository:
    """Serve the smallest model that there is."""
    folder = workshop.folder / "on-hub"
    if not folder.exists():
        write_model(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return hub.repository("model", "org/name", files)


@pytest.fixture
def spec(workshop: Workshop) -> RunSpec:
    """Ask for that model."""
    return load_run(workshop.folder / "run.yaml", ON_HUB)


def test_submitter_leaves_the_hub_to_the_conductor(
    workshop: Workshop, store: Store, hub: HubServer, repository: Repository, spec: RunSpec
) -> None:
    """It uploads what is local, asks nobody, and the conductor goes on from there."""
    submitter = Asked("submitted", workshop.folder, ("merge",), asks_hub=False)
    spec = load_run(workshop.folder / "run.yaml", (*ON_HUB, "finetune={}"))
    assert record_plan(store, spec, Profile(), submitter) is None
    assert hub.seen == []
    record = read_run(store, "submitted")
    assert record is not None
    assert sorted(record.pins) == ["test.jsonl", "train.jsonl"]
    assert (record.plan_sha256, record.again) == ("", {"merge": 1})

    given = prepare(store, spec, Profile(), Asked("submitted", None))
    commit = repository.branches["main"]
    assert given.plan.pins["hf:org/name@main"].address == f"hf:org/name@{commit}"
    assert given.plan.again == {"merge": 1}

    before = len(hub.seen)
    again = record_plan(store, spec, Profile(), submitter)
    assert again is not None
    assert again[0].pins == given.plan.pins
    assert len(hub.seen) == before


def test_pin_stays_until_it_is_renewed(
    workshop: Workshop, store: Store, repository: Repository, spec: RunSpec
) -> None:
    """A branch may move; a run follows when it is asked to."""
    asked = Asked("pinned", workshop.folder)
    first = prepare(store, spec, Profile(), asked).plan
    repository.commit({**repository.commits[repository.branches["main"]], "README.md": b"new"})
    assert prepare(store, spec, Profile(), asked).plan == first
    renewed = prepare(store, spec, Profile(), Asked("pinned", workshop.folder, repin=True)).plan
    assert renewed.pins["hf:org/name@main"].address.endswith(repository.branches["main"])
    assert renewed.stage("fetch-model").key != first.stage("fetch-model").key
    assert renewed.stage("fetch-test").key == first.stage("fetch-test").key


def test_submitter_who_renews_pins_leaves_those_of_the_hub_open(
    workshop: Workshop, store: Store, hub: HubServer, repository: Repository, spec: RunSpec
) -> None:
    """The conductor asks again; until then the run keeps its plan."""
    given = prepare(store, spec, Profile(), Asked("renewed", workshop.folder))
    before = len(hub.seen)
    submitter = Asked("renewed", workshop.folder, repin=True, asks_hub=False)
    assert record_plan(store, spec, Profile(), submitter) is None
    assert len(hub.seen) == before
    record = read_run(store, "renewed")
    assert record is not None
    assert "hf:org/name@main" not in record.pins
    assert record.plan_sha256 == given.plan_sha256


def test_hub_that_has_nothing_leaves_no_run(
    workshop: Workshop, store: Store, hub: HubServer, spec: RunSpec
) -> None:
    """A mistyped name is said before anything is written."""
    with pytest.raises(InputMissing, match="no model org/name"):
        prepare(store, spec, Profile(), Asked("nothing", workshop.folder))
    assert read_run(store, "nothing") is None
