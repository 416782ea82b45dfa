import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.spec.errors import UnsafeArtifact
from modelmill.spec.names import SEGMENT
from modelmill.store.keys import LONGEST_KEY_BYTES, check_key, check_paths, is_under

SEGMENTS = st.from_regex(SEGMENT, fullmatch=True).filter(lambda text: len(text) < 100)
KEYS = st.lists(SEGMENTS, min_size=1, max_size=6).map("/".join)


@settings(deadline=None, max_examples=60)
@given(KEYS)
def test_check_key_inside_the_grammar(key: str) -> None:
    """A key of good segments is kept as it is."""
    assert check_key(key) == key


@settings(deadline=None, max_examples=60)
@given(KEYS, st.text(min_size=1, max_size=3), st.integers(0, 30))
def test_check_key_with_something_inserted(key: str, text: str, position: int) -> None:
    """An accepted key is ASCII, relative, without empty or hidden segments, for any input."""
    changed = key[:position] + text + key[position:]
    try:
        check_key(changed)
    except UnsafeArtifact:
        return
    assert changed.isascii()
    assert all(segment[0].isalnum() for segment in changed.split("/"))
    assert not set(changed) - set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._=-/"
    )


@pytest.mark.parametrize(
    "key",
    [
        "", "/a", "a/", "a//b", ".", "..", "a/../b", ".hidden", "a\\b", "a b", "a\n", "a\x00b",
        "cafe\u0301", "a%41", "-a", "_a", "a:b", "x" * (LONGEST_KEY_BYTES + 1),
    ],
)  # fmt: skip
def test_check_key_outside_the_grammar(key: str) -> None:
    """Each key that some store or file system changes is refused."""
    with pytest.raises(UnsafeArtifact):
        check_key(key)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["a", "a"], "one file"),
        (["Model.json", "model.json"], "one file"),
        (["a/b", "a"], "file and a folder"),
        (["A", "a/b"], "file and a folder"),
    ],
)
def test_check_paths_that_collide(paths: list[str], words: str) -> None:
    """Paths that cannot exist side by side everywhere are refused together."""
    with pytest.raises(UnsafeArtifact, match=words):
        check_paths(paths)


def test_check_paths_that_fit() -> None:
    """Ordinary paths are kept in their order."""
    paths = ("config.json", "adapter/a", "adapter/b", "a.b/c")
    assert check_paths(paths) == paths


@pytest.mark.parametrize(
    ("path", "expected"), [("a", True), ("a/b", True), ("ab", False), ("b/a", False)]
)
def test_is_under(path: str, expected: bool) -> None:
    """A part is a file or a whole folder, never a piece of a name."""
    assert is_under(path, ("a",)) is expected
