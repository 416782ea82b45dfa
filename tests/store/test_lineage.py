import pytest

from modelmill.spec.errors import LineageBroken
from modelmill.store.artifact import Committed, check_ancestry, check_lineage, record_input
from modelmill.store.s3 import Store
from tests.store.conftest import Publisher


def _chain(store: Store, publish: Publisher) -> tuple[Committed, Committed, Committed]:
    model = publish(store, "m", {"config.json": b"{}"}, kind="fetch-model")
    merged = publish(store, "k", {"a": b"1"}, inputs={"model": record_input(model)})
    quantized = publish(
        store, "q", {"b": b"2"}, kind="quantize", inputs={"model": record_input(merged)}
    )
    return model, merged, quantized


def _remove(store: Store, committed: Committed) -> None:
    manifest = committed.manifest
    store.delete([f"artifacts/{manifest.kind}/{manifest.key}/COMMITTED.json"])


def test_lineage_of_a_sound_chain(store: Store, publish: Publisher) -> None:
    """An artifact whose inputs are still those it was made from is sound."""
    _, _, quantized = _chain(store, publish)
    sound: set[str] = set()

    check_ancestry(store, quantized, sound)

    assert len(sound) == 3


def test_lineage_when_an_input_is_replaced(store: Store, publish: Publisher) -> None:
    """A replaced input breaks what was made from it, and the message mends it."""
    model, merged, quantized = _chain(store, publish)
    _remove(store, model)
    publish(store, "m", {"config.json": b"{ }"}, kind="fetch-model")

    with pytest.raises(LineageBroken, match="has been replaced since") as caught:
        check_lineage(store, merged)
    assert (caught.value.exit_code, caught.value.fix) == (
        65,
        "make it again: modelmill run FILE --again merge",
    )
    check_lineage(store, quantized)
    with pytest.raises(LineageBroken):
        check_ancestry(store, quantized)


def test_lineage_when_an_input_is_removed(store: Store, publish: Publisher) -> None:
    """A removed input breaks what was made from it."""
    model, merged, _ = _chain(store, publish)
    _remove(store, model)

    with pytest.raises(LineageBroken, match="is no longer committed"):
        check_lineage(store, merged)
