"""Addresses of sources are taken apart as their writers mean them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.spec.sources import (
    HubAddress,
    is_hub,
    is_local,
    parse_hub,
    table_kind,
)

segments = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.]{0,8}[A-Za-z0-9]", fullmatch=True).filter(
    lambda text: ".." not in text
)
revisions = st.one_of(
    st.just(""),
    segments,
    st.builds("{}/{}".format, segments, segments),
    st.builds("refs/pr/{}".format, st.integers(1, 999)),
    st.builds("refs/convert/{}".format, segments),
)
addresses = st.one_of(
    st.builds(
        HubAddress, st.just("model"), st.builds("{}/{}".format, segments, segments), revisions
    ),
    st.builds(
        HubAddress,
        st.just("dataset"),
        st.builds("{}/{}".format, segments, segments),
        revisions,
        st.lists(segments, min_size=1, max_size=3).map("/".join),
    ),
)


@given(addresses)
def test_address_survives_its_own_text(address: HubAddress) -> None:
    """What is pinned as text is what is pulled."""
    assert parse_hub(str(address)) == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf:org/name", HubAddress("model", "org/name")),
        ("hf:org/name@refs/pr/3", HubAddress("model", "org/name", "refs/pr/3")),
        ("hf:org/name@a%2Fb", HubAddress("model", "org/name", "a/b")),
        ("hf:datasets/o/n/a.csv", HubAddress("dataset", "o/n", "", "a.csv")),
        ("hf:datasets/o/n@v1/d/t-*.csv", HubAddress("dataset", "o/n", "v1", "d/t-*.csv")),
        (
            "hf:datasets/o/n@refs/convert/parquet/d/",
            HubAddress("dataset", "o/n", "refs/convert/parquet", "d"),
        ),
    ],
)
def test_address_is_taken_apart(text: str, address: HubAddress) -> None:
    """Revisions with a slash are those that HfFileSystem knows, or written with %2F."""
    assert parse_hub(text) == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf://org/name", "without slashes"),
        ("hf:gpt2", "'gpt2' is not a repository of a hub, which is called org/name"),
        ("hf:../../etc", "is not a repository"),
        ("hf:org/name@", "no revision behind the @"),
        ("hf:org/name@a/b", "a slash in a revision is written %2F"),
        ("hf:org/name/config.json", "a model on a hub is a whole repository"),
        ("hf:datasets/org/name", "name the file, the folder or a pattern"),
        ("hf:datasets/org/name@v1/", "name the file, the folder or a pattern"),
        ("hf:datasets/org/name/a/../b", "no empty parts"),
    ],
)
def test_address_that_cannot_be_meant(text: str, said: str) -> None:
    """The message shows how it is written."""
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_hub(text)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.JSON", "jsonl"),
        ("d/a.csv.gz", "csv"),
        ("a.tsv", "tsv"),
        ("a.parquet", "parquet"),
        ("a.txt.gz", "text"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("load.py", None),
        ("csv", None),
    ],
)
def test_format_follows_the_name(name: str, kind: str | None) -> None:
    """Parquet packs itself; whatever else there is is no table."""
    assert table_kind(name) == kind


@pytest.mark.parametrize(("source", "where"), [("hf:a/b", 0), ("s3://a/b", 1), ("./hf", 2)])
def test_source_is_in_one_place(source: str, where: int) -> None:
    """On a hub, in a bucket, or here."""
    found = (is_hub(source), source.startswith("s3://"), is_local(source))
    assert found.index(True) == where
    assert sum(found) == 1
