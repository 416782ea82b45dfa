"""The pure parts: group size and calibration."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.spec.errors import DataError, SpecError
from modelmill.spec.grouping import CHOICES, check_packing, choose_group_size
from modelmill.spec.records import Row
from modelmill.stages.quantize.calibration import (
    SHORTEST,
    Evidence,
    choose_sequences,
    shortage,
)

WIDTHS = st.dictionaries(st.text("abc", min_size=1), st.integers(1, 40).map(lambda n: n * 32))


@given(WIDTHS)
def test_group_size_auto_is_the_largest_that_divides_all(widths: dict[str, int]) -> None:
    """No larger choice would divide every layer."""
    chosen = choose_group_size("auto", widths)
    fitting = [size for size in CHOICES if all(width % size == 0 for width in widths.values())]
    assert chosen == max(fitting)


def test_group_size_of_falcon_7b() -> None:
    """4544 and 18176 are what broke 128 for everyone."""
    assert choose_group_size("auto", {"qkv": 4544, "down": 18176}) == 64


def test_group_size_that_does_not_divide_names_the_layers() -> None:
    """The message says which layers and what to do."""
    with pytest.raises(SpecError, match=r"128 does not divide .* h\.qkv \(4544\)") as caught:
        choose_group_size(128, {"h.qkv": 4544, "h.out": 256})
    assert "auto" in caught.value.what
    assert "h.out" not in caught.value.what


def test_group_size_auto_without_a_choice_is_refused() -> None:
    """Better an error than a model that breaks at inference."""
    with pytest.raises(SpecError, match="bitsandbytes"):
        choose_group_size("auto", {"odd": 48})


@pytest.mark.parametrize(("bits", "least"), [(2, 16), (3, 32), (4, 8), (8, 4)])
def test_outputs_have_to_fill_words_of_zero_points(bits: int, least: int) -> None:
    """The least that packs is accepted, the next is refused with the layer's name."""
    check_packing(bits, {"q": 3 * least, "k": least})
    with pytest.raises(SpecError, match=rf"k \({least + 1}\) into whole words"):
        check_packing(bits, {"q": 3 * least, "k": least + 1})


def rows_of(lengths: list[int]) -> list[Row]:
    """Make rows whose ids are their own number, as often as the length says."""
    return [
        Row(row=number, prompt=str(length), completion="", fields={})
        for number, length in enumerate(lengths)
    ]


def encode(row: Row) -> list[int]:
    """Repeat the row's number."""
    return [row.row] * int(row.prompt)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.integers(SHORTEST, 400),
    st.integers(SHORTEST, 100),
    st.integers(0, 3),
)
def test_calibration_keeps_its_budget(
    lengths: list[int], max_tokens: int, length: int, seed: int
) -> None:
    """Never more tokens than asked, no sequence too long or so short that it is dropped."""
    evidence = Evidence(rows_of(lengths), max_tokens)
    if min(sum(lengths), max_tokens, length) < SHORTEST:
        with pytest.raises(DataError, match="too few"):
            choose_sequences({"rows": evidence}, encode, length=length, seed=seed)
        return
    chosen = choose_sequences({"rows": evidence}, encode, length=length, seed=seed)
    sizes = [len(each) for each in chosen.sequences]
    assert len(set(sizes)) == 1
    assert SHORTEST <= sizes[0] <= length
    assert chosen.tokens == sum(sizes) <= max_tokens
    assert chosen.tokens > min(max_tokens, sum(lengths)) - sizes[0]
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    joined = [number for number in order for _ in range(lengths[number])]
    used = joined[: chosen.tokens]
    assert [token for each in chosen.sequences for token in each] == used
    assert chosen.rows == len(set(used))
    assert (chosen.given, chosen.text_tokens) == (len(lengths), 0)
    looked_at = set(joined[:max_tokens])
    assert chosen.longer == sum(lengths[row] > length for row in looked_at)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.integers(SHORTEST, 100),
    st.integers(0, 3),
)
def test_mix_never_joins_rows_and_text(
    lengths: list[int], texts: list[int], budgets: tuple[int, int], length: int, seed: int
) -> None:
    """Every sequence is of one origin, all are as long, and neither exceeds its budget."""
    text = [row.model_copy(update={"row": row.row + 100}) for row in rows_of(texts)]
    evidence = {
        "rows": Evidence(rows_of(lengths), budgets[0]),
        "text": Evidence(text, budgets[1]),
    }
    shortest = min(sum(lengths), sum(texts), *budgets)
    if shortest < SHORTEST:
        with pytest.raises(DataError, match="too few"):
            choose_sequences(evidence, encode, length=length, seed=seed)
        return
    chosen = choose_sequences(evidence, encode, length=length, seed=seed)
    for piece in chosen.pieces:
        assert len(piece.ids) == min(length, shortest)
        assert {token >= 100 for token in piece.ids} == {piece.origin == "text"}
    tokens = [token for ids in chosen.sequences for token in ids]
    assert chosen.rows == len(set(tokens))
    assert chosen.text_tokens == sum(token >= 100 for token in tokens) <= budgets[1]
    assert chosen.tokens - chosen.text_tokens <= budgets[0]
    assert chosen == choose_sequences(evidence, encode, length=length, seed=seed)
    fewer = chosen.first(1)
    assert fewer.rows == len(set(fewer.sequences[0]))


def test_mix_spreads_the_text_among_the_rows() -> None:
    """The seed decides where the text's sequences stand; they are not all at the end."""
    evidence = {
        "rows": Evidence(rows_of([20] * 40), 400),
        "text": Evidence(rows_of([20] * 40), 400),
    }
    orders = [
        [each.origin for each in choose_sequences(evidence, encode, length=20, seed=seed).pieces]
        for seed in (0, 1)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == ["rows"] * 20 + ["text"] * 20
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_text_that_is_too_short_says_what_to_change() -> None:
    """A text without words for one sequence, and a share that leaves room for none."""
    few = {"text": Evidence(rows_of([5]), 400)}
    with pytest.raises(DataError, match=r"1 calibration texts give 5 tokens") as caught:
        choose_sequences(few, encode, length=20, seed=0)
    assert "a longer calibration.text" in caught.value.fix
    small = {"text": Evidence(rows_of([50]), 6)}
    with pytest.raises(DataError, match=r"give 6 tokens") as caught:
        choose_sequences(small, encode, length=20, seed=0)
    assert "more calibration.tokens" in caught.value.fix


def test_shortage_is_told_below_the_floor_only() -> None:
    """Four tokens per input feature of the widest layer."""
    assert shortage("gptq", 4 * 1536, 1536) == ""
    assert "1536" in shortage("gptq", 4 * 1536 - 1, 1536)
