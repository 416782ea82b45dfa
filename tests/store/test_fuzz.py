"""Whatever bytes come, the readers of the safety check accept or refuse, and do nothing else."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from .fuzz import READERS, WORDS, changed, corpus, outcome, seeds

CALM = ("accepted", "refused")
SEEDS = seeds()


@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.name)
def test_input_that_once_went_wrong(path: Path) -> None:
    """It is read again, and calmly."""
    assert outcome(path) in CALM


@pytest.mark.parametrize("kind", READERS)
def test_sound_inputs_are_told_from_others(kind: str, tmp_path: Path) -> None:
    """The fuzzer starts from what is accepted: nothing is refused only because all is."""
    path = tmp_path / f"input.{kind}"
    found = []
    for body in SEEDS[kind]:
        path.write_bytes(body)
        found.append(outcome(path))
    assert found[0] == "accepted"
    assert set(found) <= set(CALM)


def _changed(kind: str) -> SearchStrategy[bytes]:
    """Change a seed, in ways that hypothesis can make smaller."""
    return st.builds(
        lambda body, seed: changed(body, SEEDS[kind], random.Random(seed)),
        st.sampled_from(SEEDS[kind]),
        st.integers(0, 2**32),
    )


@pytest.mark.parametrize("kind", READERS)
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_input_is_read_calmly(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Sound files with bytes changed, moved, cut or taken from each other."""
    path = tmp_path_factory.getbasetemp() / f"changed.{kind}"
    path.write_bytes(data.draw(_changed(kind)))
    assert outcome(path) in CALM


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(WORDS), max_size=40), st.sampled_from(["{{%s}}", "{%%%s%%}", "%s"]))
def test_template_of_any_words_is_read_calmly(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], form: str
) -> None:
    """Nothing that the language can say makes the sandbox fail in another way."""
    path = tmp_path_factory.getbasetemp() / "words.jinja"
    path.write_text(form % f" {' '.join(words)} ", encoding="utf-8")
    assert outcome(path) in CALM


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.sampled_from(list(READERS)))
def test_any_bytes_are_read_calmly(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, kind: str
) -> None:
    """Bytes that are nothing at all."""
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(body)
    assert outcome(path) in CALM
