"""What an end means for another attempt, and for the run."""

import pytest

from modelmill.spec.errors import CLASSES, Retry, code_of, retry_for


@pytest.mark.parametrize(
    ("exit_code", "retry", "code"),
    [
        (65, Retry.NEVER, 65),
        (71, Retry.COUNTED, 71),
        (74, Retry.COUNTED, 74),
        (75, Retry.FREE, 75),
        (78, Retry.NEVER, 78),
        (1, Retry.NEVER, 70),
        # Killed, by whomever; in a container the signal is added to 128.
        (-9, Retry.COUNTED, 71),
        (137, Retry.COUNTED, 71),
        (139, Retry.COUNTED, 71),
        # Asked to stop before it could hear: nothing is lost, and it did nothing wrong.
        (-15, Retry.FREE, 75),
        (143, Retry.FREE, 75),
    ],
)
def test_end_decides_about_another_attempt(exit_code: int, retry: Retry, code: int) -> None:
    """The codes of processes and of containers mean the same."""
    assert (retry_for(exit_code), code_of(exit_code)) == (retry, code)


def test_every_class_has_a_code_of_its_own() -> None:
    """Else a code would have two causes."""
    assert len({each.exit_code for each in CLASSES}) == len(CLASSES)
