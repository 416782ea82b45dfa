"""When a loss has run away for good; ordinary runs never have."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from modelmill.stages.finetune.divergence import FIRST, PATIENCE, Divergence


def first_alarm(losses: list[float]) -> int | None:
    """Find the step at which it is said."""
    divergence = Divergence()
    return next((n for n, loss in enumerate(losses, 1) if divergence.has_diverged(loss)), None)


@given(
    start=st.floats(0.05, 12),
    floor=st.floats(0.01, 1),
    noise=st.floats(0, 0.5),
    seed=st.integers(0, 1000),
)
def test_loss_that_falls_or_stays_never_alarms(
    start: float, floor: float, noise: float, seed: int
) -> None:
    """However noisy, and however little is learned."""
    draw = random.Random(seed)
    losses = [
        (floor * start + (1 - floor) * start * math.exp(-step / 100))
        * draw.lognormvariate(0, noise)
        for step in range(1000)
    ]
    assert first_alarm(losses) is None


@given(height=st.floats(0, 15), length=st.integers(0, PATIENCE // 2))
def test_spike_that_passes_never_alarms(height: float, length: int) -> None:
    """A bad batch, or a warm-up that is too steep, is not the end."""
    losses = [2.0] * 100 + [2.0 + height] * length + [1.8] * 500
    assert first_alarm(losses) is None


def test_rise_that_is_small_never_alarms() -> None:
    """Overfitting to a second task, or harder rows later on, is no divergence."""
    assert first_alarm([1.0] * 50 + [2.5] * 10_000) is None


@given(start=st.floats(0.1, 3), quiet=st.integers(FIRST, 500))
def test_loss_that_stays_far_above_alarms_in_time(start: float, quiet: int) -> None:
    """Ten nats is what knowing nothing costs."""
    alarm = first_alarm([start] * quiet + [11.0] * 500)
    assert alarm is not None
    assert quiet + PATIENCE <= alarm <= quiet + PATIENCE + 40


def test_state_can_be_written_down_in_between() -> None:
    """Nothing else is remembered."""
    one = Divergence()
    for loss in [2.0] * 20 + [9.0] * 30:
        one.has_diverged(loss)
    other = Divergence(one.seen, one.start, one.smoothed, one.above)
    assert other == one
