from pathlib import Path

from modelmill.store.checkpoint import drop_checkpoints, restore_checkpoint, save_checkpoint
from modelmill.store.s3 import Store


def _save(store: Store, root: Path, text: str, attempt: str = "a") -> int:
    (root / "state").mkdir(parents=True, exist_ok=True)
    (root / "state" / "step.txt").write_text(text)
    return save_checkpoint(store, "key", attempt, root)


def _restore(store: Store, root: Path) -> str | None:
    if not restore_checkpoint(store, "key", root):
        assert list(root.iterdir()) == []
        return None
    return (root / "state" / "step.txt").read_text()


def test_restore_without_checkpoint(store: Store, tmp_path: Path) -> None:
    """A stage that never saved starts from the beginning."""
    assert _restore(store, tmp_path / "out") is None


def test_restore_the_newest(store: Store, tmp_path: Path) -> None:
    """The newest state counts, whichever attempt saved it, and leftovers are cleared."""
    _save(store, tmp_path / "in", "one", "a")
    _save(store, tmp_path / "in", "two", "b")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")

    assert _restore(store, tmp_path / "out") == "two"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["state"]


def test_restore_when_the_newest_is_damaged(store: Store, tmp_path: Path) -> None:
    """A damaged state is passed over for the one before, and without that for nothing."""
    for text in ("one", "two"):
        _save(store, tmp_path / "in", text)
    store.put("checkpoints/key/a/000002/state/step.txt", b"TWO")
    assert _restore(store, tmp_path / "out") == "one"

    store.put("checkpoints/key/a/000001/COMMITTED.json", b"{")
    assert _restore(store, tmp_path / "out") is None


def test_restore_when_the_newest_is_incomplete(store: Store, tmp_path: Path) -> None:
    """A state whose manifest was never written does not count."""
    _save(store, tmp_path / "in", "one")
    store.put("checkpoints/key/a/000002/state/step.txt", b"two")

    assert _restore(store, tmp_path / "out") == "one"


def test_restore_of_another_key(store: Store, tmp_path: Path) -> None:
    """A state of another recipe is never gone on from, not even under this key's name."""
    _save(store, tmp_path / "in", "one")
    assert not restore_checkpoint(store, "other", tmp_path / "out")

    for item in list(store.list("checkpoints/key/")):
        stored = store.get(item.key)
        assert stored is not None
        store.put(item.key.replace("checkpoints/key/", "checkpoints/other/"), stored.body)
    assert not restore_checkpoint(store, "other", tmp_path / "out")


def test_save_keeps_two(store: Store, tmp_path: Path) -> None:
    """An attempt keeps its last two states and never touches another attempt's."""
    _save(store, tmp_path / "in", "other", "b")
    numbers = [_save(store, tmp_path / "in", str(number)) for number in range(4)]

    assert numbers == [1, 2, 3, 4]
    kept = {item.key.split("/", 2)[2].rsplit("/state", 1)[0] for item in store.list()}
    assert {name.removesuffix("/COMMITTED.json") for name in kept} == {
        "a/000003",
        "a/000004",
        "b/000001",
    }


def test_drop_checkpoints(store: Store, tmp_path: Path) -> None:
    """What was saved for a key can be removed as a whole."""
    _save(store, tmp_path / "in", "one")
    drop_checkpoints(store, "key")

    assert list(store.list()) == []
