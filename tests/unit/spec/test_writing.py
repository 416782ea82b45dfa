"""Documents are written so that every reader of YAML sees the same."""

from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue
from ruamel.yaml import YAML

from modelmill.spec.writing import yaml_text

AMBIGUOUS = ["yes", "no", "on", "Off", "1e3", "12:30:00", "0o7", "017", "1_000", "~", "null"]
words = st.one_of(
    st.text("yYnNoOfFeEsStTrRuU01289._:-+#{}[]'\" \n é", max_size=8), st.sampled_from(AMBIGUOUS)
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)


def read(text: str, version: str) -> list[JsonValue]:
    """Read documents as YAML of a version."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    return list(yaml.load_all(text))


@given(st.lists(st.dictionaries(words, values, min_size=1, max_size=3), min_size=1, max_size=3))
def test_what_is_written_reads_back_in_both_versions(documents: list[JsonValue]) -> None:
    """YAML 1.1, which kubectl reads, takes `no` for false and `12:30` for a number."""
    text = yaml_text(documents)
    assert read(text, "1.2") == documents
    assert read(text, "1.1") == documents


def test_order_is_kept_and_equal_parts_are_written_twice() -> None:
    """A person reads from kind to spec, and looks nothing up."""
    part: JsonValue = {"b": 1}
    assert yaml_text([{"z": part, "a": part}]) == "---\nz:\n  b: 1\na:\n  b: 1\n"
