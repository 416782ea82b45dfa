import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelmill.models.precision import CLEARLY_FASTER, DTYPES, choose_precision, decide

CPU = torch.device("cpu")
seconds = st.floats(1e-4, 10)


@pytest.mark.parametrize("asked", DTYPES)
def test_asked_precision_is_taken_without_measuring(asked: str) -> None:
    """Who names a precision gets it."""
    assert choose_precision(asked, CPU) == (DTYPES[asked], "asked for")  # type: ignore[arg-type]


def test_auto_measures_and_says_so() -> None:
    """The choice comes with both the ratio and the device it was measured on."""
    chosen, reason = choose_precision("auto", CPU)
    assert chosen in (torch.float32, torch.bfloat16)
    assert "bfloat16 trains" in reason
    assert "on this cpu device (measured)" in reason


@given(full=seconds, half=seconds)
def test_half_precision_must_be_clearly_faster(full: float, half: float) -> None:
    """A device that is slow in half precision, or hardly faster, trains in float32."""
    chosen, reason = decide(full, half, torch.bfloat16, "cpu")
    assert (chosen == torch.bfloat16) == (full / half >= CLEARLY_FASTER)
    assert f"{'bfloat16' if chosen == torch.bfloat16 else 'float32'} chosen" in reason
