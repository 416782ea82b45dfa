from pathlib import Path

from modelmill.spec.records import Live
from modelmill.store.checkpoint import (
    drop_checkpoints,
    has_checkpoint,
    put_live,
    read_live,
    restore_all,
    restore_checkpoints,
    save_checkpoint,
    save_shard,
)
from modelmill.store.s3 import Store


def _save(store: Store, root: Path, text: str, attempt: str = "a") -> int:
    (root / "state").mkdir(parents=True, exist_ok=True)
    (root / "state" / "step.txt").write_text(text)
    return save_checkpoint(store, "key", attempt, root)


def _restore(store: Store, root: Path) -> str | None:
    if not next(restore_checkpoints(store, "key", root), False):
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


def test_restore_hands_out_one_state_after_the_other(store: Store, tmp_path: Path) -> None:
    """Who cannot use the newest asks for the one before; after the last the folder is empty."""
    for text in ("one", "two"):
        _save(store, tmp_path / "in", text)
    out = tmp_path / "out"
    found = [
        (out / "state" / "step.txt").read_text() for _ in restore_checkpoints(store, "key", out)
    ]
    assert found == ["two", "one"]
    assert list(out.iterdir()) == []


def test_restore_of_another_key(store: Store, tmp_path: Path) -> None:
    """A state of another recipe is never gone on from, not even under this key's name."""
    _save(store, tmp_path / "in", "one")
    assert not next(restore_checkpoints(store, "other", tmp_path / "out"), False)

    for item in list(store.list("checkpoints/key/")):
        stored = store.get(item.key)
        assert stored is not None
        store.put(item.key.replace("checkpoints/key/", "checkpoints/other/"), stored.body)
    assert not next(restore_checkpoints(store, "other", tmp_path / "out"), False)


def test_save_keeps_two(store: Store, tmp_path: Path) -> None:
    """However many attempts there were: the newest, and the one before."""
    _save(store, tmp_path / "in", "other", "0")
    numbers = [_save(store, tmp_path / "in", str(number)) for number in range(4)]

    assert numbers == [1, 2, 3, 4]
    assert _folders(store) == {"a/000003", "a/000004", "a/SAVED", "0/SAVED"}


def test_attempt_whose_states_are_old_has_still_saved_something(
    store: Store, tmp_path: Path
) -> None:
    """Else a conductor that looks late would take it for one that got nowhere."""
    _save(store, tmp_path / "in", "one", "a")
    for number in range(3):
        _save(store, tmp_path / "in", str(number), "b")
    assert has_checkpoint(store, "key", "a")
    assert not has_checkpoint(store, "key", "c")
    assert _restore(store, tmp_path / "out") == "2"


def test_save_leaves_alone_what_another_attempt_is_writing(store: Store, tmp_path: Path) -> None:
    """Two pods of one attempt may live for a while, and neither tears the other's state."""
    store.put("checkpoints/key/b/000001/state/step.txt", b"half")
    put_live(store, "key", Live(run="run", attempt="b", time="now"))
    for number in range(3):
        _save(store, tmp_path / "in", str(number), "a")
    assert "b/000001" in _folders(store)
    assert read_live(store, "key") is not None


def test_save_clears_what_the_same_attempt_gave_up(store: Store, tmp_path: Path) -> None:
    """An upload that was cut off leaves files that no manifest names."""
    store.put("checkpoints/key/a/000001/state/step.txt", b"half")
    assert _save(store, tmp_path / "in", "whole") == 2
    assert _folders(store) == {"a/000002"}


def _folders(store: Store) -> set[str]:
    found = {item.key.removeprefix("checkpoints/key/") for item in store.list()}
    return {"/".join(name.split("/")[:2]) for name in found}


def test_drop_checkpoints(store: Store, tmp_path: Path) -> None:
    """What was saved for a key can be removed as a whole."""
    _save(store, tmp_path / "in", "one")
    drop_checkpoints(store, "key")

    assert list(store.list()) == []


def _save_shard(store: Store, root: Path, text: str, attempt: str) -> int:
    root.mkdir(exist_ok=True)
    (root / "rows").write_text(text)
    return save_shard(store, "key", attempt, root)


def _texts(folders: tuple[Path, ...]) -> set[str]:
    return {(folder / "rows").read_text() for folder in folders}


def test_shards_add_up(store: Store, tmp_path: Path) -> None:
    """A shard replaces what itself has saved, whole states and other shards keep theirs."""
    for text, attempt in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c"), ("d1", "d")):
        _save_shard(store, tmp_path / "in", text, attempt)
    for _ in range(3):
        (tmp_path / "in" / "rows").write_text("whole")
        save_checkpoint(store, "key", "w", tmp_path / "in")
    found = restore_all(store, "key", tmp_path / "out")
    assert _texts(found) == {"a2", "b1", "c1", "d1", "whole"}
    assert all(has_checkpoint(store, "key", attempt) for attempt in "abcdw")
    drop_checkpoints(store, "key")
    assert list(store.list("checkpoints/key/")) == []


def test_shard_that_is_damaged_or_incomplete_is_passed_over(store: Store, tmp_path: Path) -> None:
    """Nothing is left of it here, and what was fetched before is not fetched again."""
    for attempt in "abc":
        _save_shard(store, tmp_path / "in", attempt, attempt)
    store.put("checkpoints/key/a/shard-000001/rows", b"A")
    store.delete(["checkpoints/key/b/shard-000001/COMMITTED.json"])
    assert _texts(restore_all(store, "key", tmp_path / "out")) == {"c"}
    assert len(list((tmp_path / "out").iterdir())) == 1
    store.put("checkpoints/key/c/shard-000001/rows", b"C")
    assert _texts(restore_all(store, "key", tmp_path / "out")) == {"c"}


def test_state_that_goes_while_it_is_read_is_passed_over(store: Store, tmp_path: Path) -> None:
    """Whoever has committed takes the states away, under the eyes of a slower shard."""
    _save_shard(store, tmp_path / "in", "a", "a")
    store.delete(["checkpoints/key/a/shard-000001/rows"])
    assert restore_all(store, "key", tmp_path / "out") == ()
